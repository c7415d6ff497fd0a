//! The calls in flight, at most a certain number of them, and the line of calls that wait for one
//! of them to end.
//!
//! Whoever ends a call hands its place to the call that has waited longest, so no place is free
//! while a call waits.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use uuid::Uuid;

use super::request::Outcome;
use crate::broker::Waiter;
use crate::lock::lock;

/// The calls of one session that have no outcome yet, by correlation id. A call whose deadline has
/// passed does not count, even if a thread still waits for it.
pub(super) struct InFlightCalls {
    pub(super) limit: usize,
    calls: HashMap<Uuid, Arc<CallSlot>>,
    line: VecDeque<Arc<CallSlot>>,
    /// No call in flight has an earlier deadline than this. A place may be free then.
    pub(super) earliest: Option<Instant>,
}

/// The state that a caller shares with the reader of the socket, for one attempt of a call.
pub(super) struct CallSlot {
    /// The correlation id of the request.
    pub(super) id: Uuid,
    began: Instant,
    /// The deadline of the whole call.
    deadline: Instant,
    /// Whether its reply comes through the publishing channel.
    pub(super) replies_directly: bool,
    /// Whether its server was asked to tell its progress. Else a message of that type is a reply.
    pub(super) wants_progress: bool,
    pub(super) waiter: Arc<Waiter>,
    /// Whether it has been in flight, so that the request may be published.
    is_admitted: AtomicBool,
    /// The number of its request in the order of writing; 0 before that, and [`SETTLED`] at last.
    pub(super) number: AtomicU64,
    progress: Mutex<Progress>,
}

/// In place of a request's number, once it has an outcome: perhaps before the writer has noted it.
pub(super) const SETTLED: u64 = u64::MAX;

/// What has come for a caller.
#[derive(Default)]
pub(super) struct Progress {
    /// `None` once the caller has taken it, too.
    pub(super) outcome: Option<Outcome>,
    /// When the server sent the last sign of life, if it has sent any.
    pub(super) last_sign: Option<Instant>,
    /// What the server told of its progress last, unless the caller has taken it.
    pub(super) told: Option<String>,
}

impl InFlightCalls {
    pub(super) fn new(limit: usize) -> InFlightCalls {
        InFlightCalls { limit, calls: HashMap::new(), line: VecDeque::new(), earliest: None }
    }

    /// Takes a place for a call, or puts it at the end of the line. A call that `is_resend` takes a
    /// place beyond the limit.
    pub(super) fn enter(&mut self, slot: &Arc<CallSlot>, is_resend: bool) {
        match is_resend || self.line.is_empty() && self.has_room() {
            true => self.admit(slot),
            false => self.line.push_back(Arc::clone(slot)),
        }
    }

    /// Removes a call, also from the line. Returns it if it was in flight.
    pub(super) fn leave(&mut self, id: Uuid) -> Option<Arc<CallSlot>> {
        let left = self.calls.remove(&id);
        if left.is_none() {
            self.line.retain(|waiting| waiting.id != id);
        }
        left
    }

    /// Hands the places of calls that have ended, or whose deadlines have passed, to the first
    /// calls in the line.
    #[must_use = "their callers wait"]
    pub(super) fn hand_over(&mut self) -> Vec<Arc<CallSlot>> {
        let mut admitted = Vec::new();
        while !self.line.is_empty()
            && self.has_room()
            && let Some(next) = self.line.pop_front()
        {
            self.admit(&next);
            admitted.push(next);
        }
        admitted
    }

    pub(super) fn get(&self, id: Uuid) -> Option<&Arc<CallSlot>> {
        self.calls.get(&id)
    }

    /// Whether any reply comes through the publishing channel.
    pub(super) fn await_direct_replies(&self) -> bool {
        self.calls.values().any(|slot| slot.replies_directly)
    }

    /// Number of calls in flight. Removes those whose deadlines have passed.
    pub(super) fn count(&mut self) -> usize {
        let now = Instant::now();
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.calls.retain(|_, slot| slot.deadline > now);
            self.earliest = self.calls.values().map(|slot| slot.deadline).min();
        }
        self.calls.len()
    }

    /// When the oldest call began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.calls.values().map(|slot| slot.began).min()
    }

    fn has_room(&mut self) -> bool {
        self.calls.len() < self.limit || self.count() < self.limit
    }

    fn admit(&mut self, slot: &Arc<CallSlot>) {
        self.calls.insert(slot.id, Arc::clone(slot));
        self.earliest = Some(self.earliest.unwrap_or(slot.deadline).min(slot.deadline));
        slot.is_admitted.store(true, Ordering::Release);
    }
}

