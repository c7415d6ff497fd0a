//! The calls of one session whose outcome is still to come.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// Set once the session is over: why no further call may begin.
    ended: Option<Error>,
}

/// The answer to [`PendingCalls::register`].
pub(crate) enum Registered {
    /// Here the outcome is going to arrive.
    Waiting(Receiver<Outcome>),
    /// As many calls as may be are in flight.
    Full,
    /// The session is over.
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
        let Some(sender) = self.remove(id) else { return false };
        // A caller may go away between the two lines; then nobody wants the outcome.
        sender.send(outcome).is_ok()
    }

    /// Takes out a call that nobody waits for any more.
    pub(crate) fn forget(&self, id: Uuid) {
        self.remove(id);
    }

    /// Ends the session: every call gets this error, and so does whoever comes after. The first
    /// reason stays.
    pub(crate) fn end(&self, error: Error) {
        let mut table = self.lock();
        if table.ended.is_none() {
            table.ended = Some(error.clone());
        }
        for (_, sender) in table.calls.drain() {
            let _ = sender.send(Err(error.clone()));
        }
        self.announce_room();
    }

    pub(crate) fn ended(&self) -> Option<Error> {
        self.lock().ended.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().calls.len()
    }

    fn remove(&self, id: Uuid) -> Option<Sender<Outcome>> {
        let mut table = self.lock();
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
