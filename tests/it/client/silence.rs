//! A connection that stays open and delivers no reply.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use amiquip::Delivery;
use rabbitmq_rpc::{Error, RpcClient};

use crate::broker::{Broker, queue_name};
use crate::embedded::connect;
use crate::manual_server::ManualServer;
use crate::patience::{AT_ONCE, SECOND, SetOnDrop, await_value};
use crate::proxy::{Mode, Proxy};
use crate::queue;

/// The broker's process for the client's channel is suspended. In a cluster that happens when a
/// quorum queue loses its leader.
#[test]
fn client_leaves_connection_whose_channel_is_stuck() {
    const OTHERS: &str = "persistent_term:put(others, rabbit_channel:list()).";
    let ours = |what: &str| {
        format!(
            "[sys:{what}(Channel) || Channel <- rabbit_channel:list() -- persistent_term:get(others), \
             rabbit_channel:info(Channel, [consumer_count]) == [{{consumer_count, 0}}]]."
        )
    };
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("stuck"));
    let server = ManualServer::start(&url, &queue);
    broker.ctl(&["eval", OTHERS]);
    let client = connect(&url, &queue);
    let early = client.send("early").unwrap();
    let request = server.next();

    broker.ctl(&["eval", &ours("suspend")]);
    // The requests arrive when the client uses another connection.
    let stopped = AtomicBool::new(false);
    let lost = thread::scope(|scope| {
        let _stop = SetOnDrop(&stopped);
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(request) = server.requests.recv_timeout(SECOND / 10) {
                    server.reply(&request, b"13");
                }
            }
        });
        let errors = (0..).map(|_| client.call_timeout("7", 2 * SECOND)).map_while(Result::err);
        let count =
            |error| assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
        errors.map(count).take(8).count()
    });
    assert!((1..=5).contains(&lost), "{lost} calls were lost");
    let counters = client.counters();
    assert_eq!((counters.reconnects, counters.in_flight), (1, 1));

    // The client waits for the calls in flight on that connection, and then closes it.
    server.reply(&request, b"5");
    assert_eq!(early.wait().unwrap(), b"5");
    assert_eq!(client.counters().in_flight, 0);
    broker.ctl(&["eval", "[catch sys:resume(Channel) || Channel <- rabbit_channel:list()]."]);
    let connections = || broker.ctl(&["list_connections", "pid", "--no-table-headers", "-q"]);
    await_value(connections, |connections| connections.lines().count() == 2);
}

/// While a node of a cluster is frozen, other nodes may not declare a reply queue. Here, connecting
/// to the second broker takes longer than the test.
#[test]
fn calls_go_on_while_another_connection_cannot_be_made() {
    let (broker, queue) = (Broker::shared(), queue_name("not-replaced"));
    let other = Proxy::to(broker.port(0));
    other.set(Mode::Stall);
    let urls = format!("{},{}?connection_timeout=60000", broker.url(), other.url());
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&urls, &queue);
    let error = client.call_timeout("7", 4 * SECOND).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    server.next();
    for _ in 0..2 {
        let call = client.send_timeout("8", 20 * SECOND).unwrap();
        server.reply(&server.next(), b"21");
        assert_eq!(call.wait().unwrap(), b"21");
    }
    assert_eq!((client.counters().reconnects, other.tries()), (0, 1));
}

#[test]
fn client_keeps_connection_when_another_would_not_help() {
    let broker = Broker::shared();
    let time_out = |client: &RpcClient, timeout| {
        let error = client.call_timeout("7", timeout).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        error.to_string().contains("consumers")
    };

    // There is no server.
    let unserved = queue_name("unserved");
    queue::declare_durable(&broker.url(), &unserved);
    let keeps_connection = || {
        let client = connect(&broker.url(), &unserved);
        let calls = || (0..5).all(|_| time_out(&client, SECOND));
        let knows_why = thread::scope(|scope| {
            // So many at a time that some of them cannot ask the broker about the queue.
            let callers = [(); 16].map(|()| scope.spawn(calls));
            callers.into_iter().all(|caller| caller.join().unwrap())
        });
        let reconnects = client.counters().reconnects;
        assert!(!knows_why || reconnects == 0, "{reconnects}");
        knows_why
    };
    // A busy broker may miss the 200 ms in which it has to answer, but not each time.
    assert!((0..8).any(|_| keeps_connection()));

    // The server answers every other call.
    let queue = queue_name("partly-served");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    for _ in 0..5 {
        let call = client.send("8").unwrap();
        server.reply(&server.next(), b"21");
        assert_eq!(call.wait().unwrap(), b"21");
        time_out(&client, SECOND / 2);
        server.next();
    }
    assert_eq!(client.counters().reconnects, 0);
}

fn message_id(request: &Delivery) -> &str {
    request.properties.message_id().as_deref().expect("a request has a message id")
}

