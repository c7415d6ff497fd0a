//! Requests and replies that are larger than the broker takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use rabbitmq_rpc::{Error, Failure, ServerOptions, Status};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_idempotent};
use crate::patience::{AT_ONCE, SetOnDrop};
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};

/// The broker closes the channel for such a reply, and delivers the request again.
#[test]
fn oversized_reply_is_replaced_by_error_reply() {
    let broker = Broker::fragile();
    broker.limit_messages(1000);
    let queue = queue_name("oversized");
    let url = broker.url();
    let serving = Serving::start(&url, &queue, ServerOptions::default(), |request| match request {
        b"large" => Ok(vec![b'x'; 1001]),
        _ => Ok(vec![b'x'; 1000]),
    });
    let client = connect(&url, &queue);
    assert_eq!(client.call("small").unwrap().len(), 1000);
    for _ in 0..2 {
        let message = "the reply of 1001 bytes is larger than the broker takes: 1000";
        let failure = Failure::new(Status::Internal, message);
        assert_eq!(client.call("large"), Err(Error::Remote(failure)));
    }
    assert_eq!(client.call("small").unwrap().len(), 1000);
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!((counters.failed, counters.redelivered), (2, 1), "the server learns the limit once");
}

/// The server publishes it on a second connection, so the request's channel stays open.
#[test]
fn oversized_direct_reply_is_replaced_by_error_reply() {
    let broker = Broker::fragile();
    broker.limit_messages(1000);
    let queue = queue_name("oversized-direct");
    let options = ServerOptions::default();
    let serving = Serving::start(&broker.url(), &queue, options, |_| Ok(vec![b'x'; 1001]));
    let mut raw = Raw::connect(broker.port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let direct = Properties::default().correlation_id(b"id").reply_to(DIRECT_REPLY_TO.as_bytes());
    for _ in 0..2 {
        assert_eq!(raw.publish("", queue.as_bytes(), &direct, b"large"), Verdict::Confirmed);
        let reply = String::from_utf8(raw.reply().body).unwrap();
        assert_eq!(reply, "the reply of 1001 bytes is larger than the broker takes: 1000");
    }
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!((counters.failed, counters.redelivered), (2, 0), "the request is executed once");
}

#[test]
fn client_reconnects_after_broker_closes_channel() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("channel"));
    let _server = Serving::echo(&url, &queue);
    // The broker closes the channel on which a request is too large.
    broker.limit_messages(1000);
    let client = connect(&url, &queue);
    let again = connect_idempotent(&url, &queue);
    for client in [&client, &again] {
        let began = Instant::now();
        let error = client.call(vec![b'7'; 2000]).unwrap_err();
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        let text = error.to_string();
        assert!(text.contains("406") && text.contains("message size 2000"), "{text}");
        assert!(error.may_have_executed());
        assert_eq!(client.call("8").unwrap(), b"8", "the next call succeeds");
    }
    broker.limit_messages(16 << 20);
}

/// If the client published another request after the broker's close, the connection would end
/// without a reason, and the client would send the oversized request again.
#[test]
fn oversized_request_is_not_sent_again_while_others_publish() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("channel-shared"));
    let _server = Serving::echo(&url, &queue);
    broker.limit_messages(1000);
    let client = connect_idempotent(&url, &queue);
    let over = AtomicBool::new(false);
    let during = |call: &dyn Fn() -> Result<(), Error>| {
        while !over.load(Ordering::Relaxed) {
            if let Err(error) = call() {
                let text = error.to_string();
                assert!(text.contains("406"), "{text}");
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| during(&|| client.call("8").map(drop)));
        }
        scope.spawn(|| during(&|| client.queue().map(drop)));
        let _over = SetOnDrop(&over);
        for _ in 0..10 {
            let error = client.call(vec![b'7'; 2000]).unwrap_err();
            assert!(error.to_string().contains("message size 2000"), "{error}");
        }
    });
    assert_eq!(client.call("8").unwrap(), b"8");
    assert_eq!(client.counters().reconnects, 10);
    broker.limit_messages(16 << 20);
}
