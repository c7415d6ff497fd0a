//! Whether a session opens channels that it can do without.
//!
//! A user may be allowed few channels. The broker closes a connection that opens one more, with all
//! calls on it. So the sessions of a client meet that limit once, and then do without for a while.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::broker::{DataPlane, Ended};
use crate::lock::lock;

#[derive(Default)]
pub(super) struct ExtraChannels(Mutex<State>);

#[derive(Default)]
struct State {
    /// The connection of the latest session.
    latest: Option<Arc<DataPlane>>,
    limit_met: Option<Instant>,
}

impl ExtraChannels {
    /// Whether a session on this connection, which is the latest from now on, may open them.
    pub(super) fn allow(&self, connection: &Arc<DataPlane>) -> bool {
        /// An operator may raise the limit.
        const PAUSE: Duration = Duration::from_secs(600);
        let mut state = lock(&self.0);
        let before = state.latest.replace(Arc::clone(connection));
        let limit = match before.as_ref().and_then(|before| before.ended()) {
            Some(Ended::Closed(close)) if close.is_channel_limit() => Some(close),
            _ => None,
        };
        if limit.is_some() {
            state.limit_met = Some(Instant::now());
            // A connection tells once that it has met the limit.
            state.latest.take_if(|latest| latest.ended().is_some());
        }
        let are_allowed = state.limit_met.is_none_or(|met| met.elapsed() >= PAUSE);
        drop(state);
        if let Some(close) = limit {
            log::warn!(
                "the user may open too few channels ({close}); until that limit is raised \
                 (rabbitmqctl set_user_limits), errors do not say whether a server is there, and a \
                 request that the broker refuses may end calls beside it"
            );
        }
        are_allowed
    }
}
