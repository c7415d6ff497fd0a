//! The calls of one session that have no outcome yet, as callers and the reader of the socket share
//! them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::in_flight::{CallSlot, InFlightCalls};
use super::request::Outcome;
use crate::broker::DataPlane;
use crate::lock::lock;

pub(super) struct PendingCalls(Mutex<State>);

struct State {
    calls: InFlightCalls,
    /// When the first call was registered after the last answer to any call.
    unanswered: Option<Instant>,
    /// Whether requests may be lost, because a call timed out and no answer has come for long.
    suspect: bool,
}

impl PendingCalls {
    pub(super) fn new(limit: usize) -> PendingCalls {
        let calls = InFlightCalls::new(limit);
        PendingCalls(Mutex::new(State { calls, unanswered: None, suspect: false }))
    }

    /// Registers an attempt of a call before its request is sent. Its caller has to wait until it
    /// [is admitted](CallSlot::is_admitted).
    pub(super) fn enter(&self, slot: &Arc<CallSlot>, is_resend: bool, data_plane: &DataPlane) {
        let mut state = lock(&self.0);
        let admitted = state.calls.enter(slot, is_resend);
        state.unanswered.get_or_insert_with(Instant::now);
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
    }

    /// Hands the places of expired calls to calls that wait. Returns when to do so next.
    pub(super) fn hand_over(&self, data_plane: &DataPlane) -> Option<Instant> {
        let mut state = lock(&self.0);
        let admitted = state.calls.hand_over();
        let next = state.calls.next_expiry();
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
        next
    }

    /// Sets the outcome of a call. Called by the reader. False if the call is not in flight.
    pub(super) fn settle(&self, id: Uuid, outcome: Outcome, reader_of: &DataPlane) -> bool {
        let mut state = lock(&self.0);
        (state.unanswered, state.suspect) = (None, false);
        let (slot, admitted) = state.calls.leave(id);
        drop(state);
        if let Some(slot) = &slot {
            slot.set_outcome(outcome);
            reader_of.notify(&slot.waiter);
        }
        admitted.wake(|waiter| reader_of.notify(waiter));
        slot.is_some()
    }

    /// Notes a sign of life from the server that works on a call.
    pub(super) fn note_sign_of_life(&self, id: Uuid) {
        let mut state = lock(&self.0);
        (state.unanswered, state.suspect) = (None, false);
        if let Some(slot) = state.calls.get(id) {
            slot.note_sign_of_life();
        }
    }

    /// Removes a call that no thread waits for any more.
    pub(super) fn forget(&self, id: Uuid, data_plane: &DataPlane) {
        let (_, admitted) = lock(&self.0).calls.leave(id);
        admitted.wake(|waiter| data_plane.wake(waiter));
    }

    /// Notes that a call timed out. If calls have been registered for 3 s without any answer, this
    /// makes the session suspect until an answer comes.
    pub(super) fn suspect(&self) {
        const LEAST: Duration = Duration::from_secs(3);
        let mut state = lock(&self.0);
        state.suspect |= state.unanswered.is_some_and(|since| since.elapsed() >= LEAST);
    }

    /// Whether requests may be lost in this session.
    pub(super) fn are_suspect(&self) -> bool {
        lock(&self.0).suspect
    }

    /// Number of calls in flight.
    pub(super) fn len(&self, data_plane: &DataPlane) -> usize {
        let mut state = lock(&self.0);
        state.calls.remove_expired();
        let admitted = state.calls.hand_over();
        let length = state.calls.len();
        drop(state);
        admitted.wake(|waiter| data_plane.wake(waiter));
        length
    }
}
