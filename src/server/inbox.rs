//! Gives what arrives on a server's connection to the worker whose channel it is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crossbeam_channel::Sender;

use super::Shared;
use super::counters::add;
use super::worker_pool::{SessionEvent, WorkerEvent};
use crate::broker::{DataPlane, Event, Waiter};
use crate::frames::Close;
use crate::wire::{self, Request};

/// The inboxes of one connection's workers, by the numbers of their channels.
pub(crate) struct Inboxes {
    shared: Arc<Shared>,
    inboxes: Mutex<HashMap<u16, Arc<Inbox>>>,
}

/// What has arrived for one worker.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(crate) waiter: Arc<Waiter>,
    state: Mutex<InboxState>,
}

#[derive(Default)]
struct InboxState {
    /// Requests and their delivery tags.
    requests: VecDeque<(u64, Request)>,
    closed: Option<ChannelEnd>,
}

/// Why no more deliveries come on a channel.
#[derive(Debug, Clone)]
pub(crate) enum ChannelEnd {
    Closed(Close),
    /// The broker cancelled the consumer.
    Cancelled,
}

impl Inboxes {
    /// Takes over the events of a connection, and tells of its end, if that is wanted.
    pub(crate) fn attach(
        shared: &Arc<Shared>,
        data_plane: &DataPlane,
        session: u64,
        events: Option<Sender<WorkerEvent>>,
    ) -> Arc<Inboxes> {
        let inboxes = Arc::new(Inboxes { shared: Arc::clone(shared), inboxes: Mutex::default() });
        let handler = Arc::clone(&inboxes);
        data_plane.set_handler(Box::new(move |data_plane, event| match (event, &events) {
            (Event::Ended(_), Some(events)) => {
                // Nobody needs to know who no longer listens.
                let _ = events.send(WorkerEvent { session, event: SessionEvent::ConnectionEnded });
            }
            (event, _) => handler.dispatch(data_plane, event),
        }));
        inboxes
    }

    /// A new inbox for the worker on this channel.
    pub(crate) fn open(&self, channel: u16) -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::default());
        lock(&self.inboxes).insert(channel, Arc::clone(&inbox));
        inbox
    }

    fn dispatch(&self, data_plane: &DataPlane, event: Event) {
        match event {
            Event::Delivery { channel, delivery } => {
                let Some(inbox) = self.inbox(channel) else { return };
                let prefetch = usize::from(self.shared.options.prefetch);
                let tag = delivery.tag;
                let request = Request::from_delivery(delivery, Instant::now());
                let mut state = inbox.lock();
                state.requests.push_back((tag, request));
                if prefetch > 0 && state.requests.len() > prefetch {
                    data_plane.cut("the broker sent more requests than the prefetch allows");
                }
                drop(state);
                data_plane.notify(&inbox.waiter);
            }
            Event::Return { queue, message, .. } if wire::is_sign_of_life(&message) => {
                self.shared.keep_alive.sign_returned(&queue, &message);
            }
            Event::Return { reason, .. } => {
                add(&self.shared.counters.returned);
                log::info!("a reply came back: its requester is gone ({reason})");
            }
            Event::ChannelClosed { channel, close } => {
                self.shared.reply_limit.learn(&close);
                self.close(data_plane, channel, ChannelEnd::Closed(close));
            }
            Event::ConsumerCancelled { channel } => {
                self.close(data_plane, channel, ChannelEnd::Cancelled);
            }
            Event::Blocked(reason) => {
                log::warn!("the broker takes no replies at present: {reason}");
            }
            Event::Unblocked => log::info!("the broker takes replies again"),
            Event::Ended(_) => {}
        }
    }

    fn close(&self, data_plane: &DataPlane, channel: u16, end: ChannelEnd) {
        let Some(inbox) = self.inbox(channel) else { return };
        inbox.lock().closed.get_or_insert(end);
        data_plane.notify(&inbox.waiter);
    }

    fn inbox(&self, channel: u16) -> Option<Arc<Inbox>> {
        lock(&self.inboxes).get(&channel).cloned()
    }
}

impl Inbox {
    /// Whether something has arrived.
    pub(crate) fn is_ready(&self) -> bool {
        let state = self.lock();
        state.closed.is_some() || !state.requests.is_empty()
    }

    /// The next request with its delivery tag, or why there are no more.
    pub(crate) fn take(&self) -> Result<Option<(u64, Request)>, ChannelEnd> {
        let mut state = self.lock();
        match state.closed.clone() {
            Some(end) => Err(end),
            None => Ok(state.requests.pop_front()),
        }
    }

    /// Takes out the requests that nobody has begun with, and returns the tag of the last.
    pub(crate) fn discard(&self) -> Option<u64> {
        self.lock().requests.drain(..).next_back().map(|(tag, _)| tag)
    }

    fn lock(&self) -> MutexGuard<'_, InboxState> {
        lock(&self.state)
    }
}

/// A panic cannot poison these locks: no code panics while it holds one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
