//! A request, as its handler receives it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::headers::trace_id;
use super::{DEADLINE, KEEP_ALIVE, SHORTEST_KEEP_ALIVE, TRACEPARENT};
use crate::frames::{Delivery, Message, Properties, find_header};

/// A request, as its handler receives it.
///
/// A property is `None` if the requester did not set it, or if it cannot be decoded.
///
/// ```
/// use rabbitmq_rpc::{Failure, Request, Status};
///
/// fn shout(request: &Request) -> Result<String, Failure> {
///     match std::str::from_utf8(request.body()) {
///         Ok(text) => Ok(text.to_uppercase()),
///         Err(_) => Err(Failure::new(Status::InvalidArgument, "the request is not UTF-8")),
///     }
/// }
/// assert_eq!(shout(&Request::new("hello")), Ok("HELLO".into()));
/// ```
pub struct Request {
    pub(crate) delivery: Delivery,
    /// When the requester stops waiting, if it named a deadline.
    deadline: Option<Instant>,
    /// Whether the requester is known to be gone.
    pub(crate) is_abandoned: Arc<AtomicBool>,
}

impl Request {
    /// A request that came from no broker and has a body only, for testing a handler.
    pub fn new(body: impl Into<Vec<u8>>) -> Request {
        let message = Message::bare(body.into());
        Request::from_delivery(Delivery { tag: 0, redelivered: false, message })
    }

    /// A request that has just arrived.
    pub(crate) fn from_delivery(delivery: Delivery) -> Request {
        let left = patience(&delivery.message.properties());
        let deadline = left.and_then(|left| Instant::now().checked_add(left));
        Request { delivery, deadline, is_abandoned: Arc::default() }
    }

    /// The body, in whatever format client and server have agreed on.
    pub fn body(&self) -> &[u8] {
        &self.delivery.message.body
    }

    /// The text of the header with this name; `None` if there is none, or if it is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(self.properties().headers, name)
    }

    /// The id of the request. It stays the same when the requester sends the request again, so a
    /// handler that must not run twice can recognize a request that it has seen before. See also
    /// [`Request::redelivered`].
    pub fn message_id(&self) -> Option<&str> {
        self.properties().message_id
    }

    /// The id that the reply will carry.
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties().correlation_id
    }

    /// The media type of the body, such as `application/json`.
    pub fn content_type(&self) -> Option<&str> {
        self.properties().content_type
    }

    /// The name that the requesting program gives itself.
    pub fn app_id(&self) -> Option<&str> {
        self.properties().app_id
    }

    /// The user as whom the requester logged in, if the requester set it. The broker refuses a
    /// message that names another user
    /// ([Validated User-ID](https://www.rabbitmq.com/docs/validated-user-id)).
    pub fn user_id(&self) -> Option<&str> {
        self.properties().user_id
    }

    /// Whether the broker delivered the request before. The server that received it then, this one
    /// or another, may have executed it
    /// ([Reliability](https://www.rabbitmq.com/docs/reliability)). A request that the requester
    /// sent again does not count as redelivered, but has the same [`Request::message_id`].
    pub fn redelivered(&self) -> bool {
        self.delivery.redelivered
    }

    /// How much longer the requester is going to wait: zero if it has stopped, `None` if it named
    /// no deadline.
    ///
    /// The value is exact if the clocks of both machines agree. Otherwise, it is at most the time
    /// that was left when the request was sent, counted from the arrival of the request.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the requester no longer waits for the reply: its deadline has passed, or it is known
    /// to be gone, which this crate notices only if the requester asked for signs of life. A
    /// handler that runs for minutes may check this from time to time and give up.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed) || self.remaining() == Some(Duration::ZERO)
    }

    pub(crate) fn properties(&self) -> Properties<'_> {
        self.delivery.message.properties()
    }

    /// The interval at which the requester wants signs of life.
    pub(crate) fn keep_alive(&self) -> Option<Duration> {
        let interval = self.header(KEEP_ALIVE)?.parse().ok()?;
        Some(Duration::from_millis(interval).max(SHORTEST_KEEP_ALIVE))
    }

    /// The id of the trace that the request belongs to.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        self.header(TRACEPARENT).and_then(trace_id)
    }
}

/// How much longer the requester of a message that has just arrived waits.
///
/// The broker does not deliver an expired message. If the deadline has passed all the same, the
/// clocks differ, and the time left when the request was sent counts.
fn patience(properties: &Properties<'_>) -> Option<Duration> {
    let milliseconds = |text: &str| text.parse().ok().map(Duration::from_millis);
    let at_sending = properties.expiration.and_then(milliseconds)?;
    let deadline = find_header(properties.headers, DEADLINE).and_then(milliseconds);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = deadline.and_then(|deadline| deadline.checked_sub(now)).filter(|it| !it.is_zero());
    Some(left.unwrap_or(at_sending).min(at_sending))
}

/// Without the body, which may be confidential.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("correlation_id", &self.correlation_id())
            .field("message_id", &self.message_id())
            .field("redelivered", &self.redelivered())
            .field("bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}
