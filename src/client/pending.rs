//! The calls of one session that have no outcome yet, as callers and the reader of the socket share
//! them.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use uuid::Uuid;

use super::in_flight::{CallSlot, InFlightCalls, SETTLED};
use super::request::Outcome;
use super::suspicion::Suspicion;
use super::write_order::{Refusal, WriteOrder};
use crate::broker::{DataPlane, Waiter};
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

pub(super) struct PendingCalls(Mutex<State>);

pub(super) struct State {
    pub(super) calls: InFlightCalls,
    pub(super) order: WriteOrder,
    pub(super) suspicion: Suspicion,
}

impl PendingCalls {
    pub(super) fn new(limit: usize) -> PendingCalls {
        let (calls, order) = (InFlightCalls::new(limit), WriteOrder::default());
        PendingCalls(Mutex::new(State { calls, order, suspicion: Suspicion::default() }))
    }

    /// For whoever removes no call: [`PendingCalls::change`] hands its place on.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Changes the state, and hands each place that is free to a call that waits. `wake` wakes its
    /// caller.
    fn change<T>(&self, wake: impl Fn(&Arc<Waiter>), change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let changed = change(&mut state);
        let admitted = state.calls.hand_over();
        drop(state);
        admitted.iter().for_each(|slot| wake(&slot.waiter));
        changed
    }

    /// Registers an attempt of a call before its request is sent, and waits until it gets a place,
    /// but not beyond `limit`. False if the session `is_over`: it accepts no more calls. Whatever
    /// this returns, [`PendingCalls::forget`] removes the call.
    pub(super) fn register(
        &self,
        slot: &Arc<CallSlot>,
        is_resend: bool,
        limit: Deadline,
        data_plane: &DataPlane,
        is_over: impl Fn() -> bool,
    ) -> Result<bool> {
        let wake = |waiter: &Arc<Waiter>| data_plane.wake(waiter);
        self.change(wake, |state| {
            state.calls.enter(slot, is_resend);
            state.suspicion.note_call();
        });
        let is_ready = || slot.is_admitted() || is_over();
        while !is_ready() {
            if limit.has_passed() {
                let most = self.lock().calls.limit;
                let what = format!(
                    "no room for the request: {most} calls are in flight already; raise \
                     max_in_flight"
                );
                return Err(Error::TimedOut { what, after: limit.timeout, sent: false });
            }
            let next = self.change(wake, |state| state.calls.earliest).unwrap_or(limit.at);
            data_plane.wait(&slot.waiter, next.min(limit.at), is_ready);
        }
        Ok(!is_over())
    }

    /// Removes a call that no thread waits for any more.
    pub(super) fn forget(&self, id: Uuid, data_plane: &DataPlane) {
        self.change(|waiter| data_plane.wake(waiter), |state| state.calls.leave(id));
    }

    /// Notes that a request is written on the shared channel. `size` is that of its body;
    /// `to_default` tells whether it goes to the default exchange. Its answer may have come
    /// already.
    pub(super) fn note_written(&self, slot: &CallSlot, size: usize, to_default: bool) {
        let order = &mut self.lock().order;
        let number = order.write(slot.id, size, to_default);
        let noted = slot.number.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        if noted == Err(SETTLED) {
            order.prove(number);
        }
    }

    /// Number of calls in flight.
    pub(super) fn count(&self, data_plane: &DataPlane) -> usize {
        self.change(|waiter| data_plane.wake(waiter), |state| state.calls.count())
    }

    /// Sets the outcome of a call. Called by the reader. False if the call is not in flight.
    pub(super) fn settle(&self, id: Uuid, outcome: Outcome, reader_of: &DataPlane) -> bool {
        let notify = |waiter: &Arc<Waiter>| reader_of.notify(waiter);
        let slot = self.change(notify, |state| {
            let slot = state.calls.leave(id);
            state.suspicion.note_answer();
            let slot = slot?;
            state.order.prove(slot.number.swap(SETTLED, Ordering::Relaxed));
            Some(slot)
        });
        if let Some(slot) = &slot {
            slot.progress().outcome = Some(outcome);
            reader_of.notify(&slot.waiter);
        }
        slot.is_some()
    }

    /// Notes a sign of life from the server that works on a call, and what it tells of its
    /// progress. Called by the reader.
    pub(super) fn note_sign_of_life(&self, id: Uuid, told: Option<String>, reader_of: &DataPlane) {
        let mut state = self.lock();
        let slot = state.calls.get(id).cloned();
        match slot {
            Some(_) => state.suspicion.note_sign_of_life(),
            // Its caller has given up.
            None => state.suspicion.note_answer(),
        }
        drop(state);
        if let Some(slot) = slot {
            slot.note_sign_of_life(told);
            reader_of.notify(&slot.waiter);
        }
    }

    /// Ends the calls whose requests went down with a publishing channel, which the broker closed
    /// because of one of them. The others go on. Returns whether the broker may have refused what
    /// all requests need. Called by the reader.
    pub(super) fn refuse(&self, close: &Close, reader_of: &DataPlane) -> bool {
        let size = too_large(close).map(|(size, _)| size);
        let refusal = self.lock().order.refuse(size);
        let Refusal { refused, others, all_to_default, may_concern_all } = refusal;
        // The broker has refused the probe, and ignored all those behind it.
        let is_of_probe = close.code == 403 && all_to_default && others.first() == Some(&PROBE);
        let error = refusal_error(close, reader_of);
        for id in others {
            let outcome = match refused {
                Some(_) => Outcome::Ignored,
                None if is_of_probe => Outcome::Ended(Err(error.clone())),
                None => {
                    let reason = format!("the broker closed the channel: {close}");
                    Outcome::Ended(Err(Error::ConnectionLost { reason }))
                }
            };
            self.settle(id, outcome, reader_of);
        }
        if let Some(id) = refused {
            self.settle(id, Outcome::Ended(Err(error)), reader_of);
        }
        may_concern_all
    }
}

/// The error for the request that the broker refused for certain.
pub(super) fn refusal_error(close: &Close, data_plane: &DataPlane) -> Error {
    if let Some((size, most)) = too_large(close) {
        return Error::Config(format!(
            "the request has {size} bytes, and the broker takes no message larger than {most}: \
             send less at a time, or raise its max_message_size"
        ));
    }
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
