//! The data plane of a connection: messages out and in, past amiquip.
//!
//! The threads that wait read the socket, in turns ([`super::turn`]), and hand what arrives to the
//! [`Handler`] of the connection; control frames go to amiquip, by [`super::control`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mio::Registration;
use rustix::event::PollFlags;

use super::bell::Bell;
use super::control::ControlFrames;
use super::transport::{Polled, Transport, WriteError};
use super::turn::{ReadTurn, Reader, Socket, Waiter};
use crate::frames::{
    CONNECTION_CLOSE_OK, Close, Decoder, Delivery, Frames, Incoming, Message, Notice,
};

pub(crate) struct DataPlane {
    transport: Transport,
    turn: ReadTurn,
    /// Rung for the waiter who reads, and for the reserve.
    bells: [Bell; 2],
    reading: Mutex<Reading>,
    pub(super) control: ControlFrames,
    handler: OnceLock<Handler>,
    /// Why the connection has ended.
    ended: OnceLock<String>,
    /// What the broker said if it closed the connection.
    closed_by_broker: OnceLock<Close>,
    /// Whether amiquip's handshake is over.
    is_open: AtomicBool,
    /// Whether the broker reads nothing at present, for a resource alarm.
    is_blocked: AtomicBool,
    heartbeat: Duration,
}

/// What only the reader uses.
#[derive(Default)]
struct Reading {
    decoder: Decoder,
    /// When amiquip was last told that the broker is alive.
    told_alive: Option<Instant>,
}

/// Called by the reading thread, for everything that arrives. It must not block, and may only call
/// what [`DataPlane`] says it may.
pub(crate) type Handler = Box<dyn Fn(&DataPlane, Event) + Send + Sync>;

#[derive(Debug)]
pub(crate) enum Event {
    Delivery {
        channel: u16,
        delivery: Delivery,
    },
    /// A mandatory message for this queue that the broker could not route, for this reason.
    Return {
        queue: String,
        reason: String,
        message: Message,
    },
    /// The broker closed the channel. Nothing can be written on it any more.
    ChannelClosed {
        channel: u16,
        close: Close,
    },
    /// The broker cancelled the channel's consumer: its queue was deleted.
    ConsumerCancelled {
        channel: u16,
    },
    /// A resource alarm: the broker takes no messages, for this reason.
    Blocked(String),
    Unblocked,
    /// The connection has ended, for this reason. May come twice.
    Ended(String),
}

impl DataPlane {
    /// Starts the reader in reserve.
    pub(super) fn start(
        transport: Transport,
        heartbeat: Duration,
    ) -> io::Result<(Arc<DataPlane>, Registration)> {
        let (control, registration) = ControlFrames::new();
        let data_plane = Arc::new(DataPlane {
            transport,
            turn: ReadTurn::default(),
            bells: [Bell::new()?, Bell::new()?],
            reading: Mutex::default(),
            control,
            handler: OnceLock::new(),
            ended: OnceLock::new(),
            closed_by_broker: OnceLock::new(),
            is_open: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            heartbeat,
        });
        let reserve = Arc::clone(&data_plane);
        let read = move || reserve.turn.keep_in_reserve(&*reserve);
        thread::Builder::new().name("rpc-reader".into()).spawn(read)?;
        Ok((data_plane, registration))
    }

    /// Has this handler called from now on, and at once if the connection has ended.
    pub(crate) fn set_handler(&self, handler: Handler) {
        let first = self.handler.set(handler);
        debug_assert!(first.is_ok(), "a connection has one handler");
        if let Some(reason) = self.ended.get() {
            self.handle(Event::Ended(reason.clone()));
        }
    }

    /// Writes the frames of one message on a channel. Blocks until `until` while the broker does
    /// not read.
    pub(crate) fn write(
        &self,
        channel: u16,
        frames: Frames<'_>,
        until: Instant,
    ) -> Result<(), WriteError> {
        let written = self.transport.write(channel, frames, until);
        self.have_due_written();
        written
    }

    /// Writes frames of amiquip's. Does not block.
    pub(super) fn write_control(&self, frames: &[u8]) {
        self.transport.write_control(frames);
        self.have_due_written();
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

    /// Lets a waiter check whether it is ready. For handlers.
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

    /// A time limit for synchronous calls of amiquip's, which have none: cuts the connection at its
    /// end, unless it is dropped before. Meanwhile somebody reads.
    pub(crate) fn time_limit(&self, limit: Duration) -> TimeLimit<'_> {
        self.begin_limit(limit, true)
    }

