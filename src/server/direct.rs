//! Replies by [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to), over a
//! connection of their own.
//!
//! Such a `reply_to` names a process of the broker, in a form that the requester can write as
//! well. Where the broker cannot make out the process, or its node is gone, RabbitMQ up to 3.x
//! fails, and closes the connection that published the reply with INTERNAL_ERROR. That must not
//! be the connection on which requests are worked on: they would all be delivered again, and the
//! one that did it would do it again.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use amiquip::Channel;

use crate::broker::{Brokers, Link};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::wire::Way;

/// The connection, once a request has asked for it.
#[derive(Default)]
pub(crate) struct DirectReplies {
    open: Mutex<Option<(Channel, Link)>>,
}

/// What became of a reply.
pub(crate) enum Fate {
    Sent,
    /// The broker failed on its address.
    Undeliverable,
}

pub(crate) fn is_direct(reply_to: &str) -> bool {
    reply_to.starts_with("amq.rabbitmq.reply-to.")
}

impl DirectReplies {
    /// Publishes a reply and waits until the broker has dealt with it, for as long as connecting
    /// may take.
    pub(crate) fn send(
        &self,
        brokers: &Brokers,
        reply_to: &str,
        encode: impl FnOnce(Way<'_>) -> Vec<u8>,
    ) -> Result<Fate> {
        let mut kept = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let open = kept.take().map_or_else(|| open(brokers), Ok)?;
        let (channel, link) = &open;
        let deadline = Deadline::after(brokers.connect_timeout);
        let _fuse = link.line.fuse(deadline.timeout);
        let way = Way {
            channel: channel.channel_id(),
            queue: reply_to,
            // The address is no queue: the broker would give back what it has delivered.
            mandatory: false,
            frame_max: link.line.frame_max(),
        };
        // What becomes of the reply is told before the answer to whatever is asked behind it.
        let _ = link.line.write(&encode(way), deadline.at);
        match channel.qos(0, 0, false) {
            Ok(()) => {
                *kept = Some(open);
                Ok(Fate::Sent)
            }
            Err(amiquip::Error::ServerClosedConnection { code: 541, .. }) => {
                Ok(Fate::Undeliverable)
            }
            Err(error) => Err(link.endpoint.explain(&error, "answer requests")),
        }
    }

    /// Closes the connection, in good order if the broker answers within `limit`.
    pub(crate) fn close(&self, limit: Duration) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((_, link)) = open {
            link.close(limit);
        }
    }
}

fn open(brokers: &Brokers) -> Result<(Channel, Link)> {
    let mut link = brokers.connect(0, Deadline::after(Duration::MAX))?;
    let _fuse = link.line.fuse(brokers.connect_timeout);
    let channel = link.connection.open_channel(None);
    let channel = channel.map_err(|error| link.endpoint.explain(&error, "open a channel"))?;
    Ok((channel, link))
}
