//! The options of a single call.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, Failure, RpcClient, RpcServer, ServerOptions, Status,
};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect, connect_with};
use crate::patience::{PATIENCE, await_value};
use crate::programs::{rpc_client, run_client};
use crate::proxy::Proxy;
use crate::queue;

#[test]
fn call_past_its_deadline_is_not_sent() {
    let queue = queue_name("no-time");
    let server = Serving::echo(&url(), &queue);
    let client = connect(&url(), &queue);
    let error = client.call_timeout("7", Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::TimedOut { sent: false, .. }), "{error:?}");
    assert!(!error.may_have_executed());
    assert_eq!(client.call("8").unwrap(), b"8");
    assert_eq!(server.stop().served, 1);
}

#[test]
fn invalid_options_are_rejected_before_anything_is_sent() {
    let queue = queue_name("invalid-options");
    let server = Serving::echo(&url(), &queue);
    let client = connect(&url(), &queue);
    let long = "n".repeat(256);
    for (call, named) in [
        (client.request("7").header("rpc-deadline", "7"), "this crate's own"),
        (client.request("7").header(&long, "7"), "the header's name has 256 bytes"),
        (client.request("7").header("", "7"), "a header's name is empty"),
        (client.request("7").header("large", &"7".repeat(200_000)), "the headers have 200"),
        (client.request("7").message_id(&*long), "the message id has 256 bytes"),
        (client.request("7").content_type(&*long), "the content type has 256 bytes"),
        (client.request("7").keep_alive(Duration::from_millis(99)), "at least 100ms"),
        (client.request("7").keep_alive(Duration::MAX), "at most a day"),
    ] {
        match call.call() {
            Err(Error::Config(text)) => assert!(text.contains(named), "{text}"),
            other => panic!("{named}: {other:?}"),
        }
    }
    let brokers = || Brokers::parse(&url()).unwrap();
    let none = ClientOptions { max_in_flight: 0, ..Default::default() };
    for refused in [
        RpcClient::connect(brokers(), &queue, none).map(drop),
        RpcClient::connect(brokers(), "", ClientOptions::default()).map(drop),
        RpcServer::connect(brokers(), "", ServerOptions::default()).map(drop),
        client.for_queue("").map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    }
    assert_eq!(server.stop().served, 0);
}

#[test]
fn expired_calls_free_their_in_flight_slots() {
    let queue = queue_name("unserved");
    queue::declare_durable(&url(), &queue);
    let options = ClientOptions { max_in_flight: 50, ..Default::default() };
    let client = connect_with(&url(), &queue, options);
    let began = Instant::now();
    let deadline = Duration::from_secs(3);
    let calls: Vec<_> = (0..500)
        .map(|n| client.send_timeout(n.to_string(), deadline.saturating_sub(began.elapsed())))
        .collect();
    assert!(calls.iter().filter(|call| call.is_ok()).count() >= 50);
    assert!(began.elapsed() < 3 * deadline, "sending took {:?}", began.elapsed());
    for call in calls {
        let error = call.and_then(|call| call.wait()).unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
    }
    assert!(began.elapsed() < 5 * deadline, "waiting took {:?}", began.elapsed());
    assert_eq!(client.counters().in_flight, 0);
}

/// It has 2,000 numbers, twice as many as may be in flight, and no server answers.
#[test]
fn rpc_client_ends_at_its_timeout_with_many_numbers() {
    let queue = queue_name("many-numbers");
    queue::declare_durable(&url(), &queue);
    let url = url();
    let mut args = vec!["--url", &url, "--queue", &queue, "--timeout", "5"];
    args.extend(["7"; 2000]);
    let began = Instant::now();
    let output = run_client(&args);
    assert_eq!(output.status.code(), Some(75));
    let took = began.elapsed();
    assert!((5.0..9.5).contains(&took.as_secs_f64()), "{took:?}");
}

#[test]
fn hooks_see_every_call_and_request() {
    let queue = queue_name("observed");
    let server = Serving::start(&url(), &queue, ServerOptions::default(), |body| match body {
        b"7" => Ok(b"seven".to_vec()),
        _ => Err(Failure::new(Status::NotFound, "none")),
    });
    let (send, events) = unbounded();
    let client = connect(&url(), &queue);
    let calls = send.clone();
    let began = Instant::now();
    client.on_call(move |call| {
        assert!(call.time <= began.elapsed(), "{:?}", call.time);
        calls.send(format!("{} {} {}", call.status, call.bytes_in, call.bytes_out)).unwrap();
    });
    server.server.on_request(move |request| {
        send.send(format!("{} {} {}", request.status, request.bytes_in, request.bytes_out))
            .unwrap();
    });
    client.call("7").unwrap();
    client.call("eight").unwrap_err();
    client.call_timeout("9", Duration::ZERO).unwrap_err();
    let stopper = server.stopper.clone();
    server.stop();
    assert_eq!((stopper.counters().served, stopper.counters().failed), (1, 1));
    let mut events: Vec<String> = events.try_iter().collect();
    events.sort();
    assert_eq!(events, ["NOT_FOUND 0 5", "NOT_FOUND 5 4", "OK 1 5", "OK 5 1", "TIMED_OUT 0 1"]);
}

#[test]
fn queue_and_check_report_number_of_consumers() {
    let queue = queue_name("checked");
    let client = connect(&url(), &queue);
    assert_eq!(client.queue(), Err(Error::Unroutable { queue: queue.clone() }));
    let options = ServerOptions { workers: 2, ..Default::default() };
    let server = Serving::start(&url(), &queue, options, |body| Ok(body.to_vec()));
    await_value(|| client.queue().unwrap().consumers, |consumers| *consumers == 2);
    let check = || rpc_client(&queue, &["--check"]);
    let found = check();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "consumers 2\nmessages 0\n");
    assert_eq!(found.status.code(), Some(0));
    server.stop();
    assert_eq!(client.queue().unwrap().consumers, 0);
    assert_eq!(check().status.code(), Some(69));
}

#[test]
fn idempotent_option_applies_to_one_call() {
    let queue = queue_name("once-more");
    let (begun, has_begun) = unbounded();
    let (go_on, may_go_on) = unbounded::<()>();
    let _server = Serving::start(&url(), &queue, ServerOptions::default(), move |body| {
        begun.send(()).unwrap();
        may_go_on.recv().unwrap();
        Ok(body.to_vec())
    });
    let proxy = Proxy::to(Broker::shared().port(0));
    let client = connect(&proxy.url(), &queue);
    for is_idempotent in [false, true] {
        thread::scope(|scope| {
            let call = scope.spawn(|| client.request("7").idempotent(is_idempotent).call());
            has_begun.recv_timeout(PATIENCE).unwrap();
            proxy.cut();
            go_on.send(()).unwrap();
            if is_idempotent {
                has_begun.recv_timeout(PATIENCE).expect("the request is sent again");
                go_on.send(()).unwrap();
                assert_eq!(call.join().unwrap().unwrap(), b"7");
            } else {
                let error = call.join().unwrap().unwrap_err();
                assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
            }
        });
    }
}
