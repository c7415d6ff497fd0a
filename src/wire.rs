//! The wire contract: encodes requests and replies as AMQP frames, and decodes them. Does no I/O.
//!
//! The contract is that of RabbitMQ's tutorial six, with additions that a program may ignore.
//! Properties may be absent, foreign or undecodable. This is never an error.

mod direct_reply_to;
mod headers;
mod names;
mod reply;
mod request;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

pub(crate) use self::direct_reply_to::is_direct;
pub(crate) use self::headers::Headers;
pub(crate) use self::names::{
    BAGGAGE, OWN_METHODS, SHORTEST_KEEP_ALIVE, TRACEPARENT, TRACESTATE, check_length, check_method,
};
use self::names::{DEADLINE, KEEP_ALIVE, PROGRESS};
pub use self::reply::Reply;
pub(crate) use self::reply::{
    decode_reply, encode_reply, encode_sign_of_life, identify, is_progress,
};
pub(crate) use self::request::Death;
pub(crate) use self::request::OnProgress;
pub use self::request::Request;
use crate::error::{Result, ensure};
use crate::frames::{self, Delivery, Frames, Message, Properties, Route, append_text};

/// Refuses a queue name that is empty, for which the broker would invent a new name each time, too
/// long for AMQP, or with a line break, which RabbitMQ removes from the name.
pub(crate) fn check_queue(queue: &str) -> Result<()> {
    ensure(!queue.is_empty(), || "the name of the request queue is empty".into())?;
    check_name("queue's name", queue)
}

/// Refuses the name of an exchange for the same reasons. An empty name is the default exchange.
pub(crate) fn check_exchange(exchange: &str) -> Result<()> {
    ensure(!exchange.is_empty(), || "the name of the exchange is empty: name none".into())?;
    check_name("exchange's name", exchange)
}

fn check_name(what: &str, name: &str) -> Result<()> {
    ensure(!name.contains(['\r', '\n']), || format!("the {what} {name:?} contains a line break"))?;
    check_length(what, name)
}

/// Refuses an interval so short that signs of life would load the broker, or longer than any call.
pub(crate) fn check_keep_alive(interval: Option<Duration>) -> Result<()> {
    const LONGEST: Duration = Duration::from_secs(24 * 3600);
    let valid = interval.is_none_or(|it| (SHORTEST_KEEP_ALIVE..=LONGEST).contains(&it));
    ensure(valid, || format!("keep_alive is at least {SHORTEST_KEEP_ALIVE:?} and at most a day"))
}

/// The properties of a request.
pub(crate) struct RequestHead<'a> {
    pub(crate) reply_to: &'a str,
    pub(crate) correlation_id: Uuid,
    /// Stays the same when the request is sent again under a new correlation id.
    pub(crate) message_id: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) method: Option<&'a str>,
    /// The user that the broker knows the requester as.
    pub(crate) user_id: Option<&'a str>,
    pub(crate) app_id: &'a str,
    pub(crate) headers: &'a Headers,
    /// The interval at which the caller wants signs of life.
    pub(crate) keep_alive: Option<Duration>,
    /// Whether the caller wants to know about the progress.
    pub(crate) wants_progress: bool,
    /// How long the caller is going to wait. After that time the broker drops the request, so that
    /// no server executes it in vain.
    pub(crate) remaining: Duration,
}

/// Encodes a request as frames.
pub(crate) fn encode_request<'a>(
    route: Route<'_>,
    head: &RequestHead<'_>,
    body: &'a [u8],
) -> Frames<'a> {
    with_properties(head, |properties| frames::publish(route, properties, body))
}

/// The request as its handler receives it, without a broker in between.
pub(crate) fn deliver_request(head: &RequestHead<'_>, body: &[u8]) -> Request {
    let properties = with_properties(head, |properties| properties.encode());
    let message = Message { properties, body: body.to_vec() };
    Request::from_delivery(Delivery { tag: 0, redelivered: false, message })
}

fn with_properties<T>(head: &RequestHead<'_>, encode: impl FnOnce(&Properties<'_>) -> T) -> T {
    let mut buffer = Uuid::encode_buffer();
    let correlation_id = head.correlation_id.hyphenated().encode_lower(&mut buffer);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The broker accepts milliseconds up to 2³²−1. A request with a longer wait does not expire
    // ([Time-to-live](https://www.rabbitmq.com/docs/ttl)).
    let milliseconds = u32::try_from(head.remaining.as_millis()).ok();
    let expiration = milliseconds.map(|milliseconds| milliseconds.max(1).to_string());
    const OWN_HEADERS: usize = 96;
    let mut headers = Vec::with_capacity(OWN_HEADERS + head.headers.entries.len());
    if expiration.is_some() {
        let deadline = (now + head.remaining).as_millis();
        append_text(&mut headers, DEADLINE, &deadline.to_string());
    }
    if let Some(interval) = head.keep_alive {
        append_text(&mut headers, KEEP_ALIVE, &interval.as_millis().to_string());
    }
    if head.wants_progress {
        append_text(&mut headers, PROGRESS, "true");
    }
    headers.extend_from_slice(&head.headers.entries);
    let properties = Properties {
        content_type: Some(head.content_type),
        headers: &headers,
        correlation_id: Some(correlation_id.as_bytes()),
        reply_to: Some(head.reply_to),
        expiration: expiration.as_deref(),
        message_id: Some(head.message_id),
        timestamp: Some(now.as_secs()),
        type_: head.method,
        user_id: head.user_id,
        app_id: Some(head.app_id),
        ..Default::default()
    };
    encode(&properties)
}

/// The queue and the correlation id of a reply. There is no id if the requester gave none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyAddress<'a> {
    pub(crate) reply_to: &'a str,
    pub(crate) correlation_id: Option<&'a [u8]>,
}

/// The reply address of a request that was delivered from `queue`. The error is the reason why the
/// request has no usable address.
pub(crate) fn reply_address<'a>(
    properties: &Properties<'a>,
    queue: &str,
) -> Result<ReplyAddress<'a>, &'static str> {
    match properties.reply_to {
        None => Err("it has no readable reply_to"),
        Some("") => Err("its reply_to is empty"),
        Some(reply_to) if reply_to == queue => Err("its reply_to is the request queue itself"),
        Some(reply_to) if is_direct(reply_to) && !direct_reply_to::is_well_formed(reply_to) => {
            Err("its reply_to is no direct reply-to address that the broker made")
        }
        Some(reply_to) => Ok(ReplyAddress { reply_to, correlation_id: properties.correlation_id }),
    }
}
