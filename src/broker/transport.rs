//! Writes whole frames to the socket of one connection, for all its threads.
//!
//! Callers, workers, the reader and amiquip all write. The lock is held only during a write that
//! does not block. If the socket is full, the writer releases the lock and waits until its own
//! deadline, and the others stand in line behind it. If the deadline passes, the writer knows
//! whether a part of its message was written.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use std::{io, mem};

use rustix::event::PollFlags;

use super::socket::{NonBlockingSocket, Stream};
use crate::frames::Frames;
use crate::lock::lock;

pub(crate) struct Transport {
    pub(super) socket: NonBlockingSocket,
    write: Mutex<WriteState>,
    /// Whether [`WriteState::backlog`] contains bytes that no writer is about to write.
    has_backlog: AtomicBool,
}

/// How much memory, in bytes, an empty backlog keeps for the next frames.
const MAX_IDLE_BACKLOG: usize = 64 << 10;

#[derive(Default)]
struct WriteState {
    /// Bytes to write before the next message: the rest of a message whose writer timed out, and
    /// frames of amiquip and of the reader, which never wait.
    backlog: Vec<u8>,
    /// A writer waits until the socket is writable, perhaps in the middle of its message.
    has_writer: bool,
    /// The writers that wait for it and for each other, in order. Each is notified when it is next.
    line: VecDeque<Arc<Condvar>>,
    /// Small messages go to the backlog, which is written soon ([`Transport::write_together`]).
    collects: bool,
    is_cut: bool,
}

impl WriteState {
    fn is_busy(&self) -> bool {
        self.has_writer || !self.line.is_empty()
    }
}

/// The reason why a message was not written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The deadline passed. If a part was written (`begun`), the rest is written before anything
    /// else, so the message still arrives whole.
    TimedOut { begun: bool },
    /// The broker has closed the channel.
    ChannelClosed,
    /// The connection has ended. The reading thread finds out why.
    Disconnected,
}

impl Transport {
    pub(super) fn new(tcp: TcpStream, tls: Option<Box<dyn Stream>>) -> io::Result<Transport> {
        Ok(Transport {
            socket: NonBlockingSocket::new(tcp, tls)?,
            write: Mutex::default(),
            has_backlog: AtomicBool::new(false),
        })
    }

    /// Writes the frames of one message, without frames of others between them. Blocks while the
    /// broker does not read, but not beyond `until`. `is_open`, called under the write lock, tells
    /// whether the message may begin. `note` is called once, under the same lock, if it has begun,
    /// so the messages are written in the order of these calls.
    pub(super) fn write(
        &self,
        frames: Frames<'_>,
        until: Instant,
        is_open: impl Fn() -> bool,
        mut note: impl FnMut(),
    ) -> Result<(), WriteError> {
        let mut state = lock(&self.write);
        if state.is_busy() {
            state = self.stand_in_line(state, until)?;
        }
        let (mut state, written) = self.write_message(state, frames, until, &is_open, &mut note);
        if mem::take(&mut state.has_writer) {
            self.has_backlog.store(!state.backlog.is_empty(), Ordering::Release);
        }
        state.line.front().into_iter().for_each(|next| next.notify_one());
        written
    }

