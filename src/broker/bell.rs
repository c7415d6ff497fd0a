//! Wakes a thread that blocks in `poll`, through a pipe.

use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A pipe that holds at most one byte.
pub(super) struct Bell {
    listener: PipeReader,
    ringer: PipeWriter,
    is_rung: AtomicBool,
}

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        let (listener, ringer) = pipe()?;
        Ok(Bell { listener, ringer, is_rung: AtomicBool::new(false) })
    }

    /// Makes the present or the next `poll` on this bell return.
    pub(super) fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::SeqCst) {
            // This cannot fail: the pipe is empty, and `self` keeps its reader open.
            let _ = (&self.ringer).write(&[0]);
        }
    }

    /// Makes `poll` block again. The caller, which is the polling thread, then checks what has
    /// changed.
    pub(super) fn hear(&self) {
        let _ = (&self.listener).read(&mut [0]);
        self.is_rung.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
