//! The wire contract: requests and replies to AMQP frames and back. Pure.
//!
//! It is RabbitMQ's tutorial six with additions that a program which does not know them can
//! leave unread. Whatever is absent, foreign or undecodable is normal weather here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::{Error, Failure, Result, Status};
use crate::frames::{self, Message, Properties};

/// The `type` of a reply that carries a [`Failure`].
const ERROR: &str = "error";
/// The header of such a reply that holds the status's name.
const STATUS: &str = "rpc-status";
/// AMQP's `delivery_mode` of a message that a broker need not keep through a restart: neither
/// a request nor its reply outlives its caller.
const TRANSIENT: u8 = 1;

/// Refuses a queue's name that AMQP has no room for, and the empty one, for which a broker makes up
/// a new name each time.
pub(crate) fn check_queue(queue: &str) -> Result<()> {
    if queue.is_empty() {
        return Err(Error::Config(
            "the queue's name is empty: give the request queue a name".into(),
        ));
    }
    check_length("queue's name", queue)
}

/// Refuses a text that AMQP has no room for: a queue's name, a property.
pub(crate) fn check_length(what: &str, text: &str) -> Result<()> {
    const LONGEST: usize = 255;
    match text.len() {
        0..=LONGEST => Ok(()),
        length => {
            let text = format!("the {what} has {length} bytes; AMQP allows {LONGEST}");
            Err(Error::Config(text))
        }
    }
}

/// Where the frames of a message go, through the default exchange.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) channel: u16,
    pub(crate) queue: &'a str,
    /// Whether the broker returns it if there is no such queue.
    pub(crate) mandatory: bool,
    pub(crate) frame_max: usize,
}

/// What a client says of one request.
pub(crate) struct RequestHead<'a> {
    pub(crate) reply_to: &'a str,
    pub(crate) correlation_id: Uuid,
    /// Stays the same when a request is sent again under a new correlation id.
    pub(crate) message_id: Uuid,
    pub(crate) content_type: &'a str,
    pub(crate) app_id: &'a str,
    /// How long the caller is going to wait: the broker drops the request after that, so that
    /// nobody works on what nobody waits for.
    pub(crate) remaining: Duration,
}

/// The frames of a request.
pub(crate) fn encode_request(route: Route<'_>, head: &RequestHead<'_>, body: &[u8]) -> Vec<u8> {
    let (mut correlation_id, mut message_id) = (Uuid::encode_buffer(), Uuid::encode_buffer());
    let expiration = expiration(head.remaining);
    let properties = Properties {
        content_type: Some(head.content_type),
        delivery_mode: Some(TRANSIENT),
        correlation_id: Some(head.correlation_id.hyphenated().encode_lower(&mut correlation_id)),
        reply_to: Some(head.reply_to),
        expiration: expiration.as_deref(),
        message_id: Some(head.message_id.hyphenated().encode_lower(&mut message_id)),
        timestamp: Some(seconds_since_1970()),
        app_id: Some(head.app_id),
        ..Default::default()
    };
    encode(route, &properties, body)
}

fn encode(route: Route<'_>, properties: &Properties<'_>, body: &[u8]) -> Vec<u8> {
    const ENOUGH_FOR_HEADERS: usize = 512;
    let mut out = Vec::with_capacity(body.len() + ENOUGH_FOR_HEADERS);
    let Route { channel, queue, mandatory, frame_max } = route;
    frames::publish(&mut out, channel, (queue, mandatory), properties, body, frame_max);
    out
}

/// The broker takes milliseconds up to 2³²−1; a longer wait goes without
/// ([Time-to-live](https://www.rabbitmq.com/docs/ttl)).
fn expiration(remaining: Duration) -> Option<String> {
    let milliseconds = u32::try_from(remaining.as_millis()).ok()?;
    Some(milliseconds.max(1).to_string())
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where the reply to a request goes, and under which id; a requester that gave no id gets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyAddress<'a> {
    pub(crate) reply_to: &'a str,
    pub(crate) correlation_id: Option<&'a str>,
}

/// Reads the reply address of a request that was taken from `queue`; in words why there is none
/// to be had.
pub(crate) fn reply_address<'a>(
    properties: &Properties<'a>,
    queue: &str,
) -> Result<ReplyAddress<'a>, &'static str> {
    match properties.reply_to {
        None => Err("it has no reply_to that could be read"),
        Some("") => Err("its reply_to is empty"),
        Some(reply_to) if reply_to == queue => Err("its reply_to is the request queue itself"),
        Some(reply_to) => Ok(ReplyAddress { reply_to, correlation_id: properties.correlation_id }),
    }
}

/// The frames of a reply.
pub(crate) fn encode_reply(
    route: Route<'_>,
    correlation_id: Option<&str>,
    app_id: &str,
    outcome: &Result<Vec<u8>, Failure>,
) -> Vec<u8> {
    let result = Properties {
        delivery_mode: Some(TRANSIENT),
        correlation_id,
        app_id: Some(app_id),
        ..Default::default()
    };
    match outcome {
        Ok(body) => encode(route, &result, body),
        Err(Failure { status, message }) => {
            let mut headers = Vec::new();
            frames::append_header(&mut headers, STATUS, status.name());
            let failure = Properties {
                type_: Some(ERROR),
                content_type: Some("text/plain"),
                headers: &headers,
                ..result
            };
            encode(route, &failure, message.as_bytes())
        }
    }
}

