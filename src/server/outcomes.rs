//! The requests that this server has begun, and the finished replies that the broker may not have.
//!
//! A worker keeps each finished reply until a later delivery proves that the broker is past it. If
//! its channel or connection ends before that, a request that is delivered again is answered from
//! here, and no handler runs for it twice.
//!
//! The broker handles the frames of a channel in order. If it refuses a reply, it closes the
//! channel and ignores every frame after that reply, so the replies behind it are lost as well, and
//! all their requests come back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::finished::{Entry, Finished, Known, fingerprint, has_same_ids};
use super::inbox::Inbox;
use crate::lock::lock;
use crate::wire::Request;

/// What all workers of a server have begun and finished.
#[derive(Default)]
pub(crate) struct Outcomes {
    state: Mutex<State>,
    /// Notified when a worker has finished a request.
    finished: Condvar,
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
    /// When the current request began.
    began: Option<Instant>,
    /// How many workers that waited for the current request's end lost their channels meanwhile.
    lost_channels: u32,
    finished: Finished,
}

/// What to do with a request.
pub(crate) enum Begun {
    Execute,
    Known(Known),
    /// A worker still executes it after the request has cost several workers their channels.
    TooSlow,
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
    /// worker still executes it, waits for that worker's outcome until `is_over`: then there is
    /// nothing to do.
    pub(super) fn begin(
        &self,
        ledger: &Ledger,
        request: &Arc<Request>,
        prefetch: u16,
        is_over: impl Fn() -> bool,
    ) -> Option<Begun> {
        /// How long a worker waits before it looks whether its own channel has ended.
        const INTERVAL: Duration = Duration::from_millis(100);
        /// How many channels one request may cost.
        const MOST_LOST_CHANNELS: u32 = 2;
        if ledger.begin(request, prefetch) {
            self.note_replied();
        }
        if !request.redelivered() {
            return Some(Begun::Execute);
        }
        let mut state = lock(&self.state);
        loop {
            if let Some(known) = state.take(request) {
                return Some(Begun::Known(known));
            }
            match state.executing(request, ledger) {
                None => return Some(Begun::Execute),
                Some(other) if other.lost_channels() >= MOST_LOST_CHANNELS => {
                    return Some(Begun::TooSlow);
                }
                Some(other) if is_over() => {
                    lock(&other.entries).lost_channels += u32::from(ledger.inbox.has_timed_out());
                    lock(&ledger.entries).current = None;
                    return None;
                }
                Some(_) => {
                    let waited = self.finished.wait_timeout(state, INTERVAL);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Ends the current request of a worker. Later deliveries prove that the broker has what was
    /// written for it, unless nothing was written. Returns the memory of its body.
    pub(super) fn finish(
        &self,
        ledger: &Ledger,
        request: Arc<Request>,
        known: Known,
        is_written: bool,
    ) -> Vec<u8> {
        // Both locks are held, so that a worker that looks for the request finds it: in progress,
        // or finished.
        let mut state = lock(&self.state);
        let mut entries = lock(&ledger.entries);
        entries.current = None;
        self.finished.notify_all();
        let Some(request) = Arc::into_inner(request) else { return Vec::new() };
        let (tag, mut request) = (request.delivery.tag, request.delivery.message);
        let body = std::mem::take(&mut request.body);
        let finished = Instant::now();
        let entry = Entry { tag, request, body: fingerprint(&body), finished, known };
        match is_written {
            true => entries.finished.push_within(entry, 1024, 8 << 20),
            false => state.keep(entry),
        }
        body
    }

    /// Keeps the outcomes of a worker whose channel ends.
    pub(super) fn keep(&self, ledger: &Ledger) {
        let mut state = lock(&self.state);
        let finished = std::mem::take(&mut lock(&ledger.entries).finished);
        finished.entries.into_iter().for_each(|entry| state.keep(entry));
    }

    /// Notes that the broker has taken a reply, or that another server of the same program decides
    /// whether the user may reply.
    pub(super) fn note_replied(&self) {
        self.has_replied.store(true, Ordering::Relaxed);
    }

    /// Notes that the broker has handled everything that this worker has written.
    pub(super) fn all_proved(&self, ledger: &Ledger) {
        if lock(&ledger.entries).finished.remove_proved(u64::MAX) {
            self.note_replied();
        }
    }

    /// When the oldest of the current requests began.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let ledgers: Vec<_> = lock(&self.state).ledgers.iter().filter_map(Weak::upgrade).collect();
        let began = |ledger: &Arc<Ledger>| {
            let entries = lock(&ledger.entries);
            entries.began.filter(|_| entries.current.is_some())
        };
        ledgers.iter().filter_map(began).min()
    }

    /// Whether the broker is known to have taken a reply of this server.
    pub(super) fn has_replied(&self) -> bool {
        self.has_replied.load(Ordering::Relaxed)
    }
}

impl State {
    /// Keeps an entry until its request is delivered again, but not for ever: another request may
    /// get the same ids some day.
    fn keep(&mut self, entry: Entry) {
        const LONGEST: Duration = Duration::from_secs(3600);
        let is_old = |entry: &Entry| entry.finished.elapsed() > LONGEST;
        while self.kept.entries.front().is_some_and(is_old) {
            self.kept.drop_oldest();
        }
        self.kept.push_within(entry, 4096, 64 << 20);
    }

    /// Takes what is known about this request.
    fn take(&mut self, request: &Request) -> Option<Known> {
        let ledgers = self.ledgers.iter().filter_map(Weak::upgrade);
        let found = self.kept.take(request);
        found
            .or_else(|| ledgers.into_iter().find_map(|it| lock(&it.entries).finished.take(request)))
    }

    /// The other worker that executes this request.
    fn executing(&self, request: &Request, own: &Ledger) -> Option<Arc<Ledger>> {
        let is_same = |current: &Arc<Request>| {
            has_same_ids(&current.delivery.message, request) && current.body() == request.body()
        };
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

    /// Returns true if this delivery proves that the broker has taken a reply. The worker settles
    /// its requests in the order of their tags, and the reply to each is written before that.
    fn begin(&self, request: &Arc<Request>, prefetch: u16) -> bool {
        let mut entries = lock(&self.entries);
        entries.current = Some(Arc::clone(request));
        entries.began = Some(Instant::now());
        entries.lost_channels = 0;
        let proved = match prefetch {
            0 => 0,
            // The broker has never more than `prefetch` deliveries without an acknowledgement.
            prefetch => request.delivery.tag.saturating_sub(prefetch.into()),
        };
        entries.finished.remove_proved(proved)
    }

    /// How many workers have lost their channels because of the current request.
    fn lost_channels(&self) -> u32 {
        lock(&self.entries).lost_channels + u32::from(self.inbox.has_timed_out())
    }
}
