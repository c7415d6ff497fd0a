//! One connection of a client as its callers use it.
//!
//! The callers do the work of a call themselves: they publish, taking turns on one channel, and
//! read the replies in turns. What has to stay on one thread is in [`super::session_thread`].

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use uuid::Uuid;

use super::call::{Call, Outcome};
use super::dispatcher::{Channels, Dispatcher};
use super::pending::{CallSlot, NotRegistered};
use super::{Config, QueueStatus, lock};
use crate::broker::{CLOSING, DataPlane, Waiter, WriteError};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::{self, RequestHead, Route};

/// What callers and the session thread share of one connection.
pub(crate) struct Session {
    pub(super) config: Arc<Config>,
    pub(super) data_plane: Arc<DataPlane>,
    pub(super) dispatcher: Arc<Dispatcher>,
    pub(super) channels: Channels,
    pub(super) reply_queue: String,
    pub(super) began: Instant,
    /// What was found when the broker was last asked about a queue.
    pub(super) inspected: Mutex<HashMap<String, Inspected>>,
    /// Disconnected once the session thread has closed the connection.
    pub(super) over: Receiver<()>,
}

/// What the session thread is asked to do.
pub(super) enum Order {
    /// Ask the broker about a queue.
    Inspect {
        queue: String,
        answer: Sender<Result<QueueStatus>>,
    },
    Close,
}

/// The broker's answer, or that there was none in time, and when.
pub(super) struct Inspected {
    pub(super) at: Instant,
    pub(super) found: Result<QueueStatus>,
}

/// A call whose request is out; dropping it gives the call up.
pub(crate) struct InFlight {
    pub(crate) session: Arc<Session>,
    slot: Arc<CallSlot>,
    id: Uuid,
    queue: Arc<str>,
    signs: Option<SignsOfLife>,
}

/// What a caller awaits who has asked for signs of life.
struct SignsOfLife {
    interval: Duration,
    /// When to look whether they stay away.
    look_at: Instant,
}

impl InFlight {
    /// Waits for the outcome, and reads the socket meanwhile if nobody else does.
    pub(crate) fn wait(&mut self, until: Instant) -> Option<Outcome> {
        loop {
            let look_at = self.signs.as_ref().map(|signs| signs.look_at);
            let step = look_at.map_or(until, |look_at| look_at.min(until));
            if !self.slot.has_outcome() {
                let has_outcome = || self.slot.has_outcome();
                self.session.data_plane.wait(&self.slot.waiter, step, has_outcome);
            }
            let outcome = self.slot.take_outcome().or_else(|| self.look_for_signs().map(Err));
            if outcome.is_some() || until <= Instant::now() {
                return outcome;
            }
        }
    }

    /// The outcome if it has come already.
    pub(crate) fn take_outcome(&self) -> Option<Outcome> {
        self.slot.take_outcome()
    }

    /// When the time has come for it, tells whether signs of life stay away.
    ///
    /// A server that knows of them gives the first when it begins with the request. So where there
    /// was none, either the request still waits in its queue, or its server knows of no signs: the
    /// call goes on to its deadline, unless nobody serves the queue. Where there was one, the
    /// request may have gone back to the queue, and wait there.
    fn look_for_signs(&mut self) -> Option<Error> {
        let SignsOfLife { interval, look_at } = self.signs.as_mut()?;
        let now = Instant::now();
        if now < *look_at {
            return None;
        }
        let patience = *interval * 3;
        let last_sign = self.slot.last_sign();
        if let Some(sign) = last_sign.filter(|sign| *sign + patience > now) {
            *look_at = sign + patience;
            return None;
        }
        *look_at = now + *interval;
        let QueueStatus { consumers, messages } = self.session.inspect(&self.queue).ok()?;
        let unserved = consumers == 0;
        let is_over = unserved || (last_sign.is_some() && messages == 0);
        if !is_over || self.slot.last_sign() != last_sign {
            return None;
        }
        let after = last_sign.map_or(patience, |sign| sign.elapsed());
        Some(Error::ServerSilent { queue: self.queue.to_string(), after, unserved })
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Session { dispatcher, data_plane, .. } = &*self.session;
        if let Some(waiter) = dispatcher.pending.forget(self.id) {
            data_plane.wake(&waiter);
        }
        self.session.close_if_over();
    }
}