impl CallSlot {
    pub(super) fn new(
        deadline: Instant,
        replies_directly: bool,
        wants_progress: bool,
    ) -> Arc<CallSlot> {
        Arc::new(CallSlot {
            id: Uuid::new_v4(),
            began: Instant::now(),
            deadline,
            replies_directly,
            wants_progress,
            waiter: Arc::default(),
            is_admitted: AtomicBool::new(false),
            number: AtomicU64::new(0),
            progress: Mutex::default(),
        })
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Acquire)
    }

    /// Whether it has had an outcome.
    pub(super) fn is_settled(&self) -> bool {
        self.number.load(Ordering::Relaxed) == SETTLED
    }

    pub(super) fn note_sign_of_life(&self, told: Option<String>) {
        let mut progress = self.progress();
        progress.last_sign = Some(Instant::now());
        progress.told = told.or(progress.told.take());
    }

    pub(super) fn has_news(&self) -> bool {
        let progress = self.progress();
        progress.outcome.is_some() || progress.told.is_some()
    }

    pub(super) fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn later() -> Arc<CallSlot> {
        CallSlot::new(Instant::now() + Duration::from_secs(60), false, false)
    }

    /// The calls that get a place now.
    fn admitted(calls: &mut InFlightCalls) -> Vec<Uuid> {
        calls.hand_over().iter().map(|slot| slot.id).collect()
    }

    /// Whether the call gets a place at once.
    fn enters(calls: &mut InFlightCalls, slot: &Arc<CallSlot>) -> bool {
        calls.enter(slot, false);
        assert!(calls.hand_over().is_empty());
        slot.is_admitted()
    }

    #[test]
    fn place_is_handed_to_the_call_that_has_waited_longest() {
        let mut calls = InFlightCalls::new(1);
        let [first, second, third, fourth, gone] = [(); 5].map(|()| later());
        assert!(enters(&mut calls, &first));
        assert!(![&gone, &second, &third].into_iter().any(|slot| enters(&mut calls, slot)));
        assert!(calls.leave(gone.id).is_none(), "it waited in the line");
        assert!(admitted(&mut calls).is_empty());
        assert_eq!(calls.leave(first.id).unwrap().id, first.id);
        assert_eq!(admitted(&mut calls), [second.id]);
        assert!(second.is_admitted() && !third.is_admitted());
        assert!(!enters(&mut calls, &fourth), "a new call does not overtake those that wait");
        calls.leave(second.id);
        assert_eq!(admitted(&mut calls), [third.id]);
        assert_eq!(calls.count(), 1);
    }

    #[test]
    fn expired_call_makes_room_whoever_notices() {
        let mut calls = InFlightCalls::new(2);
        let soon = Instant::now() + Duration::from_millis(20);
        let [first, second] = [(); 2].map(|()| CallSlot::new(soon, false, false));
        let [third, fourth, fifth] = [(); 3].map(|()| later());
        assert!(enters(&mut calls, &first) && enters(&mut calls, &second));
        assert!(!enters(&mut calls, &third) && !enters(&mut calls, &fourth));
        assert_eq!(calls.earliest, Some(soon));
        std::thread::sleep(soon.saturating_duration_since(Instant::now()));
        assert_eq!(admitted(&mut calls), [third.id, fourth.id]);
        assert!(!enters(&mut calls, &fifth));
        assert!(calls.leave(first.id).is_none(), "it has no place any more");
        calls.leave(third.id);
        assert_eq!(admitted(&mut calls), [fifth.id]);
    }

    #[test]
    fn resent_call_exceeds_the_limit() {
        let mut calls = InFlightCalls::new(1);
        let [first, again, waiting] = [(); 3].map(|()| later());
        assert!(enters(&mut calls, &first));
        calls.enter(&again, true);
        assert!(again.is_admitted());
        assert!(!enters(&mut calls, &waiting));
        calls.leave(first.id);
        assert!(admitted(&mut calls).is_empty(), "two calls had one place");
        calls.leave(again.id);
        assert_eq!(admitted(&mut calls), [waiting.id]);
    }
}
