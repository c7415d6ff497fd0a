//! The socket of one connection, plain or TLS, written by whole frames.
//!
//! Callers, workers, the reader and amiquip all write on it. The lock is held for as long as one write takes
//! that does not block; a writer who finds the socket full waits outside of it, until its own
//! deadline, and knows then whether some of its message is out.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::bell::Bell;
use crate::frames::{Frames, RABBITMQ_FRAME_MAX};
use crate::lock::lock;

pub(crate) struct Transport {
    tcp: TcpStream,
    tls: Option<Mutex<Box<dyn Stream>>>,
    tls_may_hold_more: AtomicBool,
    write: Mutex<WriteState>,
    /// Notified when the socket may be free for another message.
    free: Condvar,
    /// Whether [`WriteState::due`] holds anything that nobody is writing.
    is_due: AtomicBool,
    frame_max: AtomicUsize,
}

/// A TLS session over the socket.
pub(super) trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

#[derive(Default)]
struct WriteState {
    /// Goes out before the next message: the rest of a message whose writer ran out of time, and
    /// frames of amiquip's and of the reader's, which never wait.
    due: Vec<u8>,
    /// A writer waits for room in the socket, perhaps in the middle of its message.
    has_writer: bool,
    is_cut: bool,
}

/// Why a message was not written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The deadline passed. What had `begun` goes out before anything else, and whole.
    TimedOut { begun: bool },
    /// The broker has closed the channel.
    ChannelClosed,
    /// The connection has ended. The reading thread learns why.
    Disconnected,
}

impl Transport {
    pub(super) fn new(tcp: TcpStream, tls: Option<Box<dyn Stream>>) -> io::Result<Transport> {
        tcp.set_nonblocking(true)?;
        Ok(Transport {
            tcp,
            tls_may_hold_more: AtomicBool::new(tls.is_some()),
            tls: tls.map(Mutex::new),
            write: Mutex::default(),
            free: Condvar::new(),
            is_due: AtomicBool::new(false),
            frame_max: AtomicUsize::new(RABBITMQ_FRAME_MAX),
        })
    }

