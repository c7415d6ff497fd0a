//! Channels. They carry messages in both directions, methods to the broker, and its answers.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::data_plane::{CLOSE_TIMEOUT, DataPlane};
use super::ended::Ended;
use super::slots::Slot;
use super::transport::WriteError;
use super::turn::Waiter;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::frames::{Answer, Close, DeclaredQueue, Event, Frames, Method, Route};
use crate::lock::lock;

/// An open channel of a connection. Dropping it closes the channel without waiting for the broker.
/// The broker then delivers the unacknowledged deliveries of the channel to other consumers.
pub(crate) struct Channel {
    pub(crate) data_plane: Arc<DataPlane>,
    pub(crate) number: u16,
    slot: Arc<Slot<DataPlane>>,
}

/// The time limit for an answer of the broker.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    Until(Instant),
    /// This time for each answer, extended until 5 s after an alarm. During an alarm, the broker
    /// does not read from a connection that has published messages, so it does not answer either.
    ExtendedByAlarm(Duration),
}

/// The reason why a method got no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The broker closed the channel or the connection instead.
    Closed(Close),
    /// No answer came, for this reason.
    Unanswered(String),
    /// The connection has this many channels already, which is the limit.
    NoChannel(u16),
}

impl DataPlane {
    /// Opens a channel. Blocks until the broker answers, but not beyond the limit. The waiter is
    /// notified of answers.
    pub(crate) fn open_channel(
        self: &Arc<DataPlane>,
        limit: Limit,
        waiter: Arc<Waiter>,
        handler: impl Fn(&DataPlane, Event) + Send + Sync + 'static,
    ) -> Result<Channel, CallError> {
        let slot = Slot::new(waiter, Box::new(handler), false);
        let channel = self.new_channel(slot, limit.until())?;
        channel.call(Method::OpenChannel, limit)?;
        Ok(channel)
    }

    /// Opens a channel without waiting for the broker: methods and messages may follow at once.
    /// Blocks only while no number is free, and not beyond `until`. The handler gets the broker's
    /// answers, too.
    pub(crate) fn begin_channel(
        self: &Arc<DataPlane>,
        until: Instant,
        handler: impl Fn(&DataPlane, Event) + Send + Sync + 'static,
    ) -> Result<Channel, CallError> {
        let slot = Slot::new(Arc::default(), Box::new(handler), true);
        let channel = self.new_channel(slot, until)?;
        channel.send(Method::OpenChannel);
        Ok(channel)
    }

    /// Waits for a free number if all are taken and one will be free soon: a channel that is closed
    /// keeps its number until the broker has answered.
    fn new_channel(
        self: &Arc<DataPlane>,
        slot: Slot<DataPlane>,
        until: Instant,
    ) -> Result<Channel, CallError> {
        const INTERVAL: Duration = Duration::from_millis(10);
        let (slot, limit) = (Arc::new(slot), self.channel_max());
        loop {
            let mut slots = lock(&self.slots);
            // Nobody would remove the channel any more.
            if let Some(error) = self.why_ended() {
                return Err(error);
            }
            if let Some(number) = (1..=limit).find(|number| !slots.contains_key(number)) {
                slots.insert(number, Arc::clone(&slot));
                return Ok(Channel { data_plane: Arc::clone(self), number, slot });
            }
            if slots.values().all(|slot| slot.is_open.load(Ordering::Relaxed)) {
                return Err(CallError::NoChannel(limit));
            }
            drop(slots);
            let now = Instant::now();
            if until <= now {
                return Err(CallError::Unanswered("no channel was closed in time".into()));
            }
            self.wait(&slot.waiter, now + INTERVAL, || false);
        }
    }

    /// Why no answer comes any more, if the connection has ended.
    fn why_ended(&self) -> Option<CallError> {
        self.ended().map(|reason| match reason {
            Ended::Closed(close) => CallError::Closed(close.clone()),
            reason => CallError::Unanswered(reason.to_string()),
        })
    }

    /// Refuses a number of channels that this connection cannot have.
    pub(crate) fn check_channels(&self, wanted: usize, doing: &str) -> Result<(), Error> {
        match self.channel_max() {
            most if wanted <= most.into() => Ok(()),
            most => Err(self.explain(CallError::NoChannel(most), doing)),
        }
    }

    /// Finds or declares a queue. This uses a separate channel, because a refusal closes the
    /// channel.
    pub(crate) fn ask(
        self: &Arc<DataPlane>,
        method: Method<'_>,
        limit: Limit,
    ) -> Result<DeclaredQueue, CallError> {
        self.open_channel(limit, Arc::default(), |_, _| {})?.queue(method, limit)
    }