#[test]
fn idempotent_request_without_keep_alive_is_sent_again() {
    let broker = Broker::shared();
    let queue = queue_name("lost");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let call = |client: &RpcClient| {
        let call = client.request("7").idempotent(true).keep_alive(SECOND).send().unwrap();
        thread::spawn(move || call.wait().unwrap())
    };

    // The reply to the second attempt counts.
    let waiting = call(&client);
    let first = server.next();
    // If the next connection takes longer than half a second, the request goes out on the first one,
    // and once more when the next one is open.
    let second = loop {
        let second = server.next();
        assert_eq!(message_id(&first), message_id(&second));
        assert_ne!(first.properties.correlation_id(), second.properties.correlation_id());
        if second.properties.reply_to() != first.properties.reply_to() {
            break second;
        }
    };
    server.reply(&second, b"13");
    assert_eq!(waiting.join().unwrap(), b"13");
    assert_eq!((client.counters().reconnects, client.counters().in_flight), (1, 0));

    // A reply to the first attempt counts too, while the caller waits on the other connection.
    let waiting = call(&client);
    let first = server.next();
    let second = server.next();
    assert_eq!(message_id(&first), message_id(&second));
    server.reply(&first, b"21");
    let soon = Instant::now() + AT_ONCE;
    assert_eq!(waiting.join().unwrap(), b"21");
    assert!(Instant::now() < soon, "the reply did not wake the caller");
}

/// The server answers other calls, so the client keeps the connection.
#[test]
fn idempotent_request_is_sent_again_on_working_connection() {
    let broker = Broker::shared();
    let queue = queue_name("lost-alone");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let call = client.request("lost").idempotent(true).keep_alive(SECOND).send().unwrap();
    let first = server.next();
    let waiting = thread::spawn(move || call.wait().unwrap());
    let second = loop {
        let other = client.send("other").unwrap();
        let request = server.next();
        if request.body == b"lost" {
            break request;
        }
        server.reply(&request, b"8");
        assert_eq!(other.wait().unwrap(), b"8");
    };
    assert_eq!(first.properties.reply_to(), second.properties.reply_to());
    server.reply(&second, b"13");
    assert_eq!(waiting.join().unwrap(), b"13");
    assert_eq!(client.counters().reconnects, 0);
}

#[test]
fn idempotent_calls_move_to_new_connection() {
    let broker = Broker::shared();
    let queue = queue_name("followed");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let idempotent = client.request("again").idempotent(true).send().unwrap();
    let once = client.request("once").send().unwrap();
    let (first, other) = (server.next(), server.next());
    let waiting = thread::spawn(move || idempotent.wait().unwrap());
    let error = client.call_timeout("late", 4 * SECOND).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    server.next();

    let next = client.send("next").unwrap();
    let mut requests = [server.next(), server.next()];
    requests.sort_by_key(|request| request.body.clone());
    let [again, elsewhere] = requests;
    assert_eq!((&again.body[..], &elsewhere.body[..]), (&b"again"[..], &b"next"[..]));
    assert_eq!(message_id(&first), message_id(&again));
    server.reply(&again, b"13");
    server.reply(&elsewhere, b"8");
    server.reply(&other, b"21");
    assert_eq!(waiting.join().unwrap(), b"13");
    assert_eq!((next.wait().unwrap(), once.wait().unwrap()), (b"8".to_vec(), b"21".to_vec()));
}

/// A connection that the client has left stays open while calls are in flight on it.
#[test]
fn client_leaves_second_connection_only_after_first_is_closed() {
    let broker = Broker::shared();
    let queue = queue_name("one-retired");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let send = |body: &str| {
        let call = client.send(body).unwrap();
        (call, server.next())
    };
    let make_suspect = || {
        let error = client.call_timeout("late", 4 * SECOND).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
        server.next();
    };

    let (first, first_request) = send("first");
    make_suspect();
    let send_elsewhere = |body: &str, old: &Delivery| loop {
        let (call, request) = send(body);
        // The next connection may take longer than half a second.
        if request.properties.reply_to() != old.properties.reply_to() {
            break (call, request);
        }
    };
    let (second, second_request) = send_elsewhere("second", &first_request);
    make_suspect();
    let (third, third_request) = send("third");
    assert_eq!(second_request.properties.reply_to(), third_request.properties.reply_to());
    assert_eq!(client.counters().reconnects, 1);

    server.reply(&first_request, b"1");
    assert_eq!(first.wait().unwrap(), b"1");
    let (fourth, fourth_request) = send_elsewhere("fourth", &third_request);
    assert_eq!(client.counters().reconnects, 2);
    for (call, request) in
        [(second, second_request), (third, third_request), (fourth, fourth_request)]
    {
        server.reply(&request, b"2");
        assert_eq!(call.wait().unwrap(), b"2");
    }
}
