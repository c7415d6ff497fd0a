//! What the threads that use a connection share: its socket, the turn to read it, its channels.
//!
//! The threads that wait read the socket, in turns ([`super::turn`]). The reader hands what arrives
//! on a channel to that channel ([`super::channel`]), and the frames of channel 0 to amiquip
//! ([`super::control`]).

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::Endpoint;
use super::bell::Bell;
use super::channel::Channels;
use super::control::{ControlFrames, ControlStream};
use super::transport::{Transport, WriteError};
use super::turn::{ReadTurn, Reader, Socket, Waiter};
use crate::frames::{
    CONNECTION_CLOSE_OK, Close, Decoder, Frames, Incoming, Method, Notice, bare_method,
};
use crate::lock::lock;

pub(crate) struct DataPlane {
    pub(crate) endpoint: Endpoint,
    transport: Transport,
    turn: ReadTurn,
    /// Rung for the waiter who reads, and for the reserve.
    bells: [Bell; 2],
    /// For the reader.
    decoder: Mutex<Decoder>,
    /// When amiquip was last told that the broker is alive.
    told_alive: Mutex<Option<Instant>>,
    pub(super) control: ControlFrames,
    pub(super) channels: Mutex<Channels>,
    ended: OnceLock<Ended>,
    /// Whether amiquip's handshake is over.
    pub(super) is_open: AtomicBool,
    /// Why the broker takes no messages at present: a resource alarm. It then reads nothing.
    blocked: Mutex<Option<String>>,
    heartbeat: Duration,
}

/// Why a connection has ended.
struct Ended {
    reason: String,
    /// What the broker said if it closed the connection.
    close: Option<Close>,
}

/// Why a connection ends that the peer has ended.
pub(super) const WITHOUT_A_WORD: &str = "the connection ended without a word";

impl DataPlane {
    /// Also returns amiquip's end of it.
    pub(super) fn new(
        endpoint: Endpoint,
        transport: Transport,
        heartbeat: Duration,
    ) -> io::Result<(Arc<DataPlane>, ControlStream)> {
        let (control, registration) = ControlFrames::new();
        let data_plane = Arc::new(DataPlane {
            endpoint,
            transport,
            turn: ReadTurn::default(),
            bells: [Bell::new()?, Bell::new()?],
            decoder: Mutex::default(),
            control,
            channels: Mutex::default(),
            ended: OnceLock::new(),
            told_alive: Mutex::default(),
            is_open: AtomicBool::new(false),
            blocked: Mutex::default(),
            heartbeat,
        });
        Ok((Arc::clone(&data_plane), ControlStream { data_plane, registration }))
    }

    /// What the thread in reserve does until the connection has ended.
    pub(super) fn keep_in_reserve(&self) {
        self.turn.keep_in_reserve(self);
    }

    /// Writes the frames of one message on a channel that `is_open`. Blocks until `until` while the
    /// broker does not read.
    pub(super) fn write(
        &self,
        frames: Frames<'_>,
        until: Instant,
        is_open: &AtomicBool,
    ) -> Result<(), WriteError> {
        let written = self.transport.write(frames, until, is_open);
        self.have_due_written();
        written
    }

    /// Writes frames now, or as soon as there is room, if `may_go` says so when it is their turn.
    /// Does not block.
    pub(super) fn write_control(&self, frames: &[u8], may_go: impl FnOnce() -> bool) -> bool {
        let goes = self.transport.write_control(frames, may_go);
        self.have_due_written();
        goes
    }

    fn have_due_written(&self) {
        if self.transport.is_due() {
            self.turn.ring(self);
        }
    }

    /// Blocks until `is_ready`, until the connection has ended or until `until`, and reads the
    /// socket if nobody else does: at least once, however little time is left. `is_ready` must
    /// not block.
    pub(crate) fn wait(&self, waiter: &Arc<Waiter>, until: Instant, is_ready: impl Fn() -> bool) {
        self.turn.wait(self, waiter, until, is_ready);
    }

    /// Lets a waiter check whether it is ready. For the reader.
    pub(crate) fn notify(&self, waiter: &Arc<Waiter>) {
        self.turn.notify(waiter);
    }

    /// Lets a waiter check whether it is ready. For every other thread.
    pub(crate) fn wake(&self, waiter: &Arc<Waiter>) {
        self.turn.wake(self, waiter);
    }

    /// Lets every waiter check whether it is ready.
    pub(crate) fn wake_all(&self) {
        self.turn.wake_all(self);
    }

