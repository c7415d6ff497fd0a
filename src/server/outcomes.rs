//! The requests that this server has begun, and the finished replies that the broker may not have.
//!
//! A worker keeps each finished reply until a later delivery proves that the broker is past it. If
//! its channel or connection ends before that, a request that is delivered again is answered from
//! here, and no handler runs for it twice.
//!
//! The broker handles the frames of a channel in order. If it refuses a reply, it closes the
//! channel and ignores every frame after that reply, so the replies behind it are lost as well, and
//! all their requests come back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::inbox::Inbox;
use crate::error::{Failure, Result};
use crate::frames::Message;
use crate::lock::lock;
use crate::wire::{Reply, Request};

/// What a handler made of a request.
pub(crate) type Outcome = Result<Reply, Failure>;

/// What all workers of a server have begun and finished.
#[derive(Default)]
pub(crate) struct Outcomes {
    state: Mutex<State>,
    /// Notified when a worker has finished a request, if others wait for one.
    finished: Condvar,
    waiting: AtomicUsize,
    /// Whether the broker is known to have taken a reply.
    has_replied: AtomicBool,
}

#[derive(Default)]
struct State {
    ledgers: Vec<Weak<Ledger>>,
    /// Of workers whose channels have ended.
    kept: Finished,
}

/// What one worker has begun and finished.
pub(crate) struct Ledger {
    inbox: Arc<Inbox>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    current: Option<Arc<Request>>,
    /// How many workers that waited for the current request's end lost their channels meanwhile.
    lost_channels: u32,
    finished: Finished,
}

/// Finished requests in the order of their deliveries, bounded by number and size.
#[derive(Default)]
struct Finished {
    entries: VecDeque<Entry>,
    size: usize,
}

struct Entry {
    tag: u64,
    /// The request, without a body if it has an id.
    request: Message,
    body_size: usize,
    known: Known,
}

/// What is known about a request that was delivered before.
pub(crate) enum Known {
    /// The broker has its reply, but perhaps not the acknowledgement.
    Answered,
    /// The broker may not have its reply. The connection ended so many times when it was sent.
    Finished { outcome: Outcome, lost_connections: u32 },
}

/// What to do with a request.
pub(crate) enum Begun {
    Execute,
    Known(Known),
    /// A worker still executes it after the request has cost several workers their channels.
    TooSlow,
    /// The waiting for another worker that executes it was given up.
    GivenUp,
}

impl Outcomes {
    /// Makes the ledger of a worker.
    pub(super) fn ledger(&self, inbox: &Arc<Inbox>) -> Arc<Ledger> {
        let ledger = Arc::new(Ledger { inbox: Arc::clone(inbox), entries: Mutex::default() });
        let mut state = lock(&self.state);
        state.ledgers.retain(|ledger| ledger.strong_count() > 0);
        state.ledgers.push(Arc::downgrade(&ledger));
        ledger
    }

