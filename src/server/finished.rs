//! A list of finished requests, in which one that is delivered again is found.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use crate::error::{Failure, Result};
use crate::wire::{Reply, Request};

/// What a handler made of a request.
pub(crate) type Outcome = Result<Reply, Failure>;

/// Finished requests in the order of their deliveries, bounded by number and size.
#[derive(Default)]
pub(crate) struct Finished {
    pub(super) entries: VecDeque<Entry>,
    size: usize,
}

pub(crate) struct Entry {
    pub(super) tag: u64,
    pub(super) key: Key,
    pub(super) finished: Instant,
    pub(super) known: Known,
    /// Set when its worker's channel has ended.
    pub(super) kept: Option<Kept>,
}

#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) since: Instant,
    /// How long the broker may take to notice the channel's end. Then it delivers the request
    /// again, unless it has the reply.
    pub(super) notice: Duration,
}

/// Identifies a request that is delivered again: the size of its body, and a hash of its ids and of
/// the body; of a large one, of both ends.
pub(super) type Key = (usize, u64);

/// What is known about a request that was delivered before.
pub(crate) enum Known {
    /// It needs no reply any more, but the broker may not have the acknowledgement.
    Settled,
    /// The broker may not have its reply. The connection ended so many times when it was sent.
    Finished { outcome: Outcome, lost_connections: u32 },
}

impl Finished {
    /// Adds an entry. Drops the oldest ones beyond these limits, but never this one.
    pub(super) fn push_within(&mut self, entry: Entry, entries: usize, size: usize) {
        self.size += entry.size();
        self.entries.push_back(entry);
        while self.entries.len() > 1 && (self.entries.len() > entries || self.size > size) {
            self.drop_oldest();
        }
    }

    pub(super) fn drop_oldest(&mut self) {
        self.size -= self.entries.pop_front().map_or(0, |entry| entry.size());
    }

    /// Removes the entries up to this delivery. True if there were any.
    pub(super) fn remove_proved(&mut self, tag: u64) -> bool {
        let mut any = false;
        while self.entries.front().is_some_and(|entry| entry.tag <= tag) {
            self.drop_oldest();
            any = true;
        }
        any
    }

    /// Notes that the broker has all replies. True if there were any.
    pub(super) fn mark_settled(&mut self) -> bool {
        let any = self.unproved() > 0;
        self.entries.iter_mut().for_each(|entry| entry.known = Known::Settled);
        self.size = 0;
        any
    }

    /// The number of replies that the broker may not have.
    pub(super) fn unproved(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_unproved()).count()
    }

    pub(super) fn take(&mut self, key: Key) -> Option<Known> {
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        let entry = self.entries.remove(index)?;
        self.size -= entry.size();
        Some(entry.known)
    }
}

impl Entry {
    /// Whether the broker may not have its reply.
    pub(super) fn is_unproved(&self) -> bool {
        matches!(self.known, Known::Finished { .. })
    }

    /// Whether the broker may not have its reply, and had no occasion to ask for it again. A worker
    /// began to consume at that time.
    pub(super) fn is_lost(&self, consumed: Option<Instant>) -> bool {
        self.is_unproved()
            && self.kept.is_some_and(|Kept { since, notice }| {
                since.elapsed() < notice || consumed.is_none_or(|consumed| consumed < since)
            })
    }

    fn size(&self) -> usize {
        match &self.known {
            Known::Settled => 0,
            Known::Finished { outcome, .. } => size(outcome),
        }
    }
}

/// The size of a reply's body.
pub(crate) fn size(outcome: &Outcome) -> usize {
    match outcome {
        Ok(reply) => reply.body().len(),
        Err(failure) => failure.message.len(),
    }
}

pub(super) fn key(request: &Request) -> Key {
    const END: usize = 2048;
    let (mut hasher, body, properties) =
        (DefaultHasher::new(), request.body(), request.properties());
    (properties.message_id, properties.correlation_id, properties.reply_to).hash(&mut hasher);
    body[..body.len().min(END)].hash(&mut hasher);
    body[body.len().saturating_sub(END)..].hash(&mut hasher);
    (body.len(), hasher.finish())
}
