//! The wire contract: requests and replies to AMQP frames and back. Pure.
//!
//! It is RabbitMQ's tutorial six with additions that a program which does not know them can
//! leave unread. Whatever is absent, foreign or undecodable is normal weather here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue};
use uuid::Uuid;

use crate::error::{Error, Failure, Result, Status};
use crate::frames::{self, Properties};

/// The `type` of a reply that carries a [`Failure`].
const ERROR: &str = "error";
/// The header of such a reply that holds the status's name.
const STATUS: &str = "rpc-status";
/// AMQP's `delivery_mode` of a message that a broker need not keep through a restart: neither
/// a request nor its reply outlives its caller.
const TRANSIENT: u8 = 1;

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

/// Where the frames of a message go.
#[derive(Clone, Copy)]
pub(crate) struct Way<'a> {
    pub(crate) channel: u16,
    pub(crate) queue: &'a str,
    /// Whether it comes back where there is no such queue.
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
pub(crate) fn encode_request(way: Way<'_>, head: &RequestHead<'_>, body: &[u8]) -> Vec<u8> {
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
    encode(way, &properties, body)
}

fn encode(way: Way<'_>, properties: &Properties<'_>, body: &[u8]) -> Vec<u8> {
    const ENOUGH_FOR_HEADERS: usize = 512;
    let mut out = Vec::with_capacity(body.len() + ENOUGH_FOR_HEADERS);
    let Way { channel, queue, mandatory, frame_max } = way;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyAddress {
    pub(crate) reply_to: String,
    pub(crate) correlation_id: Option<String>,
}

/// Reads the reply address of a request that was taken from `queue`; in words why there is none
/// to be had.
pub(crate) fn reply_address(
    properties: &AmqpProperties,
    queue: &str,
) -> Result<ReplyAddress, &'static str> {
    match properties.reply_to() {
        None => Err("it has no reply_to that could be read"),
        Some(reply_to) if reply_to.is_empty() => Err("its reply_to is empty"),
        Some(reply_to) if reply_to == queue => Err("its reply_to is the request queue itself"),
        Some(reply_to) => Ok(ReplyAddress {
            reply_to: reply_to.clone(),
            correlation_id: properties.correlation_id().clone(),
        }),
    }
}

/// The frames of a reply.
pub(crate) fn encode_reply(
    way: Way<'_>,
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
        Ok(body) => encode(way, &result, body),
        Err(Failure { status, message }) => {
            let failure = Properties {
                type_: Some(ERROR),
                content_type: Some("text/plain"),
                header: Some((STATUS, status.name())),
                ..result
            };
            encode(way, &failure, message.as_bytes())
        }
    }
}

/// The call that a reply belongs to; `None` for an id that is none of ours.
pub(crate) fn correlation_id(properties: &AmqpProperties) -> Option<Uuid> {
    Uuid::try_parse(properties.correlation_id().as_ref()?).ok()
}

