//! The calls of one session that have no outcome yet, as callers and the reader of the socket share
//! them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use uuid::Uuid;

use super::in_flight::{CallSlot, InFlightCalls};
use super::looks::QueueStatus;
use super::request::Outcome;
use super::suspicion::Suspicion;
use super::write_order::{Refusal, WriteOrder};
use crate::broker::DataPlane;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::frames::Close;
use crate::lock::lock;

/// The correlation id of the message that the client sends to its own reply queue as soon as that
/// queue is there, to find out whether the broker accepts its messages. It is the first message of
/// a session, unless replies come by direct reply-to at first. If the user lacks the permission,
/// the broker closes the channel. During a resource alarm, the broker reports that it blocks the
/// connection.
pub(super) const PROBE: Uuid = Uuid::nil();

pub(super) struct PendingCalls {
    limit: usize,
    state: Mutex<State>,
}

struct State {
    calls: InFlightCalls,
    order: WriteOrder,
    suspicion: Suspicion,
}

impl PendingCalls {
    pub(super) fn new(limit: usize) -> PendingCalls {
        let calls = InFlightCalls::new(limit);
        let order = WriteOrder::default();
        let state = Mutex::new(State { calls, order, suspicion: Suspicion::default() });
        PendingCalls { limit, state }
    }

    /// Registers an attempt of a call before its request is sent, and waits until it gets a place,
    /// but not beyond `limit`. False if the session `is_over`: it accepts no more calls.
    pub(super) fn register(
        &self,
        slot: &Arc<CallSlot>,
        is_resend: bool,
        limit: Deadline,
        data_plane: &DataPlane,
        is_over: impl Fn() -> bool,
    ) -> Result<bool> {
        let mut state = lock(&self.state);
        let admitted = state.calls.enter(slot, is_resend);
        state.suspicion.note_call();
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
        let is_ready = || slot.is_admitted() || is_over();
        while !is_ready() {
            if limit.has_passed() {
                self.forget(slot.id, data_plane);
                return Err(self.limit_reached(limit));
            }
            let next = self.hand_over(data_plane).unwrap_or(limit.at);
            data_plane.wait(&slot.waiter, next.min(limit.at), is_ready);
        }
        if is_over() {
            self.forget(slot.id, data_plane);
            return Ok(false);
        }
        Ok(true)
    }

    fn limit_reached(&self, deadline: Deadline) -> Error {
        let limit = self.limit;
        Error::TimedOut {
            what: format!(
                "no room for the request: {limit} calls are in flight already; raise max_in_flight"
            ),
            after: deadline.timeout,
            sent: false,
        }
    }

    /// Hands the places of expired calls to calls that wait. Returns when to do so next.
    fn hand_over(&self, data_plane: &DataPlane) -> Option<Instant> {
        let mut state = lock(&self.state);
        let admitted = state.calls.hand_over();
        let next = state.calls.next_expiry();
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
        next
    }

    /// Sets the outcome of a call. Called by the reader. False if the call is not in flight.
    pub(super) fn settle(&self, id: Uuid, outcome: Outcome, reader_of: &DataPlane) -> bool {
        let mut state = lock(&self.state);
        let (slot, admitted) = state.calls.leave(id);
        let others_wait = state.calls.len() > 0;
        state.suspicion.note_answer(others_wait);
        if let Some(slot) = &slot {
            state.order.prove(slot.number.load(Ordering::Relaxed));
        }
        drop(state);
        if let Some(slot) = &slot {
            slot.set_outcome(outcome);
            reader_of.notify(&slot.waiter);
        }
        admitted.wake(|waiter| reader_of.notify(waiter));
        slot.is_some()
    }

    /// Notes that the request of a call has begun to be written, with a body of this size.
    pub(super) fn note_written(&self, slot: &CallSlot, size: usize) {
        let number = lock(&self.state).order.write(slot.id, size);
        slot.number.store(number, Ordering::Relaxed);
    }

    /// Notes that [`PROBE`] is written now, or that it has come back.
    pub(super) fn note_probe(&self, has_come_back: bool) {
        let order = &mut lock(&self.state).order;
        match has_come_back {
            true => order.prove_id(PROBE),
            false => drop(order.write(PROBE, 0)),
        }
    }

    /// See [`WriteOrder::begin_channel`].
    pub(super) fn begin_channel(&self) -> u64 {
        lock(&self.state).order.begin_channel()
    }

