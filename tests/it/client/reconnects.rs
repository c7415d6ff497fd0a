//! Calls that are lost with their connection, and the next connection.

use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{ClientOptions, Error};

use super::{counters_when, cut_under};
use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_idempotent, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};
use crate::proxy::{Mode, Proxy};
use crate::queue;

#[test]
fn call_lost_with_its_connection_may_have_executed() {
    let broker = Broker::shared();
    let queue = queue_name("lost");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&proxy.url(), &queue);

    let call = client.send("7").unwrap();
    server.next();
    cut_under(&proxy, &client, &server);
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    assert!(error.may_have_executed());
    assert!(error.to_string().contains("may have been executed"), "{error}");

    let call = client.send("8").unwrap();
    server.reply(&server.next(), b"21");
    assert_eq!(call.wait().unwrap(), b"21");
    assert_eq!(client.counters().reconnects, 1);
    assert!(server.requests.is_empty(), "a call that is not idempotent is sent once");
}

#[test]
fn idempotent_call_is_sent_again_with_new_correlation_id() {
    let broker = Broker::shared();
    let queue = queue_name("again");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect_idempotent(&proxy.url(), &queue);

    thread::scope(|scope| {
        let call = scope.spawn(|| client.call("7"));
        let first = server.next();
        proxy.cut();
        let second = server.next();
        server.reply(&second, b"13");
        assert_eq!(call.join().unwrap().unwrap(), b"13");

        let (first, second) = (first.properties, second.properties);
        assert!(first.message_id().is_some());
        assert_eq!(first.message_id(), second.message_id());
        assert_ne!(first.correlation_id(), second.correlation_id());
        assert_ne!(first.reply_to(), second.reply_to(), "the old reply queue no longer exists");
    });
    let counters = client.counters();
    assert_eq!((counters.calls, counters.replies, counters.reconnects), (1, 1, 1));
}

#[test]
fn lost_idempotent_call_is_sent_again_by_polling() {
    let broker = Broker::shared();
    let queue = queue_name("again-by-try");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect_idempotent(&proxy.url(), &queue);

    let mut call = client.send("7").unwrap();
    server.next();
    proxy.cut();
    // There is no other call, and this caller never waits.
    let reply = await_value(
        || {
            server.requests.try_iter().for_each(|request| server.reply(&request, b"13"));
            call.try_wait().unwrap()
        },
        Option::is_some,
    );
    assert_eq!(reply.as_deref(), Some(&b"13"[..]));

    let mut call = client.send("8").unwrap();
    server.next();
    proxy.set(Mode::Refuse);
    proxy.cut();
    assert_eq!(call.wait_timeout(SECOND), Ok(None), "the call waits to be sent again");
    drop(client);
    let began = Instant::now();
    let error = await_value(|| call.try_wait(), Result::is_err);
    assert!(began.elapsed() < PATIENCE / 4, "the call did not end at once: {:?}", began.elapsed());
    assert_eq!(error, Err(Error::Closed));
}

#[test]
fn call_sent_before_may_have_executed_whatever_its_error() {
    let broker = Broker::shared();
    let proxy = Proxy::to(broker.port(0));

    // The queue no longer exists when the call is sent again.
    let is_unroutable = || {
        let queue = queue_name("again-unroutable");
        let server = ManualServer::start(&broker.url(), &queue);
        let client = connect_idempotent(&proxy.url(), &queue);
        let call = client.send_timeout("7", 3 * SECOND).unwrap();
        server.next();
        queue::delete(&broker.url(), &queue);
        proxy.cut();
        let error = call.wait().unwrap_err();
        assert!(error.may_have_executed(), "{error:?}");
        error.to_string().contains("there is no queue or exchange")
    };
    // A busy broker may return the last attempt late, but not each time.
    assert!((0..8).any(|_| is_unroutable()));

    // No broker can be reached any more.
    let queue = queue_name("again-unreachable");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect_idempotent(&proxy.url(), &queue);
    let call = client.send_timeout("7", 3 * SECOND).unwrap();
    server.next();
    proxy.set(Mode::Refuse);
    proxy.cut();
    let error = call.wait().unwrap_err();
    assert!(error.may_have_executed(), "{error:?}");
    assert!(error.to_string().contains("no working connection"), "{error}");
}

