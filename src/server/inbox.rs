//! The requests that have arrived for one worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Instant;

use crate::broker::{Channel, DataPlane, Waiter};
use crate::error::{Error, Result};
use crate::frames::{Event, cancel, give_back};
use crate::lock::lock;
use crate::wire::Request;

/// The requests that arrived on a worker's channel, and the reason why the channel has ended.
pub(crate) struct Inbox {
    /// When the worker opened its channel.
    pub(super) began: Instant,
    /// Notified after every event and answer.
    pub(super) waiter: Arc<Waiter>,
    pub(super) prefetch: usize,
    /// Set once the broker has accepted the consumer.
    channel: OnceLock<Weak<Channel>>,
    state: Mutex<InboxState>,
}

/// | | `ended` | `withdrawal` | `drains` | the requests that it has |
/// |---|---|---|---|---|
/// | consumes | | | | the worker answers them |
/// | the server stops | | | yes | return to the queue |
/// | the session was abandoned | set | | yes | the worker answers them |
/// | cancelled, not known why | | `Cancelled` | | wait |
/// | the queue was deleted | set | `QueueDeleted` | | the worker answers them |
/// | closed or timed out | set | another | | the broker has them again |
#[derive(Default)]
struct InboxState {
    requests: VecDeque<Request>,
    /// The reason why no more requests come.
    ended: Option<Error>,
    withdrawal: Option<Withdrawal>,
    /// Whether requests are returned to the queue.
    drains: bool,
}

impl InboxState {
    fn is_over(&self) -> bool {
        self.withdrawal.is_some() || self.ended.is_some()
    }
}

/// How the broker ended the deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Withdrawal {
    /// It cancelled the consumer, and it is not known why yet. It does so if the queue was deleted,
    /// but also if RabbitMQ 4.3 has waited too long for an acknowledgement
    /// ([consumer timeout](https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout)).
    Cancelled,
    /// It has waited too long for an acknowledgement.
    TimedOut,
    /// It closed the channel for another reason.
    Closed,
    /// The queue was deleted, with the requests in it.
    QueueDeleted,
}

/// The number of requests beyond the prefetch at which a broker counts as faulty. A quorum queue
/// may deliver requests again to a consumer that has not answered them yet, when the connection
/// between the nodes was interrupted.
const SPARE: usize = 1000;

impl Inbox {
    pub(super) fn new(prefetch: u16) -> Inbox {
        let (waiter, channel, state) = Default::default();
        Inbox { began: Instant::now(), waiter, prefetch: prefetch.into(), channel, state }
    }

    /// Handles an event on the channel. Called by the reader, which notifies the worker.
    pub(crate) fn on_event(&self, data_plane: &DataPlane, event: Event) {
        let endpoint = &data_plane.endpoint;
        match event {
            Event::Delivery(delivery) => {
                let request = Request::from_delivery(delivery);
                let mut state = lock(&self.state);
                let (is_taken, drains) = (state.ended.is_none() && !state.drains, state.drains);
                let tag = request.delivery.tag;
                // After the end, the broker gets further requests back when the worker closes the
                // channel.
                if is_taken {
                    state.requests.push_back(request);
                }
                let count = state.requests.len();
                drop(state);
                if drains {
                    self.give_back_all([tag]);
                }
                if self.prefetch > 0 && count > self.prefetch + SPARE {
                    data_plane.cut("the broker sent far more requests than the prefetch allows");
                }
            }
            Event::Closed(close) => {
                let is_timeout = close.code == 406 && close.names_no_method();
                let how = if is_timeout { Withdrawal::TimedOut } else { Withdrawal::Closed };
                self.withdraw(
                    how,
                    match close.code {
                        404 => endpoint.unreachable(format!(
                            "the request queue was deleted without a word ({close})"
                        )),
                        // Publishing replies requires the permission to write to the default
                        // exchange.
                        _ => endpoint.explain_close(&close, "answer requests"),
                    },
                );
            }
            // The worker finds out why.
            Event::Cancelled => lock(&self.state).withdrawal = Some(Withdrawal::Cancelled),
            Event::Return { .. } | Event::Answer(_) => {}
        }
        data_plane.notify(&self.waiter);
    }

