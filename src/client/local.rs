//! Calls that a handler answers in place of a broker and a server, for the tests of a program.

use uuid::Uuid;

use super::options::Config;
use super::request::OutgoingRequest;
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result};
use crate::wire::{self, Reply, Request};

pub(super) type LocalHandler = Box<dyn Fn(&Request) -> Result<Reply, Failure> + Send + Sync>;

/// Runs the handler on this thread.
pub(super) fn answer(
    handler: &LocalHandler,
    request: &OutgoingRequest,
    config: &Config,
    deadline: Deadline,
) -> Result<Reply> {
    let head = request.head(config, "", "local", Uuid::new_v4(), deadline.remaining());
    let reply = handler(&wire::deliver_request(&head, &request.body));
    if deadline.has_passed() {
        let what = "the handler took longer".into();
        return Err(Error::TimedOut { what, after: deadline.timeout, sent: true });
    }
    reply.map_err(Error::Remote)
}
