//! Sends replies, and finds out whether the broker took them.

mod direct;

use std::sync::Arc;
use std::time::Duration;

pub(super) use self::direct::{DirectConnection, DirectConnections};
use crate::broker::{Brokers, CallError, Channel, DataPlane, Limit};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::frames::{Close, Event, Frames, Method, Version};
use crate::wire::{self, Reply, ReplyAddress};

/// Sends the replies of all workers.
pub(crate) struct Replies {
    app_id: String,
    pub(super) direct: DirectConnections,
}

/// Why the broker does not have a reply.
pub(crate) enum NotSent {
    /// It refused this message, and will refuse it again.
    Refused(Close),
    /// It failed on the address.
    Undeliverable,
    /// No fault of the message is known. `by_broker` means that the broker closed the connection
    /// after it had got the message.
    Lost { error: Error, by_broker: bool },
}

/// How the broker treats a reply address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// A queue, or a direct reply-to address on a broker that says when nobody listens there: the
    /// reply is mandatory.
    Mandatory,
    /// Not mandatory: a broker before 4.2 also returns a direct reply that it has delivered.
    Silent,
    /// Through a connection of its own, which the broker may close
    /// ([`DirectConnections`]).
    OwnConnection,
}

impl Replies {
    pub(super) fn new(brokers: &Brokers, app_id: &str) -> Replies {
        Replies { app_id: app_id.to_string(), direct: DirectConnections::new(brokers) }
    }

    /// Encodes a reply to be written on this channel.
    pub(super) fn encode<'a>(
        &self,
        channel: &Channel,
        mandatory: bool,
        address: &ReplyAddress<'_>,
        outcome: &'a Result<Reply, Failure>,
    ) -> Frames<'a> {
        let route = channel.route(address.reply_to, mandatory);
        wire::encode_reply(route, address.correlation_id, &self.app_id, outcome)
    }

    /// Sends a reply on a channel of its own, so that a refusal costs no other request anything,
    /// and waits until the broker has taken it: for as long as the connection works. If the
    /// connection has no further channel, uses `own`.
    pub(super) fn send_alone(
        &self,
        own: &Channel,
        prefetch: u16,
        on_event: impl Fn(&DataPlane, Event) + Send + Sync + 'static,
        mandatory: bool,
        address: &ReplyAddress<'_>,
        outcome: &Result<Reply, Failure>,
    ) -> Result<(), NotSent> {
        let never = Limit::Until(Deadline::after(Duration::MAX).at);
        match own.data_plane.open_channel(never, Arc::default(), on_event) {
            Ok(channel) => self.send_verified(&channel, prefetch, mandatory, address, outcome),
            Err(CallError::NoChannel(_)) => {
                self.send_verified(own, prefetch, mandatory, address, outcome)
            }
            Err(error) => Err(lost(own, error, false)),
        }
    }

    /// Sends a reply and waits until the broker has taken it. The broker handles the frames of a
    /// channel in order, so its answer to the next method says that it has.
    pub(super) fn send_verified(
        &self,
        channel: &Channel,
        prefetch: u16,
        mandatory: bool,
        address: &ReplyAddress<'_>,
        outcome: &Result<Reply, Failure>,
    ) -> Result<(), NotSent> {
        let never = Deadline::after(Duration::MAX).at;
        // If writing fails, the answer says why.
        let _ = channel.write(self.encode(channel, mandatory, address, outcome), never);
        match channel.call(Method::Prefetch(prefetch), Limit::Until(never)) {
            Ok(_) => Ok(()),
            Err(CallError::Closed(close))
                if close.is_message_fault() && channel.data_plane.ended().is_none() =>
            {
                Err(NotSent::Refused(close))
            }
            Err(error) => Err(lost(channel, error, true)),
        }
    }
}

fn lost(channel: &Channel, error: CallError, had_message: bool) -> NotSent {
    /// An operator closed the connection, or stops the broker.
    const CONNECTION_FORCED: u16 = 320;
    let by_broker = match &error {
        CallError::Closed(close) => had_message && close.code != CONNECTION_FORCED,
        _ => false,
    };
    let by_broker = by_broker && channel.data_plane.ended().is_some();
    NotSent::Lost { error: channel.data_plane.explain(error, "answer requests"), by_broker }
}

impl Route {
    /// How a broker of this version treats the address. A version that is not known counts as old.
    pub(super) fn new(reply_to: &str, version: Option<Version>) -> Route {
        let version = version.unwrap_or_default();
        // Before, a reply to a node that is down closed the connection.
        let is_fixed = version >= (3, 11, 4) || ((3, 10, 12)..(3, 11, 0)).contains(&version);
        match wire::is_direct(reply_to) {
            true if version >= (4, 2, 0) => Route::Mandatory,
            true if is_fixed => Route::Silent,
            true => Route::OwnConnection,
            false => Route::Mandatory,
        }
    }
}
