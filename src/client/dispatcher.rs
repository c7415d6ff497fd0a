//! Passes the messages that arrive on a client's connection to their callers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::options::Config;
use super::pending::PendingCalls;
use crate::broker::DataPlane;
use crate::error::Error;
use crate::frames::{Close, Event, Message};
use crate::wire;

/// The correlation id of the message that the client sends to its own reply queue as soon as that
/// queue is there, to find out whether the broker accepts its messages. It is the first message of a
/// session, unless replies come by direct reply-to at first. If the user lacks the permission, the
/// broker closes the channel. During a resource alarm, the broker reports that it blocks the
/// connection.
pub(super) const PROBE: Uuid = Uuid::nil();

/// The state that the reader of the socket shares with the callers of one session.
pub(super) struct Dispatcher {
    pub(super) config: Arc<Config>,
    pub(super) pending: PendingCalls,
    /// The reason why the session has ended, unless its connection ended first.
    pub(super) ended: OnceLock<Error>,
    /// Whether the broker closed the channel because of one of the requests. None of them may be
    /// sent again, because that request would end every later session, too.
    pub(super) has_rejected: AtomicBool,
    /// Whether the session accepts no more calls, but still serves those in flight.
    pub(super) is_retired: AtomicBool,
    /// Whether the broker is known to accept messages from this client: [`PROBE`] has come back, or
    /// a direct reply.
    publish_verified: AtomicBool,
}

impl Dispatcher {
    pub(super) fn new(config: &Arc<Config>) -> Dispatcher {
        Dispatcher {
            config: Arc::clone(config),
            pending: PendingCalls::new(config.options.max_in_flight),
            ended: OnceLock::new(),
            has_rejected: AtomicBool::new(false),
            is_retired: AtomicBool::new(false),
            publish_verified: AtomicBool::new(false),
        }
    }

    /// Handles an event on the channel that publishes requests. Unroutable requests return on it,
    /// and direct replies arrive on it.
    pub(super) fn on_publishing(&self, data_plane: &DataPlane, event: Event) {
        match event {
            Event::Return { queue, message, .. } => {
                if let Some(id) = wire::correlation_id(&message) {
                    self.pending.settle(id, Err(Error::Unroutable { queue }), data_plane);
                }
            }
            Event::Delivery(delivery) => {
                self.publish_verified.store(true, Ordering::Relaxed);
                self.route_reply(data_plane, delivery.message);
            }
            Event::Closed(close) => {
                // The broker handles the messages of a channel in order. If it refused the first
                // one, it accepted none of those after it.
                let is_refused =
                    close.code == 403 && !self.publish_verified.load(Ordering::Relaxed);
                self.has_rejected.store(!is_refused, Ordering::Relaxed);
                if is_refused {
                    let doing = "write to the default exchange";
                    let _ = self.ended.set(data_plane.endpoint.explain_close(&close, doing));
                }
                lose_channel(data_plane, &close);
            }
            _ => {}
        }
    }

    /// Handles an event on the channel that receives replies.
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
    data_plane.cut(format!("the broker closed the channel: {close}"));
}