    /// Converts an error. `doing` names the operation, for which the user may lack the permission.
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

impl Answer {
    pub(crate) fn queue(self) -> Result<DeclaredQueue, CallError> {
        match self {
            Answer::Queue(queue) => Ok(queue),
            _ => Err(CallError::Unanswered("the broker's answer is to something else".into())),
        }
    }
}

impl Limit {
    /// When the time is up, if there is no alarm.
    fn until(self) -> Instant {
        match self {
            Limit::Until(until) => until,
            Limit::ExtendedByAlarm(time) => Deadline::after(time).at,
        }
    }
}

impl Channel {
    /// Sends a method to the broker and returns the answer. Blocks until the broker answers, but
    /// not beyond the limit. A later answer is skipped. Only one thread at a time may call it.
    pub(crate) fn call(&self, method: Method<'_>, limit: Limit) -> Result<Answer, CallError> {
        self.send(method);
        self.answer(limit).inspect_err(|_| self.skip_answer())
    }

    /// Sends a method to the broker. Does not block. Several methods may be sent before the answer
    /// to the first is taken.
    pub(crate) fn send(&self, method: Method<'_>) {
        self.send_unanswered(&method.encode(self.number));
    }

    /// Whether [`Channel::answer`] does not block: the answer has arrived, or the channel is
    /// closed.
    pub(crate) fn is_answered(&self) -> bool {
        lock(&self.slot.answers).has_next() || !self.slot.is_open.load(Ordering::Acquire)
    }

    /// Drops the answer that [`Channel::answer`] would take, even if it is yet to arrive.
    pub(crate) fn skip_answer(&self) {
        lock(&self.slot.answers).skip();
    }

    /// Waits for the answer to the earliest method that has not got one. After the limit, it can
    /// still be waited for.
    pub(crate) fn answer(&self, limit: Limit) -> Result<Answer, CallError> {
        const AFTER_ALARM: Duration = Duration::from_secs(5);
        let Channel { data_plane, slot, .. } = self;
        let (until, is_fixed) = (limit.until(), matches!(limit, Limit::Until(_)));
        let is_answered = || self.is_answered();
        data_plane.wait(&slot.waiter, until, is_answered);
        let is_blocked = || data_plane.blocked().is_some() && data_plane.ended().is_none();
        while !is_fixed && !is_answered() && is_blocked() {
            let never = Deadline::after(Duration::MAX).at;
            data_plane.wait(&slot.waiter, never, || is_answered() || !is_blocked());
            data_plane.wait(&slot.waiter, Instant::now() + AFTER_ALARM, is_answered);
        }
        if let Some(answer) = lock(&slot.answers).take() {
            return Ok(answer);
        }
        let close = slot.closed.get().map(|close| CallError::Closed(close.clone()));
        Err(close
            .or_else(|| data_plane.why_ended())
            .unwrap_or_else(|| CallError::Unanswered("the broker did not answer in time".into())))
    }

    pub(crate) fn is_open(&self) -> bool {
        self.slot.is_open.load(Ordering::Relaxed)
    }

    /// A route to a queue through this channel. If the queue does not exist, the broker returns a
    /// mandatory message.
    pub(crate) fn route<'a>(&self, queue: &'a str, mandatory: bool) -> Route<'a> {
        Route { mandatory, ..self.route_through("", queue) }
    }

    /// A route through an exchange. If it leads to no queue, the broker returns the message.
    pub(crate) fn route_through<'a>(&self, exchange: &'a str, routing_key: &'a str) -> Route<'a> {
        let frame_max = self.data_plane.frame_max();
        Route { channel: self.number, exchange, routing_key, mandatory: true, frame_max }
    }

    /// Sends frames that the broker does not answer. Does not block.
    pub(crate) fn send_unanswered(&self, frames: &[u8]) {
        self.data_plane.write_control(frames, || self.is_open());
    }

    /// Closes the channel without waiting for the broker. A thread that waits for an answer gives
    /// up when it is woken next ([`DataPlane::wake_all`]).
    pub(crate) fn close(&self) {
        let was_open = || self.slot.is_open.swap(false, Ordering::Release);
        self.data_plane.write_control(&Method::CloseChannel.encode(self.number), was_open);
    }

    /// The same as [`Channel::call`], for methods that find or declare a queue.
    pub(crate) fn queue(
        &self,
        method: Method<'_>,
        limit: Limit,
    ) -> Result<DeclaredQueue, CallError> {
        self.call(method, limit).and_then(Answer::queue)
    }

    /// Writes the frames of one message. Blocks while the broker does not read, but not beyond
    /// `until`.
    pub(crate) fn write(&self, frames: Frames<'_>, until: Instant) -> Result<(), WriteError> {
        self.write_noting(frames, until, || {})
    }

    /// The same as [`Channel::write`]. `note` is called once, under the write lock, if the message
    /// has begun, so that the caller knows the order of the messages. It must not block.
    pub(crate) fn write_noting(
        &self,
        frames: Frames<'_>,
        until: Instant,
        note: impl FnMut(),
    ) -> Result<(), WriteError> {
        let written = self.data_plane.write(frames, until, || self.is_open(), note);
        let now = Instant::now();
        if written == Err(WriteError::Disconnected) && until > now {
            // The reader finds out why the connection ended. Wait for that reason before giving
            // another.
            let soon = until.min(now + CLOSE_TIMEOUT);
            self.data_plane.wait(&Arc::default(), soon, || false);
            self.data_plane.cut("the connection ended while something was written");
        }
        written
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.close();
    }
}
