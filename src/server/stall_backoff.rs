//! How often a server whose workers get nothing connects anew, or looks at another broker.

use std::time::Duration;

/// The interval at which an idle worker checks for a stall. Half of it, if the server was not idle
/// at the last check.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(4);

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

/// How long a server has been idle, in checks for a stall, and when it looks elsewhere.
#[derive(Default)]
pub(crate) struct IdleTime {
    /// The number of requests that had been handled at the last check.
    handled: u64,
    /// How many checks have found the same number since then.
    checks: u32,
    next_look: u32,
}

impl IdleTime {
    /// Two minutes, at [`CHECK_INTERVAL`].
    const MOST_CHECKS: u32 = 30;

    /// Notes a check. Whether the server has handled requests since the last one.
    pub(super) fn was_busy(&mut self, handled: u64) -> bool {
        let was_busy = self.handled != handled;
        *self = match was_busy {
            true => {
                let next_look = self.checks.saturating_mul(2).clamp(1, IdleTime::MOST_CHECKS);
                IdleTime { handled, checks: 0, next_look }
            }
            false => IdleTime { checks: self.checks.saturating_add(1), ..*self },
        };
        was_busy
    }

    /// Whether to look elsewhere at this check. Not before the server has been idle for twice as
    /// long as the last time, and then after twice as long each time.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.checks >= self.next_look;
        if is_due {
            self.next_look = self.checks.saturating_add(self.checks.min(IdleTime::MOST_CHECKS));
        }
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

    #[test]
    fn idle_server_looks_elsewhere_less_and_less_often() {
        let mut idle = IdleTime::default();
        let mut looks = |handled, checks: u32| -> Vec<u32> {
            let mut is_due = || {
                idle.was_busy(handled);
                idle.is_due()
            };
            (0..checks).filter(|_| is_due()).collect()
        };
        assert_eq!(looks(7, 100), [1, 2, 4, 8, 16, 32, 62, 92]);
        assert_eq!(looks(8, 40), [30], "it has been idle for longer before");
        assert_eq!(looks(9, 2), [0; 0]);
        assert_eq!(looks(10, 4), [2], "it has been idle for one check before");
    }
}
