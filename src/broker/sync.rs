//! The synchronization primitives of the read turn. The model test compiles [`super::turn`] with a
//! different `sync` module, in which a model checker decides which thread runs next.

pub(super) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(super) type Moment = Instant;

pub(super) fn has_passed(moment: Moment) -> bool {
    moment <= Instant::now()
}

pub(super) fn after(time: Duration) -> Moment {
    Instant::now() + time
}

/// Blocks until the condition variable is notified, or until `until` if it is set.
pub(super) fn wait_until<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    until: Option<Moment>,
) -> MutexGuard<'a, T> {
    match until {
        None => condition.wait(guard).unwrap_or_else(PoisonError::into_inner),
        Some(until) => {
            let left = until.saturating_duration_since(Instant::now());
            condition.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0
        }
    }
}