    /// Writes the frames of one message on a channel that `is_open`, with nothing in between. Blocks
    /// until `until` while the broker does not read.
    pub(super) fn write(
        &self,
        mut frames: Frames<'_>,
        until: Instant,
        is_open: &AtomicBool,
    ) -> Result<(), WriteError> {
        // Bytes of the present part.
        let mut written = 0;
        let mut begun = false;
        let mut state = lock(&self.write);
        loop {
            if state.is_cut {
                return Err(WriteError::Disconnected);
            }
            if state.has_writer {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(WriteError::TimedOut { begun: false });
                }
                let waited = self.free.wait_timeout(state, left);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if !begun && !is_open.load(Ordering::Relaxed) {
                return Err(WriteError::ChannelClosed);
            }
            let flushed = if begun { Ok(()) } else { self.flush(&mut state) };
            let is_flushed = flushed.is_ok();
            match flushed.and_then(|()| self.write_some(&frames.part()[written..])) {
                Ok(length) => {
                    written += length;
                    begun = true;
                    if written == frames.part().len() {
                        written = 0;
                        if frames.advance() {
                            continue;
                        }
                        // What amiquip wrote meanwhile. An error shows at the next write.
                        let _ = self.flush(&mut state);
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // A part of the first TLS record may be out although nothing was written: then
                    // no other bytes may be tried before the same (SSL_write(3)).
                    begun |= is_flushed && self.tls.is_some();
                    state.has_writer = true;
                    // The writer has room for it first.
                    self.is_due.store(false, Ordering::Release);
                    drop(state);
                    let has_room = self.poll(None, PollFlags::OUT, Some(until));
                    state = lock(&self.write);
                    state.has_writer = false;
                    self.is_due.store(!state.due.is_empty(), Ordering::Release);
                    self.free.notify_all();
                    match has_room {
                        Ok(found) if found.contains(PollFlags::OUT) => {}
                        Ok(_) if until > Instant::now() => {}
                        Ok(_) => {
                            if begun {
                                state.due.splice(0..0, frames.rest(written));
                                self.is_due.store(true, Ordering::Release);
                            }
                            return Err(WriteError::TimedOut { begun });
                        }
                        Err(error) => {
                            log::error!("waiting for room to write: {error}");
                            drop(state);
                            // Nobody may write behind half a message.
                            self.cut();
                            return Err(WriteError::Disconnected);
                        }
                    }
                }
                Err(_) => return Err(WriteError::Disconnected),
            }
        }
    }

    /// Writes whole frames, now or as soon as there is room, if `may_go` says so when it is their
    /// turn. Never blocks.
    pub(super) fn write_control(&self, frames: &[u8], may_go: impl FnOnce() -> bool) -> bool {
        let mut state = lock(&self.write);
        let goes = may_go();
        if goes {
            state.due.extend_from_slice(frames);
            if !state.has_writer {
                // The reading thread learns of an error.
                let _ = self.flush(&mut state);
            }
        }
        goes
    }

    /// Writes what is due, unless a writer is about to. The reading thread calls it when there is
    /// room.
    pub(super) fn write_due(&self) {
        let mut state = lock(&self.write);
        if !state.has_writer {
            let _ = self.flush(&mut state);
        }
    }

    /// Whether something waits for room that the reading thread has to write.
    pub(super) fn is_due(&self) -> bool {
        self.is_due.load(Ordering::Acquire)
    }

    fn flush(&self, state: &mut WriteState) -> io::Result<()> {
        let (mut written, mut flushed) = (0, Ok(()));
        while flushed.is_ok() && written < state.due.len() {
            flushed = self.write_some(&state.due[written..]).map(|length| written += length);
        }
        state.due.drain(..written);
        let is_blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.is_due.store(flushed.as_ref().is_err_and(is_blocked), Ordering::Release);
        flushed
    }

    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => (&self.tcp).write(bytes),
            Some(tls) => lock(tls).write(bytes),
        }
    }

    /// Reads some of what is there. Never blocks.
    pub(super) fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return (&self.tcp).read(into) };
        let read = lock(tls).read(into);
        self.tls_may_hold_more.store(read.is_ok(), Ordering::Relaxed);
        read
    }

    /// Blocks until the socket is ready for one of `events` or has ended, the bell was rung, or
    /// the time is up. What TLS holds does not show on the socket: until a read has told that there
    /// is no more, this does not block. Returns which of the events there are.
    pub(super) fn poll(
        &self,
        bell: Option<&Bell>,
        events: PollFlags,
        until: Option<Instant>,
    ) -> io::Result<PollFlags> {
        if events.contains(PollFlags::IN) && self.tls_may_hold_more.load(Ordering::Relaxed) {
            return Ok(PollFlags::IN);
        }
        let timeout = until.map(timespec_until);
        let socket = PollFd::from_borrowed_fd(self.tcp.as_fd(), events);
        let rings = bell.map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN));
        let mut fds = [socket.clone(), rings.unwrap_or(socket)];
        let count = 1 + usize::from(bell.is_some());
        match poll(&mut fds[..count], timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(PollFlags::empty()),
            Err(error) => return Err(error.into()),
        }
        if let Some(bell) = bell.filter(|_| !fds[1].revents().is_empty()) {
            bell.hear();
        }
        let found = fds[0].revents();
        let has_ended = found.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        Ok(if has_ended { events } else { found })
    }

    /// The largest frame, in bytes, that the broker takes.
    pub(super) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed)
    }

    /// Notes the broker's limit. Larger frames than RabbitMQ's default are of no use to us.
    pub(super) fn set_frame_max(&self, frame_max: usize) {
        const FRAME_MIN_SIZE: usize = 4096;
        let frame_max = if frame_max == 0 { RABBITMQ_FRAME_MAX } else { frame_max };
        let frame_max = frame_max.clamp(FRAME_MIN_SIZE, RABBITMQ_FRAME_MAX);
        self.frame_max.store(frame_max, Ordering::Relaxed);
    }

    /// Ends the connection at once. Threads that wait to read or to write return.
    pub(super) fn cut(&self) {
        lock(&self.write).is_cut = true;
        self.free.notify_all();
        // It fails only on a connection that has ended already.
        let _ = self.tcp.shutdown(Shutdown::Both);
    }
}

/// How long to poll: at most an hour, since the polling thread then checks its deadline.
pub(super) fn timespec_until(until: Instant) -> Timespec {
    const LONGEST: Duration = Duration::from_secs(3600);
    let left = until.saturating_duration_since(Instant::now()).min(LONGEST);
    Timespec::try_from(left).expect("an hour has few seconds")
}
