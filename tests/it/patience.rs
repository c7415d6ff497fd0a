//! How long tests wait, and how where nothing tells of what they wait for.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes that works, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until the value is as wanted, and returns it.
pub fn await_value<T: Debug>(mut look: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let value = look();
        if wanted(&value) {
            return value;
        }
        assert!(Instant::now() < deadline, "after {PATIENCE:?} it is still {value:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Says so when it is dropped: threads that go on until then end with a test that fails, too.
pub struct Over<'a>(pub &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
