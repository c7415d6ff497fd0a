//! A connection to a broker that has the request queue.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use super::idle_checks::EARLY_CHECK_INTERVAL;
use crate::broker::{Connection, Ended, Session};
use crate::error::Error;

pub(crate) struct ServerSession {
    pub(super) connection: Connection,
    /// Whether the queue is known to refuse only requests that it has never delivered.
    pub(super) refuses_newest: bool,
    /// Replies of this size are sent alone: one that the broker refuses closes its channel.
    pub(super) large: AtomicUsize,
    /// Whether a worker has found that the queue was deleted. The others may notice later.
    pub(super) queue_is_deleted: AtomicBool,
    /// When an idle worker checks for a stall next.
    pub(super) next_check: Mutex<Instant>,
}

impl ServerSession {
    pub(super) fn new(connection: Connection, refuses_newest: bool) -> ServerSession {
        /// From this size on, waiting for the broker's answer costs little beside sending a reply.
        const LARGE: usize = 512 << 10;
        ServerSession {
            connection,
            refuses_newest,
            large: AtomicUsize::new(LARGE),
            queue_is_deleted: AtomicBool::new(false),
            next_check: Mutex::new(Instant::now() + EARLY_CHECK_INTERVAL),
        }
    }

    /// How long the broker may take to notice that the connection has ended: none if it has ended
    /// it itself, or was told.
    pub(super) fn notice(&self) -> Duration {
        match self.connection.ended() {
            Some(Ended::Silent | Ended::Cut(_)) => 2 * self.connection.heartbeat(),
            _ => Duration::ZERO,
        }
    }
}

impl Session for ServerSession {
    fn connection(&self) -> &Connection {
        &self.connection
    }

    fn ended(&self) -> Option<Error> {
        self.connection.ended().map(|reason| self.connection.endpoint.unreachable(reason))
    }
}