    /// Lets [`Inbox::drain`] write on the channel.
    pub(super) fn set_channel(&self, channel: &Arc<Channel>) {
        let _ = self.channel.set(Arc::downgrade(channel));
    }

    /// Cancels the consumer, and returns to the queue what still arrives, and what the worker has
    /// not begun. For a reason other than a stop, the worker answers that: the queue may be gone.
    /// Does not block.
    pub(super) fn drain(&self, reason: Option<&Error>) {
        let mut state = lock(&self.state);
        if let Some(reason) = reason {
            state.ended.get_or_insert_with(|| reason.clone());
        }
        if state.withdrawal.is_some() {
            return;
        }
        let drained = std::mem::replace(&mut state.drains, true);
        let returned = match reason {
            None => std::mem::take(&mut state.requests),
            Some(_) => VecDeque::new(),
        };
        drop(state);
        if !drained && let Some(channel) = self.channel() {
            channel.send_unanswered(&cancel(channel.number));
        }
        self.give_back_all(returned.iter().map(|request| request.delivery.tag));
    }

    fn give_back_all(&self, tags: impl IntoIterator<Item = u64>) {
        let Some(channel) = self.channel() else { return };
        let frames = tags.into_iter().flat_map(|tag| give_back(channel.number, tag));
        channel.send_unanswered(&frames.collect::<Vec<u8>>());
    }

    fn channel(&self) -> Option<Arc<Channel>> {
        self.channel.get().and_then(Weak::upgrade)
    }

    /// The broker has taken back all deliveries, for this reason. It delivers them to other
    /// workers, unless the queue was deleted: then this worker answers what it has got.
    pub(super) fn withdraw(&self, how: Withdrawal, reason: Error) {
        let mut state = lock(&self.state);
        state.withdrawal = Some(how);
        if how != Withdrawal::QueueDeleted {
            state.requests.clear();
        }
        state.ended.get_or_insert(reason);
    }

    /// Whether [`Inbox::take`] would return a request or an error.
    pub(crate) fn is_ready(&self) -> bool {
        let state = lock(&self.state);
        state.is_over() || !state.requests.is_empty()
    }

    /// Whether the broker sends requests to the worker.
    pub(super) fn consumes(&self) -> bool {
        let state = lock(&self.state);
        !state.is_over() && !state.drains
    }

    /// Whether the broker sends nothing more.
    pub(super) fn is_over(&self) -> bool {
        lock(&self.state).is_over()
    }

    pub(super) fn withdrawal(&self) -> Option<Withdrawal> {
        lock(&self.state).withdrawal
    }

    /// Whether the broker has given this worker's requests back, or may have.
    pub(super) fn is_withdrawn(&self) -> bool {
        !matches!(self.withdrawal(), None | Some(Withdrawal::QueueDeleted))
    }

    /// Whether the broker has waited too long for an acknowledgement, or may have.
    pub(super) fn has_timed_out(&self) -> bool {
        matches!(self.withdrawal(), Some(Withdrawal::Cancelled | Withdrawal::TimedOut))
    }

    /// The reason why no more requests come.
    pub(super) fn ended(&self) -> Option<Error> {
        lock(&self.state).ended.clone()
    }

    /// Whether requests are left that no other worker gets, because their queue was deleted, or it
    /// is yet to be found out whether it was.
    pub(super) fn may_have_last_requests(&self) -> bool {
        let state = lock(&self.state);
        matches!(state.withdrawal, Some(Withdrawal::Cancelled | Withdrawal::QueueDeleted))
            && !state.requests.is_empty()
    }

    /// The next request. `Err` is the reason why no more come.
    pub(crate) fn take(&self) -> Result<Option<Request>> {
        let mut state = lock(&self.state);
        // The worker first finds out why, which decides what becomes of the requests.
        if state.withdrawal == Some(Withdrawal::Cancelled) {
            return Ok(None);
        }
        match (state.requests.pop_front(), &state.ended) {
            (None, Some(reason)) => Err(reason.clone()),
            (next, _) => Ok(next),
        }
    }
}
