//! A call's deadline covers every wait in the call.

use std::time::{Duration, Instant};

use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient};

use super::{DEADLINE, counters_when, cut_under, fails_at_deadline};
use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{SECOND, await_value};
use crate::proxy::{Mode, Proxy};

#[test]
fn call_without_reply_ends_at_its_deadline() {
    let broker = Broker::shared();
    let queue = queue_name("no-reply");
    let server = ManualServer::start(&broker.url(), &queue);
    let options = ClientOptions { timeout: DEADLINE, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);

    for error in [
        fails_at_deadline(|| client.call("7")),
        fails_at_deadline(|| client.call_timeout("7", DEADLINE)),
        fails_at_deadline(|| client.send("7")?.wait()),
        // A longer timeout for waiting does not extend the deadline of the call.
        fails_at_deadline(|| client.send("7")?.wait_timeout(10 * SECOND)),
    ] {
        assert!(matches!(error, Error::TimedOut { sent: true, after: DEADLINE, .. }), "{error:?}");
        assert!(error.may_have_executed());
        assert!(error.to_string().starts_with("timed out after 3s: no reply from queue"));
    }
    let counters = client.counters();
    assert_eq!((counters.calls, counters.timed_out, counters.in_flight), (4, 4, 0));
    drop(server);
}

#[test]
fn pending_reply_can_be_waited_for_in_steps() {
    let broker = Broker::shared();
    let queue = queue_name("steps");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    let mut call = client.send("7").unwrap();
    let request = server.next();
    assert_eq!(call.try_wait(), Ok(None));
    let began = Instant::now();
    assert_eq!(call.wait_timeout(SECOND / 10), Ok(None));
    assert!(began.elapsed() >= SECOND / 10);
    server.reply(&request, b"13");
    assert_eq!(call.wait_timeout(10 * SECOND), Ok(Some(b"13".to_vec())));
    assert!(matches!(call.try_wait(), Err(Error::Config(_))), "the call has ended");

    let mut call = client.send("8").unwrap();
    server.reply(&server.next(), b"21");
    let reply = await_value(|| call.try_wait().unwrap(), Option::is_some);
    assert_eq!(reply, Some(b"21".to_vec()));
}

#[test]
fn dropping_pending_reply_abandons_call() {
    let broker = Broker::shared();
    let queue = queue_name("abandoned");
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);

    let call = client.send("7").unwrap();
    assert_eq!(client.counters().in_flight, 1);
    drop(call);
    assert_eq!(client.counters().in_flight, 0);

    server.reply(&server.next(), b"13");
    let counters = counters_when(&client, |counters| counters.late == 1);
    assert_eq!((counters.calls, counters.replies, counters.timed_out), (1, 0, 0));
}

#[test]
fn request_expires_at_deadline_of_its_call() {
    let broker = Broker::shared();
    let queue = queue_name("expires");
    let server = ManualServer::start(&broker.url(), &queue);
    let options = ClientOptions { max_in_flight: 1, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);
    let expiration = |request: &amiquip::Delivery| {
        let expiration = request.properties.expiration().clone();
        expiration.map(|milliseconds| milliseconds.parse::<u64>().unwrap())
    };

    let began = Instant::now();
    let first = client.send_timeout("1", 20 * SECOND).unwrap();
    let request = server.next();
    let left = expiration(&request).unwrap();
    let least = 20_000u64.saturating_sub(began.elapsed().as_millis() as u64 + 1);
    assert!((least..=20_000).contains(&left), "{left} ms");

    // The second call waits for an in-flight slot first, which shortens its expiration.
    std::thread::scope(|scope| {
        let began = Instant::now();
        let second = scope.spawn(|| client.call_timeout("2", 20 * SECOND));
        counters_when(&client, |counters| counters.calls == 2);
        std::thread::sleep(SECOND / 2);
        server.reply(&request, b"");
        let request = server.next();
        let left = expiration(&request).unwrap();
        let least = 20_000u64.saturating_sub(began.elapsed().as_millis() as u64 + 1);
        assert!((least..=19_600).contains(&left), "{left} ms");
        server.reply(&request, b"");
        second.join().unwrap().unwrap();
    });
    first.wait().unwrap();

    let call = client.send_timeout("3", Duration::MAX).unwrap();
    assert_eq!(expiration(&server.next()), None, "a call without a deadline has no expiration");
    drop(call);
}

#[test]
fn call_over_limit_waits_for_in_flight_slot() {
    let broker = Broker::shared();
    let queue = queue_name("slots");
    let server = ManualServer::start(&broker.url(), &queue);
    let options = ClientOptions { max_in_flight: 2, ..Default::default() };
    let client = connect_with(&broker.url(), &queue, options);

    let first = client.send("1").unwrap();
    let second = client.send("2").unwrap();
    let error = fails_at_deadline(|| client.call_timeout("3", DEADLINE));
    let text = error.to_string();
    assert!(text.contains("no room for the request: 2 calls are in flight already"), "{text}");
    assert!(matches!(error, Error::TimedOut { sent: false, .. }), "{error:?}");
    assert!(!error.may_have_executed());
    assert_eq!(client.counters().timed_out, 1);

    // A reply frees a slot, and so does a call that is dropped.
    std::thread::scope(|scope| {
        let third = scope.spawn(|| client.send("3"));
        server.reply(&server.next(), b"1");
        let third = third.join().unwrap().unwrap();
        assert_eq!(first.wait().unwrap(), b"1");
        let fourth = scope.spawn(|| client.send("4"));
        drop(second);
        drop(fourth.join().unwrap().unwrap());
        drop(third);
    });
}

#[test]
fn deadline_of_call_includes_connecting() {
    let broker = Broker::shared();
    let queue = queue_name("connecting");
    let server = ManualServer::start(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    // The attempt to connect lasts longer than the call.
    let client = connect(&format!("{}?connection_timeout=20000", proxy.url()), &queue);

    for (mode, reason) in [(Mode::Stall, "no answer yet"), (Mode::Refuse, "tried for 3s")] {
        proxy.set(Mode::Forward);
        cut_under(&proxy, &client, &server);
        proxy.set(mode);
        let error = fails_at_deadline(|| client.call_timeout("7", DEADLINE));
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(!error.may_have_executed());
        assert!(error.to_string().contains(reason), "{error}");
        proxy.cut();
    }
    proxy.set(Mode::Forward);
    let call = client.send("8").unwrap();
    server.reply(&server.next(), b"21");
    assert_eq!(call.wait().unwrap(), b"21");
}

#[test]
fn connect_times_out_when_broker_does_not_answer() {
    let proxy = Proxy::to(Broker::shared().port(0));
    proxy.set(Mode::Stall);
    let mut brokers = Brokers::parse(&proxy.url()).unwrap();
    brokers.connect_timeout = DEADLINE;
    let error = fails_at_deadline(|| RpcClient::connect(brokers, "any", ClientOptions::default()));
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(!error.may_have_executed());
}

#[test]
fn calls_keep_deadlines_when_network_drops_packets() {
    let broker = Broker::shared();
    let queue = queue_name("stalled");
    let _server = Serving::echo(&broker.url(), &queue);
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&format!("{}?heartbeat=5", proxy.url()), &queue);
    assert_eq!(client.call("7").unwrap(), b"7");

    proxy.set(Mode::Stall);
    let error = fails_at_deadline(|| client.call_timeout("7", DEADLINE));
    assert!(error.may_have_executed(), "{error:?}");
    // After two heartbeats without a byte the connection is lost.
    let error = client.call("7").unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    proxy.set(Mode::Forward);
    assert_eq!(client.call("8").unwrap(), b"8");
}
