//! How long to wait: for one call, and between two tries.

use std::time::{Duration, Instant};

/// The end of a wait, and the length of the whole wait, which error texts show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) timeout: Duration,
}

impl Deadline {
    /// A deadline this far from now, and at most a century away: a caller may pass
    /// `Duration::MAX`, which the clock cannot add.
    pub(crate) fn after(timeout: Duration) -> Deadline {
        const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
        Deadline { at: Instant::now() + timeout.min(CENTURY), timeout }
    }

    pub(crate) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    pub(crate) fn has_passed(&self) -> bool {
        self.remaining().is_zero()
    }
}

/// The longest pause between two tries of what may succeed at any time: a broker that comes
/// back, or a permission that an operator gives back. After that, nobody waits for longer than
/// this.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long to wait after the `tries`-th failed try: `first`, doubled with each try up to `most`,
/// less a random part of up to a half. The random part keeps programs that lost the same broker
/// from reconnecting at the same moment.
pub(crate) fn backoff(tries: u32, first: Duration, most: Duration) -> Duration {
    let whole = first.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(most);
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}

/// How long ago that was, roughly: `5 s`, `12 min`, `3 h` or `4 d`.
pub(crate) fn age(since: Instant) -> String {
    let seconds = since.elapsed().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_timeout_is_a_deadline_too() {
        assert!(Deadline::after(Duration::MAX).remaining() > Duration::from_secs(3_000_000_000));
        assert!(Deadline::after(Duration::ZERO).has_passed());
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(5));
        for (tries, whole) in [(1, 100), (2, 200), (4, 800), (7, 5000), (4_000_000_000, 5000)] {
            let whole = Duration::from_millis(whole);
            let wait = backoff(tries, first, most);
            assert!(whole / 2 <= wait && wait <= whole, "{tries}: {wait:?}");
        }
    }
}
