//! Hands what arrives on a client's connection to the callers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::Config;
use super::pending::PendingCalls;
use crate::broker::DataPlane;
use crate::error::Error;
use crate::frames::{Close, Event, Message};
use crate::wire;

/// The correlation id of the message that every session begins with: to its own reply queue, to
/// learn before the first request whether the broker takes messages from us. Without permission
/// it closes the channel; under a resource alarm it says that it blocks.
pub(super) const PROBE: Uuid = Uuid::nil();

/// What the reader of the socket shares with the callers of one session.
pub(super) struct Dispatcher {
    pub(super) config: Arc<Config>,
    pub(super) pending: PendingCalls,
    /// Why the session has ended, if it is not for the end of its connection.
    pub(super) ended: OnceLock<Error>,
    publisher_rejected: AtomicBool,
    /// Whether the session takes no more calls and is left to those in flight.
    pub(super) is_retired: AtomicBool,
    /// Whether the broker is known to take messages from us: [`PROBE`] has come back.
    publish_verified: AtomicBool,
}

impl Dispatcher {
    pub(super) fn new(config: &Arc<Config>) -> Dispatcher {
        Dispatcher {
            config: Arc::clone(config),
            pending: PendingCalls::new(config.options.max_in_flight),
            ended: OnceLock::new(),
            publisher_rejected: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            publish_verified: AtomicBool::new(false),
        }
    }

    /// Whether the broker closed the channel over one of the requests. None of them may be sent
    /// again: that one would end every session after this too.
    pub(super) fn has_rejected(&self) -> bool {
        self.publisher_rejected.load(Ordering::Relaxed)
    }

    /// What happens on the channel on which requests go out, and those that cannot be routed come
    /// back.
    pub(super) fn on_publishing(&self, data_plane: &DataPlane, event: Event) {
        match event {
            Event::Return { queue, message, .. } => {
                if let Some(id) = wire::correlation_id(&message) {
                    self.pending.settle(id, Err(Error::Unroutable { queue }), data_plane);
                }
            }
            Event::Closed(close) => {
                // The broker handles a channel's messages in order: if it refused the first one, it
                // took none of those behind it.
                let is_refused =
                    close.code == 403 && !self.publish_verified.load(Ordering::Relaxed);
                self.publisher_rejected.store(!is_refused, Ordering::Relaxed);
                if is_refused {
                    let doing = "write to the default exchange";
                    let _ = self.ended.set(data_plane.endpoint.explain_close(&close, doing));
                }
                lose_channel(data_plane, &close);
            }
            _ => {}
        }
    }

    /// What happens on the channel on which replies arrive.
    pub(super) fn on_consuming(&self, data_plane: &DataPlane, event: Event) {
        match event {
            Event::Delivery(delivery) => self.route_reply(data_plane, delivery.message),
            Event::Closed(close) => lose_channel(data_plane, &close),
            Event::Cancelled => data_plane.cut("the reply queue was deleted"),
            _ => {}
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
        let is_ours =
            id.is_some_and(|id| self.pending.settle(id, wire::decode_reply(reply), data_plane));
        let counters = &self.config.counters;
        let counter = if is_ours { &counters.replies } else { &counters.late };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn lose_channel(data_plane: &DataPlane, close: &Close) {
    data_plane.cut(&format!("the broker closed the channel: {close}"));
}