    /// Why the connection has ended, if it has.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.ended.get().map(|ended| ended.reason.as_str())
    }

    /// What the broker said if it closed the connection.
    pub(super) fn closed_by_broker(&self) -> Option<&Close> {
        self.ended.get()?.close.as_ref()
    }

    /// The broker's reason for taking no messages at present.
    pub(crate) fn blocked(&self) -> Option<String> {
        lock(&self.blocked).clone()
    }

    /// The largest frame, in bytes, that the broker takes.
    pub(crate) fn frame_max(&self) -> usize {
        self.transport.frame_max()
    }

    /// Takes the memory of a body that is no longer needed, for the next that arrives. Does not
    /// block.
    pub(crate) fn recycle(&self, body: Vec<u8>) {
        if let Ok(mut decoder) = self.decoder.try_lock() {
            decoder.recycle(body);
        }
    }

    /// Closes the connection: in good order if the broker answers until then.
    pub(super) fn close(&self, until: Instant) {
        if self.ended().is_none() {
            self.write_control(&Method::CloseConnection.encode(0), || true);
            self.wait(&Arc::default(), until, || false);
        }
        self.cut("the connection was closed");
    }

    /// Ends the connection at once, for this reason unless it has one already.
    pub(crate) fn cut(&self, reason: &str) {
        self.end(reason.into(), None);
        self.transport.cut();
        self.control.end();
        // Their handlers may hold what holds this.
        let channels = std::mem::take(&mut *lock(&self.channels));
        drop(channels);
    }

    /// amiquip's I/O thread ends when the login fails, when the broker was silent for two
    /// heartbeats, and when the connection has ended.
    pub(super) fn amiquip_ended(&self) {
        let told_alive = *lock(&self.told_alive);
        let is_silent = told_alive.is_some_and(|told| told.elapsed() >= self.heartbeat);
        self.cut(match is_silent && !self.heartbeat.is_zero() {
            true => "the broker was silent for two heartbeats",
            false => "the connection was closed",
        });
    }

    /// Lets nobody wait any longer. The socket stays open for the last frames.
    fn end(&self, reason: String, close: Option<Close>) {
        if self.ended.set(Ended { reason, close }).is_ok() {
            log::debug!("the connection has ended: {}", self.ended().unwrap_or_default());
            self.turn.end(self);
        }
    }

    /// Reads once. `Err` tells why the connection has ended.
    fn read_some(&self) -> Result<(), String> {
        let mut decoder = lock(&self.decoder);
        let length = match self.transport.read(decoder.room()) {
            Ok(0) => return Err(WITHOUT_A_WORD.into()),
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(()),
                io::ErrorKind::ConnectionReset => return Err(WITHOUT_A_WORD.into()),
                _ => return Err(error.to_string()),
            },
        };
        decoder.arrived(length);
        self.tell_amiquip_that_the_broker_is_alive()?;
        while let Some(incoming) = decoder.next()? {
            match incoming {
                Incoming::Event { channel, event } => self.dispatch(channel, event)?,
                Incoming::Control { frame, notice } => self.control_frame(frame, notice)?,
            }
        }
        Ok(())
    }

    fn control_frame(&self, frame: &[u8], notice: Notice) -> Result<(), String> {
        match notice {
            Notice::Other => {}
            Notice::Limits { channel_max, frame_max } => {
                lock(&self.channels).limit(&[channel_max, self.endpoint.channel_max]);
                self.transport.set_frame_max(frame_max);
            }
            Notice::Closed(close) => {
                self.end(format!("the broker closed the connection: {close}"), Some(close));
                // amiquip has no part in closing, except that it finds out why a login failed.
                if self.is_open.load(Ordering::Relaxed) {
                    self.write_control(&bare_method(0, CONNECTION_CLOSE_OK), || true);
                    self.control.end();
                    return Ok(());
                }
            }
            Notice::CloseConfirmed => return Err("the connection was closed".into()),
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
        self.control.push(frame)
    }

    /// amiquip ends a connection on which nothing arrives for two heartbeats, and sees no messages.
    fn tell_amiquip_that_the_broker_is_alive(&self) -> Result<(), String> {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        const OFTEN_ENOUGH: Duration = Duration::from_secs(1);
        let now = Instant::now();
        let mut told = lock(&self.told_alive);
        match *told {
            Some(told) if now.duration_since(told) < OFTEN_ENOUGH => return Ok(()),
            // The broker's first frame has to be amiquip's first too.
            None => {}
            Some(_) => self.control.push(&HEARTBEAT)?,
        }
        *told = Some(now);
        Ok(())
    }
}

impl Socket for DataPlane {
    fn poll(&self, reader: Reader, until: Option<Instant>) -> bool {
        let wants_room = if self.transport.is_due() { PollFlags::OUT } else { PollFlags::empty() };
        let bell = &self.bells[reader as usize];
        match self.transport.poll(Some(bell), PollFlags::IN | wants_room, until) {
            Ok(found) => {
                if found.contains(PollFlags::OUT) {
                    self.transport.write_due();
                }
                found.contains(PollFlags::IN)
            }
            Err(error) => {
                self.cut(&format!("waiting for the socket: {error}"));
                false
            }
        }
    }

    fn read(&self) {
        if let Err(reason) = self.read_some() {
            self.cut(&reason);
        }
    }

    fn ring(&self, reader: Reader) {
        self.bells[reader as usize].ring();
    }
}