#[test]
fn lost_idempotent_call_waits_until_its_queue_is_declared_again() {
    let broker = Broker::shared();
    let proxy = Proxy::to(broker.port(0));
    let queue = queue_name("again-declared");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect_idempotent(&proxy.url(), &queue);
    let mut call = client.send("7").unwrap();
    server.next();
    queue::delete(&broker.url(), &queue);
    proxy.cut();
    assert_eq!(call.wait_timeout(SECOND), Ok(None));

    let waiting = thread::spawn(move || call.wait());
    let server = ManualServer::start(&broker.url(), &queue);
    server.reply(&server.next(), b"13");
    assert_eq!(waiting.join().unwrap().unwrap(), b"13");
}

#[test]
fn one_caller_reconnects_and_each_waits_until_its_own_deadline() {
    let broker = Broker::shared();
    let queue = queue_name("one-reconnects");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&proxy.url(), &queue);
    assert_eq!(proxy.tries(), 1);

    proxy.set(Mode::Refuse);
    cut_under(&proxy, &client, &server);
    drop(server);
    thread::scope(|scope| {
        for number in 0..16u32 {
            let client = &client;
            scope.spawn(move || {
                let timeout = 3 * SECOND + SECOND * (number % 4) / 4;
                let began = Instant::now();
                let error = client.call_timeout("7", timeout).unwrap_err();
                let took = began.elapsed();
                assert!(timeout <= took && took < timeout + AT_ONCE, "{took:?}: {error}");
                assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
            });
        }
    });
    // Within 3.75 s, with a backoff of 25 to 50 ms, 50 to 100 ms, 100 to 200 ms and so on: some
    // eight, and a few more if callers are late. If each caller connected: sixteen times as many.
    let tries = proxy.tries() - 1;
    assert!((2..=15).contains(&tries), "{tries} tries");

    proxy.set(Mode::Forward);
    let _server = Serving::echo(&broker.url(), &queue);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(client.call("7").unwrap(), b"7"));
        }
    });
    assert!(proxy.tries() <= tries + 3, "all calls share one connection");
    assert_eq!(client.counters().reconnects, 1);
}

#[test]
fn client_reconnects_although_each_call_is_too_short() {
    let broker = Broker::shared();
    let queue = queue_name("short-calls");
    let _server = Serving::echo(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&proxy.url(), &queue);
    proxy.cut();

    // Each of these calls ends before a connection is set up.
    let reconnects = || {
        let _ = client.call_timeout("7", Duration::from_millis(1));
        client.counters().reconnects
    };
    await_value(reconnects, |reconnects| *reconnects > 0);
    assert_eq!(client.call("7").unwrap(), b"7");
}

#[test]
fn client_without_connection_closes_at_once() {
    let broker = Broker::shared();
    let queue = queue_name("close-while-down");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&format!("{}?connection_timeout=20000", proxy.url()), &queue);
    cut_under(&proxy, &client, &server);
    proxy.set(Mode::Stall);
    let error = client.call_timeout("7", SECOND / 10).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    let began = Instant::now();
    drop(client);
    // Connecting may take twenty seconds. Closing does not wait for it.
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
}

#[test]
fn calls_waiting_for_in_flight_slot_continue_after_reconnect() {
    let broker = Broker::shared();
    let queue = queue_name("slots");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let options = ClientOptions { max_in_flight: 2, ..Default::default() };
    let client = connect_with(&proxy.url(), &queue, options);

    let full = client.send("first").unwrap();
    server.next();
    let began = Instant::now();
    thread::scope(|scope| {
        let _second = client.send("second").unwrap();
        server.next();
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| client.call("7"))).collect();
        // Each call is counted just before it waits for an in-flight slot.
        counters_when(&client, |counters| counters.calls == 6);
        let _others = Serving::echo(&broker.url(), &queue);
        drop(server);
        proxy.cut();
        for call in waiting {
            assert_eq!(call.join().unwrap().unwrap(), b"7");
        }
    });
    assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    assert!(matches!(full.wait(), Err(Error::ConnectionLost { .. })));
}
