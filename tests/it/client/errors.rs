//! Each error that a call can end with, caused by a real broker. Errors that need a fault of a node
//! are in [`super::faults`] and [`super::alarms`].

use std::thread;
use std::time::Instant;

use amiquip::{AmqpProperties, AmqpValue, FieldTable, Publish};
use rabbitmq_rpc::{Brokers, ClientOptions, Error, Failure, RpcClient, ServerOptions, Status};

use super::{DEADLINE, counters_when, fails_at_deadline};
use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::manual_server::ManualServer;
use crate::patience::{AT_ONCE, SECOND, await_value};
use crate::queue;

#[test]
fn call_to_missing_queue_fails_at_once() {
    let broker = Broker::shared();
    let queue = queue_name("no-such-queue");
    let client = connect(&broker.url(), &queue);
    let began = Instant::now();
    let error = client.call("7").unwrap_err();
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert_eq!(error, Error::Unroutable { queue: queue.clone() });
    assert!(!error.may_have_executed());
    let text = error.to_string();
    assert!(text.contains(&queue) && text.contains("start a server"), "{text}");

    // The client can still be used: a call succeeds when there is a server.
    let _server = Serving::echo(&broker.url(), &queue);
    assert_eq!(client.call("7").unwrap(), b"7");
}

/// The broker returns such a request so soon that the client must read before it sends.
#[test]
fn first_call_to_missing_queue_fails_at_once() {
    let url = Broker::shared().url();
    thread::scope(|scope| {
        // Many threads at the same time: the race needs a busy machine.
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..12 {
                    let error = connect(&url, "no such queue").call_timeout("7", 20 * SECOND);
                    assert!(matches!(error, Err(Error::Unroutable { .. })), "{error:?}");
                }
            });
        }
    });
}

#[test]
fn timeout_error_reports_consumers_and_waiting_messages() {
    let broker = Broker::shared();
    let queue = queue_name("unserved");
    queue::declare_durable(&broker.url(), &queue);
    let mut connection = queue::connect(&broker.url());
    let channel = connection.open_channel(None).unwrap();
    for _ in 0..16 {
        channel.basic_publish("", Publish::new(b"waiting", queue.as_str())).unwrap();
    }
    channel.close().unwrap();

    let client = connect(&broker.url(), &queue);
    // A busy broker may miss the 200 ms in which it has to answer, but not each time.
    let error = await_value(
        || fails_at_deadline(|| client.call_timeout("7", DEADLINE)),
        |error| error.to_string().contains("consumers"),
    );
    let text = error.to_string();
    let expected = format!("timed out after 3s: no reply from queue {queue:?} (consumers: 0, ");
    assert!(text.starts_with(&expected) && text.ends_with("); start a server"), "{text}");
    let waiting = text.split_once("waiting requests: ").unwrap().1.split_once(')').unwrap().0;
    assert!(waiting.parse::<u32>().unwrap() > 16, "{text}");
    assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
    assert!(error.may_have_executed());
    connection.close().unwrap();
}

#[test]
fn error_reply_carries_status_and_message() {
    let broker = Broker::shared();
    let queue = queue_name("error-reply");
    let _server = Serving::start(&broker.url(), &queue, ServerOptions::default(), |_| {
        Err(Failure::new(Status::NotFound, "there is no account 7"))
    });
    let client = connect(&broker.url(), &queue);
    let error = client.call("7").unwrap_err();
    let failure = Failure::new(Status::NotFound, "there is no account 7");
    assert_eq!(error, Error::Remote(failure));
    assert_eq!(error.to_string(), "NOT_FOUND: there is no account 7");
    assert!(error.may_have_executed());
    assert_eq!(client.counters().replies, 1, "an error reply is a reply");
}

