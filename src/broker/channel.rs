//! Channels: where messages go out and come in, and where the broker is asked to do something.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::connection::CLOSING;
use super::data_plane::DataPlane;
use super::transport::WriteError;
use super::turn::Waiter;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::frames::{
    Answer, CHANNEL_CLOSE_OK, Close, DeclaredQueue, Event, Frames, Method, Route, bare_method,
};
use crate::lock::lock;

/// An open channel of a connection. Dropping it closes the channel, without waiting for the broker:
/// that then gives the deliveries which were not acknowledged to others.
pub(crate) struct Channel {
    pub(crate) data_plane: Arc<DataPlane>,
    pub(crate) number: u16,
    slot: Arc<Slot>,
}

/// What the user of a channel and the reader of the socket share.
struct Slot {
    handler: Handler,
    is_open: AtomicBool,
    /// What the broker said if it closed the channel.
    closed: OnceLock<Close>,
    answer: Mutex<Option<Answer>>,
    waiter: Arc<Waiter>,
}

/// The reader calls it for all that happens on a channel but the answers. It must not block.
pub(crate) type Handler = Box<dyn Fn(&DataPlane, Event) + Send + Sync>;

/// The channels that the broker may still send something on, by their numbers less one.
#[derive(Default)]
pub(super) struct Channels {
    slots: Vec<Option<Arc<Slot>>>,
    /// How many the broker allows; 0 is no limit.
    limit: u16,
}

/// How long the broker may take to answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    Until(Instant),
    /// For each answer so long, or until 5 s after an alarm: on a connection on which messages have
    /// been published a broker under an alarm reads nothing, and so answers nothing.
    UnlessBlocked(Duration),
}

impl From<Instant> for Limit {
    fn from(until: Instant) -> Limit {
        Limit::Until(until)
    }
}

/// Why a method has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The broker closed the channel or the connection instead.
    Closed(Close),
    /// In words.
    Unanswered(String),
    /// The connection has as many channels as it may have.
    NoChannel(u16),
}

impl DataPlane {
    /// Opens a channel. Blocks until the broker answers, and until the limit at most.
    pub(crate) fn open_channel(
        self: &Arc<DataPlane>,
        limit: impl Into<Limit>,
        handler: impl Fn(&DataPlane, Event) + Send + Sync + 'static,
    ) -> Result<Channel, CallError> {
        let slot = Arc::new(Slot {
            handler: Box::new(handler),
            is_open: AtomicBool::new(true),
            closed: OnceLock::new(),
            answer: Mutex::default(),
            waiter: Arc::default(),
        });
        let number = lock(&self.channels).add(&slot)?;
        let channel = Channel { data_plane: Arc::clone(self), number, slot };
        channel.call(Method::OpenChannel, limit)?;
        Ok(channel)
    }

    /// Finds or declares a queue, on a channel of its own: a refusal closes the channel.
    pub(crate) fn ask(
        self: &Arc<DataPlane>,
        method: Method<'_>,
        limit: impl Into<Limit>,
    ) -> Result<DeclaredQueue, CallError> {
        let limit = limit.into();
        self.open_channel(limit, |_, _| {})?.queue(method, limit)
    }

    /// Hands an event to its channel. For the reader.
    pub(super) fn dispatch(&self, number: u16, event: Event) -> Result<(), String> {
        let Some(slot) = lock(&self.channels).get(number) else {
            return Err(format!(
                "the broker sent something on channel {number}, which is not open"
            ));
        };
        match event {
            Event::Answer(Answer::ChannelClosed) => lock(&self.channels).remove(number),
            Event::Answer(answer) => {
                *lock(&slot.answer) = Some(answer);
                self.notify(&slot.waiter);
            }
            Event::Closed(close) => {
                let _ = slot.closed.set(close.clone());
                // Nobody may write on the channel behind the confirmation.
                let mut was_open = false;
                self.write_control(&bare_method(number, CHANNEL_CLOSE_OK), || {
                    was_open = slot.is_open.swap(false, Ordering::Relaxed);
                    true
                });
                if was_open {
                    lock(&self.channels).remove(number);
                    (slot.handler)(self, Event::Closed(close));
                    self.notify(&slot.waiter);
                }
            }
            event if slot.is_open.load(Ordering::Relaxed) => (slot.handler)(self, event),
            _ => {}
        }
        Ok(())
    }