    /// Ends the calls whose requests went down with a publishing channel, which the broker closed
    /// because of one of them. The others go on. Called by the reader.
    pub(super) fn refuse(&self, channel: u64, close: &Close, reader_of: &DataPlane) {
        let too_large = too_large(close);
        let size = too_large.map(|(size, _)| size);
        let Refusal { refused, others } = lock(&self.state).order.refuse(channel, size);
        // The broker has refused the probe, and ignored all those behind it.
        let is_of_probe = close.code == 403 && others.first() == Some(&PROBE);
        let error = match too_large {
            Some((size, most)) => Error::Config(format!(
                "the request has {size} bytes, and the broker takes no message larger than {most}: \
                 send less at a time, or raise its max_message_size"
            )),
            None => refusal_error(close, reader_of),
        };
        for id in &others {
            let outcome = match refused {
                Some(_) => Outcome::Ignored,
                None if is_of_probe => Outcome::Ended(Err(error.clone())),
                None => {
                    let reason = format!("the broker closed the channel: {close}");
                    Outcome::Ended(Err(Error::ConnectionLost { reason }))
                }
            };
            self.settle(*id, outcome, reader_of);
        }
        refused.map(|id| self.settle(id, Outcome::Ended(Err(error)), reader_of));
    }

    /// Notes a sign of life from the server that works on a call, and what it tells of its
    /// progress. Called by the reader.
    pub(super) fn note_sign_of_life(&self, id: Uuid, told: Option<String>, reader_of: &DataPlane) {
        let mut state = lock(&self.state);
        state.suspicion.note_answer(true);
        let slot = state.calls.get(id).cloned();
        drop(state);
        if let Some(slot) = slot {
            slot.note_sign_of_life(told);
            reader_of.notify(&slot.waiter);
        }
    }

    /// Whether a message about the progress of this call is none of its reply.
    pub(super) fn may_progress(&self, id: Uuid) -> bool {
        lock(&self.state).calls.get(id).is_none_or(|slot| slot.wants_progress)
    }

    /// Removes a call that no thread waits for any more.
    pub(super) fn forget(&self, id: Uuid, data_plane: &DataPlane) {
        let (_, admitted) = lock(&self.state).calls.leave(id);
        admitted.wake(|waiter| data_plane.wake(waiter));
    }

    /// See [`Suspicion::note_loss`].
    pub(super) fn note_loss(&self) -> bool {
        lock(&self.state).suspicion.note_loss()
    }

    /// See [`Suspicion::note_timeout`].
    pub(super) fn note_timeout(
        &self,
        found: &Result<QueueStatus>,
        has_several_brokers: bool,
        data_plane: &DataPlane,
    ) {
        let silence = data_plane.silence();
        lock(&self.state).suspicion.note_timeout(found, has_several_brokers, silence);
    }

    /// Whether requests may be lost in this session.
    pub(super) fn are_suspect(&self, data_plane: &DataPlane) -> bool {
        lock(&self.state).suspicion.is_suspect(|| data_plane.silence())
    }

    pub(super) fn have_answers(&self) -> bool {
        lock(&self.state).suspicion.has_answers
    }

    pub(super) fn await_direct_replies(&self) -> bool {
        lock(&self.state).calls.await_direct_replies()
    }

    /// When the oldest of the calls in flight was sent.
    pub(super) fn oldest(&self) -> Option<Instant> {
        lock(&self.state).calls.oldest()
    }

    /// Number of calls in flight.
    pub(super) fn len(&self, data_plane: &DataPlane) -> usize {
        let mut state = lock(&self.state);
        state.calls.remove_expired();
        let admitted = state.calls.hand_over();
        let length = state.calls.len();
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
        length
    }
}

/// The error for the request that the broker refused for certain, for another reason than its size.
pub(super) fn refusal_error(close: &Close, data_plane: &DataPlane) -> Error {
    match close.code {
        403 => data_plane.endpoint.explain_close(close, "publish requests"),
        404 => Error::Unroutable {
            // NOT_FOUND - no exchange '…' in vhost '…'
            queue: close.text.split('\'').nth(1).unwrap_or_default().to_string(),
        },
        _ => Error::Config(format!("the broker refused the request: {close}")),
    }
}

/// The sizes of the message that the broker refused, and of the largest that it takes, if that is
/// why it closed the channel. `check_msg_size` in RabbitMQ's `rabbit_channel.erl` writes the text,
/// and no name of a user's is part of it.
fn too_large(close: &Close) -> Option<(usize, usize)> {
    let sizes = close.text.strip_prefix("PRECONDITION_FAILED - message size ")?;
    let (size, rest) = sizes.split_once(" is larger than ")?;
    let (_, most) = rest.split_once("max size ")?;
    (close.code == 406).then_some((size.parse().ok()?, most.parse().ok()?))
}
