//! Runs the handler, and names requests in the log.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, Status, one_line};
use crate::server::finished::Outcome;
use crate::wire::{ReplyAddress, Request};

/// Runs the handler. If it panics, or if its reply cannot be sent in frames of at most `frame_max`
/// bytes, the requester gets `INTERNAL`, without the text of the panic.
pub(super) fn execute(
    handler: impl FnOnce(&Request) -> Outcome,
    request: &Request,
    frame_max: usize,
) -> Outcome {
    let ran = catch_unwind(AssertUnwindSafe(|| handler(request)));
    let reply = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        // It may quote the request.
        log::error!("the handler panicked: {}", one_line(text));
        Err(Failure::new(Status::Internal, "the server failed on this request"))
    })?;
    reply.check(frame_max).map(|()| reply).map_err(|error| {
        log::error!("a reply cannot be sent: {error}");
        Failure::new(Status::Internal, format!("the reply cannot be sent: {error}"))
    })
}

/// Formats a request for the log: its correlation id, and its method and trace id if it has them.
pub(super) struct RequestName<'a>(pub(super) &'a ReplyAddress<'a>, pub(super) &'a Request);

impl fmt::Display for RequestName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RequestName(address, request) = self;
        let id = address.correlation_id.unwrap_or(b"without id");
        write!(f, "request {}", id.escape_ascii())?;
        request.method().map_or(Ok(()), |method| write!(f, " to {method:?}"))?;
        request.trace_id().map_or(Ok(()), |trace| write!(f, " (trace {trace})"))
    }
}
