//! Tests that a peer decodes what is encoded, and that anything foreign is normal.

use super::*;
use crate::error::{Error, Failure, Status};
use crate::frames::{Decoder, Delivery, Event, Incoming};

const ROUTE: Route<'_> =
    Route { channel: 3, exchange: "", routing_key: "rpc_queue", mandatory: true, frame_max: 4096 };

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
        wants_progress: true,
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
    assert!(properties.timestamp.unwrap() > 1_600_000_000);

    let patient = RequestHead { remaining: Duration::MAX, ..head };
    let request = deliver(encode_request(ROUTE, &patient, b""));
    assert_eq!((request.properties().expiration, &*request.body), (None, &b""[..]));
}

#[test]
fn request_without_a_usable_reply_to_is_refused_with_the_reason() {
    let why =
        |reply_to| reply_address(&Properties { reply_to, ..Default::default() }, "q").unwrap_err();
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
    assert_eq!(identify(&good), (Some(id), false));
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
    assert_eq!(identify(&reply(&foreign, b"")).0, None);
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
    for (name, named) in
        [("", "empty"), ("rpc-status", "own"), (&*"n".repeat(256), "256 bytes"), ("BCC", "copies")]
    {
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
