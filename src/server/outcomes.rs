//! The requests that this server has begun, and the finished replies that the broker may not have.
//!
//! A worker keeps each finished reply until a later delivery proves that the broker is past it. If
//! its channel or connection ends before that, a request that is delivered again is answered from
//! here, and no handler runs for it twice.
//!
//! The broker handles the frames of a channel in order. If it refuses a reply, it closes the
//! channel and ignores every frame after that reply, so the replies behind it are lost as well, and
//! all their requests come back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::finished::{Entry, Finished, Kept, Key, Known, key};
use super::inbox::Inbox;
use super::session::ServerSession;
use crate::error::Error;
use crate::frames::Message;
use crate::lock::lock;
use crate::wire::Request;

/// What all workers of a server have begun and finished. A worker is known by its inbox.
#[derive(Default)]
pub(crate) struct Outcomes {
    state: Mutex<State>,
    /// Notified when a worker has finished a request, if others wait for one.
    finished: Condvar,
}

#[derive(Default)]
struct State {
    /// Of workers that consume.
    ledgers: Vec<Ledger>,
    /// Of workers whose channels have ended.
    kept: Finished,
    /// When a worker last began to consume, or went on after it gave a request back.
    consumed: Option<Instant>,
    /// Whether the broker is known to have taken a reply.
    has_replied: bool,
    /// The number of workers that wait until another one has finished a request.
    waiting: usize,
}

/// What one worker has begun and finished on its channel.
struct Ledger {
    /// A worker may still execute a request of a session that was abandoned.
    session: Weak<ServerSession>,
    inbox: Arc<Inbox>,
    current: Option<Current>,
    /// How many workers that waited for the current request's end lost their channels meanwhile.
    lost_channels: u32,
    finished: Finished,
}

/// The request that a worker executes.
struct Current {
    request: Arc<Request>,
    key: Key,
    began: Instant,
}

/// What to do with a request.
pub(crate) enum Begun {
    Execute,
    Known(Known),
    /// A worker still executes it after the request has cost several workers their channels.
    TooSlow,
}

impl Outcomes {
    /// Adds a worker that has begun to consume.
    pub(super) fn add(&self, session: Weak<ServerSession>, inbox: &Arc<Inbox>) {
        let (inbox, finished) = (Arc::clone(inbox), Finished::default());
        let ledger = Ledger { session, inbox, current: None, lost_channels: 0, finished };
        lock(&self.state).ledgers.push(ledger);
    }

    /// Notes that a worker takes requests: the broker can deliver again what it got no reply to.
    pub(super) fn note_consuming(&self) {
        lock(&self.state).consumed = Some(Instant::now());
    }

    /// Begins a request. If it was delivered before, looks up what is known about it. If another
    /// worker still executes it, waits for that worker's outcome until `is_over`: then there is
    /// nothing to do.
    pub(super) fn begin(
        &self,
        inbox: &Inbox,
        request: &Arc<Request>,
        is_over: impl Fn() -> bool,
    ) -> Option<Begun> {
        /// How long a worker waits before it looks whether its own channel has ended.
        const INTERVAL: Duration = Duration::from_millis(100);
        /// How many channels one request may cost.
        const MOST_LOST_CHANNELS: u32 = 2;
        let key = key(request);
        let mut state = lock(&self.state);
        state.has_replied |= state.ledger(inbox).note_delivery(request);
        let begun = loop {
            if !request.redelivered() {
                break Begun::Execute;
            }
            if let Some(known) = state.take(key) {
                break Begun::Known(known);
            }
            match state.executing(key, inbox) {
                None => break Begun::Execute,
                Some(other) if other.lost_channels() >= MOST_LOST_CHANNELS => {
                    break Begun::TooSlow;
                }
                Some(other) if is_over() => {
                    other.lost_channels += u32::from(inbox.has_timed_out());
                    return None;
                }
                Some(_) => {
                    state.waiting += 1;
                    let waited = self.finished.wait_timeout(state, INTERVAL);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    state.waiting -= 1;
                }
            }
        };
        let ledger = state.ledger(inbox);
        ledger.current = Some(Current { request: Arc::clone(request), key, began: Instant::now() });
        ledger.lost_channels = 0;
        Some(begun)
    }

    /// Ends the current request of a worker. Later deliveries prove that the broker has what was
    /// written for it, unless nothing was written.
    pub(super) fn finish(&self, inbox: &Inbox, known: Known, is_written: bool) {
        let mut state = lock(&self.state);
        let current = state.ledger(inbox).current.take();
        let Current { request, key, .. } = current.expect("what has begun is finished once");
        let (tag, finished) = (request.delivery.tag, Instant::now());
        let entry = Entry { tag, key, finished, known, kept: None };
        match is_written {
            true => state.ledger(inbox).finished.push_within(entry, 1024, 8 << 20),
            false => {
                let notice = state.ledger(inbox).notice();
                state.keep(entry, notice);
            }
        }
        // Notifying costs a system call, also if nobody waits.
        if state.waiting > 0 {
            self.finished.notify_all();
        }
    }

    /// Removes a worker whose channel ends, and keeps its outcomes.
    pub(super) fn remove(&self, inbox: &Inbox) {
        let mut state = lock(&self.state);
        let Some(ended) = state.ledgers.extract_if(.., |ledger| ledger.is_of(inbox)).next() else {
            return;
        };
        // A server that was able to reply goes on when that is refused later.
        let was_refused = matches!(inbox.ended(), Some(Error::Refused(_)));
        state.has_replied |= !was_refused && ended.finished.unproved() > 0;
        let notice = ended.notice();
        ended.finished.entries.into_iter().for_each(|entry| state.keep(entry, notice));
    }

