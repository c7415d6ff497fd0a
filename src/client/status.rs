//! How a client is at one moment.

use std::fmt;
use std::time::Instant;

use crate::broker::write_status;
use crate::deadline::age;
use crate::error::Error;

/// How a client is at one moment, as [`RpcClient::status`](crate::RpcClient::status) returns it.
///
/// `Display` writes one line, such as `connected to rabbit-1:5672 for 3 h; calls in flight: 2, the
/// oldest for 7 s`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientStatus {
    /// `host:port` of the broker, if the client is connected.
    pub broker: Option<String>,
    /// When it connected there.
    pub connected_since: Option<Instant>,
    /// Requests in flight: sent, and without an outcome yet.
    pub in_flight: usize,
    /// When the oldest of them was sent.
    pub oldest_since: Option<Instant>,
    /// Why there was no connection most recently. It may be over.
    pub last_error: Option<Error>,
}

impl ClientStatus {
    /// Whether the client is connected. If it is not, its next call connects: calls may succeed
    /// all the same.
    pub fn is_ready(&self) -> bool {
        self.broker.is_some()
    }
}

impl fmt::Display for ClientStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.broker, self.connected_since) {
            (Some(broker), Some(since)) => write!(f, "connected to {broker} for {}", age(since))?,
            _ => f.write_str("not connected")?,
        }
        let error = self.last_error.as_ref().filter(|_| !self.is_ready());
        write_status(f, "calls in flight", self.in_flight as u64, self.oldest_since, error)
    }
}
