//! The calls of one session that have no outcome yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::call::Outcome;
use crate::broker::{DataPlane, Waiter};
use crate::lock::lock;

/// The calls by their correlation ids, at most `limit` at once. A call past its deadline does not
/// count, whether or not anybody waits for it.
pub(super) struct PendingCalls {
    table: Mutex<Table>,
    limit: usize,
}

#[derive(Default)]
struct Table {
    calls: HashMap<Uuid, Registered>,
    /// No call in the table has an earlier deadline.
    earliest: Option<Instant>,
    /// Who waits for room.
    waiting: Vec<Arc<Waiter>>,
    /// When the first call was registered behind the last answer, to whomever.
    unanswered: Option<Instant>,
    /// Whether that silence gives reason to think that requests are lost.
    suspect: bool,
}

struct Registered {
    slot: Arc<CallSlot>,
    deadline: Instant,
}

/// What a caller and the reader of the socket share of one attempt of a call.
#[derive(Default)]
pub(super) struct CallSlot {
    pub(super) waiter: Arc<Waiter>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    outcome: Option<Outcome>,
    /// When the server gave the last sign of life, if it has given any.
    last_sign: Option<Instant>,
}

impl CallSlot {
    pub(super) fn has_outcome(&self) -> bool {
        lock(&self.progress).outcome.is_some()
    }

    pub(super) fn take_outcome(&self) -> Option<Outcome> {
        lock(&self.progress).outcome.take()
    }

    pub(super) fn last_sign(&self) -> Option<Instant> {
        lock(&self.progress).last_sign
    }
}

impl PendingCalls {
    pub(super) fn new(limit: usize) -> PendingCalls {
        PendingCalls { table: Mutex::default(), limit }
    }

    /// Enters an attempt of a call, before its request goes out; one that `is_again` always. `Err`
    /// tells when the next of the calls in flight ends, if there are as many as may be.
    pub(super) fn register(
        &self,
        id: Uuid,
        slot: &Arc<CallSlot>,
        deadline: Instant,
        is_again: bool,
    ) -> Result<(), Instant> {
        let mut table = lock(&self.table);
        if table.calls.len() >= self.limit && !is_again {
            let earliest = table.remove_expired();
            if table.calls.len() >= self.limit {
                return Err(earliest);
            }
        }
        table.calls.insert(id, Registered { slot: Arc::clone(slot), deadline });
        table.earliest = Some(table.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        table.unanswered.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Has this waiter notified when there may be room.
    pub(super) fn await_room(&self, waiter: &Arc<Waiter>) {
        lock(&self.table).waiting.push(Arc::clone(waiter));
    }

    /// Ends that. If there is room, another has to be woken in its place.
    pub(super) fn stop_awaiting_room(&self, waiter: &Arc<Waiter>, data_plane: &DataPlane) {
        let mut table = lock(&self.table);
        table.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
        let next = self.next_for_room(&table);
        drop(table);
        next.iter().for_each(|next| data_plane.wake(next));
    }

    pub(super) fn has_room(&self) -> bool {
        lock(&self.table).calls.len() < self.limit
    }

    /// Gives a call its outcome. For the reader. False if the call is not here (any more).
    pub(super) fn settle(&self, id: Uuid, outcome: Outcome, reader_of: &DataPlane) -> bool {
        let mut table = lock(&self.table);
        (table.unanswered, table.suspect) = (None, false);
        let Some(Registered { slot, .. }) = table.calls.remove(&id) else { return false };
        let next = self.next_for_room(&table);
        drop(table);
        lock(&slot.progress).outcome = Some(outcome);
        reader_of.notify(&slot.waiter);
        next.iter().for_each(|next| reader_of.notify(next));
        true
    }

    /// Notes a sign of life from the server that works on a call.
    pub(super) fn note_sign_of_life(&self, id: Uuid) {
        let mut table = lock(&self.table);
        (table.unanswered, table.suspect) = (None, false);
        if let Some(Registered { slot, .. }) = table.calls.get(&id) {
            lock(&slot.progress).last_sign = Some(Instant::now());
        }
    }

    /// Takes out a call that nobody waits for any more.
    pub(super) fn forget(&self, id: Uuid, data_plane: &DataPlane) {
        let mut table = lock(&self.table);
        let next = table.calls.remove(&id).and_then(|_| self.next_for_room(&table));
        drop(table);
        next.iter().for_each(|next| data_plane.wake(next));
    }

    /// Notes that a call timed out: that makes the session suspect if calls have begun for `least`
    /// and nothing has come back, until something does.
    pub(super) fn suspect_after(&self, least: Duration) {
        let mut table = lock(&self.table);
        table.suspect |= table.unanswered.is_some_and(|since| since.elapsed() >= least);
    }

    /// Whether requests may be lost here.
    pub(super) fn are_suspect(&self) -> bool {
        lock(&self.table).suspect
    }

    /// Number of calls in flight.
    pub(super) fn len(&self) -> usize {
        let mut table = lock(&self.table);
        table.remove_expired();
        table.calls.len()
    }

    fn next_for_room(&self, table: &Table) -> Option<Arc<Waiter>> {
        table.waiting.first().filter(|_| table.calls.len() < self.limit).cloned()
    }
}

impl Table {
    /// Takes out the calls whose deadlines have passed. Returns the earliest deadline of the
    /// others.
    fn remove_expired(&mut self) -> Instant {
        let now = Instant::now();
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.calls.retain(|_, registered| registered.deadline > now);
            self.earliest = self.calls.values().map(|registered| registered.deadline).min();
        }
        self.earliest.unwrap_or(now)
    }
}