    /// Waits until the writers that came before are done.
    fn stand_in_line<'a>(
        &self,
        mut state: MutexGuard<'a, WriteState>,
        until: Instant,
    ) -> Result<MutexGuard<'a, WriteState>, WriteError> {
        let place = Arc::new(Condvar::new());
        let is_here = |other: &Arc<Condvar>| Arc::ptr_eq(other, &place);
        let is_next =
            |state: &WriteState| !state.has_writer && state.line.front().is_some_and(is_here);
        state.line.push_back(Arc::clone(&place));
        let mut left = until.saturating_duration_since(Instant::now());
        while !state.is_cut && !is_next(&state) && !left.is_zero() {
            let waited = place.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            left = until.saturating_duration_since(Instant::now());
        }
        let is_next = is_next(&state);
        state.line.retain(|other| !is_here(other));
        match is_next || state.is_cut {
            true => Ok(state),
            false => Err(WriteError::TimedOut { begun: false }),
        }
    }

    /// The same as [`Transport::write`], while no other thread writes a message. Releases the lock
    /// only while [`WriteState::has_writer`] is set.
    fn write_message<'a>(
        &'a self,
        mut state: MutexGuard<'a, WriteState>,
        mut frames: Frames<'_>,
        until: Instant,
        is_open: &dyn Fn() -> bool,
        note: &mut dyn FnMut(),
    ) -> (MutexGuard<'a, WriteState>, Result<(), WriteError>) {
        // Number of bytes of the current part that are written.
        let mut written = 0;
        let mut begun = false;
        loop {
            if state.is_cut {
                return (state, Err(WriteError::Disconnected));
            }
            if !begun && !is_open() {
                return (state, Err(WriteError::ChannelClosed));
            }
            if !begun && state.collects && frames.is_small() && !self.has_backlog() {
                note();
                state.backlog.extend_from_slice(frames.part());
                return (state, Ok(()));
            }
            let flushed = if begun { Ok(()) } else { self.flush(&mut state) };
            let is_flushed = flushed.is_ok();
            match flushed.and_then(|()| self.socket.write(&frames.part()[written..])) {
                Ok(length) => {
                    written += length;
                    if !mem::replace(&mut begun, true) {
                        note();
                    }
                    if written == frames.part().len() {
                        written = 0;
                        if frames.advance() {
                            continue;
                        }
                        // Frames that amiquip wrote meanwhile. An error shows at the next write.
                        let _ = self.flush(&mut state);
                        return (state, Ok(()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // With TLS, a part of the first record may be written even if nothing counts as
                    // written. The next write must then begin with the same bytes (SSL_write(3)).
                    if is_flushed && self.socket.is_tls() && !mem::replace(&mut begun, true) {
                        note();
                    }
                    let polled;
                    (state, polled) = self.wait_for_room(state, until);
                    match polled {
                        Ok(()) => {}
                        Err(WriteError::TimedOut { .. }) => {
                            if begun {
                                state.backlog.splice(0..0, frames.rest(written));
                            }
                            return (state, Err(WriteError::TimedOut { begun }));
                        }
                        Err(error) => return (state, Err(error)),
                    }
                }
                Err(_) => return (state, Err(WriteError::Disconnected)),
            }
        }
    }

    /// Releases the lock until the socket is writable. Until then, nobody else writes a message or
    /// the backlog: this writer does, once the socket is writable.
    fn wait_for_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, WriteState>,
        until: Instant,
    ) -> (MutexGuard<'a, WriteState>, Result<(), WriteError>) {
        state.has_writer = true;
        self.has_backlog.store(false, Ordering::Release);
        drop(state);
        let waited = match self.socket.poll(None, PollFlags::OUT, Some(until)) {
            Ok(found) if found.contains(PollFlags::OUT) || until > Instant::now() => Ok(()),
            Ok(_) => Err(WriteError::TimedOut { begun: false }),
            Err(error) => {
                // No thread may write after an incomplete message.
                self.cut();
                log::error!("waiting for room to write: {error}");
                Err(WriteError::Disconnected)
            }
        };
        (lock(&self.write), waited)
    }

    /// Writes whole frames, at once or as soon as the socket is writable. Skips them and returns
    /// false if `is_allowed`, called under the write lock, is false. Never blocks.
    pub(super) fn write_control(&self, frames: &[u8], is_allowed: impl FnOnce() -> bool) -> bool {
        let mut state = lock(&self.write);
        let allowed = is_allowed();
        if allowed {
            state.backlog.extend_from_slice(frames);
            if !state.has_writer {
                // The reading thread notices an error.
                let _ = self.flush(&mut state);
            }
        }
        allowed
    }

    /// Writes the small messages that other threads write during `work` together after it. `work`
    /// wakes many threads, which then write at about the same time. One system call for all their
    /// messages takes less time, for this process and for the broker.
    pub(super) fn write_together<T>(&self, work: impl FnOnce() -> T) -> T {
        lock(&self.write).collects = true;
        let done = work();
        lock(&self.write).collects = false;
        self.flush_backlog();
        done
    }

    /// Writes the backlog, unless a writer is about to. The reading thread calls it when the socket
    /// is writable.
    pub(super) fn flush_backlog(&self) {
        self.write_control(&[], || true);
    }

    /// Whether there is a backlog that the reading thread has to write.
    pub(super) fn has_backlog(&self) -> bool {
        self.has_backlog.load(Ordering::Acquire)
    }

    fn flush(&self, state: &mut WriteState) -> io::Result<()> {
        let (mut written, mut flushed) = (0, Ok(()));
        while flushed.is_ok() && written < state.backlog.len() {
            flushed = self.socket.write(&state.backlog[written..]).map(|length| written += length);
        }
        state.backlog.drain(..written);
        if state.backlog.is_empty() {
            // The rest of a large message may have been there.
            state.backlog.shrink_to(MAX_IDLE_BACKLOG);
        }
        let is_blocked = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.has_backlog.store(flushed.as_ref().is_err_and(is_blocked), Ordering::Release);
        flushed
    }

    /// Ends the connection at once. Threads that wait to read or to write return.
    pub(super) fn cut(&self) {
        let mut state = lock(&self.write);
        state.is_cut = true;
        state.line.iter().for_each(|writer| writer.notify_one());
        drop(state);
        self.socket.shut_down();
    }
}
