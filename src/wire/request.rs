//! A request, as its handler receives it.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::headers::{states_true, trace_id};
use super::names::{DEADLINE, DEATHS, KEEP_ALIVE, PROGRESS, SHORTEST_KEEP_ALIVE, TRACEPARENT};
use crate::frames::{
    Delivery, HeaderValue, Message, Properties, append_text, find_header, find_tables, headers,
};

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
    /// When the `expiration`, counted from the arrival, has passed.
    expires: Option<Instant>,
    /// Whether the requester is known to be gone.
    pub(crate) is_abandoned: AtomicBool,
    /// The interval at which the requester wants signs of life.
    pub(crate) keep_alive: Option<Duration>,
    /// Whether the requester wants to know about the progress.
    pub(crate) wants_progress: bool,
    /// Sends the progress to the requester.
    pub(crate) on_progress: OnceLock<OnProgress>,
    method: Option<String>,
}

/// Gets each text about the progress of a request.
pub(crate) type OnProgress = Box<dyn Fn(&str) + Send + Sync>;

/// How a message left a queue without being acknowledged
/// ([Dead letter exchanges](https://www.rabbitmq.com/docs/dlx)).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Death<'a> {
    pub(crate) queue: &'a str,
    pub(crate) reason: &'a str,
    /// Whether the message was dead-lettered this once only.
    pub(crate) is_only: bool,
}

impl Request {
    /// A request that came from no broker and has a body only, for testing a handler. What a test
    /// adds to it must fit into AMQP's short strings, 255 bytes each.
    pub fn new(body: impl Into<Vec<u8>>) -> Request {
        let message = Message { properties: Vec::new(), body: body.into() };
        Request::from_delivery(Delivery { tag: 0, redelivered: false, message })
    }

    /// The request with the name of a method, for testing a handler.
    pub fn with_method(mut self, name: &str) -> Request {
        let properties = Properties { type_: Some(name), ..self.properties() };
        self.delivery.message.properties = properties.encode();
        self.method = Some(name.to_string());
        self
    }

    /// The request with a header, for testing a handler.
    pub fn with_header(mut self, name: &str, value: &str) -> Request {
        let mut headers = self.properties().headers.to_vec();
        append_text(&mut headers, name, value);
        let properties = Properties { headers: &headers, ..self.properties() };
        self.delivery.message.properties = properties.encode();
        self
    }

    /// The request of this user, for testing a handler.
    pub fn with_user_id(mut self, user: &str) -> Request {
        let properties = Properties { user_id: Some(user), ..self.properties() };
        self.delivery.message.properties = properties.encode();
        self
    }

    /// The request of a requester that waits for so much longer, for testing a handler.
    pub fn with_deadline(mut self, remaining: Duration) -> Request {
        self.deadline = Instant::now().checked_add(remaining);
        self
    }

    /// A request that has just arrived. Decodes here, once, what each request is asked for.
    pub(crate) fn from_delivery(delivery: Delivery) -> Request {
        let (now, properties) = (Instant::now(), delivery.message.properties());
        let deadline = patience(&properties).and_then(|left| now.checked_add(left));
        let expires = expiration(&properties).and_then(|left| now.checked_add(left));
        let keep_alive = milliseconds(&properties, KEEP_ALIVE);
        let keep_alive = keep_alive.map(|interval| interval.max(SHORTEST_KEEP_ALIVE));
        let method = properties.type_.map(str::to_string);
        let wants_progress = states_true(properties.headers, PROGRESS);
        Request {
            delivery,
            deadline,
            expires,
            is_abandoned: AtomicBool::new(false),
            keep_alive,
            wants_progress,
            on_progress: OnceLock::new(),
            method,
        }
    }

    /// The body, in whatever format client and server have agreed on.
    pub fn body(&self) -> &[u8] {
        &self.delivery.message.body
    }

