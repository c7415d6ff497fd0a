//! How a server is at one moment.

use std::fmt;
use std::time::Instant;

use super::state::ServerState;
use crate::broker::{Session, write_status};
use crate::deadline::age;
use crate::error::Error;

/// How a server is at one moment, as [`Stopper::status`](crate::Stopper::status) returns it.
///
/// `Display` writes one line, such as `4 of 4 workers take requests from rabbit-1:5672, connected
/// for 3 h; requests in progress: 2, the oldest for 7 s`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerStatus {
    /// `host:port` of the broker, if the server is connected.
    pub broker: Option<String>,
    /// When it connected there.
    pub connected_since: Option<Instant>,
    /// The number of workers that the server is to have
    /// ([`ServerOptions::workers`](crate::ServerOptions::workers)).
    pub workers: usize,
    /// Workers that the broker sends requests to. A worker counts also while it is busy.
    pub workers_ready: usize,
    /// Requests that are executed or answered at present.
    pub in_progress: u64,
    /// When the oldest of them began.
    pub oldest_since: Option<Instant>,
    /// What kept the server, or one of its workers, from serving most recently. It may be over.
    pub last_error: Option<Error>,
    /// Whether the server is told to stop.
    pub is_stopping: bool,
}

impl ServerStatus {
    /// Whether every worker takes requests, so that the server is worth waiting for.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping && self.workers_ready >= self.workers
    }

    pub(super) fn of(state: &ServerState) -> ServerStatus {
        // Those of an abandoned session may go on.
        let mut consumers = state.outcomes.consumers();
        consumers.retain(|(session, inbox)| session.ended().is_none() && inbox.consumes());
        // Read last: if the connection has just ended, neither it nor its consumers count.
        let connection = state.sessions.status();
        let (broker, connected_since) = connection.connected.unzip();
        let workers_ready = if broker.is_some() { consumers.len() } else { 0 };
        let in_progress = state.outcomes.in_progress();
        ServerStatus {
            broker,
            connected_since,
            workers: state.options.workers,
            workers_ready,
            in_progress: in_progress.len() as u64,
            oldest_since: in_progress.into_iter().min(),
            last_error: connection.last_error,
            is_stopping: state.stop.is_stopped(),
        }
    }
}

impl fmt::Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerStatus { workers, workers_ready, .. } = self;
        if self.is_stopping {
            f.write_str("stopping; ")?;
        }
        write!(f, "{workers_ready} of {workers} workers take requests")?;
        match (&self.broker, self.connected_since) {
            (Some(broker), Some(since)) => {
                write!(f, " from {broker}, connected for {}", age(since))?
            }
            _ => f.write_str(", not connected")?,
        }
        let error = self.last_error.as_ref().filter(|_| !self.is_ready());
        write_status(f, "requests in progress", self.in_progress, self.oldest_since, error)
    }
}
