//! SIGINT and SIGTERM as calls of a closure.

use std::process::exit;
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::common::{NAME, OS_ERROR, say};

/// Calls `on_signal` with the number of each signal, on a thread of its own. Ends the process if
/// there is no such thread, because nothing could then stop it in an orderly way.
pub fn handle(on_signal: impl FnMut(i32) + Send + 'static) {
    let started = Signals::new([SIGINT, SIGTERM]).and_then(|mut signals| {
        let handle = move || signals.forever().for_each(on_signal);
        thread::Builder::new().name("signals".into()).spawn(handle)
    });
    if let Err(error) = started {
        say(format_args!("{NAME}: SIGINT and SIGTERM cannot be handled: {error}"));
        exit(OS_ERROR.into());
    }
}

/// Ends the process at once. The exit code follows the shell's convention: 128 plus the number of
/// the signal.
pub fn end_by(signal: i32) -> ! {
    exit(128 + signal)
}
