//! The stream that amiquip reads and writes: a buffer in memory instead of a socket.
//!
//! amiquip reads the frames of channel 0, which the reader of the socket puts into the buffer.
//! Frames that amiquip writes are sent between the messages of other threads.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};

use mio::{Evented, Poll, PollOpt, Ready, Registration, SetReadiness, Token};

use super::data_plane::DataPlane;
use crate::lock::lock;

/// Control frames that the reader of the socket passes to amiquip's I/O thread.
pub(super) struct ControlFrames {
    incoming: Mutex<Incoming>,
    ready: SetReadiness,
}

#[derive(Default)]
struct Incoming {
    bytes: VecDeque<u8>,
    ended: bool,
}

/// amiquip's end of the stream. amiquip's I/O thread owns it, and drops it when the thread ends.
pub(super) struct ControlStream {
    pub(super) data_plane: Arc<DataPlane>,
    pub(super) registration: Registration,
}

impl ControlFrames {
    pub(super) fn new() -> (ControlFrames, Registration) {
        let (registration, ready) = Registration::new2();
        let frames = ControlFrames { incoming: Mutex::default(), ready };
        frames.wake_amiquip();
        (frames, registration)
    }

    pub(super) fn push(&self, frame: &[u8]) -> Result<(), String> {
        const MAX_BUFFERED: usize = 4 << 20;
        let mut incoming = lock(&self.incoming);
        if incoming.bytes.len() > MAX_BUFFERED {
            return Err("the broker floods the connection with control frames".into());
        }
        incoming.bytes.extend(frame);
        drop(incoming);
        self.wake_amiquip();
        Ok(())
    }

    /// Marks the end of the stream. No more frames follow.
    pub(super) fn end(&self) {
        lock(&self.incoming).ended = true;
        self.wake_amiquip();
    }

    /// The stream is always writable, so both flags are set. Setting the readiness again counts as
    /// a new event.
    fn wake_amiquip(&self) {
        if let Err(error) = self.ready.set_readiness(Ready::readable() | Ready::writable()) {
            log::error!("waking amiquip's I/O thread: {error}");
        }
    }
}

impl Read for ControlStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.data_plane.control.incoming);
        match incoming.bytes.read(into)? {
            0 if !incoming.ended => Err(io::ErrorKind::WouldBlock.into()),
            length => Ok(length),
        }
    }
}

impl Write for ControlStream {
    /// Accepts all bytes at once: amiquip writes only whole and small frames. It reports no errors:
    /// if the connection has ended, the reading thread knows why, and amiquip notices the end when
    /// it reads.
    fn write(&mut self, frames: &[u8]) -> io::Result<usize> {
        self.data_plane.write_control(frames, || true);
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
