//! The counters of a server.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of a server since it was made.
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
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) served: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) redelivered: AtomicU64,
    pub(crate) returned: AtomicU64,
    in_progress: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn read(&self) -> ServerCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerCounters {
            served: read(&self.served),
            failed: read(&self.failed),
            rejected: read(&self.rejected),
            redelivered: read(&self.redelivered),
            returned: read(&self.returned),
            in_progress: read(&self.in_progress),
        }
    }

    /// The number of requests that workers have answered or rejected.
    pub(crate) fn taken(&self) -> u64 {
        let ServerCounters { served, failed, rejected, .. } = self.read();
        served + failed + rejected
    }

    /// Counts a request as in progress until the returned value is dropped.
    pub(crate) fn begin(&self) -> InProgress<'_> {
        add(&self.in_progress);
        InProgress(&self.in_progress)
    }
}

pub(crate) struct InProgress<'a>(&'a AtomicU64);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
