//! The size limit of replies.
//!
//! If a message is larger than [`max_message_size`](https://www.rabbitmq.com/docs/configure),
//! RabbitMQ closes the channel, and only then reports the limit. It then redelivers the request,
//! whose reply would close the next channel as well. The server therefore remembers the limit. The
//! second time, it answers that the reply is too large.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result, Status};
use crate::frames::Close;
use crate::wire::Reply;

/// The limit in bytes; `usize::MAX` while none is known.
pub(crate) struct ReplyLimit(pub(super) AtomicUsize);

impl ReplyLimit {
    /// Reads the limit from the reason why the broker closed a channel. True if the reason contains
    /// a limit.
    pub(crate) fn learn(&self, close: &Close) -> bool {
        let limit = close.text.split_once("larger than configured max size ");
        match limit.map(|(_, limit)| limit.trim().parse()) {
            Some(Ok(limit)) if close.code == 406 => {
                self.0.store(limit, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn apply(&self, outcome: Result<Reply, Failure>) -> Result<Reply, Failure> {
        let limit = self.0.load(Ordering::Relaxed);
        let reply = outcome?;
        let length = reply.body().len();
        if length > limit {
            let text =
                format!("the reply of {length} bytes is larger than the broker takes: {limit}");
            return Err(Failure::new(Status::Internal, text));
        }
        Ok(reply)
    }
}
