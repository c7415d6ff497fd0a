//! When a server checks whether its idle workers get what waits in the queue, and how often it then
//! connects anew or looks at another broker.

use std::time::Duration;

/// The interval of the checks. Half of it, if the server was not idle at the last one.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// The interval of the checks that are [`EARLY`]. RabbitMQ 4 was seen to accept a consumer on a
/// queue that it was about to delete, and not to notify that consumer. Deleting a queue takes
/// RabbitMQ up to 5 s.
pub(super) const EARLY_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long after a worker began to consume its checks are early.
pub(super) const EARLY: Duration = Duration::from_secs(8);

/// What the checks of a server have found.
#[derive(Default)]
pub(crate) struct IdleChecks {
    /// The number of requests that had been handled at the last check.
    handled: u64,
    /// How many checks have found the same number since then.
    checks: u32,
    /// At which of them the server looks at another broker next.
    next_look: u32,
    /// How long a worker must have consumed before the server connects anew for a stall.
    reconnects_after: Duration,
}

impl IdleChecks {
    /// Two minutes, at [`CHECK_INTERVAL`].
    const MOST_CHECKS: u32 = 30;

    /// Notes a check at which this number of requests was `handled`. Returns the time until the
    /// next one.
    pub(super) fn note(&mut self, handled: u64, is_early: bool) -> Duration {
        let was_busy = self.handled != handled;
        if was_busy {
            let next_look = self.checks.saturating_mul(2).clamp(1, IdleChecks::MOST_CHECKS);
            *self = IdleChecks { handled, next_look, ..IdleChecks::default() };
        } else {
            self.checks = self.checks.saturating_add(1);
        }
        match (is_early, was_busy) {
            (true, _) => EARLY_CHECK_INTERVAL,
            (false, true) => CHECK_INTERVAL / 2,
            (false, false) => CHECK_INTERVAL,
        }
    }

    /// Whether to look at another broker at this check. Not before the server has been idle for
    /// twice as long as the last time, and then after twice as long each time.
    pub(super) fn look_is_due(&mut self) -> bool {
        let is_due = self.checks >= self.next_look;
        if is_due {
            self.next_look = self.checks.saturating_add(self.checks.min(IdleChecks::MOST_CHECKS));
        }
        is_due
    }

    /// Whether to connect anew for a stall, `after` the worker has begun to consume.
    ///
    /// The broker may have a reason that another connection does not change, such as a queue with a
    /// single active consumer. So the time until the next attempt doubles until a worker handles a
    /// request.
    pub(super) fn reconnect_is_due(&mut self, after: Duration) -> bool {
        const LONGEST: Duration = Duration::from_secs(2048);
        let is_due = after >= self.reconnects_after;
        if is_due {
            self.reconnects_after = (2 * self.reconnects_after).clamp(2 * CHECK_INTERVAL, LONGEST);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalled_server_connects_anew_after_longer_and_longer_intervals() {
        let mut checks = IdleChecks::default();
        checks.note(7, false);
        assert!(checks.reconnect_is_due(Duration::ZERO));
        for interval in [8, 16, 32].map(Duration::from_secs) {
            checks.note(7, false);
            assert!(!checks.reconnect_is_due(interval - CHECK_INTERVAL));
            assert!(checks.reconnect_is_due(interval));
        }
        checks.note(8, false);
        assert!(checks.reconnect_is_due(Duration::ZERO), "a worker has handled a request");
        for _ in 0..100 {
            assert!(checks.reconnect_is_due(Duration::from_secs(3600)));
        }
    }

    #[test]
    fn idle_server_looks_elsewhere_less_and_less_often() {
        let mut idle = IdleChecks::default();
        let mut looks = |handled, checks: u32| -> Vec<u32> {
            let mut is_due = || {
                idle.note(handled, false);
                idle.look_is_due()
            };
            (0..checks).filter(|_| is_due()).collect()
        };
        assert_eq!(looks(7, 100), [1, 2, 4, 8, 16, 32, 62, 92]);
        assert_eq!(looks(8, 40), [30], "it has been idle for longer before");
        assert_eq!(looks(9, 2), [0; 0]);
        assert_eq!(looks(10, 4), [2], "it has been idle for one check before");
    }
}
