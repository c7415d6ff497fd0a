//! Calls while a node is killed or frozen, or closes connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, FibonacciRpcClient, Request, RpcClient, ServerOptions, fibonacci,
};

use super::{DEADLINE, counters_when, fails_at_deadline, wait_until_lost};
use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::manual_server::ManualServer;
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};

#[test]
fn calls_resume_after_node_restart() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("restarted-node"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);

    // A Fibonacci server whose first reply is late: its connection is lost by then.
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

    // Eight calls are in flight while no thread waits for them; eight threads wait for theirs.
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

    let error = fails_at_deadline(|| client.call_timeout("7", DEADLINE));
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(!error.may_have_executed());
    go_on.send(()).unwrap();

    broker.start_node(0);
    let server = ManualServer::start(&url, &queue);
    let call = client.send("8").unwrap();
    server.reply(&server.next(), b"21");
    assert_eq!(call.wait().unwrap(), b"21");

    let (answer, counters) = answered.join().unwrap();
    assert_eq!(answer.unwrap(), fibonacci::fib(93), "the caller only waits longer");
    assert_eq!((counters.calls, counters.replies, counters.reconnects), (1, 1, 1));
    assert_eq!(executed.load(Ordering::Relaxed), 2, "the request is sent again");
}

#[test]
fn calls_time_out_while_node_is_frozen() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("frozen-node"));
    let _server = Serving::echo(&url, &queue);
    let closed = connect(&url, &queue);
    let dropped = connect(&url, &queue);
    let busy = connect(&url, &queue);
    assert_eq!(closed.call("7").unwrap(), b"7");

    broker.freeze(0);
    let in_flight = busy.send("7").unwrap();
    for client in [&closed, &dropped] {
        let error = fails_at_deadline(|| client.call_timeout("7", DEADLINE));
        assert!(matches!(error, Error::TimedOut { sent: true, .. }), "{error:?}");
        assert!(error.may_have_executed());
    }
    let at_once = |how: fn(RpcClient), client| {
        let began = Instant::now();
        how(client);
        // The silence is noticed 20 s after the node was frozen.
        assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    };
    at_once(RpcClient::close, closed);
    at_once(drop, dropped);
    at_once(drop, busy);
    assert_eq!(in_flight.wait(), Err(Error::Closed));

    let mut brokers = Brokers::parse(&url).unwrap();
    brokers.connect_timeout = DEADLINE;
    let connect_frozen = || RpcClient::connect(brokers, &queue, ClientOptions::default());
    let error = fails_at_deadline(connect_frozen);
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("did not finish the login in time"), "{error}");

    broker.thaw(0);
    let client = connect(&url, &queue);
    assert_eq!(client.call("8").unwrap(), b"8");
}

#[test]
fn client_reconnects_after_operator_closes_connections() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("operator"));
    let serving = Serving::echo(&url, &queue);
    let client = connect(&url, &queue);
    assert_eq!(client.call("7").unwrap(), b"7");

    broker.ctl(&["close_all_connections", "planned maintenance"]);
    wait_until_lost(&client);
    assert_eq!(client.call("8").unwrap(), b"8", "the next call succeeds");
    assert_eq!(client.counters().reconnects, 1);
    serving.stop();

    let hand_queue = queue_name("operator");
    let server = ManualServer::start(&url, &hand_queue);
    let client = connect(&url, &hand_queue);
    let call = client.send("7").unwrap();
    server.next();
    broker.ctl(&["close_all_connections", "planned maintenance"]);
    let error = call.wait().unwrap_err();
    assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    assert!(error.to_string().contains("planned maintenance"), "{error}");
}

/// No thread waits for the reply while the connection lasts.
#[test]
fn reply_counts_although_its_connection_has_ended() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("reply-then-end"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);
    let call = client.send("7").unwrap();
    server.reply(&server.next(), b"13");
    counters_when(&client, |counters| counters.replies == 1);
    broker.ctl(&["close_all_connections", "planned maintenance"]);
    let reconnects = || client.queue().and(Ok(client.counters().reconnects));
    assert_eq!(await_value(reconnects, |reconnects| *reconnects == Ok(1)), Ok(1));
    assert_eq!(call.wait().unwrap(), b"13");
}

#[test]
fn client_reconnects_after_reply_queue_is_deleted() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("reply-queue"));
    let server = ManualServer::start(&url, &queue);
    let client = connect(&url, &queue);
    for (number, idle) in [(1, true), (2, false)] {
        // A busy broker may declare the reply queue late.
        await_value(|| server.answer_call(&client), |reply_to| reply_to.starts_with("amq.gen-"));
        let call = client.send("7").unwrap();
        let request = server.next();
        let reply_queue = request.properties.reply_to().clone().unwrap();
        if idle {
            server.reply(&request, b"13");
            assert_eq!(call.wait().unwrap(), b"13");
            broker.ctl(&["delete_queue", &reply_queue]);
            wait_until_lost(&client);
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
        assert_eq!(call.wait().unwrap(), b"21", "the next call succeeds");
        counters_when(&client, |counters| counters.reconnects == number);
    }
}