    /// The text of the header with this name; `None` if there is none, or if it is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(self.properties().headers, name)
    }

    /// All headers whose values have a [`HeaderValue`]: not tables and arrays.
    pub fn headers(&self) -> impl Iterator<Item = (&str, HeaderValue<'_>)> {
        headers(self.properties().headers)
    }

    /// The name of the method that the requester calls: the `type` of the AMQP message.
    pub fn method(&self) -> Option<&str> {
        self.method.as_deref()
    }

    /// The id of the request. It stays the same when the requester sends the request again, so a
    /// handler that must not run twice can recognize a request that it has seen before. See also
    /// [`Request::redelivered`].
    pub fn message_id(&self) -> Option<&str> {
        self.properties().message_id
    }

    /// The id that the reply will carry, if it is a text. The reply carries other bytes as well.
    pub fn correlation_id(&self) -> Option<&str> {
        std::str::from_utf8(self.properties().correlation_id?).ok()
    }

    /// The media type of the body, such as `application/json`.
    pub fn content_type(&self) -> Option<&str> {
        self.properties().content_type
    }

    /// The encoding of the body, such as `gzip`.
    pub fn content_encoding(&self) -> Option<&str> {
        self.properties().content_encoding
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
    /// that was left when the request was sent, counted from the arrival of the request. It is zero
    /// for an old request that an operator has moved back from a dead-letter queue.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the requester no longer waits for the reply: its deadline has passed, or it is known
    /// to be gone, which this crate notices only if the requester asked for signs of life. A
    /// handler that runs for minutes may check this from time to time and give up.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed) || self.remaining() == Some(Duration::ZERO)
    }

    /// Tells the requester how far the work is, such as `40 %`, if the requester has asked for that
    /// ([`CallBuilder::on_progress`](crate::CallBuilder::on_progress)) and does not receive its
    /// replies by direct reply-to. Does not block.
    ///
    /// The requester gets at most ten texts a second, and the last one always: a text that comes
    /// earlier waits, until a later one takes its place or the handler returns. At most 1,024 bytes
    /// of a text are sent.
    pub fn progress(&self, text: impl AsRef<str>) {
        const LONGEST: usize = 1024;
        if let Some(send) = self.on_progress.get() {
            let text = text.as_ref();
            let ends = (0..=text.len().min(LONGEST)).rev();
            let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
            send(&text[..end.unwrap_or_default()]);
        }
    }

    /// Whether nobody waits for the reply any more, whatever the clocks of other machines say.
    pub(crate) fn has_expired(&self) -> bool {
        self.expires.is_some_and(|expires| expires <= Instant::now())
    }

    pub(crate) fn properties(&self) -> Properties<'_> {
        self.delivery.message.properties()
    }

    /// How the broker dead-lettered the message last. `None` if it did not.
    pub(crate) fn last_death(&self) -> Option<Death<'_>> {
        let mut deaths = find_tables(self.properties().headers, DEATHS);
        let last = deaths.next()?;
        let is_once = headers(last).any(|entry| entry == ("count", HeaderValue::Integer(1)));
        let (queue, reason) = (find_header(last, "queue")?, find_header(last, "reason")?);
        Some(Death { queue, reason, is_only: is_once && deaths.next().is_none() })
    }

    /// The id of the trace that the request belongs to.
    pub(crate) fn trace_id(&self) -> Option<&str> {
        self.header(TRACEPARENT).and_then(trace_id)
    }
}

/// The time left when the request was sent: its `expiration`.
fn expiration(properties: &Properties<'_>) -> Option<Duration> {
    properties.expiration?.parse().ok().map(Duration::from_millis)
}

/// How much longer the requester of a message that has just arrived waits.
///
/// The broker does not deliver an expired message. If the deadline has passed all the same, the
/// clocks differ, and the time left when the request was sent counts. The broker removes the
/// `expiration` of a message that it dead-letters: if only the deadline is left, an operator has
/// moved the message back, and the deadline counts.
fn patience(properties: &Properties<'_>) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = milliseconds(properties, DEADLINE);
    let left = deadline.map(|deadline| deadline.saturating_sub(now));
    match expiration(properties) {
        None => left,
        Some(at_sending) => {
            Some(left.filter(|left| !left.is_zero()).unwrap_or(at_sending).min(at_sending))
        }
    }
}

/// The header with this name as a number of milliseconds: a text, as this crate writes it, or an
/// integer, as other programs may.
fn milliseconds(properties: &Properties<'_>, name: &str) -> Option<Duration> {
    let number = match headers(properties.headers).find(|(key, _)| *key == name)?.1 {
        HeaderValue::Text(text) => text.parse().ok()?,
        HeaderValue::Integer(number) => u64::try_from(number).ok()?,
        _ => return None,
    };
    Some(Duration::from_millis(number))
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