impl Session {
    /// Publishes a request. `None` if the session ended before the request was out: it was not
    /// executed, and another session may take it.
    ///
    /// Waits until `limit` for a broker that blocks, or for room among the calls in flight. The
    /// request carries the `deadline` of its caller.
    pub(crate) fn publish(
        self: &Arc<Session>,
        call: &Call,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<InFlight>> {
        call.headers.check_size(self.data_plane.frame_max())?;
        let slot = Arc::new(CallSlot::default());
        let id = Uuid::new_v4();
        self.wait_while_blocked(&slot.waiter, limit)?;
        if !self.register(id, &slot, limit, deadline)? {
            return Ok(None);
        }
        let signs = call
            .keep_alive
            .map(|interval| SignsOfLife { interval, look_at: Instant::now() + interval * 3 });
        let queue = Arc::clone(&call.queue);
        let in_flight = InFlight { session: Arc::clone(self), slot, id, queue, signs };
        let head = RequestHead {
            reply_to: &self.reply_queue,
            correlation_id: id,
            message_id: &call.message_id,
            content_type: call.content_type.as_ref().unwrap_or(&self.config.options.content_type),
            app_id: &self.config.app_id,
            headers: &call.headers,
            keep_alive: call.keep_alive,
            remaining: deadline.remaining(),
        };
        let route = Route {
            channel: self.channels.publishing,
            queue: &call.queue,
            mandatory: true,
            frame_max: self.data_plane.frame_max(),
        };
        let request = wire::encode_request(route, &head, &call.body);
        match self.data_plane.write(route.channel, request, limit.at) {
            Ok(()) => Ok(Some(in_flight)),
            Err(WriteError::TimedOut { begun }) => Err(self.not_taken(limit, begun)),
            Err(WriteError::ChannelClosed) => Ok(None),
            Err(WriteError::Disconnected) => {
                // Whoever reads is about to learn why.
                let soon = Instant::now() + CLOSING;
                self.data_plane.wait(&in_flight.slot.waiter, soon, || false);
                self.data_plane.cut("the connection ended while a request was written");
                Ok(None)
            }
        }
    }

    /// False if the session takes no more calls.
    fn register(
        &self,
        id: Uuid,
        slot: &Arc<CallSlot>,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<bool> {
        let pending = &self.dispatcher.pending;
        loop {
            match pending.register(id, slot, deadline.at) {
                Ok(()) => return Ok(true),
                Err(NotRegistered::Ended) => return Ok(false),
                Err(NotRegistered::Full(_)) if limit.has_passed() => {
                    return Err(self.no_room(limit));
                }
                Err(NotRegistered::Full(until)) => {
                    pending.await_room(&slot.waiter);
                    let until = until.min(limit.at);
                    self.data_plane.wait(&slot.waiter, until, || pending.is_open());
                    if let Some(next) = pending.stop_awaiting_room(&slot.waiter) {
                        self.data_plane.wake(&next);
                    }
                }
            }
        }
    }

    fn wait_while_blocked(&self, waiter: &Arc<Waiter>, deadline: Deadline) -> Result<()> {
        let blocked = || lock(&self.dispatcher.blocked).clone();
        if blocked().is_none() {
            return Ok(());
        }
        let may_go_on = || lock(&self.dispatcher.blocked).is_none() || self.ended().is_some();
        self.data_plane.wait(waiter, deadline.at, may_go_on);
        match blocked().filter(|_| self.ended().is_none()) {
            Some(reason) => Err(Error::Blocked { reason, after: deadline.timeout, sent: false }),
            None => Ok(()),
        }
    }

    /// Whether the broker closed the channel over one of the requests. None of them may be sent
    /// again: that one would end every session after it too.
    pub(crate) fn rejected_a_request(&self) -> bool {
        self.dispatcher.publisher_rejected.load(Ordering::Relaxed)
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.dispatcher.pending.ended()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.dispatcher.pending.len()
    }

    /// Closes the connection, in good order if the broker answers within a second. Blocks for at
    /// most two.
    pub(crate) fn close(&self) {
        self.abandon();
        if self.over.recv_timeout(CLOSING) == Err(RecvTimeoutError::Timeout) {
            self.data_plane.cut("the broker did not confirm the close");
            let _ = self.over.recv_timeout(CLOSING);
        }
    }

    /// Has the connection closed. Does not block.
    pub(crate) fn abandon(&self) {
        self.dispatcher.end(&self.data_plane, Error::Closed);
    }

    /// Has the connection closed if no call is left and none may begin.
    pub(super) fn close_if_over(&self) {
        if self.dispatcher.pending.are_over() {
            let _ = self.dispatcher.orders.send(Order::Close);
        }
    }
}
