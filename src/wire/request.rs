//! A request as its handler gets it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{DEADLINE, KEEP_ALIVE, SHORTEST_KEEP_ALIVE, trace_id};
use crate::frames::{Delivery, Message, Properties, find_header};

/// A request, and what its handler may want to know of it.
///
/// A property that the requester left out, or that cannot be decoded, is `None`.
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
    message: Message,
    redelivered: bool,
    /// When its requester stops waiting, if it said so.
    deadline: Option<Instant>,
    is_abandoned: Arc<AtomicBool>,
}

impl Request {
    /// A request that came from no broker, with a body and nothing else: for trying a handler.
    pub fn new(body: impl Into<Vec<u8>>) -> Request {
        let message = Message::bare(body.into());
        Request::from_message(message, false, Instant::now())
    }

    pub(crate) fn from_delivery(delivery: Delivery, received: Instant) -> Request {
        Request::from_message(delivery.message, delivery.redelivered, received)
    }

    fn from_message(message: Message, redelivered: bool, received: Instant) -> Request {
        let deadline = patience(&message.properties()).and_then(|left| received.checked_add(left));
        Request { message, redelivered, deadline, is_abandoned: Arc::default() }
    }

    /// The request itself, in the form on which the two sides have agreed.
    pub fn body(&self) -> &[u8] {
        &self.message.body
    }

    /// The text of the header of this name; `None` if there is none, or if it is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(self.properties().headers, name)
    }

    /// The id that stays the same when the requester sends a request again: what tells a handler
    /// that must not run twice that it has seen this request before. See also
    /// [`Request::redelivered`].
    pub fn message_id(&self) -> Option<&str> {
        self.properties().message_id
    }

    /// The id that the reply will carry.
    pub fn correlation_id(&self) -> Option<&str> {
        self.properties().correlation_id
    }

    /// The body's media type, such as `application/json`.
    pub fn content_type(&self) -> Option<&str> {
        self.properties().content_type
    }

    /// The program that asks, as it names itself.
    pub fn app_id(&self) -> Option<&str> {
        self.properties().app_id
    }

    /// The user as whom the requester logged in, if it said so: the broker takes no message in
    /// which this is another ([Validated
    /// User-ID](https://www.rabbitmq.com/docs/validated-user-id)).
    pub fn user_id(&self) -> Option<&str> {
        self.properties().user_id
    }

    /// Whether the broker delivered the request before, to this server or another, which may have
    /// executed it ([Reliability](https://www.rabbitmq.com/docs/reliability)). A request that its
    /// requester sent again does not count: that has the same [`Request::message_id`].
    pub fn redelivered(&self) -> bool {
        self.redelivered
    }

    /// How long the requester is still going to wait; zero if it has stopped. `None` if it named no
    /// deadline.
    ///
    /// It is exact if the clocks of both machines agree. Otherwise it is at most what was left when
    /// the request was sent, counted from its arrival here.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether nobody waits for the reply any more: the deadline has passed, or the requester is
    /// known to be gone, which shows only if it asked for signs of life. A handler of minutes may
    /// look at this now and then, and give up.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed) || self.remaining() == Some(Duration::ZERO)
    }

    pub(crate) fn properties(&self) -> Properties<'_> {
        self.message.properties()
    }

    /// How often the requester wants signs of life.
    pub(crate) fn keep_alive(&self) -> Option<Duration> {
        let interval = self.header(KEEP_ALIVE)?.parse().ok()?;
        Some(Duration::from_millis(interval).max(SHORTEST_KEEP_ALIVE))
    }

    /// What tells that the requester is gone.
    pub(crate) fn abandonment(&self) -> &Arc<AtomicBool> {
        &self.is_abandoned
    }

    /// The id of the trace that the request belongs to.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        self.header(super::TRACEPARENT).and_then(trace_id)
    }
}

/// How long the requester still waits for a message that has just arrived.
///
/// A deadline that has passed already shows that the clocks differ, since the broker does not
/// deliver an expired message: then what was left at sending counts.
fn patience(properties: &Properties<'_>) -> Option<Duration> {
    let milliseconds = |text: &str| text.parse().ok().map(Duration::from_millis);
    let at_sending = properties.expiration.and_then(milliseconds)?;
    let deadline = find_header(properties.headers, DEADLINE).and_then(milliseconds);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match deadline.and_then(|deadline| deadline.checked_sub(now)) {
        Some(left) if !left.is_zero() => Some(left.min(at_sending)),
        _ => Some(at_sending),
    }
}

/// Without the body, which is nobody's business.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("correlation_id", &self.correlation_id())
            .field("message_id", &self.message_id())
            .field("redelivered", &self.redelivered)
            .field("bytes", &self.body().len())
            .finish_non_exhaustive()
    }
}
