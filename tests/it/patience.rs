//! How long tests wait, and how where nothing tells of what they wait for.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything takes that works, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until the value is as wanted, and returns it.
pub fn await_value<T: Debug>(look: impl FnMut() -> T, wanted: impl FnMut(&T) -> bool) -> T {
    await_value_for(PATIENCE, look, wanted)
}

/// The same for what takes longer, or must not.
pub fn await_value_for<T: Debug>(
    longest: Duration,
    mut look: impl FnMut() -> T,
    mut wanted: impl FnMut(&T) -> bool,
) -> T {
    let deadline = Instant::now() + longest;
    loop {
        let value = look();
        if wanted(&value) {
            return value;
        }
        assert!(Instant::now() < deadline, "after {longest:?} it is still {value:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