    /// What an error means for a program that was `doing` something, which may take a permission.
    pub(crate) fn explain(&self, error: CallError, doing: &str) -> Error {
        match error {
            CallError::Closed(close) => self.endpoint.explain_close(&close, doing),
            CallError::Unanswered(reason) => {
                self.endpoint.unreachable(format!("cannot {doing}: {reason}"))
            }
            CallError::NoChannel(limit) => Error::Config(format!(
                "cannot {doing}: the connection has {limit} channels at most; ask for fewer workers, \
                 or for a higher channel_max"
            )),
        }
    }
}

impl Channels {
    /// The least of these limits, of which 0 is none.
    pub(super) fn limit(&mut self, limits: &[u16]) {
        self.limit = limits.iter().copied().filter(|limit| *limit > 0).min().unwrap_or(0);
    }

    fn add(&mut self, slot: &Arc<Slot>) -> Result<u16, CallError> {
        let index = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let limit = if self.limit == 0 { u16::MAX } else { self.limit };
        if index >= limit.into() {
            return Err(CallError::NoChannel(limit));
        }
        self.slots.resize(self.slots.len().max(index + 1), None);
        self.slots[index] = Some(Arc::clone(slot));
        Ok(index as u16 + 1)
    }

    fn get(&self, number: u16) -> Option<Arc<Slot>> {
        self.slots.get(usize::from(number) - 1).cloned().flatten()
    }

    fn remove(&mut self, number: u16) {
        // There are none once the connection is cut.
        if let Some(slot) = self.slots.get_mut(usize::from(number) - 1) {
            *slot = None;
        }
    }
}

impl Channel {
    /// Has the broker do something. Blocks until it answers, and until the limit at most. For one
    /// thread at a time.
    pub(crate) fn call(
        &self,
        method: Method<'_>,
        limit: impl Into<Limit>,
    ) -> Result<Answer, CallError> {
        const AFTER_ALARM: Duration = Duration::from_secs(5);
        let Channel { data_plane, slot, .. } = self;
        let (until, is_strict) = match limit.into() {
            Limit::Until(until) => (until, true),
            Limit::UnlessBlocked(time) => (Deadline::after(time).at, false),
        };
        *lock(&slot.answer) = None;
        let is_open = || slot.is_open.load(Ordering::Relaxed);
        if data_plane.write_control(&method.encode(self.number), is_open) {
            let is_answered = || lock(&slot.answer).is_some() || slot.closed.get().is_some();
            data_plane.wait(&slot.waiter, until, is_answered);
            let is_blocked = || data_plane.blocked().is_some() && data_plane.ended().is_none();
            while !is_strict && !is_answered() && is_blocked() {
                let never = Deadline::after(Duration::MAX).at;
                data_plane.wait(&slot.waiter, never, || is_answered() || !is_blocked());
                data_plane.wait(&slot.waiter, Instant::now() + AFTER_ALARM, is_answered);
            }
        }
        if let Some(answer) = lock(&slot.answer).take() {
            return Ok(answer);
        }
        Err(match (slot.closed.get().or(data_plane.closed_by_broker()), data_plane.ended()) {
            (Some(close), _) => CallError::Closed(close.clone()),
            (None, Some(reason)) => CallError::Unanswered(reason.into()),
            (None, None) => CallError::Unanswered("the broker did not answer in time".into()),
        })
    }

    /// The way to a queue on this channel. The broker returns a mandatory message if there is no such
    /// queue.
    pub(crate) fn route<'a>(&self, queue: &'a str, mandatory: bool) -> Route<'a> {
        let frame_max = self.data_plane.frame_max();
        Route { channel: self.number, queue, mandatory, frame_max }
    }

    /// As [`Channel::call`], for the methods that find or declare a queue.
    pub(crate) fn queue(
        &self,
        method: Method<'_>,
        limit: impl Into<Limit>,
    ) -> Result<DeclaredQueue, CallError> {
        match self.call(method, limit)? {
            Answer::Queue(queue) => Ok(queue),
            _ => Err(CallError::Unanswered("the broker's answer is to something else".into())),
        }
    }

    /// Writes the frames of one message. Blocks until `until` while the broker does not read.
    pub(crate) fn write(&self, frames: Frames<'_>, until: Instant) -> Result<(), WriteError> {
        let written = self.data_plane.write(frames, until, &self.slot.is_open);
        let now = Instant::now();
        if written == Err(WriteError::Disconnected) && until > now {
            // The reader learns why.
            let soon = until.min(now + CLOSING);
            self.data_plane.wait(&Arc::default(), soon, || false);
            self.data_plane.cut("the connection ended while something was written");
        }
        written
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let was_open = || self.slot.is_open.swap(false, Ordering::Relaxed);
        self.data_plane.write_control(&Method::CloseChannel.encode(self.number), was_open);
    }
}
