//! What a handler sees of a request, and what it can reply.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use rabbitmq_rpc::{Error, Failure, Reply, Request, ServerOptions, Status};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, TRACE, connect};
use crate::patience::PATIENCE;
use crate::programs::rpc_server_that_logs;
use crate::raw::{Properties, Raw, Verdict, entry, long};

/// All that a handler can see of a request, in one line.
fn describe(request: &Request) -> Result<String, Failure> {
    Ok(format!(
        "{:?} tenant {:?} message {:?} type {:?} app {:?} user {:?} again {} abandoned {} left {}",
        String::from_utf8_lossy(request.body()),
        request.header("tenant"),
        request.message_id(),
        request.content_type(),
        request.app_id(),
        request.user_id(),
        request.redelivered(),
        request.is_abandoned(),
        request.remaining().map_or("for ever".into(), |left| format!("{} s", left.as_secs())),
    ))
}

#[test]
fn handler_sees_properties_of_request() {
    let queue = queue_name("described");
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), describe);
    let client = connect(&url(), &queue);
    let answer = client
        .request("7")
        .header("tenant", "blue")
        .message_id("order-17")
        .content_type("text/plain")
        .timeout(Duration::from_millis(19_900))
        .call()
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let app = answer.split(" app ").nth(1).unwrap().split(" user ").next().unwrap();
    assert!(app.starts_with("Some(\"it-"), "not the program's name: {answer}");
    let (answer, left) = answer.split_once(" left ").unwrap();
    let left: u64 = left.strip_suffix(" s").and_then(|left| left.parse().ok()).expect(left);
    assert!((10..=19).contains(&left), "{left}");
    let expected = format!(
        "\"7\" tenant Some(\"blue\") message Some(\"order-17\") type Some(\"text/plain\") app {app} \
         user None again false abandoned false"
    );
    assert_eq!(answer, expected);
}

#[test]
fn request_without_optional_properties_is_served() {
    let queue = queue_name("silent");
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), describe);
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    let properties = Properties::default().reply_to(reply_to.as_bytes()).user_id(b"guest");
    assert_eq!(raw.publish("", queue.as_bytes(), &properties, b"7"), Verdict::Confirmed);
    assert_eq!(
        String::from_utf8(raw.reply().body).unwrap(),
        "\"7\" tenant None message None type None app None user Some(\"guest\") again false \
         abandoned false left for ever"
    );
}

#[test]
fn invalid_header_values_are_treated_as_absent() {
    let queue = queue_name("odd-headers");
    let server = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        let left = request.remaining().map(|left| left.as_secs());
        Ok(format!("{left:?} {:?}", request.header("traceparent").map(str::len)))
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    let large = vec![b'7'; 100_000];
    let values: [(u8, Vec<u8>); 9] = [
        (b'I', vec![255, 255, 255, 7]),
        (b't', vec![1]),
        (b'V', vec![]),
        (b'F', long(&entry(b"a", b'S', &long(b"b")))),
        (b'S', long(b"-1")),
        (b'S', long(b"99999999999999999999999999")),
        (b'S', long(b"\xff\xfe")),
        (b'S', long(b"")),
        (b'S', long(&large)),
    ];
    for (kind, value) in values {
        for name in [&b"rpc-deadline"[..], b"rpc-keep-alive", b"traceparent", b"baggage"] {
            let properties = Properties::default()
                .headers(&entry(name, kind, &value))
                .correlation_id(b"7")
                .reply_to(reply_to.as_bytes())
                .expiration(b"60000");
            assert_eq!(raw.publish("", queue.as_bytes(), &properties, b"7"), Verdict::Confirmed);
            let body = String::from_utf8(raw.reply().body).unwrap();
            assert!(body.starts_with("Some(5") || body.starts_with("Some(60)"), "{body}");
        }
    }
    assert_eq!(server.stop().served, 9 * 4);
}

#[test]
fn reply_carries_content_type_and_headers() {
    let queue = queue_name("replies");
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        let reply = Reply::from(r#"{"left": 7}"#).with_content_type("application/json");
        match request.body() {
            b"good" => Ok(reply.with_header("warehouse", "north")),
            b"long name" => Ok(reply.with_header(&"n".repeat(256), "7")),
            b"own name" => Ok(reply.with_header("rpc-status", "OK")),
            b"copies" => Ok(reply.with_header("CC", "7")),
            b"sign of life" => Ok(reply.with_type("keep-alive")),
            b"large" => Ok(reply.with_header("large", &"7".repeat(200_000))),
            _ => Err(Failure::new(Status::NotFound, "no such part")),
        }
    });
    let client = connect(&url(), &queue);
    let reply = client.request("good").reply().unwrap();
    assert_eq!(reply.body(), br#"{"left": 7}"#);
    assert_eq!(reply.content_type(), Some("application/json"));
    assert_eq!((reply.header("warehouse"), reply.header("other")), (Some("north"), None));
    assert_eq!(client.call("good").unwrap(), br#"{"left": 7}"#);

    for (request, named) in [
        ("long name", "the header's name has 256 bytes"),
        ("own name", "\"rpc-status\" cannot be set"),
        ("copies", "\"CC\" cannot be set"),
        ("sign of life", "are those of signs of life"),
        ("large", "the headers have 200"),
    ] {
        match client.call(request) {
            Err(Error::Remote(failure)) => {
                assert_eq!(failure.status, Status::Internal);
                assert!(failure.message.contains(named), "{failure}");
            }
            other => panic!("{other:?}"),
        }
    }
    let not_found = Failure::new(Status::NotFound, "no such part");
    assert_eq!(client.call("?"), Err(Error::Remote(not_found)));
}

/// The example of the guide: a handler recognizes the second execution of a request by its id.
#[test]
fn handler_detects_repeated_request_by_message_id() {
    let queue = queue_name("twice");
    let booked = Mutex::new(HashSet::new());
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), move |request| {
        let id = request
            .message_id()
            .ok_or_else(|| Failure::new(Status::InvalidArgument, "an order needs a message_id"))?;
        let is_new = booked.lock().unwrap().insert(id.to_string());
        Ok(if is_new { "booked" } else { "already booked" })
    });
    let client = connect(&url(), &queue);
    let book = || client.request("7 bolts").message_id("order-17").call().unwrap();
    assert_eq!((book(), book()), (b"booked".to_vec(), b"already booked".to_vec()));
    assert_eq!(client.call("7 bolts").unwrap(), b"booked");
}

#[test]
fn request_log_names_trace() {
    let queue = queue_name("traced");
    let mut server = rpc_server_that_logs(&queue, &[]);
    let client = connect(&url(), &queue);
    assert_eq!(client.request("7").header("traceparent", TRACE).call().unwrap(), b"13");
    let trace = TRACE.split('-').nth(1).unwrap();
    let line = server.wait_for_line(&format!("(trace {trace})"), PATIENCE);
    assert!(line.contains("OK, 1 bytes in, 2 out"), "{line}");
}
