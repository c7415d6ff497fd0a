//! Wakes a thread that blocks in `poll`, through a pipe.

use std::io::{self, PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A pipe that holds at most one byte.
pub(super) struct SelfPipe {
    reader: PipeReader,
    writer: PipeWriter,
    is_signalled: AtomicBool,
}

impl SelfPipe {
    pub(super) fn new() -> io::Result<SelfPipe> {
        let (reader, writer) = pipe()?;
        Ok(SelfPipe { reader, writer, is_signalled: AtomicBool::new(false) })
    }

    /// Makes the current or the next `poll` on this pipe return.
    pub(super) fn signal(&self) {
        if !self.is_signalled.swap(true, Ordering::SeqCst) {
            // This cannot fail: the pipe is empty, and `self` keeps its read end open.
            let _ = (&self.writer).write(&[0]);
        }
    }

    /// Makes `poll` block again. The caller, which is the polling thread, then checks what has
    /// changed.
    pub(super) fn clear(&self) {
        let _ = (&self.reader).read(&mut [0]);
        self.is_signalled.store(false, Ordering::SeqCst);
    }
}

impl AsFd for SelfPipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}
