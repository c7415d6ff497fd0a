//! The calls of one session whose outcome is still to come.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use uuid::Uuid;

use crate::error::{Error, Result};

/// What a call ends with.
pub(crate) type Outcome = Result<Vec<u8>>;

/// Correlation ids and who waits for them, at most `limit` at once.
pub(crate) struct PendingCalls {
    table: Mutex<Table>,
    limit: usize,
    /// Holds a token while there may be room for somebody who waits for it.
    room: (Sender<()>, Receiver<()>),
}

#[derive(Default)]
struct Table {
    calls: HashMap<Uuid, Sender<Outcome>>,
    /// Why no further call may begin, once that is so.
    ended: Option<Error>,
    /// When the first call was entered behind the last answer, to whomever.
    unanswered: Option<Instant>,
    /// Whether that silence gives reason to think that requests are lost.
    doubtful: bool,
}

/// The answer to [`PendingCalls::register`].
pub(crate) enum Registered {
    /// Here the outcome is going to arrive.
    Waiting(Receiver<Outcome>),
    /// As many calls as may be are in flight.
    Full,
    /// The session takes no more calls.
    Ended,
}

impl PendingCalls {
    pub(crate) fn new(limit: usize) -> PendingCalls {
        PendingCalls { table: Mutex::default(), limit, room: bounded(1) }
    }

    /// Enters a call, before its request goes out.
    pub(crate) fn register(&self, id: Uuid) -> Registered {
        let mut table = self.lock();
        if table.ended.is_some() {
            // Whoever else waits for room has to learn it too.
            self.announce_room();
            return Registered::Ended;
        }
        if table.calls.len() >= self.limit {
            return Registered::Full;
        }
        let (sender, receiver) = bounded(1);
        table.calls.insert(id, sender);
        table.unanswered.get_or_insert_with(Instant::now);
        if table.calls.len() < self.limit {
            self.announce_room();
        }
        Registered::Waiting(receiver)
    }

    /// Gets a token when there may be room again; whoever takes it tries to register.
    pub(crate) fn room(&self) -> &Receiver<()> {
        &self.room.1
    }

    /// Gives a call its outcome. False if nobody waits for that id (any more).
    pub(crate) fn settle(&self, id: Uuid, outcome: Outcome) -> bool {
        let mut table = self.lock();
        (table.unanswered, table.doubtful) = (None, false);
        let Some(sender) = self.remove(&mut table, id) else { return false };
        drop(table);
        // A caller may go away between the two lines; then nobody wants the outcome.
        sender.send(outcome).is_ok()
    }

    /// Takes out a call that nobody waits for any more. True if no call is left then, and none
    /// may begin.
    pub(crate) fn forget(&self, id: Uuid) -> bool {
        let mut table = self.lock();
        self.remove(&mut table, id);
        table.is_through()
    }

    /// Notes that a call timed out: it casts doubt on all of them if calls have begun for `least`
    /// and nothing came back, until something does.
    pub(crate) fn doubt_after(&self, least: Duration) {
        let mut table = self.lock();
        table.doubtful |= table.unanswered.is_some_and(|since| since.elapsed() >= least);
    }

    /// Whether requests may be lost here.
    pub(crate) fn are_doubtful(&self) -> bool {
        self.lock().doubtful
    }

    /// Lets no further call begin. Those in flight go on.
    pub(crate) fn retire(&self, error: Error) {
        self.lock().ended.get_or_insert(error);
        self.announce_room();
    }

    /// Ends the session: every call gets this error, and none may begin. The first reason why
    /// none may begin stays.
    pub(crate) fn end(&self, error: Error) {
        let mut table = self.lock();
        table.ended.get_or_insert_with(|| error.clone());
        for (_, sender) in table.calls.drain() {
            let _ = sender.send(Err(error.clone()));
        }
        self.announce_room();
    }

    /// Why no further call may begin.
    pub(crate) fn ended(&self) -> Option<Error> {
        self.lock().ended.clone()
    }

    /// Whether no call is left, and none may begin.
    pub(crate) fn are_through(&self) -> bool {
        self.lock().is_through()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().calls.len()
    }

    fn remove(&self, table: &mut Table, id: Uuid) -> Option<Sender<Outcome>> {
        let was_full = table.calls.len() >= self.limit;
        let sender = table.calls.remove(&id);
        if was_full {
            self.announce_room();
        }
        sender
    }

    fn announce_room(&self) {
        // A token that is there already says the same.
        let _ = self.room.0.try_send(());
    }

    /// No code that holds the lock can panic half-way through a change.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn is_through(&self) -> bool {
        self.ended.is_some() && self.calls.is_empty()
    }
}
