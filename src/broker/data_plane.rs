//! The state that the threads of a connection share: its socket, the turn to read, its channels.
//!
//! Waiting threads read the socket in turns ([`super::turn`]). The reader passes the frames of a
//! channel to that channel ([`super::slots`]), and the frames of channel 0 to amiquip
//! ([`super::control_stream`]).

mod reading;

use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{fmt, io};

use log::Level;

use super::control::ControlFrames;
use super::ended::Ended;
use super::notes::Notes;
use super::self_pipe::SelfPipe;
use super::slots::Slots;
use super::transport::{Transport, WriteError};
use super::turn::{ReadTurn, Waiter};
use super::url::Endpoint;
use crate::frames::{Decoder, Frames, RABBITMQ_FRAME_MAX, Version};
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
    notes: Notes,
    ended: OnceLock<Ended>,
    /// The broker's reason for accepting no messages at present: a resource alarm. During an alarm,
    /// the broker does not read from a connection that has published messages.
    blocked: Mutex<Option<String>>,
    /// The greatest number of channels, the largest frame in bytes, and the heartbeat interval in
    /// seconds: this side's, or the broker's if that is lower.
    channel_max: AtomicU16,
    frame_max: AtomicUsize,
    heartbeat: AtomicU16,
}

/// The time limit for an orderly close. After it, the connection is cut.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

impl DataPlane {
    pub(super) fn new(
        endpoint: Endpoint,
        transport: Transport,
        heartbeat: u16,
    ) -> io::Result<Arc<DataPlane>> {
        let channel_max = NonZeroU16::new(endpoint.channel_max).unwrap_or(NonZeroU16::MAX);
        Ok(Arc::new(DataPlane {
            endpoint,
            transport,
            turn: ReadTurn::default(),
            pipes: [SelfPipe::new()?, SelfPipe::new()?],
            decoder: Mutex::default(),
            control: ControlFrames::new()?,
            slots: Mutex::default(),
            version: OnceLock::new(),
            notes: Notes::default(),
            ended: OnceLock::new(),
            blocked: Mutex::default(),
            channel_max: AtomicU16::new(channel_max.get()),
            frame_max: AtomicUsize::new(RABBITMQ_FRAME_MAX),
            heartbeat: AtomicU16::new(heartbeat),
        }))
    }

    /// See [`Transport::write`].
    pub(super) fn write(
        &self,
        frames: Frames<'_>,
        until: Instant,
        is_open: impl Fn() -> bool,
        note: impl FnMut(),
    ) -> Result<(), WriteError> {
        let written = self.transport.write(frames, until, is_open, note);
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
        loop {
            self.turn.wait(self, waiter, until, || is_ready() || self.notes.exist());
            if !self.notes.exist() {
                return;
            }
            self.notes.log();
        }
    }

    /// Reads while no other thread waits, until the connection has ended.
    pub(super) fn read_as_reserve(&self) {
        self.turn.run_reserve(self);
        self.notes.log();
    }

    /// Logs a line as soon as its reader has given up the turn. For code that the reader calls.
    pub(crate) fn note(&self, level: Level, text: fmt::Arguments<'_>) {
        self.notes.add(level, text);
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

    /// The greatest number of channels that the connection can have.
    pub(super) fn channel_max(&self) -> u16 {
        self.channel_max.load(Ordering::Relaxed)
    }

    /// The largest frame, in bytes, that this side sends.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed)
    }

    /// How long nothing has arrived from the broker.
    pub(crate) fn silence(&self) -> Duration {
        self.control.silence()
    }

    /// The heartbeat interval; 0 without heartbeats.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_secs(self.heartbeat.load(Ordering::Relaxed).into())
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
        let heartbeat = self.heartbeat();
        let is_silent = !heartbeat.is_zero() && self.control.silence() >= heartbeat;
        self.cut(if is_silent { Ended::Silent } else { Ended::ThisSide });
    }

    /// Stores the reason and ends all waits. The socket stays open for the last frames.
    fn end(&self, ended: Ended) {
        let reason = ended.to_string();
        if self.ended.set(ended).is_ok() {
            self.note(Level::Debug, format_args!("the connection has ended: {reason}"));
            self.turn.end(self);
        }
    }
}
