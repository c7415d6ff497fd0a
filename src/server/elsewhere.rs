//! Whether requests wait at another broker while an idle server gets none from its own.
//!
//! From RabbitMQ 4.3 on, a node that is cut off from its cluster goes on as if nothing had
//! happened. Consumers there get nothing, and a look at the queue tells them nothing either: if the
//! queue's leader was on that node, it still answers, and otherwise the node counts no requests.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::session::ServerSession;
use super::state::ServerState;
use crate::broker::Limit;
use crate::deadline::Deadline;
use crate::error::Result;
use crate::frames::{Answer, Method};

/// Asks another broker, on a connection and a thread for this alone. If requests wait there, and
/// the server has still begun none, all workers leave their connection. Does not block.
pub(super) fn look(state: &Arc<ServerState>, session: &Arc<ServerSession>) {
    let taken = state.counters().taken();
    let (state, session) = (Arc::clone(state), Arc::clone(session));
    let look = move || {
        let endpoint = &session.connection.endpoint;
        match waiting_elsewhere(&state, &session) {
            Ok(0) => {}
            Ok(waiting) if state.counters().taken() == taken => {
                let queue = &state.queue;
                let text = format!("another broker has {waiting} requests waiting in {queue:?}");
                state.abandon(&session, &endpoint.unreachable(text));
            }
            Ok(_) => {}
            Err(error) => log::debug!("no look at another broker: {error}"),
        }
    };
    if let Err(error) = thread::Builder::new().name("rpc-look".into()).spawn(look) {
        log::debug!("no look at another broker: {error}");
    }
}

/// The number of requests that wait in the queue as the next broker that answers sees it.
fn waiting_elsewhere(state: &ServerState, session: &ServerSession) -> Result<u32> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let connection = state.brokers.connect_elsewhere(&session.connection.endpoint)?;
    let explain = |error| connection.explain(error, "ask about the request queue");
    let limit = Limit::Until(Deadline::after(TIMEOUT).at);
    let channel = connection.open_channel(limit, Arc::default(), |_, _| {}).map_err(explain)?;
    let found = channel.call(Method::FindQueue(&state.queue), limit).and_then(Answer::queue);
    found.map(|found| found.messages).map_err(explain)
}
