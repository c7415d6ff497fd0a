//! The requests that have arrived for one worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::broker::{DataPlane, Waiter};
use crate::error::{Error, Result};
use crate::frames::Event;
use crate::lock::lock;
use crate::wire::Request;

/// The requests that arrived on a worker's channel, and the reason why the channel has ended.
pub(crate) struct Inbox {
    /// When the worker opened its channel.
    pub(super) began: Instant,
    /// Notified after every event and answer.
    pub(super) waiter: Arc<Waiter>,
    prefetch: usize,
    state: Mutex<InboxState>,
}

#[derive(Default)]
struct InboxState {
    requests: VecDeque<Request>,
    /// The reason why no more requests come.
    ended: Option<Error>,
    /// Whether the broker has said that the queue was deleted.
    is_cancelled: bool,
}

/// The number of requests beyond the prefetch at which a broker counts as faulty. A quorum queue
/// may deliver requests again to a consumer that has not answered them yet, when the connection
/// between the nodes was interrupted.
const SPARE: usize = 1000;

impl Inbox {
    pub(super) fn new(prefetch: u16) -> Inbox {
        let (waiter, state) = Default::default();
        Inbox { began: Instant::now(), waiter, prefetch: prefetch.into(), state }
    }

    /// Handles an event on the channel. Called by the reader, which notifies the worker.
    pub(crate) fn on_event(&self, data_plane: &DataPlane, event: Event) {
        let endpoint = &data_plane.endpoint;
        match event {
            Event::Delivery(delivery) => {
                let request = Request::from_delivery(delivery);
                let mut state = lock(&self.state);
                // After the end, the broker gets further requests back when the worker closes the
                // channel.
                if state.ended.is_none() {
                    state.requests.push_back(request);
                }
                let count = state.requests.len();
                drop(state);
                if self.prefetch > 0 && count > self.prefetch + SPARE {
                    data_plane.cut("the broker sent far more requests than the prefetch allows");
                }
            }
            Event::Closed(close) => {
                // The broker delivers these requests to other workers, if the queue exists.
                lock(&self.state).requests.clear();
                self.end(match close.code {
                    404 => endpoint.unreachable(format!(
                        "the request queue was deleted without a word ({close})"
                    )),
                    // Publishing replies requires the permission to write to the default exchange.
                    _ => endpoint.explain_close(&close, "answer requests"),
                });
            }
            // No other worker gets the requests that have arrived, so this one answers them.
            Event::Cancelled => {
                lock(&self.state).is_cancelled = true;
                self.end(endpoint.unreachable("the request queue was deleted"));
            }
            Event::Return { .. } | Event::Answer(_) => {}
        }
        data_plane.notify(&self.waiter);
    }

    /// No more requests are taken in, for this reason.
    pub(super) fn end(&self, reason: Error) {
        lock(&self.state).ended.get_or_insert(reason);
    }

    /// Whether [`Inbox::take`] would return a request or an error.
    pub(crate) fn is_ready(&self) -> bool {
        let state = lock(&self.state);
        state.ended.is_some() || !state.requests.is_empty()
    }

    pub(super) fn has_ended(&self) -> bool {
        lock(&self.state).ended.is_some()
    }

    /// Whether requests are left that no other worker gets, because their queue was deleted.
    pub(super) fn has_last_requests(&self) -> bool {
        let state = lock(&self.state);
        state.is_cancelled && !state.requests.is_empty()
    }

    /// The next request. `Err` is the reason why no more come.
    pub(crate) fn take(&self) -> Result<Option<Request>> {
        let mut state = lock(&self.state);
        match (state.requests.pop_front(), &state.ended) {
            (None, Some(reason)) => Err(reason.clone()),
            (next, _) => Ok(next),
        }
    }
}
