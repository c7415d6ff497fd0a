//! The names of the contract's headers, and their bounds.

use std::time::Duration;

use crate::error::{Result, ensure};

/// The header of an error reply that contains the name of the status.
pub(super) const STATUS: &str = "rpc-status";
/// The header of an error reply whose value `true` states that no handler began the request.
pub(super) const NOT_EXECUTED: &str = "rpc-not-executed";
/// The header of a request that contains the caller's deadline, in milliseconds since 1970.
pub(super) const DEADLINE: &str = "rpc-deadline";
/// The header of a request that contains the interval between signs of life, in milliseconds.
pub(super) const KEEP_ALIVE: &str = "rpc-keep-alive";
/// The header in which the broker lists how it dead-lettered a message, the latest time first.
pub(super) const DEATHS: &str = "x-death";
/// The header of a request whose value `true` asks for messages about the progress.
pub(super) const PROGRESS: &str = "rpc-progress";
/// A server does not send signs of life more often than this, even if the caller asks it to.
pub(crate) const SHORTEST_KEEP_ALIVE: Duration = Duration::from_millis(100);
/// The prefix of the names of methods that a server answers itself, whatever its handler.
pub(crate) const OWN_METHODS: &str = "rpc.";
/// The headers of W3C Trace Context and [Baggage](https://www.w3.org/TR/baggage/).
pub(crate) const TRACEPARENT: &str = "traceparent";
pub(crate) const TRACESTATE: &str = "tracestate";
pub(crate) const BAGGAGE: &str = "baggage";

/// Refuses the name of a method that no request can reach.
pub(crate) fn check_method(name: &str) -> Result<()> {
    ensure(!name.starts_with(OWN_METHODS), || {
        format!("the method {name:?} is never called: {OWN_METHODS}… is the server's own")
    })?;
    check_length("method's name", name)
}

/// Refuses a text that is too long for AMQP, such as a queue's name or a property.
pub(crate) fn check_length(what: &str, text: &str) -> Result<()> {
    const LONGEST: usize = 255;
    let length = text.len();
    ensure(length <= LONGEST, || format!("the {what} has {length} bytes; AMQP allows {LONGEST}"))
}
