//! Whether a session opens channels that it can do without.
//!
//! A user may be allowed few channels. The broker closes a connection that opens one more, with all
//! calls on it. So the sessions of a client meet that limit once, and then do without for a while.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::options::Config;
use super::session::Session;
use crate::broker::{Connection, DataPlane, Ended};
use crate::error::Result;
use crate::frames::Close;
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
    /// Opens a session: without extra channels on another connection, if the broker closes this one
    /// because of them.
    pub(super) fn open_session(
        &self,
        config: &Arc<Config>,
        mut connection: Connection,
        is_reconnect: bool,
    ) -> Result<Session> {
        loop {
            let data_plane = Arc::clone(&connection);
            let are_allowed = self.allow(&data_plane);
            let opened = Session::open(config, connection, is_reconnect, are_allowed);
            if opened.is_ok() || !are_allowed || limit_met(&data_plane).is_none() {
                return opened;
            }
            // The broker counts the channels of a connection for a moment longer.
            thread::sleep(Duration::from_millis(200));
            connection = config.brokers.connect_near(&data_plane.endpoint)?;
        }
    }

    /// Whether a session on this connection, which is the latest from now on, may open them.
    fn allow(&self, connection: &Arc<DataPlane>) -> bool {
        /// An operator may raise the limit.
        const PAUSE: Duration = Duration::from_secs(600);
        let mut state = lock(&self.0);
        let before = state.latest.replace(Arc::clone(connection));
        let limit = before.as_ref().and_then(|before| limit_met(before));
        if limit.is_some() {
            state.limit_met = Some(Instant::now());
        }
        let are_allowed = state.limit_met.is_none_or(|met| met.elapsed() >= PAUSE);
        drop(state);
        if let Some(close) = limit {
            log::warn!(
                "the user may open too few channels ({close}): raise that limit (rabbitmqctl \
                 set_user_limits); in this session, errors do not say whether a server is there, \
                 and a request that the broker refuses may end calls beside it"
            );
        }
        are_allowed
    }
}

/// What the broker said, if it closed the connection because of the number of its channels.
fn limit_met(connection: &DataPlane) -> Option<&Close> {
    match connection.ended() {
        Some(Ended::Closed(close)) if close.is_channel_limit() => Some(close),
        _ => None,
    }
}
