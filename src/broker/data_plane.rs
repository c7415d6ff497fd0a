//! The state that the threads of a connection share: its socket, the turn to read, its channels.
//!
//! Waiting threads read the socket in turns ([`super::turn`]). The reader passes the frames of a
//! channel to that channel ([`super::slots`]), and the frames of channel 0 to amiquip
//! ([`super::control_stream`]).

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use mio::Registration;
use rustix::event::PollFlags;

use super::control::ControlFrames;
use super::ended::Ended;
use super::self_pipe::SelfPipe;
use super::slots::Slots;
use super::transport::{Transport, WriteError};
use super::turn::{ReadTurn, Reader, Socket, Waiter};
use super::url::Endpoint;
use crate::frames::{
    Answer, CHANNEL_CLOSE_OK, CONNECTION_CLOSE_OK, Decoder, Event, Frames, Incoming, Notice,
    Version, bare_method,
};
use crate::lock::lock;

pub(crate) struct DataPlane {
    pub(crate) endpoint: Endpoint,
    transport: Transport,
    pub(super) turn: ReadTurn,
    /// One for the waiter that reads, one for the reserve.
    pipes: [SelfPipe; 2],
    /// Used by the reader only, except for [`DataPlane::recycle`].
    decoder: Mutex<Decoder>,
    pub(super) control: ControlFrames,
    pub(super) slots: Mutex<Slots<DataPlane>>,
    version: OnceLock<Option<Version>>,
    ended: OnceLock<Ended>,
    /// The broker's reason for accepting no messages at present: a resource alarm. During an alarm,
    /// the broker does not read from a connection that has published messages.
    blocked: Mutex<Option<String>>,
    /// The heartbeat interval in seconds: this side's, or the broker's if that is lower.
    heartbeat: AtomicU16,
}

