//! How often a server whose workers get nothing connects anew.

use std::time::{Duration, Instant};

/// The shortest interval between two attempts is twice this.
const CHECK_INTERVAL: Duration = Duration::from_secs(4);

/// The last stall of a server.
#[derive(Default)]
pub(crate) struct StallBackoff {
    /// The number of requests that had been handled at that time.
    handled: u64,
    /// How often the server has connected anew since a worker last handled a request.
    reconnects: u32,
    next: Option<Instant>,
}

impl StallBackoff {
    /// Whether to connect anew for a stall.
    ///
    /// The broker may have a reason that another connection does not change, such as a queue with a
    /// single active consumer. So the interval between two attempts doubles until a worker handles
    /// a request.
    pub(super) fn is_due(&mut self, handled: u64) -> bool {
        const MAX_DOUBLINGS: u32 = 8;
        let now = Instant::now();
        if self.handled != handled {
            *self = StallBackoff { handled, ..StallBackoff::default() };
        }
        let is_due = self.next.is_none_or(|next| next <= now);
        if is_due {
            self.next = Some(now + CHECK_INTERVAL * (2 << self.reconnects.min(MAX_DOUBLINGS)));
            self.reconnects += 1;
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
        assert!(last.is_due(7));
        assert!(!last.is_due(7), "the interval has not passed");
        let interval = |last: &StallBackoff| last.next.unwrap() - Instant::now();
        let first = interval(&last);
        last.next = Some(Instant::now());
        assert!(last.is_due(7));
        assert!(interval(&last) > 3 * first / 2, "{:?} after {first:?}", interval(&last));
        assert!(last.is_due(8), "a worker has handled a request");
        assert!(interval(&last) <= first + CHECK_INTERVAL);
        last.reconnects = u32::MAX - 1;
        last.next = None;
        assert!(last.is_due(8));
    }
}
