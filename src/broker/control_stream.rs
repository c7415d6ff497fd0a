//! The stream that amiquip reads and writes: a buffer in memory instead of a socket.
//!
//! amiquip reads the frames of channel 0, which the reader of the socket puts into the buffer.
//! Frames that amiquip writes are sent between the messages of other threads.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::{Evented, Poll, PollOpt, Ready, Registration, Token};

use super::data_plane::DataPlane;
use super::login::client_information;
use crate::frames::with_client_properties;

/// amiquip's end of the stream. amiquip's I/O thread owns it, and drops it when the thread ends.
pub(super) struct ControlStream {
    pub(super) data_plane: Arc<DataPlane>,
    pub(super) registration: Registration,
}

impl Read for ControlStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.data_plane.control.read(into)
    }
}

impl Write for ControlStream {
    /// Accepts all bytes at once: amiquip writes only whole and small frames. It reports no errors:
    /// if the connection has ended, the reading thread knows why, and amiquip notices the end when
    /// it reads.
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        let amended = with_client_properties(frames, client_information);
        self.data_plane.write_control(&amended, || true);
        Ok(frames.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// amiquip's I/O thread drops its stream when it ends. The connection ends with it.
impl Drop for ControlStream {
    fn drop(&mut self) {
        self.data_plane.amiquip_ended();
    }
}

impl Evented for ControlStream {
    fn register(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        self.registration.register(poll, token, on, how)
    }

    fn reregister(&self, poll: &Poll, token: Token, on: Ready, how: PollOpt) -> io::Result<()> {
        self.registration.reregister(poll, token, on, how)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        Evented::deregister(&self.registration, poll)
    }
}

impl amiquip::IoStream for ControlStream {}
