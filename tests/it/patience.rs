//! How long tests wait, and how they wait for what sends no event.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any step takes that succeeds, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const SECOND: Duration = Duration::from_secs(1);
/// Longer than a step takes that waits for nothing, on a busy machine too. By heartbeats it takes
/// twice as long to notice that a broker is gone.
pub const AT_ONCE: Duration = Duration::from_secs(10);

/// Calls `look` again and again until its value is as wanted, and returns that value. Panics after
/// [`PATIENCE`].
pub fn await_value<T: Debug>(look: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    poll(PATIENCE, look, wanted)
        .unwrap_or_else(|last| panic!("after {PATIENCE:?} it is still {last:?}"))
}

/// As [`await_value`], but returns the last value as an error when `timeout` has passed.
pub fn poll<T>(
    timeout: Duration,
    mut look: impl FnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> Result<T, T> {
    let deadline = Instant::now() + timeout;
    loop {
        let value = look();
        if wanted(&value) {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            return Err(value);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sets the flag when it is dropped. Threads that run until the flag is set so end when the test
/// fails, too.
pub struct SetOnDrop<'a>(pub &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
