//! Replies that are larger than the broker takes.

use rabbitmq_rpc::{Error, Failure, ServerOptions, Status};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};

/// The broker closes the channel over such a reply, and gives the request out again.
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
        let failure = Failure::new(Status::ResourceExhausted, message);
        assert_eq!(client.call("large"), Err(Error::Remote(failure)));
    }
    assert_eq!(client.call("small").unwrap().len(), 1000);
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!((counters.failed, counters.redelivered), (2, 1), "the limit is learned once");
}

/// It is published on a connection of its own, of which the request's knows nothing.
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
        assert_eq!(raw.publish("", queue.as_bytes(), &direct, b"large"), Verdict::Taken);
        let reply = String::from_utf8(raw.reply().body).unwrap();
        assert_eq!(reply, "the reply of 1001 bytes is larger than the broker takes: 1000");
    }
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!((counters.failed, counters.redelivered), (2, 0), "the request is executed once");
}
