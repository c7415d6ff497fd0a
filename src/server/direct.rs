//! Replies by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to), over connections
//! of their own.
//!
//! Such a `reply_to` names a process of the broker, in a form that the requester can write as
//! well. Where the broker cannot make out the process, or its node is gone, RabbitMQ up to 3.x
//! fails, and closes the connection that published the reply with INTERNAL_ERROR. That must not
//! be the connection on which requests are worked on: they would all be delivered again, and the
//! one that did it would do it again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amiquip::Channel;

use super::limit::ReplyLimit;
use crate::broker::{Brokers, Connection, closed_channel};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::frames::Frames;
use crate::wire::Route;

/// The connections that no worker uses at present: as many as workers have replied at once.
#[derive(Default)]
pub(crate) struct DirectReplies {
    idle: Mutex<Vec<Direct>>,
}

/// The connection is dropped first: closing a channel of one that has ended does not block.
struct Direct {
    connection: Connection,
    channel: Channel,
}

/// What became of a reply.
pub(crate) enum ReplyOutcome {
    Sent,
    /// The broker failed on its address.
    Undeliverable,
    /// The broker refused it over a size limit that was not known before.
    TooLarge,
}

pub(crate) fn is_direct(reply_to: &str) -> bool {
    reply_to.starts_with("amq.rabbitmq.reply-to.")
}

impl DirectReplies {
    /// Publishes a reply and waits until the broker has dealt with it: for as long as connecting
    /// may take, and as long again if a connection has to be made first.
    pub(crate) fn send<'a>(
        &self,
        brokers: &Brokers,
        limit: &ReplyLimit,
        reply_to: &str,
        encode: impl FnOnce(Route<'_>) -> Frames<'a>,
    ) -> Result<ReplyOutcome> {
        let idle = self.lock().pop();
        let direct = idle.map_or_else(|| connect(brokers), Ok)?;
        let Direct { connection, channel } = &direct;
        let data_plane = &connection.data_plane;
        let deadline = Deadline::after(brokers.connect_timeout);
        let route = Route {
            channel: channel.channel_id(),
            queue: reply_to,
            // The address is no queue: the broker would return what it has delivered.
            mandatory: false,
            frame_max: data_plane.frame_max(),
        };
        let time_limit = data_plane.time_limit_unless_blocked(deadline.timeout);
        // Whether that worked shows in the answer to the next call, which the broker gives after
        // it has dealt with the reply.
        let _ = data_plane.write(route.channel, encode(route), deadline.at);
        let answer = channel.qos(0, 0, false);
        drop(time_limit);
        match answer {
            Ok(()) => {
                self.lock().push(direct);
                Ok(ReplyOutcome::Sent)
            }
            Err(_) if data_plane.closed_by_broker().is_some_and(|close| close.code == 541) => {
                Ok(ReplyOutcome::Undeliverable)
            }
            Err(error) if closed_channel(&error).is_some_and(|close| limit.learn(&close)) => {
                Ok(ReplyOutcome::TooLarge)
            }
            Err(error) => Err(connection.explain(&error, "answer requests")),
        }
    }

    /// Closes the connections. Blocks for at most a second for each.
    pub(crate) fn close(&self) {
        let idle = std::mem::take(&mut *self.lock());
        drop(idle);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Direct>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(brokers: &Brokers) -> Result<Direct> {
    let mut connection = brokers.connect(0, Deadline::after(Duration::MAX))?;
    let data_plane = Arc::clone(&connection.data_plane);
    let _limit = data_plane.time_limit(brokers.connect_timeout);
    match connection.open_channel() {
        Ok(channel) => Ok(Direct { connection, channel }),
        Err(error) => Err(connection.explain(&error, "open a channel")),
    }
}