    /// Begins a request. If it was delivered before, looks up what is known about it. If another
    /// worker still executes it, waits for that worker's outcome until `is_over`.
    pub(super) fn begin(
        &self,
        ledger: &Ledger,
        request: &Arc<Request>,
        prefetch: u16,
        is_over: impl Fn() -> bool,
    ) -> Begun {
        /// How long a worker waits before it looks whether its own channel has ended.
        const INTERVAL: Duration = Duration::from_millis(100);
        /// How many channels one request may cost.
        const MOST_LOST_CHANNELS: u32 = 2;
        if ledger.begin(request, prefetch) {
            self.has_replied.store(true, Ordering::Relaxed);
        }
        if !request.redelivered() {
            return Begun::Execute;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut state = lock(&self.state);
        let begun = loop {
            if let Some(known) = state.take(request) {
                break Begun::Known(known);
            }
            match state.executing(request, ledger) {
                None => break Begun::Execute,
                Some(other) if other.lost_channels() >= MOST_LOST_CHANNELS => {
                    break Begun::TooSlow;
                }
                Some(other) if is_over() => {
                    lock(&other.entries).lost_channels += u32::from(ledger.inbox.has_timed_out());
                    lock(&ledger.entries).current = None;
                    break Begun::GivenUp;
                }
                Some(_) => {
                    let waited = self.finished.wait_timeout(state, INTERVAL);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        drop(state);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        begun
    }

    /// Ends the current request of a worker. Returns the memory of its body, if it is not needed.
    pub(super) fn finish(&self, ledger: &Ledger, request: Arc<Request>, known: Known) -> Vec<u8> {
        if let Known::Answered = known {
            self.has_replied.store(true, Ordering::Relaxed);
        }
        let body = ledger.finish(request, known);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let _state = lock(&self.state);
            self.finished.notify_all();
        }
        body
    }

    /// Keeps the outcomes of a worker whose channel ends.
    pub(super) fn retire(&self, ledger: &Ledger) {
        const MAX_ENTRIES: usize = 4096;
        const MAX_SIZE: usize = 64 << 20;
        let mut state = lock(&self.state);
        let mut entries = lock(&ledger.entries);
        let finished = std::mem::take(&mut entries.finished);
        finished.entries.into_iter().for_each(|entry| state.kept.push(entry));
        state.kept.limit(MAX_ENTRIES, MAX_SIZE);
    }

    /// Notes that the broker has handled everything that this worker has written.
    pub(super) fn all_proved(&self, ledger: &Ledger) {
        if lock(&ledger.entries).finished.remove_proved(u64::MAX) {
            self.has_replied.store(true, Ordering::Relaxed);
        }
    }

    /// Whether the broker is known to have taken a reply of this server.
    pub(super) fn has_replied(&self) -> bool {
        self.has_replied.load(Ordering::Relaxed)
    }
}

impl State {
    /// Takes what is known about this request.
    fn take(&mut self, request: &Request) -> Option<Known> {
        let ledgers = self.ledgers.iter().filter_map(Weak::upgrade);
        let found = self.kept.take(request);
        found
            .or_else(|| ledgers.into_iter().find_map(|it| lock(&it.entries).finished.take(request)))
    }

    /// The other worker that executes this request.
    fn executing(&self, request: &Request, own: &Ledger) -> Option<Arc<Ledger>> {
        let is_same = |current: &Arc<Request>| is_same(&current.delivery.message, request);
        let executes = |it: &Arc<Ledger>| {
            !std::ptr::eq(&**it, own) && lock(&it.entries).current.as_ref().is_some_and(is_same)
        };
        self.ledgers.iter().filter_map(Weak::upgrade).find(executes)
    }
}

impl Ledger {
    /// The number of replies that the broker may not have.
    pub(super) fn unproved(&self) -> usize {
        let is_unproved = |entry: &&Entry| matches!(entry.known, Known::Finished { .. });
        lock(&self.entries).finished.entries.iter().filter(is_unproved).count()
    }

    /// Returns true if this delivery proves that the broker has taken a reply.
    fn begin(&self, request: &Arc<Request>, prefetch: u16) -> bool {
        let mut entries = lock(&self.entries);
        entries.current = Some(Arc::clone(request));
        entries.lost_channels = 0;
        let proved = match prefetch {
            0 => 0,
            // The broker has never more than `prefetch` deliveries without an acknowledgement.
            prefetch => request.delivery.tag.saturating_sub(prefetch.into()),
        };
        entries.finished.remove_proved(proved)
    }

    fn finish(&self, request: Arc<Request>, known: Known) -> Vec<u8> {
        const MAX_ENTRIES: usize = 1024;
        const MAX_SIZE: usize = 8 << 20;
        let mut entries = lock(&self.entries);
        entries.current = None;
        let Some(request) = Arc::into_inner(request) else { return Vec::new() };
        let (tag, mut message) = (request.delivery.tag, request.delivery.message);
        let body_size = message.body.len();
        let body = match has_id(&message) {
            true => std::mem::take(&mut message.body),
            false => Vec::new(),
        };
        entries.finished.push(Entry { tag, request: message, body_size, known });
        entries.finished.limit(MAX_ENTRIES, MAX_SIZE);
        body
    }

    /// How many workers have lost their channels because of the current request.
    fn lost_channels(&self) -> u32 {
        lock(&self.entries).lost_channels + u32::from(self.inbox.has_timed_out())
    }
}

impl Finished {
    fn push(&mut self, entry: Entry) {
        self.size += entry.size();
        self.entries.push_back(entry);
    }

    /// Drops the oldest entries beyond these limits, but never the last one.
    fn limit(&mut self, entries: usize, size: usize) {
        while self.entries.len() > 1 && (self.entries.len() > entries || self.size > size) {
            let dropped = self.entries.pop_front();
            self.size -= dropped.map_or(0, |entry| entry.size());
        }
    }

    /// Removes the entries up to this delivery. True if there were any.
    fn remove_proved(&mut self, tag: u64) -> bool {
        let mut any = false;
        while self.entries.front().is_some_and(|entry| entry.tag <= tag) {
            self.size -= self.entries.pop_front().map_or(0, |entry| entry.size());
            any = true;
        }
        any
    }

    fn take(&mut self, request: &Request) -> Option<Known> {
        let is_it = |entry: &Entry| {
            entry.body_size == request.body().len() && is_same(&entry.request, request)
        };
        let index = self.entries.iter().position(is_it)?;
        let entry = self.entries.remove(index)?;
        self.size -= entry.size();
        Some(entry.known)
    }
}

impl Entry {
    fn size(&self) -> usize {
        let outcome = match &self.known {
            Known::Answered => 0,
            Known::Finished { outcome, .. } => size(outcome),
        };
        self.request.body.len() + outcome
    }
}

/// The size of a reply's body.
pub(crate) fn size(outcome: &Outcome) -> usize {
    match outcome {
        Ok(reply) => reply.body().len(),
        Err(failure) => failure.message.len(),
    }
}

fn has_id(message: &Message) -> bool {
    let properties = message.properties();
    properties.message_id.is_some() || properties.correlation_id.is_some()
}

/// Whether a redelivered request is the one that was delivered before. Without an id, it needs the
/// same body.
fn is_same(before: &Message, request: &Request) -> bool {
    let (old, new) = (before.properties(), request.properties());
    (old.message_id, old.correlation_id, old.reply_to)
        == (new.message_id, new.correlation_id, new.reply_to)
        && (has_id(before) || before.body == request.body())
}
