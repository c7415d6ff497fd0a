//! How often a server whose workers get nothing connects anew.

use std::time::Duration;

/// The shortest time between two attempts is twice this.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// The last stall of a server.
#[derive(Default)]
pub(crate) struct StallBackoff {
    /// The number of requests that had been handled at that time.
    handled: u64,
    /// How often the server has connected anew since a worker last handled a request.
    reconnects: u32,
}

impl StallBackoff {
    /// Whether to connect anew for a stall, `after` the worker has begun to consume.
    ///
    /// The broker may have a reason that another connection does not change, such as a queue with a
    /// single active consumer. So the time until the next attempt doubles until a worker handles a
    /// request.
    pub(super) fn is_due(&mut self, handled: u64, after: Duration) -> bool {
        const MAX_DOUBLINGS: u32 = 9;
        if self.handled != handled {
            *self = StallBackoff { handled, reconnects: 0 };
        }
        let doublings = self.reconnects.min(MAX_DOUBLINGS);
        let is_due = doublings == 0 || after >= CHECK_INTERVAL * (1 << doublings);
        self.reconnects += u32::from(is_due);
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_server_connects_anew_after_longer_and_longer_intervals() {
        let mut last = StallBackoff::default();
        assert!(last.is_due(7, Duration::ZERO));
        for interval in [8, 16, 32].map(Duration::from_secs) {
            assert!(!last.is_due(7, interval - CHECK_INTERVAL));
            assert!(last.is_due(7, interval));
        }
        assert!(last.is_due(8, Duration::ZERO), "a worker has handled a request");
        last.reconnects = u32::MAX - 1;
        assert!(last.is_due(8, Duration::from_secs(3600)));
    }
}
