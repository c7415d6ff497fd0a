//! The calls of one session that have no outcome yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::request::Outcome;
use crate::broker::{DataPlane, Waiter};
use crate::lock::lock;

/// The pending calls by correlation id, at most `limit` at once. A call whose deadline has passed
/// does not count, even if a thread still waits for it.
pub(super) struct PendingCalls {
    table: Mutex<Table>,
    limit: usize,
}

#[derive(Default)]
struct Table {
    calls: HashMap<Uuid, Arc<CallSlot>>,
    /// No call in the table has an earlier deadline than this.
    earliest: Option<Instant>,
    /// The callers that wait for an in-flight slot.
    waiting: Vec<Arc<Waiter>>,
    /// When the first call was registered after the last answer to any call.
    unanswered: Option<Instant>,
    /// Whether requests may be lost, because a call timed out and no answer has come for long.
    suspect: bool,
}

/// The state that a caller shares with the reader of the socket, for one attempt of a call.
pub(super) struct CallSlot {
    /// The correlation id of the request.
    pub(super) id: Uuid,
    /// The deadline of the whole call.
    deadline: Instant,
    pub(super) waiter: Arc<Waiter>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    outcome: Option<Outcome>,
    /// When the server sent the last sign of life, if it has sent any.
    last_sign: Option<Instant>,
}

impl CallSlot {
    pub(super) fn new(deadline: Instant) -> Arc<CallSlot> {
        let (waiter, progress) = (Arc::default(), Mutex::default());
        Arc::new(CallSlot { id: Uuid::new_v4(), deadline, waiter, progress })
    }

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

    /// Registers an attempt of a call before its request is sent. An attempt that `is_resend` is
    /// always accepted. `Err` is the next time at which a call in flight expires, if the limit is
    /// reached.
    pub(super) fn register(&self, slot: &Arc<CallSlot>, is_resend: bool) -> Result<(), Instant> {
        let mut table = lock(&self.table);
        if table.calls.len() >= self.limit && !is_resend {
            let earliest = table.remove_expired();
            if table.calls.len() >= self.limit {
                return Err(earliest);
            }
        }
        table.calls.insert(slot.id, Arc::clone(slot));
        let earliest = table.earliest.unwrap_or(slot.deadline).min(slot.deadline);
        table.earliest = Some(earliest);
        table.unanswered.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Notifies this waiter when an in-flight slot may be free.
    pub(super) fn await_capacity(&self, waiter: &Arc<Waiter>) {
        lock(&self.table).waiting.push(Arc::clone(waiter));
    }

    /// Ends the wait of [`PendingCalls::await_capacity`]. If a slot is free, wakes the next waiter,
    /// because this one may have consumed its notification.
    pub(super) fn stop_awaiting_capacity(&self, waiter: &Arc<Waiter>, data_plane: &DataPlane) {
        let mut table = lock(&self.table);
        table.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
        let next = self.next_for_capacity(&table);
        drop(table);
        next.iter().for_each(|next| data_plane.wake(next));
    }

    pub(super) fn has_capacity(&self) -> bool {
        lock(&self.table).calls.len() < self.limit
    }

    /// Sets the outcome of a call. Called by the reader. False if the call is not registered.
    pub(super) fn settle(&self, id: Uuid, outcome: Outcome, reader_of: &DataPlane) -> bool {
        let mut table = lock(&self.table);
        (table.unanswered, table.suspect) = (None, false);
        let Some(slot) = table.calls.remove(&id) else { return false };
        let next = self.next_for_capacity(&table);
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
        if let Some(slot) = table.calls.get(&id) {
            lock(&slot.progress).last_sign = Some(Instant::now());
        }
    }

    /// Removes a call that no thread waits for any more.
    pub(super) fn forget(&self, id: Uuid, data_plane: &DataPlane) {
        let mut table = lock(&self.table);
        let next = table.calls.remove(&id).and_then(|_| self.next_for_capacity(&table));
        drop(table);
        next.iter().for_each(|next| data_plane.wake(next));
    }

    /// Notes that a call timed out. If calls have been registered for 3 s without any answer, this
    /// makes the session suspect until an answer comes.
    pub(super) fn suspect(&self) {
        const LEAST: Duration = Duration::from_secs(3);
        let mut table = lock(&self.table);
        table.suspect |= table.unanswered.is_some_and(|since| since.elapsed() >= LEAST);
    }

    /// Whether requests may be lost in this session.
    pub(super) fn are_suspect(&self) -> bool {
        lock(&self.table).suspect
    }

    /// Number of calls in flight.
    pub(super) fn len(&self) -> usize {
        let mut table = lock(&self.table);
        table.remove_expired();
        table.calls.len()
    }

    fn next_for_capacity(&self, table: &Table) -> Option<Arc<Waiter>> {
        table.waiting.first().filter(|_| table.calls.len() < self.limit).cloned()
    }
}

impl Table {
    /// Removes the calls whose deadlines have passed. Returns the earliest deadline of the others.
    fn remove_expired(&mut self) -> Instant {
        let now = Instant::now();
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.calls.retain(|_, slot| slot.deadline > now);
            self.earliest = self.calls.values().map(|slot| slot.deadline).min();
        }
        self.earliest.unwrap_or(now)
    }
}
