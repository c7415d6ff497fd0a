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

/// An attempt of a call: a request that is out. Dropping it gives the attempt up.
pub(crate) struct InFlight {
    pub(crate) session: Arc<Session>,
    slot: Arc<CallSlot>,
    id: Uuid,
    queue: Arc<str>,
    is_idempotent: bool,
    signs: Option<SignsOfLife>,
}

/// What a caller awaits who has asked for signs of life.
struct SignsOfLife {
    interval: Duration,
    /// How long they may stay away.
    patience: Duration,
    /// When to look whether they stay away.
    look_at: Instant,
}

/// What waiting for a call came to.
pub(crate) enum Waited {
    Ended(Outcome),
    /// The request may be lost, for this reason, and may be sent again.
    MayBeLost(&'static str),
    TimedOut,
}

impl InFlight {
    /// Waits for the outcome, and reads the socket meanwhile if nobody else does. A reply to one
    /// of the `earlier` attempts is as good; those that have failed are dropped.
    pub(crate) fn wait(&mut self, earlier: &mut Vec<InFlight>, until: Instant) -> Waited {
        loop {
            let look_at = self.signs.as_ref().map(|signs| signs.look_at);
            let step = look_at.map_or(until, |look_at| look_at.min(until));
            let has_outcome = |attempt: &InFlight| attempt.slot.has_outcome();
            let is_over = || has_outcome(self) || earlier.iter().any(has_outcome);
            if !is_over() {
                let is_ready = || is_over() || self.was_left();
                self.session.data_plane.wait(&self.slot.waiter, step, is_ready);
            }
            if let Some(outcome) = self.take_outcome(earlier) {
                return Waited::Ended(outcome);
            }
            if self.was_left() {
                return Waited::MayBeLost("no replies came through its connection");
            }
            match self.look_for_signs(earlier) {
                Some(silent) if silent.is_final => return Waited::Ended(Err(silent.error)),
                Some(_) => return Waited::MayBeLost("its server gave no sign of life"),
                None if until <= Instant::now() => return Waited::TimedOut,
                None => {}
            }
        }
    }

    /// The outcome of the call if it has come already.
    pub(crate) fn take_outcome(&self, earlier: &mut Vec<InFlight>) -> Option<Outcome> {
        self.slot.take_outcome().or_else(|| take_reply(earlier))
    }

    /// Whether other calls have left this session for another, and this one may follow.
    fn was_left(&self) -> bool {
        self.is_idempotent && self.session.dispatcher.is_retired.load(Ordering::Relaxed)
    }

    /// The next attempt: its caller waits for this one there too.
    pub(crate) fn follow(&mut self, earlier: &[InFlight]) {
        const LEAST: Duration = Duration::from_secs(3);
        for attempt in earlier {
            attempt.slot.caller_waits_at(&self.session.data_plane);
        }
        if let Some(signs) = self.signs.as_mut().filter(|_| self.is_idempotent) {
            // Each attempt is given twice as long: where requests wait long, few are sent twice.
            let factor = 1 << earlier.len().min(8);
            signs.patience = signs.patience.max(LEAST).saturating_mul(factor);
            signs.look_at = Instant::now() + signs.patience;
        }
    }

    /// When the time has come for it, tells whether signs of life stay away.
    ///
    /// A server that knows of them gives the first when it begins with the request. So where there
    /// was none, either the request still waits in its queue, or its server knows of no signs: the
    /// call goes on to its deadline, unless nobody serves the queue. Where there was one, the
    /// request may have gone back to the queue, and wait there. An idempotent request that waits in
    /// no queue and of which there was no sign may be lost.
    fn look_for_signs(&mut self, earlier: &[InFlight]) -> Option<Silent> {
        let last_sign = || earlier.iter().filter_map(|attempt| attempt.slot.last_sign()).max();
        let last_sign = || self.slot.last_sign().max(last_sign());
        let SignsOfLife { interval, patience, look_at } = self.signs.as_ref()?;
        let (now, patience) = (Instant::now(), *patience);
        if now < *look_at {
            return None;
        }
        let seen = last_sign();
        if let Some(sign) = seen.filter(|sign| *sign + patience > now) {
            self.signs.as_mut()?.look_at = sign + patience;
            return None;
        }
        let next = now + *interval;
        let found = self.session.inspect(&self.queue);
        let is_several = self.session.config.brokers.are_several();
        let (unserved, is_over) = match found {
            Ok(QueueStatus { consumers: 0, .. }) => (true, true),
            Ok(QueueStatus { messages, .. }) => {
                (false, messages == 0 && (seen.is_some() || self.is_idempotent))
            }
            Err(Error::Unroutable { .. }) => (false, false),
            Err(_) => (false, self.is_idempotent),
        };
        if !is_over || last_sign() != seen {
            self.signs.as_mut()?.look_at = next;
            return None;
        }
        self.session.suspect();
        // A broker that is cut off from the others knows of no consumers.
        let is_final = !self.is_idempotent || unserved && (!is_several || !earlier.is_empty());
        let after = seen.map_or(patience, |sign| sign.elapsed());
        let error = Error::ServerSilent { queue: self.queue.to_string(), after, unserved };
        Some(Silent { error, is_final })
    }
}

/// Signs of life stay away.
struct Silent {
    error: Error,
    /// Whether sending the request again cannot help, or is not allowed.
    is_final: bool,
}

/// The server's answer to one of these attempts. Those that failed otherwise are dropped.
pub(super) fn take_reply(attempts: &mut Vec<InFlight>) -> Option<Outcome> {
    let mut reply = None;
    attempts.retain(|attempt| match attempt.slot.take_outcome() {
        Some(outcome @ (Ok(_) | Err(Error::Remote { .. }))) => {
            reply = Some(outcome);
            false
        }
        failed => failed.is_none(),
    });
    reply
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
        waiter: &Arc<Waiter>,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Option<InFlight>> {
        call.headers.check_size(self.data_plane.frame_max())?;
        let slot = Arc::new(CallSlot::new(waiter));
        let id = Uuid::new_v4();
        self.wait_while_blocked(&slot.waiter, limit)?;
        if !self.register(id, &slot, limit, deadline)? {
            return Ok(None);
        }
        let signs = call.keep_alive.map(|interval| {
            let patience = interval * 3;
            SignsOfLife { interval, patience, look_at: Instant::now() + patience }
        });
        let (session, queue) = (Arc::clone(self), Arc::clone(&call.queue));
        let is_idempotent = call.is_idempotent;
        let in_flight = InFlight { session, slot, id, queue, is_idempotent, signs };
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
                // The reading thread learns why.
                let soon = limit.at.min(Instant::now() + CLOSING);
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
