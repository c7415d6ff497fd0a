//! The counters of a server.

/// The counters of a server since it was made. A reply counts once it is written: if the connection
/// is lost before the broker has it, the request is redelivered, and counts again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerCounters {
    /// Requests answered with a result.
    pub served: u64,
    /// Requests answered with a [`Failure`](crate::Failure).
    pub failed: u64,
    /// Requests that could not be answered, because their `reply_to` is missing or unusable.
    pub rejected: u64,
    /// Requests that had been delivered before, to this server or another one.
    pub redelivered: u64,
    /// Replies that the broker returned because their reply queue no longer existed.
    pub returned: u64,
    /// Requests that are executed or answered at present.
    pub in_progress: u64,
    /// Requests that were refused because too many waited
    /// ([`ServerOptions::max_waiting`](crate::ServerOptions::max_waiting)).
    pub refused: u64,
    /// Requests whose requester had stopped waiting before a worker began with them.
    pub expired: u64,
}

impl ServerCounters {
    /// The number of requests that workers have answered or rejected.
    pub(super) fn handled(&self) -> u64 {
        self.served + self.failed + self.rejected + self.expired
    }
}