#[test]
fn error_reply_without_known_status_is_an_error() {
    let broker = Broker::shared();
    let queue = queue_name("foreign-error");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let mut odd = FieldTable::new();
    odd.insert("rpc-status".into(), AmqpValue::LongString("TEAPOT".into()));
    for headers in [FieldTable::new(), odd] {
        let call = client.send("7").unwrap();
        let properties = AmqpProperties::default().with_type_("error".into());
        server.reply_with(&server.next(), properties.with_headers(headers), b"no \xff tea");
        let failure = Failure::new(Status::Unknown, "no \u{fffd} tea");
        assert_eq!(call.wait(), Err(Error::Remote(failure)));
    }
}

#[test]
fn bad_reply_error_quotes_start_of_reply() {
    let broker = Broker::shared();
    let queue = queue_name("no-number");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect_fibonacci(&broker.url(), &queue);
    let long = [b"\xffx".as_slice(), &[b'9'; 100]].concat();
    for (reply, shown) in [
        (&b"thirteen\0"[..], "the reply is \"thirteen\\x00\", not a number"),
        (b"", "the reply is empty, not a number"),
        (b"-13", "the reply is \"-13\", not a number"),
        (&long, "the reply is \"\\xffx999999999999999999999999999999…\" (102 bytes), not a number"),
    ] {
        let call = client.send(7).unwrap();
        server.reply(&server.next(), reply);
        let error = call.wait().unwrap_err();
        assert_eq!(error, Error::BadReply(shown.into()));
        assert!(error.may_have_executed());
    }
}

#[test]
fn client_with_wrong_password_is_refused() {
    let url = Broker::shared().url().replace("guest:guest", "guest:s3cret");
    let mut brokers = Brokers::parse(&url).unwrap();
    // RabbitMQ refuses it after three seconds.
    brokers.connect_timeout = 20 * SECOND;
    let error = RpcClient::connect(brokers, "any", ClientOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    assert!(!error.may_have_executed());
    let text = format!("{error} {error:?}");
    assert!(text.contains("user \\\"guest\\\"") || text.contains("user \"guest\""), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn refused_connection_is_unreachable() {
    let brokers = Brokers::parse("amqp://guest:s3cret@127.0.0.1:1").unwrap();
    let error = RpcClient::connect(brokers, "any", ClientOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(!error.may_have_executed());
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:1") && text.contains("refused"), "{text}");
    assert!(!format!("{error:?}{text}").contains("s3cret"));
}

#[test]
fn malformed_url_is_rejected_without_connecting() {
    let error = Brokers::parse("amqp://localhost:port").unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    assert!(!error.may_have_executed());
}

#[test]
fn closing_client_ends_its_calls() {
    let broker = Broker::shared();
    let queue = queue_name("closed");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let call = client.send("7").unwrap();
    let waiting = client.send("8").unwrap();
    server.next();
    let waiting = thread::spawn(move || waiting.wait());
    let began = Instant::now();
    client.close();
    for outcome in [call.wait(), waiting.join().unwrap()] {
        assert_eq!(outcome, Err(Error::Closed));
    }
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    assert!(Error::Closed.may_have_executed());
}

#[test]
fn late_and_stray_replies_are_dropped_and_counted() {
    let broker = Broker::shared();
    let queue = queue_name("late");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    let call = client.send("7").unwrap();
    let request = server.next();
    for body in [&b"13"[..], b"14", b"15"] {
        server.reply(&request, body);
    }
    assert_eq!(call.wait().unwrap(), b"13", "the first reply counts");
    counters_when(&client, |counters| counters.late == 2);

    // Replies to no request of this client are dropped too, whatever their correlation id.
    let call = client.send("8").unwrap();
    let request = server.next();
    for id in [None, Some("7"), Some("00000000-0000-4000-8000-000000000000"), Some("é☃")] {
        let properties = AmqpProperties::default();
        let properties = match id {
            Some(id) => properties.with_correlation_id(id.into()),
            None => properties,
        };
        server.send_to_requester(&request, properties, b"stray");
    }
    server.reply(&request, b"21");
    assert_eq!(call.wait().unwrap(), b"21");
    let counters = client.counters();
    assert_eq!((counters.calls, counters.replies, counters.late), (2, 2, 6), "{counters:?}");
    assert_eq!((counters.timed_out, counters.reconnects, counters.in_flight), (0, 0, 0));
}
