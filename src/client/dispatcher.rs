//! Passes the messages that arrive on a client's connection to their callers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use uuid::Uuid;

use super::options::Config;
use super::pending::{PROBE, PendingCalls, refusal_error};
use super::request::Outcome;
use crate::broker::DataPlane;
use crate::error::Error;
use crate::frames::{BASIC_PUBLISH, Close, Event, Message};
use crate::wire;

/// The state that the reader of the socket shares with the callers of one session.
pub(super) struct Dispatcher {
    pub(super) config: Arc<Config>,
    pub(super) pending: PendingCalls,
    /// Set when the client is closed.
    pub(super) ended: OnceLock<Error>,
    /// Whether the session accepts no more calls, but still serves those in flight.
    pub(super) is_retired: AtomicBool,
    /// Unset until the broker has declared it. Until then, replies come by direct reply-to, through
    /// the publishing channel.
    pub(super) reply_queue: OnceLock<String>,
}

impl Dispatcher {
    pub(super) fn new(config: &Arc<Config>) -> Dispatcher {
        Dispatcher {
            config: Arc::clone(config),
            pending: PendingCalls::new(config.options.max_in_flight),
            ended: OnceLock::new(),
            is_retired: AtomicBool::new(false),
            reply_queue: OnceLock::new(),
        }
    }

    /// The handler of a channel that publishes most requests.
    pub(super) fn handle_publishing(
        self: &Arc<Dispatcher>,
    ) -> impl Fn(&DataPlane, Event) + Send + Sync + 'static {
        let this = Arc::clone(self);
        move |data_plane, event| {
            this.on_event(data_plane, event, |close| this.lose_publishing(data_plane, close));
        }
    }

    /// Handles an event on a channel on which only this request is in flight.
    pub(super) fn on_own_channel(&self, id: Uuid, data_plane: &DataPlane, event: Event) {
        self.on_event(data_plane, event, |close| {
            let outcome = match close.method {
                BASIC_PUBLISH => Outcome::Ended(Err(refusal_error(close, data_plane))),
                _ => Outcome::Lost(format!("the broker closed the channel: {close}")),
            };
            self.pending.settle(id, outcome, data_plane);
        });
    }

    /// Handles an event on the channel that receives replies.
    pub(super) fn on_consuming(&self, data_plane: &DataPlane, event: Event) {
        self.on_event(data_plane, event, |close| lose_channel(data_plane, close));
    }

    /// Handles an event on any channel. Unroutable requests return where they were published, and
    /// replies arrive where they are consumed.
    fn on_event(&self, data_plane: &DataPlane, event: Event, on_close: impl FnOnce(&Close)) {
        match event {
            Event::Return { queue, message, .. } => {
                if let (Some(id), _) = wire::identify(&message) {
                    let unroutable = Outcome::Ended(Err(Error::Unroutable { queue }));
                    self.pending.settle(id, unroutable, data_plane);
                }
            }
            Event::Delivery(delivery) => self.route_reply(data_plane, delivery.message),
            Event::Cancelled => data_plane.cut("the reply queue was deleted"),
            Event::Closed(close) => on_close(&close),
            _ => {}
        }
    }

    /// One request is not the connection: the others go on, and later ones go through another
    /// channel. But if the user may lack the permission that all requests need, or if replies come
    /// through the channel that is closed, the session ends. The next one finds out whether the
    /// broker takes any message of this user.
    fn lose_publishing(&self, data_plane: &DataPlane, close: &Close) {
        if close.method != BASIC_PUBLISH {
            return lose_channel(data_plane, close);
        }
        let may_concern_all = self.pending.refuse(close, data_plane);
        let replies_directly =
            self.reply_queue.get().is_none() || self.pending.lock().calls.await_direct_replies();
        if close.code == 403 && may_concern_all || replies_directly {
            lose_channel(data_plane, close);
        }
    }

    fn route_reply(&self, data_plane: &DataPlane, reply: Message) {
        let (id, is_sign_of_life) = wire::identify(&reply);
        if id == Some(PROBE) {
            return self.pending.lock().order.prove_id(PROBE);
        }
        let is_progress = wire::is_progress(&reply);
        let wants_progress =
            |id| self.pending.lock().calls.get(id).is_none_or(|slot| slot.wants_progress);
        // To a call that did not ask for it, a message of that type is a reply.
        if is_sign_of_life && (!is_progress || id.is_none_or(wants_progress)) {
            let told = is_progress.then(|| String::from_utf8_lossy(&reply.body).into_owned());
            return id.map_or((), |id| self.pending.note_sign_of_life(id, told, data_plane));
        }
        let settle =
            |id| self.pending.settle(id, Outcome::Ended(wire::decode_reply(reply)), data_plane);
        let is_ours = id.is_some_and(settle);
        let counters = &self.config.counters;
        let counter = if is_ours { &counters.replies } else { &counters.late };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

fn lose_channel(data_plane: &DataPlane, close: &Close) {
    data_plane.cut(format!("the broker closed the channel: {close}"));
}
