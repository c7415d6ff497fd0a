//! How a program is at one moment: what the statuses of clients and of servers have in common.

use std::fmt;
use std::time::Instant;

use crate::deadline::age;
use crate::error::{Error, one_line};

/// The connection of a program at one moment.
pub(crate) struct ConnectionStatus {
    /// `host:port` of the broker, and the time of the connection, if there is one.
    pub(crate) connected: Option<(String, Instant)>,
    /// Why there was none, or why the last one was lost.
    pub(crate) last_error: Option<Error>,
}

/// Writes the end of a status: how many calls or requests there are, and what is wrong, if anything
/// is.
pub(crate) fn write_status(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    count: u64,
    oldest: Option<Instant>,
    error: Option<&Error>,
) -> fmt::Result {
    write!(f, "; {what}: {count}")?;
    oldest.map_or(Ok(()), |since| write!(f, ", the oldest for {}", age(since)))?;
    // A broker's text may contain anything.
    error.map_or(Ok(()), |error| write!(f, "; {}", one_line(&error.to_string())))
}
