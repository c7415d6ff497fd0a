//! The calls of one session that have no outcome yet.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::call::Outcome;
use crate::broker::{DataPlane, Waiter};
use crate::error::{Error, Result};

/// The calls by their correlation ids, at most `limit` at once. A call past its deadline does not
/// count, whether or not anybody waits for it.
///
/// Each method that makes a waiting thread ready returns or passes on its [`Waiter`].
pub(crate) struct PendingCalls {
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
    /// Why no further call may begin, once that is so.
    ended: Option<Error>,
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
pub(crate) struct CallSlot {
    /// The caller's, the same in all attempts of its call.
    pub(crate) waiter: Arc<Waiter>,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    outcome: Option<Outcome>,
    /// When the server gave the last sign of life, if it has given any.
    last_sign: Option<Instant>,
    /// The connection at which the caller waits, if it is another one.
    waits_at: Option<Arc<DataPlane>>,
}

/// Why a call was not registered.
#[derive(Debug)]
pub(crate) enum NotRegistered {
    /// As many calls as may be are in flight: the first of them ends at that moment, if not before.
    Full(Instant),
    /// The session takes no more calls.
    Ended,
}

impl CallSlot {
    pub(crate) fn new(waiter: &Arc<Waiter>) -> CallSlot {
        CallSlot { waiter: Arc::clone(waiter), progress: Mutex::default() }
    }

    pub(crate) fn has_outcome(&self) -> bool {
        lock(&self.progress).outcome.is_some()
    }

    pub(crate) fn take_outcome(&self) -> Option<Outcome> {
        lock(&self.progress).outcome.take()
    }

    pub(crate) fn last_sign(&self) -> Option<Instant> {
        lock(&self.progress).last_sign
    }

    /// Has the caller woken at that connection, where it waits for another attempt.
    pub(crate) fn caller_waits_at(&self, data_plane: &Arc<DataPlane>) {
        lock(&self.progress).waits_at = Some(Arc::clone(data_plane));
    }

    fn settle(&self, outcome: Outcome, notify: impl Fn(&Arc<Waiter>)) {
        let mut progress = lock(&self.progress);
        progress.outcome = Some(outcome);
        let waits_at = progress.waits_at.clone();
        drop(progress);
        match waits_at {
            Some(data_plane) => data_plane.wake(&self.waiter),
            None => notify(&self.waiter),
        }
    }
}

impl PendingCalls {
    pub(crate) fn new(limit: usize) -> PendingCalls {
        PendingCalls { table: Mutex::default(), limit }
    }

    /// Enters a call, before its request goes out.
    pub(crate) fn register(
        &self,
        id: Uuid,
        slot: &Arc<CallSlot>,
        deadline: Instant,
    ) -> Result<(), NotRegistered> {
        let mut table = self.lock();
        if table.ended.is_some() {
            return Err(NotRegistered::Ended);
        }
        if table.calls.len() >= self.limit {
            let earliest = table.remove_expired();
            if table.calls.len() >= self.limit {
                return Err(NotRegistered::Full(earliest));
            }
        }
        table.calls.insert(id, Registered { slot: Arc::clone(slot), deadline });
        table.earliest = Some(table.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        table.unanswered.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Has this waiter notified when there may be room.
    pub(crate) fn await_room(&self, waiter: &Arc<Waiter>) {
        self.lock().waiting.push(Arc::clone(waiter));
    }

    /// Ends that. Returns who has to be notified in its place, if there is room.
    pub(crate) fn stop_awaiting_room(&self, waiter: &Arc<Waiter>) -> Option<Arc<Waiter>> {
        let mut table = self.lock();
        table.waiting.retain(|other| !Arc::ptr_eq(other, waiter));
        self.next_for_room(&table)
    }

    /// Whether a call can be registered, or has an error to learn.
    pub(crate) fn is_open(&self) -> bool {
        let table = self.lock();
        table.ended.is_some() || table.calls.len() < self.limit
    }

    /// Gives a call its outcome, and has its waiter notified. False if the call is not here (any
    /// more).
    pub(crate) fn settle(&self, id: Uuid, outcome: Outcome, notify: impl Fn(&Arc<Waiter>)) -> bool {
        let mut table = self.lock();
        (table.unanswered, table.suspect) = (None, false);
        let Some(Registered { slot, .. }) = table.calls.remove(&id) else { return false };
        let next = self.next_for_room(&table);
        drop(table);
        slot.settle(outcome, &notify);
        next.iter().for_each(notify);
        true
    }

    /// Notes a sign of life from the server that works on a call.
    pub(crate) fn note_sign_of_life(&self, id: Uuid) {
        let mut table = self.lock();
        (table.unanswered, table.suspect) = (None, false);
        if let Some(Registered { slot, .. }) = table.calls.get(&id) {
            lock(&slot.progress).last_sign = Some(Instant::now());
        }
    }

    /// Takes out a call that nobody waits for any more. Returns who may have room now.
    pub(crate) fn forget(&self, id: Uuid) -> Option<Arc<Waiter>> {
        let mut table = self.lock();
        table.calls.remove(&id)?;
        self.next_for_room(&table)
    }

    /// Notes that a call timed out: that makes the session suspect if calls have begun for `least`
    /// and nothing has come back, until something does.
    pub(crate) fn suspect_after(&self, least: Duration) {
        let mut table = self.lock();
        table.suspect |= table.unanswered.is_some_and(|since| since.elapsed() >= least);
    }

    /// Whether requests may be lost here.
    pub(crate) fn are_suspect(&self) -> bool {
        self.lock().suspect
    }

    /// Lets no further call begin. Those in flight go on.
    pub(crate) fn retire(&self, error: Error) {
        let mut table = self.lock();
        table.ended.get_or_insert(error);
        table.waiting.clear();
    }

    /// Ends every call with this error, and lets none begin. The first reason why none may begin
    /// stays. The caller wakes the threads that wait for room.
    pub(crate) fn end(&self, error: Error, notify: impl Fn(&Arc<Waiter>)) {
        self.retire(error.clone());
        let calls = std::mem::take(&mut self.lock().calls);
        for Registered { slot, .. } in calls.into_values() {
            slot.settle(Err(error.clone()), &notify);
        }
    }

    /// Why no further call may begin.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.lock().ended.clone()
    }

    /// Whether no call is left, and none may begin.
    pub(crate) fn are_over(&self) -> bool {
        let mut table = self.lock();
        table.remove_expired();
        table.ended.is_some() && table.calls.is_empty()
    }

    /// Number of calls in flight.
    pub(crate) fn len(&self) -> usize {
        let mut table = self.lock();
        table.remove_expired();
        table.calls.len()
    }

    fn next_for_room(&self, table: &Table) -> Option<Arc<Waiter>> {
        table.waiting.first().filter(|_| table.calls.len() < self.limit).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
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

/// A panic cannot poison these locks: no code panics while it holds one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