    /// The same for a connection on which messages may have been published: under an alarm the
    /// broker reads nothing from it. The limit then is 5 s after the end of the alarm.
    pub(crate) fn time_limit_unless_blocked(&self, limit: Duration) -> TimeLimit<'_> {
        self.begin_limit(limit, false)
    }

    /// Has the synchronous calls of now end within `limit`, since this program wants to stop.
    pub(crate) fn shorten_time_limits(&self, limit: Duration) {
        self.turn.shorten_limits(self, Instant::now() + limit);
    }

    fn begin_limit(&self, limit: Duration, is_strict: bool) -> TimeLimit<'_> {
        let ends = Instant::now() + limit.min(Duration::from_secs(3600));
        TimeLimit { data_plane: self, id: self.turn.begin_limit(self, ends, is_strict) }
    }

    /// amiquip's handshake is over.
    pub(super) fn opened(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// What the broker said if it closed the connection.
    pub(crate) fn closed_by_broker(&self) -> Option<&Close> {
        self.closed_by_broker.get()
    }

    /// Why the connection has ended, if it has. For handlers too.
    pub(crate) fn ended(&self) -> Option<&str> {
        self.ended.get().map(String::as_str)
    }

    /// Whether it ended since the broker did not answer a synchronous call in time.
    pub(crate) fn exceeded_time_limit(&self) -> bool {
        self.ended() == Some(TOO_LATE)
    }

    /// The largest frame, in bytes, that the broker takes.
    pub(crate) fn frame_max(&self) -> usize {
        self.transport.frame_max()
    }

    /// amiquip has opened this channel.
    pub(crate) fn channel_opened(&self, channel: u16) {
        self.transport.channel_opened(channel);
    }

    /// Ends the connection at once, for this reason unless it has one already. For handlers too.
    pub(crate) fn cut(&self, reason: &str) {
        self.end(reason.into());
        self.transport.cut();
        self.control.end();
    }

    /// amiquip's I/O thread ends when the connection is closed in good order, when the broker was
    /// silent for two heartbeats, and when it gives up on the broker's frames.
    pub(super) fn amiquip_ended(&self) {
        let told_alive = self.reading.lock().unwrap_or_else(PoisonError::into_inner).told_alive;
        let is_silent = told_alive.is_some_and(|told| told.elapsed() >= self.heartbeat);
        self.cut(match is_silent && !self.heartbeat.is_zero() {
            true => "the broker was silent for two heartbeats",
            false => "the connection was closed",
        });
    }

    /// Lets nobody wait any longer. The socket stays open for amiquip's last frames.
    fn end(&self, reason: String) {
        if self.ended.set(reason).is_err() {
            return;
        }
        let reason = self.ended.get().expect("it was set in the line above");
        log::debug!("the connection has ended: {reason}");
        self.handle(Event::Ended(reason.clone()));
        self.turn.end(self);
    }

    fn handle(&self, event: Event) {
        if let Some(handler) = self.handler.get() {
            handler(self, event);
        }
    }

    /// Reads once. `Err` tells why the connection has ended.
    fn read_some(&self) -> Result<(), String> {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let length = match self.transport.read(reading.decoder.room()) {
            Ok(0) => return Err(WITHOUT_A_WORD.into()),
            Ok(length) => length,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(()),
                io::ErrorKind::ConnectionReset => return Err(WITHOUT_A_WORD.into()),
                _ => return Err(error.to_string()),
            },
        };
        reading.decoder.arrived(length);
        self.tell_amiquip_that_the_broker_is_alive(&mut reading.told_alive)?;
        while let Some(incoming) = reading.decoder.next()? {
            self.take(incoming)?;
        }
        Ok(())
    }

    fn take(&self, incoming: Incoming<'_>) -> Result<(), String> {
        match incoming {
            Incoming::Delivery { channel, delivery } => {
                self.handle(Event::Delivery { channel, delivery });
            }
            Incoming::Return { queue, reason, message } => {
                self.handle(Event::Return { queue, reason, message });
            }
            Incoming::Control { frame, notice } => {
                match notice {
                    None => {}
                    Some(Notice::FrameMax(limit)) => self.transport.set_frame_max(limit),
                    Some(Notice::ConnectionClosed(close)) => {
                        self.end(format!("the broker closed the connection: {close}"));
                        let _ = self.closed_by_broker.set(close);
                        if self.is_open.load(Ordering::Relaxed) {
                            return self.confirm_close();
                        }
                    }
                    Some(Notice::ChannelClosed { channel, close }) => {
                        // Before amiquip confirms it, and so before the channel can be reused.
                        self.handle(Event::ChannelClosed { channel, close });
                        self.transport.channel_closed(channel);
                    }
                    Some(Notice::ConsumerCancelled { channel }) => {
                        self.handle(Event::ConsumerCancelled { channel });
                    }
                    Some(Notice::Blocked(reason)) => {
                        self.is_blocked.store(true, Ordering::Relaxed);
                        self.handle(Event::Blocked(reason));
                    }
                    Some(Notice::Unblocked) => {
                        self.is_blocked.store(false, Ordering::Relaxed);
                        self.turn.resume_limits();
                        self.handle(Event::Unblocked);
                    }
                }
                self.control.push(frame)?;
            }
        }
        Ok(())
    }

    /// amiquip's I/O thread panics over a synchronous call that begins while the broker's close is
    /// on its way. So after the handshake amiquip sees the end of its stream instead.
    fn confirm_close(&self) -> Result<(), String> {
        self.transport.write_control(CONNECTION_CLOSE_OK);
        self.control.end();
        Ok(())
    }

    /// amiquip ends a connection on which nothing arrives for two heartbeats, and sees no messages.
    fn tell_amiquip_that_the_broker_is_alive(
        &self,
        told: &mut Option<Instant>,
    ) -> Result<(), String> {
        const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        const OFTEN_ENOUGH: Duration = Duration::from_secs(1);
        let now = Instant::now();
        match told {
            Some(told) if now.duration_since(*told) < OFTEN_ENOUGH => return Ok(()),
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
            Ok(Polled { readable, writable }) => {
                if writable {
                    self.transport.write_due();
                }
                readable
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

    fn time_limit_passed(&self) {
        self.cut(TOO_LATE);
    }

    fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }
}

/// Why a connection ends that the peer has ended.
pub(super) const WITHOUT_A_WORD: &str = "the connection ended without a word";
/// Why a connection ends on which a synchronous call took too long.
pub(super) const TOO_LATE: &str = "the broker did not answer in time";

/// See [`DataPlane::time_limit`].
pub(crate) struct TimeLimit<'a> {
    data_plane: &'a DataPlane,
    id: u64,
}

impl Drop for TimeLimit<'_> {
    fn drop(&mut self) {
        self.data_plane.turn.end_limit(self.id);
    }
}
