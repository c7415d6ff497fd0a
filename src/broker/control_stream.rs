//! The stream that amiquip reads and writes in place of the broker's socket.
//!
//! amiquip reads the frames of channel 0, which the reader of the socket passes on
//! ([`super::control`]). Frames that amiquip writes are sent between the messages of other threads.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use mio::unix::EventedFd;
use mio::{Evented, Poll, PollOpt, Ready, Token};

use super::data_plane::DataPlane;
use super::login::client_information;
use crate::frames::with_client_properties;

/// amiquip's I/O thread owns it, and drops it when the thread ends.
pub(super) struct ControlStream(pub(super) Arc<DataPlane>);

impl Read for ControlStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&self.0.control.output).read(into)
    }
}

impl Write for ControlStream {
    /// Accepts all bytes at once: amiquip writes only whole and small frames. It reports no errors:
    /// if the connection has ended, the reading thread knows why, and amiquip notices the end when
    /// it reads.
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        let amended = with_client_properties(frames, client_information);
        self.0.write_control(&amended, || true);
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// amiquip's I/O thread drops its stream when it ends. The connection ends with it.
impl Drop for ControlStream {
    fn drop(&mut self) {
        self.0.amiquip_ended();
    }
}

/// Nobody writes to this end of the pair, so it is always writable.
impl Evented for ControlStream {
    fn register(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.0.control.output.as_raw_fd()).register(poll, token, on, how)
    }

    fn reregister(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        EventedFd(&self.0.control.output.as_raw_fd()).reregister(poll, token, on, how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        EventedFd(&self.0.control.output.as_raw_fd()).deregister(poll)
    }
}

impl amiquip::IoStream for ControlStream {}
