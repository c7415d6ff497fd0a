//! Keep-alives during long calls.

use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue};
use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{ClientOptions, Error, ServerOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, await_value, poll};
use crate::programs::rpc_server;
use crate::queue;
use crate::raw::{Properties, Raw, entry, long};

const INTERVAL: Duration = Duration::from_millis(500);
/// For calls that must not end while the server sends keep-alives. On a busy machine, they come
/// late.
const LONG_INTERVAL: Duration = Duration::from_millis(1500);

fn keep_alive(interval: Duration) -> ClientOptions {
    let timeout = 2 * PATIENCE;
    ClientOptions { keep_alive: Some(interval), timeout, ..Default::default() }
}

#[test]
fn call_continues_while_server_sends_keep_alives() {
    let queue = queue_name("alive");
    let server = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        thread::sleep(5 * LONG_INTERVAL);
        Ok(format!("abandoned: {}", request.is_abandoned()))
    });
    let client = connect_with(&url(), &queue, keep_alive(LONG_INTERVAL));
    assert_eq!(client.call("7").unwrap(), b"abandoned: false");
    let counters = client.counters();
    assert_eq!((counters.replies, counters.late), (1, 0), "a keep-alive is not a reply");
    assert_eq!(server.stop().returned, 0);
}

#[test]
fn call_ends_when_keep_alives_stop() {
    let queue = queue_name("silenced");
    let server = ManualServer::start(&url(), &queue);
    let client = connect_with(&url(), &queue, keep_alive(INTERVAL));
    let began = Instant::now();
    let call = client.send("7").unwrap();
    let request = server.next();
    let headers = request.properties.headers().as_ref().expect("a request has headers");
    let interval = INTERVAL.as_millis().to_string();
    assert_eq!(headers.get("rpc-keep-alive"), Some(&AmqpValue::LongString(interval)));
    // A server sends the first keep-alive when it begins with the request. This one sends no other.
    let alive = AmqpProperties::default().with_type_("keep-alive".into());
    server.reply_with(&request, alive, b"");
    let error = call.wait().unwrap_err();
    let took = began.elapsed();
    let Error::ServerSilent { queue: silent, after, unserved } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((silent, unserved), (&queue, &false), "{error}");
    assert!(*after >= 3 * INTERVAL && took < PATIENCE / 2, "{after:?}, {took:?}");
    assert!(error.may_have_executed());
}

/// The first server sends keep-alives and is killed. The broker gives the request to another.
#[test]
fn call_continues_when_another_server_takes_over() {
    let queue = queue_name("taken-over");
    let mut slow = rpc_server(&queue, &["--recursive"]);
    let client = connect_with(&url(), &queue, keep_alive(LONG_INTERVAL));
    // The first server would compute for hours.
    let mut call = client.send("80").unwrap();
    // The broker sends no event when a server takes a request.
    let unacknowledged =
        || Broker::shared().ctl(&["list_queues", "name", "messages_unacknowledged"]);
    await_value(unacknowledged, |rows| rows.contains(&format!("{queue}\t1")));
    let _quick = rpc_server(&queue, &[]);
    let waited = call.wait_timeout(5 * LONG_INTERVAL);
    assert_eq!(waited, Ok(None), "the first server sends keep-alives");
    slow.kill();
    assert_eq!(call.wait().unwrap(), b"23416728348467685");
}

#[test]
fn call_ends_when_nobody_serves() {
    let queue = queue_name("unserved");
    queue::declare_durable(&url(), &queue);
    let client = connect(&url(), &queue);
    let error = client.request("7").keep_alive(INTERVAL).call().unwrap_err();
    assert!(matches!(error, Error::ServerSilent { unserved: true, .. }), "{error:?}");
    assert!(error.to_string().contains("nobody serves"), "{error}");
}

/// Such as the server of tutorial six.
#[test]
fn call_to_server_without_keep_alives_ends_at_its_deadline() {
    let queue = queue_name("tutorial");
    let _server = ManualServer::start(&url(), &queue);
    let client = connect_with(&url(), &queue, keep_alive(INTERVAL));
    let error = client.call_timeout("7", 8 * INTERVAL).unwrap_err();
    assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
}

#[test]
fn requester_that_asks_for_no_keep_alives_gets_none() {
    let queue = queue_name("no-keep-alives");
    let _server = Serving::start(&url(), &queue, ServerOptions::default(), |_| {
        thread::sleep(3 * INTERVAL);
        Ok(b"13".to_vec())
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.request(&queue, b"7");
    assert_eq!(raw.reply().body, b"13", "the reply is the first message");
}

#[test]
fn request_is_abandoned_after_requester_disconnects() {
    let queue = queue_name("abandoned");
    let (begun, has_begun) = unbounded();
    let (seen, was_seen) = bounded(1);
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), move |request| {
        begun.send(request.is_abandoned()).unwrap();
        let abandoned = poll(PATIENCE / 2, || request.is_abandoned(), |is_abandoned| *is_abandoned);
        seen.send(abandoned.is_ok()).unwrap();
        Ok("too late")
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    let asks = entry(b"rpc-keep-alive", b'S', &long(b"200"));
    raw.request_with(&queue, Properties::default().headers(&asks).correlation_id(b"7"), b"7");
    assert!(!has_begun.recv_timeout(PATIENCE).unwrap());
    drop(raw);
    assert!(was_seen.recv_timeout(PATIENCE).unwrap());
}
