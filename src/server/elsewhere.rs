//! Whether another broker delivers requests while an idle server gets none from its own.
//!
//! From RabbitMQ 4.3 on, a node that is cut off from its cluster goes on as if nothing had
//! happened. Consumers there get nothing, and a look at the queue tells them nothing either: if the
//! queue's leader was on that node, it still answers, with numbers that are out of date, and
//! otherwise the node counts no requests. Only a delivery proves that a node works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::queue;
use super::session::ServerSession;
use super::state::ServerState;
use crate::broker::{DataPlane, Limit, Waiter};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::frames::{Answer, Event, Method};

/// Asks another broker, on a connection and a thread for this alone. If requests wait there and it
/// delivers one, and no worker has begun with a request since this number was `handled`, all
/// workers leave their connection. The request returns to the queue. Does not block.
pub(super) fn look(state: &Arc<ServerState>, session: &Arc<ServerSession>, handled: u64) {
    let (state, session) = (Arc::clone(state), Arc::clone(session));
    let look = move || {
        if let Err(error) = leave_if_another_delivers(&state, &session, handled) {
            log::debug!("no look at another broker: {error}");
        }
    };
    if let Err(error) = thread::Builder::new().name("rpc-look".into()).spawn(look) {
        log::debug!("no look at another broker: {error}");
    }
}

fn leave_if_another_delivers(
    state: &ServerState,
    session: &Arc<ServerSession>,
    handled: u64,
) -> Result<()> {
    let is_better = another_delivers(state, session)? && state.is_idle_since(handled);
    if is_better && !state.stop.is_stopped() {
        let text = format!("another broker delivers requests of {:?}", state.queue);
        state.abandon(session, &session.connection.endpoint.unreachable(text));
    }
    Ok(())
}

/// Whether the next broker that can be reached delivers a request that waits.
fn another_delivers(state: &ServerState, session: &ServerSession) -> Result<bool> {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let endpoint = &session.connection.endpoint;
    let connection = state.brokers.connect_elsewhere(endpoint)?;
    if connection.endpoint == *endpoint {
        return Ok(false);
    }
    let explain = |error| connection.explain(error, "look for waiting requests");
    let until = Deadline::after(TIMEOUT).at;
    let limit = Limit::Until(until);
    let (waiter, delivered) = (Arc::<Waiter>::default(), Arc::new(AtomicBool::new(false)));
    let (reader, seen) = (Arc::clone(&waiter), Arc::clone(&delivered));
    let on_event = move |plane: &DataPlane, event| {
        if let Event::Delivery(_) = event {
            seen.store(true, Ordering::Relaxed);
            plane.notify(&reader);
        }
    };
    let channel = connection.open_channel(limit, Arc::clone(&waiter), on_event).map_err(explain)?;
    let found = channel.call(Method::FindQueue(&state.queue), limit).and_then(Answer::queue);
    if found.map_err(explain)?.messages == 0 {
        return Ok(false);
    }
    queue::consume(&channel, &state.queue, 1, limit).map_err(explain)?;
    connection.wait(&waiter, until, || delivered.load(Ordering::Relaxed));
    Ok(delivered.load(Ordering::Relaxed))
}
