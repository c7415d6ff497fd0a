//! The counters of a client.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a client since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientCounters {
    /// Calls started.
    pub calls: u64,
    /// Replies, with a result or a failure, that their caller received.
    pub replies: u64,
    /// Replies that were discarded: they came too late or twice, or belong to no request of this
    /// client.
    pub late: u64,
    /// Calls that ended with [`TimedOut`](crate::Error::TimedOut) or
    /// [`Blocked`](crate::Error::Blocked).
    pub timed_out: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Requests in flight: sent, and without an outcome yet.
    pub in_flight: usize,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) calls: AtomicU64,
    pub(super) replies: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) reconnects: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self, in_flight: usize) -> ClientCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ClientCounters {
            calls: read(&self.calls),
            replies: read(&self.replies),
            late: read(&self.late),
            timed_out: read(&self.timed_out),
            reconnects: read(&self.reconnects),
            in_flight,
        }
    }
}
