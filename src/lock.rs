//! Locks that cannot be poisoned.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex of this crate. A panic cannot poison it: no code panics while it holds one.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
