//! A reply, as a handler returns it and as a caller receives it.

use uuid::Uuid;

use super::headers::{Headers, states_true};
use super::names::{NOT_EXECUTED, STATUS, check_length};
use crate::error::{Error, Failure, Result, Status, ensure};
use crate::frames::{
    Frames, HeaderValue, Message, Properties, Route, append_text, find_header, headers, publish,
};

/// The `type` of a reply that carries a [`Failure`].
const ERROR: &str = "error";
/// The `type` of a sign of life: a message that tells that the server is executing the request.
const ALIVE: &str = "keep-alive";
/// The `type` of a sign of life that tells how far the work is, by its body.
const PROGRESS: &str = "progress";

/// A reply: a body, with optional properties and headers.
///
/// A handler that sets none may return the body itself, which is converted.
///
/// ```
/// use rabbitmq_rpc::{Failure, Reply, Request};
///
/// fn stock(request: &Request) -> Result<Reply, Failure> {
///     let reply = Reply::from(r#"{"left": 7}"#).with_content_type("application/json");
///     Ok(reply.with_header("warehouse", "north"))
/// }
/// let reply = stock(&Request::new("bolts")).unwrap();
/// assert_eq!((reply.body(), reply.header("warehouse")), (&br#"{"left": 7}"#[..], Some("north")));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reply {
    body: Vec<u8>,
    content_type: Option<String>,
    content_encoding: Option<String>,
    kind: Option<String>,
    headers: Headers,
}

impl Reply {
    /// Sets the content type, such as `application/json`.
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Reply {
        self.content_type = Some(content_type.into());
        self
    }

    /// Sets the encoding of the body, such as `gzip`.
    pub fn with_content_encoding(mut self, encoding: impl Into<String>) -> Reply {
        self.content_encoding = Some(encoding.into());
        self
    }

    /// Sets the `type` of the AMQP message, for requesters that expect one. This crate's clients
    /// take the type `error` for a [`Failure`].
    pub fn with_type(mut self, kind: impl Into<String>) -> Reply {
        self.kind = Some(kind.into());
        self
    }

    /// Adds a header. If the header is too large for AMQP, or its name begins with `rpc-`, the
    /// request fails with `INTERNAL`.
    pub fn with_header(mut self, name: &str, value: &str) -> Reply {
        self.headers.append(name, value);
        self
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body, without a copy.
    pub fn into_body(self) -> Vec<u8> {
        self.body
    }

    /// The media type of the body, if the server set one.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// The encoding of the body, if the server set one.
    pub fn content_encoding(&self) -> Option<&str> {
        self.content_encoding.as_deref()
    }

    /// The `type` of the AMQP message, if the server set one.
    pub fn kind(&self) -> Option<&str> {
        self.kind.as_deref()
    }

    /// All headers whose values have a [`HeaderValue`]: not tables and arrays.
    pub fn headers(&self) -> impl Iterator<Item = (&str, HeaderValue<'_>)> {
        headers(&self.headers.entries)
    }

    /// The text of the header with this name; `None` if there is none, or if it is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers.entries, name)
    }

    /// # Errors
    /// [`Error::Config`] names the part that cannot be sent in frames of at most `frame_max` bytes.
    pub(crate) fn check(&self, frame_max: usize) -> Result<()> {
        check_length("reply's content type", self.content_type().unwrap_or_default())?;
        check_length("reply's content encoding", self.content_encoding().unwrap_or_default())?;
        check_length("reply's type", self.kind().unwrap_or_default())?;
        ensure(!matches!(self.kind(), Some(ALIVE | PROGRESS)), || {
            format!(
                "the types {ALIVE:?} and {PROGRESS:?} are those of signs of life; give the reply another one"
            )
        })?;
        self.headers.check()?;
        self.headers.check_size(frame_max)
    }
}

impl From<Vec<u8>> for Reply {
    fn from(body: Vec<u8>) -> Reply {
        Reply { body, ..Reply::default() }
    }
}

impl From<String> for Reply {
    fn from(body: String) -> Reply {
        Reply::from(body.into_bytes())
    }
}

impl From<&'static str> for Reply {
    fn from(body: &'static str) -> Reply {
        Reply::from(body.as_bytes().to_vec())
    }
}

/// Encodes a reply as frames.
pub(crate) fn encode_reply<'a>(
    route: Route<'_>,
    correlation_id: Option<&[u8]>,
    app_id: &str,
    outcome: &'a Result<Reply, Failure>,
) -> Frames<'a> {
    let common = common_properties(correlation_id, app_id);
    match outcome {
        Ok(reply) => {
            let properties = Properties {
                content_type: reply.content_type(),
                content_encoding: reply.content_encoding(),
                type_: reply.kind(),
                headers: &reply.headers.entries,
                ..common
            };
            publish(route, &properties, &reply.body)
        }
        Err(Failure { status, message, not_executed }) => {
            let mut headers = Vec::new();
            append_text(&mut headers, STATUS, status.name());
            if *not_executed {
                append_text(&mut headers, NOT_EXECUTED, "true");
            }
            let (type_, content_type) = (Some(ERROR), Some("text/plain"));
            let failure = Properties { type_, content_type, headers: &headers, ..common };
            publish(route, &failure, message.as_bytes())
        }
    }
}

/// Encodes a sign of life as frames, with the progress of the work if that is known.
pub(crate) fn encode_sign_of_life(
    route: Route<'_>,
    correlation_id: &[u8],
    app_id: &str,
    progress: Option<&str>,
) -> Vec<u8> {
    let type_ = Some(progress.map_or(ALIVE, |_| PROGRESS));
    let sign = Properties { type_, ..common_properties(Some(correlation_id), app_id) };
    publish(route, &sign, progress.unwrap_or_default().as_bytes()).rest(0)
}

/// The properties that every reply and sign of life has.
fn common_properties<'a>(correlation_id: Option<&'a [u8]>, app_id: &'a str) -> Properties<'a> {
    Properties { correlation_id, app_id: Some(app_id), ..Default::default() }
}

/// The correlation id of a reply, or `None` if it is not one that this crate makes; and whether it
/// is a sign of life.
pub(crate) fn identify(message: &Message) -> (Option<Uuid>, bool) {
    let Properties { correlation_id, type_, .. } = message.properties();
    (
        correlation_id.and_then(|id| Uuid::try_parse_ascii(id).ok()),
        matches!(type_, Some(ALIVE | PROGRESS)),
    )
}

/// Whether a sign of life tells the progress of the work.
pub(crate) fn is_progress(sign: &Message) -> bool {
    sign.properties().type_ == Some(PROGRESS)
}

/// Decodes a reply.
///
/// # Errors
/// [`Error::Remote`] if the reply carries a failure.
pub(crate) fn decode_reply(message: Message) -> Result<Reply> {
    let properties = message.properties();
    if properties.type_ == Some(ERROR) {
        let status = find_header(properties.headers, STATUS);
        let status = status.map_or(Status::Unknown, Status::from_name);
        let not_executed = states_true(properties.headers, NOT_EXECUTED);
        let message = String::from_utf8_lossy(&message.body).into_owned();
        return Err(Error::Remote(Failure { status, message, not_executed }));
    }
    let owned = |text: Option<&str>| text.map(str::to_string);
    Ok(Reply {
        content_type: owned(properties.content_type),
        content_encoding: owned(properties.content_encoding),
        kind: owned(properties.type_),
        headers: Headers { entries: properties.headers.to_vec(), invalid: None },
        body: message.body,
    })
}
