//! How large a reply may be.
//!
//! RabbitMQ closes the channel over a message that is larger than its
//! [`max_message_size`](https://www.rabbitmq.com/docs/configure), and only then tells the limit.
//! The request comes again, and would end one channel after the other. So a server remembers the
//! limit, and answers the second time that its reply is too large.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Failure, Result, Status};

pub(crate) struct ReplyLimit(AtomicUsize);

impl Default for ReplyLimit {
    fn default() -> ReplyLimit {
        ReplyLimit(AtomicUsize::new(usize::MAX))
    }
}

impl ReplyLimit {
    /// Takes the limit from what the broker closed a channel with, if it is there.
    pub(crate) fn learn(&self, error: &amiquip::Error) {
        if let amiquip::Error::ServerClosedChannel { code: 406, message, .. } = error
            && let Some((_, limit)) = message.split_once("larger than configured max size ")
            && let Ok(limit) = limit.trim().parse()
        {
            self.0.store(limit, Ordering::Relaxed);
        }
    }

    pub(crate) fn apply(&self, outcome: Result<Vec<u8>, Failure>) -> Result<Vec<u8>, Failure> {
        let limit = self.0.load(Ordering::Relaxed);
        match outcome {
            Ok(body) if body.len() > limit => Err(Failure::new(
                Status::ResourceExhausted,
                format!(
                    "the reply of {} bytes is larger than the broker takes: {limit}",
                    body.len()
                ),
            )),
            outcome => outcome,
        }
    }
}
