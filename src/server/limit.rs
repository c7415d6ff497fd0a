//! How large a reply may be.
//!
//! RabbitMQ closes the channel over a message that is larger than its
//! [`max_message_size`](https://www.rabbitmq.com/docs/configure), and only then tells the limit.
//! The broker redelivers the request, which would end one channel after the other. So a server
//! remembers the limit, and answers the second time that its reply is too large.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result, Status};
use crate::frames::Close;
use crate::wire::Reply;

pub(crate) struct ReplyLimit(AtomicUsize);

impl Default for ReplyLimit {
    fn default() -> ReplyLimit {
        ReplyLimit(AtomicUsize::new(usize::MAX))
    }
}

impl ReplyLimit {
    /// Takes the limit from what the broker closed a channel with. True if it is there and was not
    /// known before.
    pub(crate) fn learn(&self, close: &Close) -> bool {
        let limit = close.text.split_once("larger than configured max size ");
        match limit.map(|(_, limit)| limit.trim().parse()) {
            Some(Ok(limit)) if close.code == 406 => self.0.swap(limit, Ordering::Relaxed) != limit,
            _ => false,
        }
    }

    pub(crate) fn apply(&self, outcome: Result<Reply, Failure>) -> Result<Reply, Failure> {
        let limit = self.0.load(Ordering::Relaxed);
        match outcome {
            Ok(reply) if reply.body().len() > limit => Err(Failure::new(
                Status::Internal,
                format!(
                    "the reply of {} bytes is larger than the broker takes: {limit}",
                    reply.body().len()
                ),
            )),
            outcome => outcome,
        }
    }
}