/// The call that a message belongs to; `None` for an id that is none of ours.
pub(crate) fn correlation_id(message: &Message) -> Option<Uuid> {
    Uuid::try_parse(message.properties().correlation_id?).ok()
}

/// What a reply says.
pub(crate) fn decode_reply(reply: Message) -> Result<Vec<u8>> {
    let properties = reply.properties();
    if properties.type_ != Some(ERROR) {
        return Ok(reply.body);
    }
    let status = frames::find_header(properties.headers, STATUS);
    let status = status.map_or(Status::Unknown, Status::from_name);
    let message = String::from_utf8_lossy(&reply.body).into_owned();
    Err(Error::Remote(Failure { status, message }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::{Decoder, Incoming};

    const ROUTE: Route<'_> =
        Route { channel: 3, queue: "rpc_queue", mandatory: true, frame_max: 4096 };

    /// The message of these frames, as the broker delivers it.
    fn deliver(frames: &[u8]) -> Message {
        const DELIVER: &[u8] = b"\x01\0\x03\0\0\0\x11\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\0\0\xce";
        let publish = 8 + u32::from_be_bytes(frames[3..7].try_into().unwrap()) as usize;
        let bytes = [DELIVER, &frames[publish..]].concat();
        let mut decoder = Decoder::default();
        decoder.room()[..bytes.len()].copy_from_slice(&bytes);
        decoder.arrived(bytes.len());
        match decoder.next() {
            Ok(Some(Incoming::Delivery { channel: 3, delivery })) => delivery.message,
            other => panic!("{other:?}"),
        }
    }

    fn reply(properties: &Properties<'_>, body: &[u8]) -> Message {
        deliver(&encode(ROUTE, properties, body))
    }

    #[test]
    fn request_names_where_the_reply_goes() {
        let head = RequestHead {
            reply_to: "amq.gen-7",
            correlation_id: Uuid::from_u128(7),
            message_id: Uuid::from_u128(8),
            content_type: "text/plain",
            app_id: "test",
            remaining: Duration::from_micros(1500),
        };
        let large = vec![b'7'; 10_000];
        let request = deliver(&encode_request(ROUTE, &head, &large));
        assert_eq!(request.body, large);
        let properties = request.properties();
        let address = reply_address(&properties, "rpc_queue").unwrap();
        assert_eq!(address.reply_to, "amq.gen-7");
        assert_eq!(address.correlation_id, Some(&*Uuid::from_u128(7).to_string()));
        assert_eq!(properties.message_id, Some(&*Uuid::from_u128(8).to_string()));
        assert_eq!(properties.content_type, Some("text/plain"));
        assert_eq!(properties.app_id, Some("test"));
        assert_eq!(properties.expiration, Some("1"));
        assert_eq!(properties.delivery_mode, Some(1));
        assert!(properties.timestamp.unwrap() > 1_600_000_000);

        let patient = RequestHead { remaining: Duration::MAX, ..head };
        let request = deliver(&encode_request(ROUTE, &patient, b""));
        assert_eq!((request.properties().expiration, &*request.body), (None, &b""[..]));
    }

    #[test]
    fn request_without_a_usable_reply_to_is_told_apart() {
        let why = |reply_to| {
            reply_address(&Properties { reply_to, ..Default::default() }, "q").unwrap_err()
        };
        assert!(why(None).contains("no reply_to"));
        assert!(why(Some("")).contains("empty"));
        assert!(why(Some("q")).contains("itself"));
    }

    #[test]
    fn result_goes_bare_and_failure_with_its_status() {
        let id = Uuid::from_u128(7);
        let good =
            deliver(&encode_reply(ROUTE, Some(&id.to_string()), "test", &Ok(b"13".to_vec())));
        assert_eq!((good.properties().type_, good.properties().headers), (None, &b""[..]));
        assert_eq!(correlation_id(&good), Some(id));
        assert_eq!(decode_reply(good), Ok(b"13".to_vec()));

        let failure = Failure::new(Status::OutOfRange, "too large");
        let bad = deliver(&encode_reply(ROUTE, None, "test", &Err(failure.clone())));
        assert_eq!(bad.properties().correlation_id, None);
        assert_eq!(decode_reply(bad), Err(Error::Remote(failure)));
    }

    #[test]
    fn foreign_error_reply_has_an_unknown_status() {
        let error = Properties { type_: Some(ERROR), ..Default::default() };
        let expected = Failure::new(Status::Unknown, "\u{fffd}!");
        assert_eq!(decode_reply(reply(&error, b"\xff!")), Err(Error::Remote(expected)));
        let foreign = Properties { correlation_id: Some("7"), ..Default::default() };
        assert_eq!(correlation_id(&reply(&foreign, b"")), None);
    }
}
