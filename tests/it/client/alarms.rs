//! Calls while the broker has a memory alarm and blocks connections that publish.

use std::thread;
use std::time::Instant;

use amiquip::AmqpProperties;
use rabbitmq_rpc::{ClientOptions, Error};

use super::{DEADLINE, counters_when, fails_at_deadline};
use crate::broker::{Broker, queue_name};
use crate::embedded::{connect, connect_with};
use crate::manual_server::ManualServer;
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};

#[test]
fn calls_end_as_blocked_during_alarm() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("alarm"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);
    let call = client.send("7").unwrap();
    let request = server.next();

    broker.raise_memory_alarm(0);
    // The broker blocks a connection after its next message, so this request still passes.
    let mut call_before_notice = client.send_timeout("7", 3 * DEADLINE).unwrap();
    assert_eq!(call_before_notice.wait_timeout(SECOND / 10), Ok(None));
    let second = connect(&url, &queue);
    for client in [&client, &second] {
        // Until the broker's notice arrives, the client sends requests, and the broker does not
        // read them.
        let fails = || {
            let error = fails_at_deadline(|| client.call_timeout("8", DEADLINE));
            let is_known = matches!(error, Error::Blocked { .. });
            assert!(is_known || matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
            error
        };
        let error = await_value(fails, |error| !error.may_have_executed());
        let Error::Blocked { reason, after: DEADLINE, sent: false } = &error else {
            panic!("{error:?}");
        };
        assert!(reason.contains("low on memory"), "{error}");
        let text = error.to_string();
        assert!(text.contains("low on memory") && text.contains("3s"), "{text}");
    }

    let error = call_before_notice.wait().unwrap_err();
    assert!(matches!(error, Error::Blocked { sent: true, .. }), "{error:?}");

    // A blocked client can be closed at once.
    let began = Instant::now();
    drop(second);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());

    // A call with enough time succeeds after the alarm.
    thread::scope(|scope| {
        let before = client.counters().calls;
        let waiting = scope.spawn(|| client.call("9"));
        counters_when(&client, |counters| counters.calls > before);
        broker.clear_memory_alarm(0);
        server.reply(&request, b"13");
        let request = loop {
            let request = server.next();
            if request.body == b"9" {
                break request;
            }
        };
        server.reply(&request, b"34");
        assert_eq!(waiting.join().unwrap().unwrap(), b"34");
    });
    assert_eq!(call.wait().unwrap(), b"13");
    assert_eq!(client.counters().reconnects, 0, "the client keeps its connection");
}

/// The broker answers nothing on a connection that it blocks.
#[test]
fn queue_query_during_alarm_keeps_connection() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("alarm"));
    let server = ManualServer::start(&url, &queue);
    let options = ClientOptions { timeout: 5 * SECOND, ..Default::default() };
    let client = connect_with(&url, &queue, options);
    let call = client.send_timeout("7", PATIENCE).unwrap();
    let request = server.next();

    broker.raise_memory_alarm(0);
    let is_blocked = |outcome: &_| matches!(outcome, Err(Error::Blocked { .. }));
    await_value(|| client.call_timeout("8", SECOND / 4), is_blocked).unwrap_err();
    let asked = client.queue();
    assert!(matches!(asked, Err(Error::TimedOut { .. })), "{asked:?}");
    broker.clear_memory_alarm(0);
    server.reply(&request, b"13");
    assert_eq!(call.wait().unwrap(), b"13");
    assert_eq!(client.counters().reconnects, 0);
}

/// Neither the server's signs of life nor the broker's answers arrive during an alarm.
#[test]
fn alarm_does_not_have_keep_alive_call_executed_twice() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("alarm"));
    let server = ManualServer::start(&url, &queue);
    let mut options = ClientOptions { timeout: PATIENCE, ..Default::default() };
    (options.idempotent, options.keep_alive) = (true, Some(SECOND / 2));
    let client = connect_with(&url, &queue, options);
    thread::scope(|scope| {
        let call = scope.spawn(|| client.call("7"));
        let request = server.next();
        let raising = scope.spawn(|| broker.raise_memory_alarm(0));
        while !raising.is_finished() {
            let alive = AmqpProperties::default().with_type_("keep-alive".into());
            server.reply_with(&request, alive, b"");
            thread::sleep(SECOND / 10);
        }
        // The broker blocks a connection when it publishes next.
        let mut blocked = client.send("8").unwrap();
        // A request is sent again 3 s after its last sign of life.
        assert_eq!(blocked.wait_timeout(5 * SECOND), Ok(None));
        assert!(!call.is_finished());
        broker.clear_memory_alarm(0);
        server.reply(&request, b"13");
        assert_eq!(call.join().unwrap().unwrap(), b"13");
        let request = server.next();
        assert_eq!(request.body, b"8", "the first request came again");
        server.reply(&request, b"21");
        assert_eq!(blocked.wait().unwrap(), b"21");
    });
    assert_eq!(client.counters().reconnects, 0);
}
