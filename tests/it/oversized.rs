//! Requests and replies that are larger than the broker takes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rabbitmq_rpc::{Error, Failure, ServerOptions, Status};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::manual_server::ManualServer;
use crate::patience::{SetOnDrop, await_value};
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
        let message = "the broker refused the reply of 1001 bytes: PRECONDITION_FAILED - message \
                       size 1001 is larger than configured max size 1000";
        let failure = Failure::new(Status::Internal, message);
        assert_eq!(client.call("large"), Err(Error::Remote(failure)));
    }
    assert_eq!(client.call("small").unwrap().len(), 1000);
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!((counters.failed, counters.redelivered), (2, 1), "the next one is sent alone");
}

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
        assert!(reply.contains("message size 1001 is larger than configured max size 1000"));
    }
    let counters = serving.stop();
    broker.limit_messages(16 << 20);
    assert_eq!(counters.failed, 2);
}

/// A large request, and then others, are written before the broker has refused the first.
#[test]
fn refused_request_costs_its_own_call_alone() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("request-refused"));
    let server = ManualServer::start(&url, &queue);
    broker.limit_messages(1000);
    let client = connect(&url, &queue);
    let before = client.send("before").unwrap();
    let refused = client.send(vec![b'7'; 2000]).unwrap();
    let behind: Vec<_> = (0..50).map(|n| client.send(format!("{n}")).unwrap()).collect();
    let error = refused.wait().unwrap_err();
    assert!(matches!(error, Error::Config(_)) && !error.may_have_executed(), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("2000 bytes") && text.contains("larger than 1000"), "{text}");

    // Who waits sends a request again that the broker ignored.
    let waiting: Vec<_> = behind.into_iter().map(|call| thread::spawn(|| call.wait())).collect();
    let requests: Vec<_> = (0..51).map(|_| server.next()).collect();
    requests.iter().for_each(|request| server.reply(request, &request.body));
    assert_eq!(before.wait().unwrap(), b"before");
    for (n, call) in waiting.into_iter().enumerate() {
        assert_eq!(call.join().unwrap().unwrap(), n.to_string().as_bytes());
    }
    assert_eq!(client.call(vec![b'7'; 2000]).unwrap_err(), error);
    let counters = client.counters();
    assert_eq!((counters.reconnects, counters.in_flight), (0, 0));
    assert!(server.requests.is_empty(), "no request was executed twice");
    broker.limit_messages(16 << 20);
}

/// While the broker declares no reply queue, replies come through the channel that it closes when
/// it refuses a request.
#[test]
fn refused_request_costs_its_own_call_alone_once_there_is_a_reply_queue() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("late-reply-queue"));
    let server = ManualServer::start(&url, &queue);
    let declarer = "{ok, Queues} = rabbit_amqqueue_sup_sup:find_for_vhost(<<\"/\">>)";
    let declarer = |what: &str| broker.ctl(&["eval", &format!("{declarer}, sys:{what}(Queues).")]);
    // A channel keeps the limit with which it is opened.
    broker.limit_messages(1000);
    declarer("suspend");
    let client = connect(&url, &queue);
    let reply_to = || server.answer_call(&client);
    assert!(reply_to().starts_with("amq.rabbitmq.reply-to"));
    declarer("resume");
    await_value(reply_to, |reply_to| reply_to.starts_with("amq.gen-"));
    let other = client.send("8").unwrap();
    let error = client.call(vec![b'7'; 2000]).unwrap_err();
    broker.limit_messages(16 << 20);
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    server.reply(&server.next(), b"21");
    assert_eq!(other.wait().unwrap(), b"21");
    assert_eq!(client.counters().reconnects, 0);
}

/// If a client wrote on the channel after the broker's close, the connection would end.
#[test]
fn calls_go_on_while_requests_of_others_are_refused() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("request-refused-shared"));
    let _server = Serving::echo(&url, &queue);
    broker.limit_messages(1000);
    let client = connect(&url, &queue);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(client.call("8").unwrap(), b"8");
                }
            });
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                client.queue().unwrap();
            }
        });
        let _over = SetOnDrop(&over);
        for _ in 0..10 {
            let error = client.call(vec![b'7'; 2000]).unwrap_err();
            assert!(matches!(error, Error::Config(_)), "{error:?}");
        }
    });
    assert_eq!(client.counters().reconnects, 0);
    broker.limit_messages(16 << 20);
}