/// What a reply says.
pub(crate) fn decode_reply(properties: &AmqpProperties, body: Vec<u8>) -> Result<Vec<u8>> {
    if properties.type_().as_deref() != Some(ERROR) {
        return Ok(body);
    }
    let status = match properties.headers().as_ref().and_then(|headers| headers.get(STATUS)) {
        Some(AmqpValue::LongString(name)) => Status::from_name(name),
        _ => Status::Unknown,
    };
    let message = String::from_utf8_lossy(&body).into_owned();
    Err(Error::Remote(Failure { status, message }))
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::{AMQPFrame, parsing::parse_frame};

    use super::*;

    const WAY: Way<'_> = Way { channel: 3, queue: "rpc_queue", mandatory: true, frame_max: 4096 };

    /// What amiquip makes of the frames of one message.
    fn decode(mut frames: &[u8]) -> (AmqpProperties, Vec<u8>) {
        let (mut properties, mut body) = (None, Vec::new());
        while !frames.is_empty() {
            let length = 8 + u32::from_be_bytes(frames[3..7].try_into().unwrap()) as usize;
            assert!(length <= WAY.frame_max);
            match parse_frame(&frames[..length]).expect("amiquip decodes it").1 {
                AMQPFrame::Header(3, 60, header) => properties = Some(header.properties),
                AMQPFrame::Body(3, part) => body.extend(part),
                AMQPFrame::Method(3, method) => {
                    let method = format!("{method:?}");
                    assert!(method.contains("routing_key: \"rpc_queue\""), "{method}");
                    assert!(method.contains("mandatory: true"), "{method}");
                }
                other => panic!("{other:?}"),
            }
            frames = &frames[length..];
        }
        (properties.unwrap(), body)
    }

    #[test]
    fn a_request_says_where_the_reply_goes() {
        let head = RequestHead {
            reply_to: "amq.gen-7",
            correlation_id: Uuid::from_u128(7),
            message_id: Uuid::from_u128(8),
            content_type: "text/plain",
            app_id: "test",
            remaining: Duration::from_micros(1500),
        };
        let large = vec![b'7'; 10_000];
        let (properties, body) = decode(&encode_request(WAY, &head, &large));
        assert_eq!(body, large);
        let address = reply_address(&properties, "rpc_queue").unwrap();
        assert_eq!(address.reply_to, "amq.gen-7");
        assert_eq!(address.correlation_id, Some(Uuid::from_u128(7).to_string()));
        assert_eq!(properties.message_id(), &Some(Uuid::from_u128(8).to_string()));
        assert_eq!(properties.content_type().as_deref(), Some("text/plain"));
        assert_eq!(properties.app_id().as_deref(), Some("test"));
        assert_eq!(properties.expiration().as_deref(), Some("1"));
        assert_eq!(properties.delivery_mode(), &Some(1));
        assert!(properties.timestamp().unwrap() > 1_600_000_000);

        let patient = RequestHead { remaining: Duration::MAX, ..head };
        let (properties, body) = decode(&encode_request(WAY, &patient, b""));
        assert_eq!((properties.expiration(), body), (&None, vec![]));
    }

    #[test]
    fn a_request_without_a_usable_reply_to_is_told_apart() {
        let none = AmqpProperties::default();
        assert!(reply_address(&none, "q").unwrap_err().contains("no reply_to"));
        let empty = none.clone().with_reply_to(String::new());
        assert!(reply_address(&empty, "q").unwrap_err().contains("empty"));
        let loops = none.with_reply_to("q".into());
        assert!(reply_address(&loops, "q").unwrap_err().contains("itself"));
    }

    #[test]
    fn a_result_goes_bare_and_a_failure_with_its_status() {
        let id = Uuid::from_u128(7);
        let shown = id.to_string();
        let reply = encode_reply(WAY, Some(&shown), "test", &Ok(b"13".to_vec()));
        let (properties, body) = decode(&reply);
        assert_eq!((properties.type_(), properties.headers()), (&None, &None));
        assert_eq!(correlation_id(&properties), Some(id));
        assert_eq!(decode_reply(&properties, body), Ok(b"13".to_vec()));

        let failure = Failure::new(Status::OutOfRange, "too large");
        let (properties, body) = decode(&encode_reply(WAY, None, "test", &Err(failure.clone())));
        assert_eq!(properties.correlation_id(), &None);
        assert_eq!(decode_reply(&properties, body), Err(Error::Remote(failure)));
    }

    #[test]
    fn a_foreign_error_reply_is_of_unknown_status() {
        let properties = AmqpProperties::default().with_type_("error".into());
        let error = decode_reply(&properties, b"\xff!".to_vec()).unwrap_err();
        let expected = Failure::new(Status::Unknown, "\u{fffd}!");
        assert_eq!(error, Error::Remote(expected));
        assert_eq!(correlation_id(&properties.with_correlation_id("7".into())), None);
    }
}
