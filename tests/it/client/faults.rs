//! What a node can do to a client: die, freeze, raise an alarm, throw it out.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, FibonacciRpcClient, Request, RpcClient, ServerOptions, fibonacci,
};

use super::counters_when;
use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_idempotent};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, SECOND, SetOnDrop, await_value};

/// A deadline of a second that something takes twice is missed by more than this.
const LATE: Duration = Duration::from_secs(2);
/// A busy machine takes no longer for what is done at once; heartbeats take four times as long to
/// notice that a broker is gone.
const AT_ONCE: Duration = Duration::from_secs(5);

#[test]
fn calls_resume_after_node_restart() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("dies"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);

    // A Fibonacci server whose first answer comes too late for its connection.
    let fibonacci_queue = queue_name("restart");
    let executed = std::sync::Arc::new(AtomicUsize::new(0));
    let (begun, has_begun) = unbounded();
    let (go_on, may_go_on) = bounded::<()>(0);
    let count = std::sync::Arc::clone(&executed);
    let _fibonacci_server =
        Serving::start(&url, &fibonacci_queue, ServerOptions::default(), move |request| {
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                begun.send(()).unwrap();
                let _ = may_go_on.recv_timeout(PATIENCE);
            }
            fibonacci::answer(&Request::new(request)).map(String::into_bytes)
        });
    let brokers = Brokers::parse(&url).unwrap();
    let options = ClientOptions { timeout: 4 * PATIENCE, ..FibonacciRpcClient::options() };
    let fibonacci = FibonacciRpcClient::with_options(brokers, &fibonacci_queue, options).unwrap();
    let answered = thread::spawn(move || (fibonacci.call(93), fibonacci.client().counters()));
    has_begun.recv_timeout(PATIENCE).unwrap();

    // Some calls wait in threads of theirs, some are only out.
    let sent: Vec<_> = (0..8).map(|_| client.send("7").unwrap()).collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| (client.call("7").unwrap_err(), Instant::now())))
            .collect();
        (0..16).for_each(|_| drop(server.next()));
        broker.kill(0);
        let killed = Instant::now();
        for error in sent.into_iter().map(|call| call.wait().unwrap_err()) {
            assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
            assert!(error.may_have_executed());
        }
        assert!(killed.elapsed() < AT_ONCE, "{:?}", killed.elapsed());
        for waited in waiting {
            let (error, at) = waited.join().unwrap();
            assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
            assert!(at < killed + AT_ONCE, "{:?} after", at - killed);
        }
    });
    assert_eq!(client.counters().in_flight, 0);

    let began = Instant::now();
    let error = client.call_timeout("7", SECOND).unwrap_err();
    assert!(SECOND <= began.elapsed() && began.elapsed() < LATE, "{:?}", began.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(!error.may_have_executed());
    go_on.send(()).unwrap();

    broker.start_node(0);
    let server = ManualServer::start(&url, &queue);
    let call = client.send("8").unwrap();
    server.reply(&server.next(), b"21");
    assert_eq!(call.wait().unwrap(), b"21");

    let (answer, counters) = answered.join().unwrap();
    assert_eq!(answer.unwrap(), fibonacci::fib(93), "the restart showed as a wait alone");
    assert_eq!((counters.calls, counters.replies, counters.reconnects), (1, 1, 1));
    assert_eq!(executed.load(Ordering::Relaxed), 2, "it was sent again");
}

#[test]
fn calls_time_out_while_node_is_frozen() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("freezes"));
    let _server = Serving::echo(&url, &queue);
    let closed = connect(&url, &queue);
    let dropped = connect(&url, &queue);
    let busy = connect(&url, &queue);
    assert_eq!(closed.call("7").unwrap(), b"7");

    broker.freeze(0);
    let in_flight = busy.send("7").unwrap();
    for client in [&closed, &dropped] {
        let began = Instant::now();
        let error = client.call_timeout("7", SECOND).unwrap_err();
        let took = began.elapsed();
        assert!(SECOND <= took && took < LATE, "{took:?}");
        assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
        assert!(error.may_have_executed());
    }
    let at_once = |how: fn(RpcClient), client| {
        let began = Instant::now();
        how(client);
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    };
    at_once(RpcClient::close, closed);
    at_once(drop, dropped);
    at_once(drop, busy);
    assert_eq!(in_flight.wait(), Err(Error::Closed));

    let mut brokers = Brokers::parse(&url).unwrap();
    brokers.connect_timeout = SECOND;
    let began = Instant::now();
    let error = RpcClient::connect(brokers, &queue, ClientOptions::default()).unwrap_err();
    assert!(began.elapsed() < LATE, "{:?}", began.elapsed());
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("did not finish the login in time"), "{error}");

    broker.thaw(0);
    let client = connect(&url, &queue);
    assert_eq!(client.call("8").unwrap(), b"8");
}

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
                let began = Instant::now();
                let error = client.call_timeout("8", SECOND).unwrap_err();
                let took = began.elapsed();
                assert!(SECOND <= took && took < LATE, "{took:?}: {error}");
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

#[test]
fn client_reconnects_after_operator_closes_connections() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("operator"));
    let _server = Serving::echo(&url, &queue);
    let client = connect(&url, &queue);
    assert_eq!(client.call("7").unwrap(), b"7");

    broker.ctl(&["close_all_connections", "back in a minute"]);
    assert_eq!(client.call("8").unwrap(), b"8", "the next call works");
    assert_eq!(client.counters().reconnects, 1);

    let hand_queue = queue_name("operator");
    let server = ManualServer::start(&url, &hand_queue);
    let client = connect(&url, &hand_queue);
    let call = client.send("7").unwrap();
    server.next();
    broker.ctl(&["close_all_connections", "back in a minute"]);
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    assert!(error.to_string().contains("back in a minute"), "{error}");
}

#[test]
fn client_reconnects_after_reply_queue_is_deleted() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("reply-queue"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);
    for (number, idle) in [(1, true), (2, false)] {
        let call = client.send("7").unwrap();
        let request = server.next();
        let reply_queue = request.properties.reply_to().clone().unwrap();
        if idle {
            server.reply(&request, b"13");
            assert_eq!(call.wait().unwrap(), b"13");
            broker.ctl(&["delete_queue", &reply_queue]);
        } else {
            broker.ctl(&["delete_queue", &reply_queue]);
            let error = call.wait().unwrap_err();
            assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
            assert!(error.to_string().contains("the reply queue was deleted"), "{error}");
        }
        let call = client.send("8").unwrap();
        let request = server.next();
        assert_ne!(request.properties.reply_to().as_ref(), Some(&reply_queue));
        server.reply(&request, b"21");
        assert_eq!(call.wait().unwrap(), b"21", "the next call works");
        counters_when(&client, |counters| counters.reconnects == number);
    }
}

#[test]
fn client_reconnects_after_broker_closes_channel() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("channel"));
    let _server = Serving::echo(&url, &queue);
    // A request that is larger than the broker takes costs the channel it came on.
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
        assert_eq!(client.call("8").unwrap(), b"8", "the next call works");
    }
    broker.limit_messages(16 << 20);
}

/// A request that is published behind the broker's close would end the connection, and the client
/// would not learn why: it would send the request that is too large again.
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
