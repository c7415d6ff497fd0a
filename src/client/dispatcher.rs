//! Gives what arrives on a client's connection to whom it belongs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crossbeam_channel::Sender;
use uuid::Uuid;

use super::pending::PendingCalls;
use super::session::Order;
use super::{Config, lock};
use crate::broker::{DataPlane, Endpoint, Event};
use crate::error::Error;
use crate::frames::{Close, Message};
use crate::wire;

/// The correlation id of the message that every session begins with: to its own reply queue, to
/// learn before the first request whether the broker takes messages from us. Without permission
/// it closes the channel; under a resource alarm it says that it blocks.
pub(super) const PROBE: Uuid = Uuid::nil();

/// What the threads that read share with the callers of one session.
pub(crate) struct Dispatcher {
    pub(super) config: Arc<Config>,
    pub(super) endpoint: Endpoint,
    pub(super) pending: PendingCalls,
    /// Once they are open.
    pub(super) channels: OnceLock<Channels>,
    /// The broker's reason for taking no messages at present.
    pub(super) blocked: Mutex<Option<String>>,
    /// Whether the broker closed the publishing channel over one of the requests.
    pub(super) publisher_rejected: AtomicBool,
    /// Whether the session is left to the calls that are in flight.
    pub(super) is_retired: AtomicBool,
    /// Whether the broker is known to take messages from us: [`PROBE`] has come back.
    publish_verified: AtomicBool,
    pub(super) orders: Sender<Order>,
}

/// The numbers of a session's channels.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    /// Requests go out on it, and those that cannot be routed come back.
    pub(super) publishing: u16,
    /// Replies arrive on it.
    pub(super) consuming: u16,
}

impl Dispatcher {
    pub(super) fn new(
        config: Arc<Config>,
        endpoint: Endpoint,
        orders: Sender<Order>,
    ) -> Dispatcher {
        Dispatcher {
            pending: PendingCalls::new(config.options.max_in_flight),
            config,
            endpoint,
            channels: OnceLock::new(),
            blocked: Mutex::default(),
            publisher_rejected: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            publish_verified: AtomicBool::new(false),
            orders,
        }
    }

    pub(super) fn dispatch(&self, data_plane: &DataPlane, event: Event) {
        match event {
            Event::Delivery { delivery, .. } => self.route_reply(data_plane, delivery.message),
            Event::Return { queue, message, .. } => {
                if let Some(id) = wire::correlation_id(&message) {
                    let unroutable = Err(Error::Unroutable { queue });
                    self.pending.settle(id, unroutable, |waiter| data_plane.notify(waiter));
                }
            }
            Event::ChannelClosed { channel, close } => {
                self.channel_closed(data_plane, channel, close);
            }
            Event::ConsumerCancelled { .. } => {
                self.lose(data_plane, "the reply queue was deleted".into());
            }
            Event::Blocked(reason) => *lock(&self.blocked) = Some(reason),
            Event::Unblocked => {
                *lock(&self.blocked) = None;
                data_plane.wake_all();
            }
            Event::Ended(reason) => self.lose(data_plane, reason),
        }
    }

    fn route_reply(&self, data_plane: &DataPlane, reply: Message) {
        let id = wire::correlation_id(&reply);
        if id == Some(PROBE) {
            return self.publish_verified.store(true, Ordering::Relaxed);
        }
        if wire::is_sign_of_life(&reply) {
            return id.into_iter().for_each(|id| self.pending.note_sign_of_life(id));
        }
        let notify = |waiter: &_| data_plane.notify(waiter);
        let is_ours =
            id.is_some_and(|id| self.pending.settle(id, wire::decode_reply(reply), notify));
        let counters = &self.config.counters;
        let counter = if is_ours { &counters.replies } else { &counters.late };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn channel_closed(&self, data_plane: &DataPlane, channel: u16, close: Close) {
        let Some(channels) = self.channels.get() else { return };
        let is_verified = self.publish_verified.load(Ordering::Relaxed);
        if channel == channels.publishing && close.code == 403 && !is_verified {
            // The broker handles a channel's messages in order: as it refused the first one, it
            // took none of those behind it.
            let refused = self.endpoint.explain_close(&close, "write to the default exchange");
            self.end(data_plane, refused);
        } else if channel == channels.publishing || channel == channels.consuming {
            self.publisher_rejected.store(channel == channels.publishing, Ordering::Relaxed);
            self.lose(data_plane, format!("the broker closed the channel: {close}"));
        }
    }

    fn lose(&self, data_plane: &DataPlane, reason: String) {
        self.end(data_plane, Error::ConnectionLost { reason });
    }

    /// Ends every call with this error, and has the connection closed.
    pub(super) fn end(&self, data_plane: &DataPlane, error: Error) {
        self.pending.end(error, |waiter| data_plane.notify(waiter));
        data_plane.wake_all();
        // Without its thread the session is over already.
        let _ = self.orders.send(Order::Close);
    }
}