    /// Notes that the broker has taken a reply, or that another server of the same program decides
    /// whether the user may reply.
    pub(super) fn note_replied(&self) {
        lock(&self.state).has_replied = true;
    }

    /// Notes that the broker has handled everything that this worker has written.
    pub(super) fn all_proved(&self, inbox: &Inbox) {
        let mut state = lock(&self.state);
        state.has_replied |= match inbox.is_withdrawn() {
            // The broker has the replies, and may deliver their requests again all the same.
            true => state.ledger(inbox).finished.mark_settled(),
            false => state.ledger(inbox).finished.remove_proved(u64::MAX),
        };
    }

    /// The number of replies that the broker may not have. If their workers' channels have ended,
    /// nobody can find out any more.
    pub(super) fn unproved(&self) -> usize {
        let state = lock(&self.state);
        let lost = state.kept.entries.iter().filter(|entry| entry.is_lost(state.consumed)).count();
        state.ledgers.iter().map(|ledger| ledger.finished.unproved()).sum::<usize>() + lost
    }

    /// Whether a worker that consumes has something left to do: a request, also one that is in
    /// progress, or a reply that the broker may not have.
    pub(super) fn workers_are_busy(&self) -> bool {
        lock(&self.state).ledgers.iter().any(|Ledger { current, finished, inbox, .. }| {
            current.is_some() || finished.unproved() > 0 || inbox.may_have_last_requests()
        })
    }

    /// The number of replies of one worker that the broker may not have.
    pub(super) fn unproved_of(&self, inbox: &Inbox) -> usize {
        lock(&self.state).ledger(inbox).finished.unproved()
    }

    /// Notes that the broker returned a sign of life for a request that is executed at present: its
    /// requester is gone.
    pub(super) fn note_abandoned(&self, reply_to: &str, sign: &Message) {
        let id = sign.properties().correlation_id;
        for Current { request, .. } in lock(&self.state).ledgers.iter().flat_map(|it| &it.current) {
            let wanted = request.properties();
            if wanted.reply_to == Some(reply_to) && wanted.correlation_id == id {
                request.is_abandoned.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The sessions and inboxes of the workers that consume.
    pub(super) fn consumers(&self) -> Vec<(Arc<ServerSession>, Arc<Inbox>)> {
        let state = lock(&self.state);
        let consumer = |ledger: &Ledger| Some((ledger.session.upgrade()?, ledger.inbox.clone()));
        state.ledgers.iter().filter_map(consumer).collect()
    }

    /// When the requests that are executed or answered at present began.
    pub(super) fn in_progress(&self) -> Vec<Instant> {
        let state = lock(&self.state);
        state.ledgers.iter().filter_map(|ledger| Some(ledger.current.as_ref()?.began)).collect()
    }

    /// Whether the broker is known to have taken a reply of this server.
    pub(super) fn has_replied(&self) -> bool {
        lock(&self.state).has_replied
    }
}

impl State {
    fn ledger(&mut self, inbox: &Inbox) -> &mut Ledger {
        let own = self.ledgers.iter_mut().find(|ledger| ledger.is_of(inbox));
        own.expect("a worker has a ledger while it consumes")
    }

    /// Keeps an entry until its request is delivered again, but not for ever: another request may
    /// get the same ids some day.
    fn keep(&mut self, mut entry: Entry, notice: Duration) {
        const LONGEST: Duration = Duration::from_secs(3600);
        let is_old = |entry: &Entry| entry.finished.elapsed() > LONGEST;
        while self.kept.entries.front().is_some_and(is_old) {
            self.kept.drop_oldest();
        }
        entry.kept = Some(Kept { since: Instant::now(), notice });
        self.kept.push_within(entry, 4096, 64 << 20);
    }

    /// Takes what is known about this request.
    fn take(&mut self, key: Key) -> Option<Known> {
        let ledgers = self.ledgers.iter_mut().map(|ledger| &mut ledger.finished);
        std::iter::once(&mut self.kept).chain(ledgers).find_map(|finished| finished.take(key))
    }

    /// The other worker that executes this request.
    fn executing(&mut self, key: Key, own: &Inbox) -> Option<&mut Ledger> {
        let mut others = self.ledgers.iter_mut().filter(|ledger| !ledger.is_of(own));
        others.find(|ledger| ledger.current.as_ref().is_some_and(|current| current.key == key))
    }
}

impl Ledger {
    fn is_of(&self, inbox: &Inbox) -> bool {
        std::ptr::eq(&*self.inbox, inbox)
    }

    /// Returns true if this delivery proves that the broker has taken a reply. The worker settles
    /// its requests in the order of their tags, and the reply to each is written before that.
    fn note_delivery(&mut self, request: &Request) -> bool {
        match self.inbox.prefetch {
            0 => false,
            // After the connection between its nodes was interrupted, a quorum queue delivers again
            // what the worker has not acknowledged, beyond the prefetch.
            _ if request.redelivered() => false,
            // Else the broker has never more than `prefetch` deliveries without an acknowledgement.
            prefetch => self.remove_proved(request.delivery.tag.saturating_sub(prefetch as u64)),
        }
    }

    /// Forgets the outcomes up to this delivery, since the broker has handled what was written for
    /// them, unless it has taken the requests back. Returns true if there were any.
    fn remove_proved(&mut self, tag: u64) -> bool {
        !self.inbox.is_withdrawn() && self.finished.remove_proved(tag)
    }

    /// How long the broker may take to notice that the channel has ended.
    fn notice(&self) -> Duration {
        self.session.upgrade().map_or(Duration::ZERO, |session| session.notice())
    }

    /// How many workers have lost their channels because of the current request.
    fn lost_channels(&self) -> u32 {
        self.lost_channels + u32::from(self.inbox.has_timed_out())
    }
}

#[cfg(test)]
mod tests;
