//! Calls while the broker has a memory alarm and blocks connections that publish.

use std::thread;
use std::time::Instant;

use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient};

use super::{counters_when, fails_at_deadline};
use crate::broker::{Broker, queue_name};
use crate::embedded::connect;
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
    // The broker blocks a connection when it next publishes: that one request still passes.
    let mut passed = client.send("7").unwrap();
    assert_eq!(passed.wait_timeout(SECOND / 10), Ok(None));
    let newcomer = connect(&url, &queue);
    for client in [&client, &newcomer] {
        // Until the notice has come a request goes out, and waits on the way.
        let error = await_value(
            || {
                let error = fails_at_deadline(|| client.call_timeout("8", SECOND));
                let Error::Blocked { reason, after: SECOND, sent } = &error else {
                    panic!("{error:?}");
                };
                assert!(reason.contains("low on memory"), "{error}");
                assert_eq!(error.may_have_executed(), *sent);
                error
            },
            |error| !error.may_have_executed(),
        );
        let text = error.to_string();
        assert!(text.contains("low on memory") && text.contains("1s"), "{text}");
    }

    // Who is closed while blocked does not have to wait for the end of it.
    let began = Instant::now();
    drop(newcomer);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());

    // A call that has time enough gets through once the alarm is over.
    thread::scope(|scope| {
        let before = client.counters().calls;
        let patient = scope.spawn(|| client.call("9"));
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
        assert_eq!(patient.join().unwrap().unwrap(), b"34");
    });
    assert_eq!(call.wait().unwrap(), b"13");
    assert_eq!(client.counters().reconnects, 0, "it is the same connection still");
}

/// The broker answers nothing on a connection that it blocks.
#[test]
fn queue_query_during_alarm_keeps_connection() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("alarm"));
    let server = ManualServer::start(&url, &queue);
    let mut brokers = Brokers::parse(&url).unwrap();
    brokers.connect_timeout = SECOND / 2;
    let options = ClientOptions { timeout: 2 * SECOND, ..Default::default() };
    let client = RpcClient::connect(brokers, &queue, options).unwrap();
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