/// The time limit for an orderly close. After it, the connection is cut.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl DataPlane {
    /// Also returns what notifies amiquip of its frames.
    pub(super) fn new(
        endpoint: Endpoint,
        transport: Transport,
        heartbeat: u16,
    ) -> io::Result<(Arc<DataPlane>, Registration)> {
        let (control, registration) = ControlFrames::new();
        let data_plane = Arc::new(DataPlane {
            endpoint,
            transport,
            turn: ReadTurn::default(),
            pipes: [SelfPipe::new()?, SelfPipe::new()?],
            decoder: Mutex::default(),
            control,
            slots: Mutex::default(),
            version: OnceLock::new(),
            ended: OnceLock::new(),
            blocked: Mutex::default(),
            heartbeat: AtomicU16::new(heartbeat),
        });
        Ok((data_plane, registration))
    }

    /// See [`Transport::write`].
    pub(super) fn write(
        &self,
        frames: Frames<'_>,
        until: Instant,
        may_begin: impl FnMut() -> bool,
    ) -> Result<(), WriteError> {
        let written = self.transport.write(frames, until, may_begin);
        self.schedule_flush();
        written
    }

    /// Writes frames, at once or as soon as the socket is writable. Skips them and returns false if
    /// `is_allowed`, called under the write lock, is false. Does not block.
    pub(super) fn write_control(&self, frames: &[u8], is_allowed: impl FnOnce() -> bool) -> bool {
        let allowed = self.transport.write_control(frames, is_allowed);
        self.schedule_flush();
        allowed
    }

    fn schedule_flush(&self) {
        if self.transport.has_backlog() {
            self.turn.interrupt_poll(self);
        }
    }

    /// Blocks until `is_ready`, until the connection has ended, or until `until`. Reads the socket
    /// while no other thread does: at least once, even if the time is up. `is_ready` must not
    /// block.
    pub(crate) fn wait(&self, waiter: &Arc<Waiter>, until: Instant, is_ready: impl Fn() -> bool) {
        self.turn.wait(self, waiter, until, is_ready);
    }

    /// Wakes a waiter so that it checks whether it is ready. Called by the reader.
    pub(crate) fn notify(&self, waiter: &Arc<Waiter>) {
        self.turn.notify(waiter);
    }

    /// Wakes a waiter so that it checks whether it is ready. Called by all other threads.
    pub(crate) fn wake(&self, waiter: &Arc<Waiter>) {
        self.turn.wake(self, waiter);
    }

    /// Wakes every waiter so that it checks whether it is ready.
    pub(crate) fn wake_all(&self) {
        self.turn.wake_all(self);
    }

    /// The reason why the connection has ended; `None` while it is open.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        self.ended.get()
    }

    /// The broker's reason for accepting no messages at present.
    pub(crate) fn blocked(&self) -> Option<String> {
        lock(&self.blocked).clone()
    }

    /// Whether the broker has begun to speak AMQP.
    pub(super) fn has_greeted(&self) -> bool {
        self.version.get().is_some()
    }

    /// The broker's version; `None` if it did not name one.
    pub(crate) fn version(&self) -> Option<Version> {
        self.version.get().copied().flatten()
    }

    /// The largest frame, in bytes, that the broker accepts.
    pub(crate) fn frame_max(&self) -> usize {
        self.transport.frame_max()
    }

    /// Reuses the memory of a body that is no longer needed, for the next body that arrives. Does
    /// not block.
    pub(crate) fn recycle(&self, body: Vec<u8>) {
        if let Ok(mut decoder) = self.decoder.try_lock() {
            decoder.recycle(body);
        }
    }

    /// Ends the connection at once. The reason counts only if the connection had not ended before.
    pub(crate) fn cut(&self, reason: impl Into<Ended>) {
        self.end(reason.into());
        self.transport.cut();
        self.control.end();
        // The handlers may own the object that owns this connection. Dropping them ends that cycle.
        // The lock is released first, because dropping a connection takes it again.
        let slots = std::mem::take(&mut *lock(&self.slots));
        drop(slots);
    }

    /// Ends the connection after amiquip's I/O thread has ended: because the login failed, because
    /// the broker was silent for two heartbeats, or because the connection has ended.
    pub(super) fn amiquip_ended(&self) {
        let heartbeat = Duration::from_secs(self.heartbeat.load(Ordering::Relaxed).into());
        let is_silent = !heartbeat.is_zero() && self.control.silence() >= heartbeat;
        self.cut(if is_silent { Ended::Silent } else { Ended::ThisSide });
    }

    /// Stores the reason and ends all waits. The socket stays open for the last frames.
    fn end(&self, ended: Ended) {
        if self.ended.set(ended).is_ok() {
            log::debug!("the connection has ended: {}", self.ended.wait());
            self.turn.end(self);
        }
    }

    /// Reads from the socket once and dispatches all complete frames. `Err` is the reason why the
    /// connection has ended.
    fn read_some(&self) -> Result<(), Ended> {
        let mut decoder = lock(&self.decoder);
        let length = match self.transport.socket.read(decoder.unfilled()) {
            Ok(0) => return Err(Ended::Peer),
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(()),
                io::ErrorKind::ConnectionReset => return Err(Ended::Peer),
                _ => return Err(error.to_string().into()),
            },
        };
        decoder.filled(length);
        self.control.note_arrival()?;
        self.transport.write_together(|| {
            while let Some(incoming) = decoder.next()? {
                match incoming {
                    Incoming::Event { channel, event } => self.dispatch(channel, event)?,
                    Incoming::Control { frame, notice } => self.control_frame(frame, notice)?,
                }
            }
            Ok(())
        })
    }

    /// Passes an event to its channel. Called by the reader.
    fn dispatch(&self, number: u16, event: Event) -> Result<(), Ended> {
        let Some(slot) = lock(&self.slots).get(number) else {
            let text = format!("the broker sent something on channel {number}, which is not open");
            return Err(text.into());
        };
        match event {
            Event::Answer(Answer::ChannelClosed) => {
                lock(&self.slots).remove(number);
            }
            Event::Answer(answer) if !slot.handles_answers => {
                lock(&slot.answers).push(answer);
                self.notify(&slot.waiter);
            }
            Event::Closed(close) => {
                let _ = slot.closed.set(close.clone());
                // The flag changes under the write lock, so no thread writes on the channel after
                // this frame.
                let mut was_open = false;
                self.write_control(&bare_method(number, CHANNEL_CLOSE_OK), || {
                    was_open = slot.is_open.swap(false, Ordering::Release);
                    true
                });
                if was_open {
                    lock(&self.slots).remove(number);
                    (slot.handler)(self, Event::Closed(close));
                    self.notify(&slot.waiter);
                }
            }
            event if slot.is_open.load(Ordering::Relaxed) => (slot.handler)(self, event),
            _ => {}
        }
        Ok(())
    }

    fn control_frame(&self, frame: &[u8], notice: Notice) -> Result<(), Ended> {
        match notice {
            Notice::Other => {}
            Notice::Start { version } => {
                let _ = self.version.set(version);
            }
            Notice::Tune { channel_max, frame_max, heartbeat } => {
                // 0 suggests none, so this side's counts.
                let heartbeat = if heartbeat == 0 { u16::MAX } else { heartbeat };
                self.heartbeat.fetch_min(heartbeat, Ordering::Relaxed);
                lock(&self.slots).limit(&[channel_max, self.endpoint.channel_max]);
                self.transport.set_frame_max(frame_max);
            }
            Notice::Closed(close) => {
                self.end(Ended::Closed(close));
                // amiquip does not take part in closing.
                self.write_control(&bare_method(0, CONNECTION_CLOSE_OK), || true);
                self.control.end();
                return Ok(());
            }
            Notice::CloseConfirmed => return Err(Ended::ThisSide),
            Notice::Blocked(reason) => {
                log::warn!("{} takes no messages at present: {reason}", self.endpoint);
                *lock(&self.blocked) = Some(reason);
                return Ok(());
            }
            Notice::Unblocked => {
                log::info!("{} takes messages again", self.endpoint);
                *lock(&self.blocked) = None;
                self.wake_all();
                return Ok(());
            }
        }
        Ok(self.control.push(frame)?)
    }
}

impl Socket for DataPlane {
    fn poll(&self, reader: Reader, until: Option<Instant>) -> bool {
        let output = if self.transport.has_backlog() { PollFlags::OUT } else { PollFlags::empty() };
        let pipe = &self.pipes[reader as usize];
        match self.transport.socket.poll(Some(pipe), PollFlags::IN | output, until) {
            Ok(found) => {
                if found.contains(PollFlags::OUT) {
                    self.transport.flush_backlog();
                }
                found.contains(PollFlags::IN)
            }
            Err(error) => {
                self.cut(format!("waiting for the socket: {error}"));
                false
            }
        }
    }

    fn read(&self) {
        if let Err(reason) = self.read_some() {
            self.cut(reason);
        }
    }

    fn interrupt_poll(&self, reader: Reader) {
        self.pipes[reader as usize].signal();
    }
}
