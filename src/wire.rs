//! The wire contract: encodes requests and replies as AMQP frames, and decodes them. Does no I/O.
//!
//! The contract is that of RabbitMQ's tutorial six, with additions that a program may ignore.
//! Properties may be absent, foreign or undecodable. This is never an error.

mod direct_reply_to;
mod headers;
mod names;
mod reply;
mod request;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

pub(crate) use self::direct_reply_to::is_direct;
pub(crate) use self::headers::Headers;
pub(crate) use self::names::{BAGGAGE, SHORTEST_KEEP_ALIVE, TRACEPARENT, TRACESTATE, check_length};
use self::names::{DEADLINE, KEEP_ALIVE, TRANSIENT};
pub use self::reply::Reply;
pub(crate) use self::reply::{decode_reply, encode_reply, encode_sign_of_life, is_sign_of_life};
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
    let mut headers = Vec::new();
    if expiration.is_some() {
        let deadline = (now + head.remaining).as_millis();
        append_text(&mut headers, DEADLINE, &deadline.to_string());
    }
    if let Some(interval) = head.keep_alive {
        append_text(&mut headers, KEEP_ALIVE, &interval.as_millis().to_string());
    }
    headers.extend_from_slice(&head.headers.entries);
    let properties = Properties {
        content_type: Some(head.content_type),
        headers: &headers,
        delivery_mode: Some(TRANSIENT),
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

/// The correlation id of a reply; `None` if it is not one that this crate makes.
pub(crate) fn correlation_id(message: &Message) -> Option<Uuid> {
    Uuid::try_parse_ascii(message.properties().correlation_id?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Failure, Status};
    use crate::frames::{Decoder, Delivery, Event, Incoming};

    const ROUTE: Route<'_> = Route {
        channel: 3,
        exchange: "",
        routing_key: "rpc_queue",
        mandatory: true,
        frame_max: 4096,
    };

    /// The message in these frames, as the broker delivers it.
    fn deliver(frames: Frames<'_>) -> Message {
        let frames = frames.rest(0);
        const DELIVER: &[u8] = b"\x01\0\x03\0\0\0\x11\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\0\0\xce";
        let publish = 8 + u32::from_be_bytes(frames[3..7].try_into().unwrap()) as usize;
        let bytes = [DELIVER, &frames[publish..]].concat();
        let mut decoder = Decoder::default();
        decoder.unfilled()[..bytes.len()].copy_from_slice(&bytes);
        decoder.filled(bytes.len());
        match decoder.next() {
            Ok(Some(Incoming::Event { channel: 3, event: Event::Delivery(delivery) })) => {
                delivery.message
            }
            other => panic!("{other:?}"),
        }
    }

    fn reply(properties: &Properties<'_>, body: &[u8]) -> Message {
        deliver(frames::publish(ROUTE, properties, body))
    }

    #[test]
    fn request_carries_all_its_properties() {
        let mut headers = Headers::default();
        headers.append("tenant", "7");
        let head = RequestHead {
            reply_to: "amq.gen-7",
            correlation_id: Uuid::from_u128(7),
            message_id: "order-17",
            content_type: "text/plain",
            method: Some("price.get"),
            user_id: Some("ann"),
            app_id: "test",
            headers: &headers,
            keep_alive: Some(Duration::from_secs(1)),
            remaining: Duration::from_micros(1500),
        };
        let large = vec![b'7'; 10_000];
        let request = deliver(encode_request(ROUTE, &head, &large));
        assert_eq!(request.body, large);
        let properties = request.properties();
        let address = reply_address(&properties, "rpc_queue").unwrap();
        assert_eq!(address.reply_to, "amq.gen-7");
        assert_eq!(address.correlation_id, Some(Uuid::from_u128(7).to_string().as_bytes()));
        assert_eq!(properties.message_id, Some("order-17"));
        let header = |name| frames::find_header(properties.headers, name);
        assert_eq!((header("tenant"), header(KEEP_ALIVE)), (Some("7"), Some("1000")));
        assert!(header(DEADLINE).unwrap().parse::<u64>().unwrap() > 1_600_000_000_000);
        assert_eq!(properties.content_type, Some("text/plain"));
        assert_eq!((properties.app_id, properties.type_), (Some("test"), Some("price.get")));
        assert_eq!(properties.expiration, Some("1"));
        assert_eq!(properties.delivery_mode, Some(1));
        assert!(properties.timestamp.unwrap() > 1_600_000_000);

        let patient = RequestHead { remaining: Duration::MAX, ..head };
        let request = deliver(encode_request(ROUTE, &patient, b""));
        assert_eq!((request.properties().expiration, &*request.body), (None, &b""[..]));
    }

    #[test]
    fn request_without_a_usable_reply_to_is_refused_with_the_reason() {
        let why = |reply_to| {
            reply_address(&Properties { reply_to, ..Default::default() }, "q").unwrap_err()
        };
        assert!(why(None).contains("no readable reply_to"));
        assert!(why(Some("")).contains("empty"));
        assert!(why(Some("q")).contains("itself"));
    }

    #[test]
    fn failure_carries_its_status_and_result_does_not() {
        let id = Uuid::from_u128(7);
        let good = deliver(encode_reply(
            ROUTE,
            Some(id.to_string().as_bytes()),
            "test",
            &Ok(Reply::from("13")),
        ));
        assert_eq!((good.properties().type_, good.properties().headers), (None, &b""[..]));
        assert_eq!(correlation_id(&good), Some(id));
        assert_eq!(decode_reply(good), Ok(Reply::from("13")));

        let failure = Failure::new(Status::OutOfRange, "too large");
        let bad = deliver(encode_reply(ROUTE, None, "test", &Err(failure.clone())));
        assert_eq!(bad.properties().correlation_id, None);
        assert_eq!(decode_reply(bad), Err(Error::Remote(failure)));

        let unknown = Failure::unimplemented("no such method");
        let reply = deliver(encode_reply(ROUTE, None, "test", &Err(unknown.clone())));
        assert_eq!(decode_reply(reply), Err(Error::Remote(unknown)));
    }

    #[test]
    fn foreign_error_reply_has_an_unknown_status() {
        let error = Properties { type_: Some("error"), ..Default::default() };
        let expected = Failure::new(Status::Unknown, "\u{fffd}!");
        assert_eq!(decode_reply(reply(&error, b"\xff!")), Err(Error::Remote(expected)));
        let foreign = Properties { correlation_id: Some(b"\xff7"), ..Default::default() };
        assert_eq!(correlation_id(&reply(&foreign, b"")), None);
    }

    #[test]
    fn remaining_is_the_lower_of_deadline_and_expiration() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let remaining = |expiration, deadline: Option<Duration>| {
            let mut headers = Vec::new();
            if let Some(deadline) = deadline {
                append_text(&mut headers, DEADLINE, &deadline.as_millis().to_string());
            }
            let expiration = Some(expiration).filter(|text: &&str| !text.is_empty());
            let headers = &*headers;
            let message = reply(&Properties { expiration, headers, ..Default::default() }, b"7");
            let delivery = Delivery { tag: 1, redelivered: false, message };
            let request = Request::from_delivery(delivery);
            request.remaining().map(|remaining| remaining.as_secs_f64().round())
        };
        let second = Duration::from_secs(1);
        assert_eq!(remaining("8000", None), Some(8.0));
        assert_eq!(remaining("8000", Some(now + 3 * second)), Some(3.0), "5 s on the way");
        assert_eq!(remaining("8000", Some(now + 99 * second)), Some(8.0), "a clock in advance");
        assert_eq!(remaining("8000", Some(now - 99 * second)), Some(8.0), "a clock behind");
        assert_eq!(remaining("soon", Some(now + second)), Some(1.0));
        assert_eq!(remaining("0", None), Some(0.0));
        assert_eq!(remaining("", None), None);
        assert_eq!(remaining("", Some(now - 99 * second)), Some(0.0), "moved back by an operator");
        assert!(Request::new("7").remaining().is_none() && !Request::new("7").is_abandoned());
    }

    #[test]
    fn trace_id_is_read_from_a_valid_traceparent_only() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        for (traceparent, found) in [
            (format!("00-{id}-00f067aa0ba902b7-01"), true),
            (format!("cc-{id}-00f067aa0ba902b7-01-more"), true),
            (format!("00-{id}-00f067aa0ba902b7-01-more"), false),
            (format!("ff-{id}-00f067aa0ba902b7-01"), false),
            (format!("00-{id}-0000000000000000-01"), false),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), false),
            (format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()), false),
            (format!("00-{id}-00f067aa0ba902b7"), false),
            ("x".repeat(1_000_000), false),
            (String::new(), false),
        ] {
            assert_eq!(headers::trace_id(&traceparent).is_some_and(|found| found == id), found);
        }
    }

    #[test]
    fn headers_that_cannot_be_sent_are_named() {
        for (name, named) in [
            ("", "empty"),
            ("rpc-status", "own"),
            (&*"n".repeat(256), "256 bytes"),
            ("BCC", "copies"),
        ] {
            let mut headers = Headers::default();
            headers.append(name, "7");
            headers.append("fine", "7");
            let error = headers.check().unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        let mut headers = Headers::default();
        headers.append("large", &"7".repeat(8192));
        assert!(headers.check_size(4096).unwrap_err().to_string().contains("8203 bytes"));
        assert_eq!(headers.check_size(16384), Ok(()));
    }
}
