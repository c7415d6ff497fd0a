//! Workers, handlers, and how a server stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{Brokers, Error, Failure, Request, RpcServer, ServerOptions, Status};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::patience::{PATIENCE, SetOnDrop, await_value};
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_server, rpc_server_that_logs, stop, wait_for_served};
use crate::raw::{Properties, Raw};
use crate::{logged, queue};

/// This number takes hours by double recursion.
const ENDLESS: u64 = 60;

#[test]
fn quick_requests_do_not_wait_behind_a_slow_one() {
    let queue = queue_name("fair");
    let mut server = rpc_server(&queue, &["--recursive", "--workers", "2"]);
    let client = connect_fibonacci(&url(), &queue);
    let mut slow = client.send(ENDLESS).unwrap();
    let quick: Vec<_> = (0..20).map(|_| client.send(10).unwrap()).collect();
    for call in quick {
        assert_eq!(call.wait(), Ok(55));
    }
    assert_eq!(slow.try_wait(), Ok(None));

    // After the first signal the server waits for the slow request; the second ends it at once.
    server.signal("TERM");
    server.wait_for_line("stopping; requests in progress: 1", PATIENCE);
    server.signal("INT");
    assert_eq!(server.wait(PATIENCE).code(), Some(128 + 2), "{}", server.stderr());
}

#[test]
fn server_takes_over_request_of_stopped_server() {
    let queue = queue_name("shared");
    let first = ["--recursive", "--drain-timeout", "0.3"];
    let mut first = rpc_server(&queue, &first);
    let client = connect_fibonacci(&url(), &queue);
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.request(&queue, ENDLESS.to_string().as_bytes());
    queue::wait_until_taken(&url(), &queue);

    let mut second = rpc_server(&queue, &["--recursive", "--workers", "2"]);
    for _ in 0..10 {
        assert_eq!(client.call(10), Ok(55));
    }
    let began = Instant::now();
    first.signal("TERM");
    assert_eq!(first.wait(PATIENCE).code(), Some(75), "{}", first.stderr());
    let took = began.elapsed();
    assert!((Duration::from_millis(300)..Duration::from_secs(10)).contains(&took), "{took:?}");
    let stderr = first.stderr();
    assert!(stderr.contains("timed out after 300ms: requests still in progress: 1; "), "{stderr}");

    second.wait_for_line("is redelivered", PATIENCE);
    assert_eq!(client.call(10), Ok(55));
    second.kill();
}

#[test]
fn stop_answers_requests_in_progress_and_returns_the_rest() {
    let queue = queue_name("stop");
    let (began, has_begun) = crossbeam_channel::bounded(0);
    let (go, may_go) = crossbeam_channel::bounded::<()>(0);
    let options = ServerOptions { prefetch: 5, ..Default::default() };
    let first = Serving::start(&url(), &queue, options.clone(), move |_| {
        began.send(()).unwrap();
        may_go.recv().unwrap();
        Ok(b"first".to_vec())
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    for _ in 0..5 {
        raw.request(&queue, b"work");
    }
    has_begun.recv_timeout(PATIENCE).unwrap();
    queue::wait_until_taken(&url(), &queue);
    assert_eq!(first.server.counters().in_progress, 1);

    first.stopper.stop();
    let second = Serving::start(&url(), &queue, options, |_| Ok(b"second".to_vec()));
    go.send(()).unwrap();
    assert_eq!(first.stop().served, 1);
    let mut replies: Vec<Vec<u8>> = (0..5).map(|_| raw.reply().body).collect();
    replies.sort();
    assert_eq!(replies, [&b"first"[..], b"second", b"second", b"second", b"second"]);
    let server = Arc::clone(&second.server);
    assert_eq!(second.stop().redelivered, 4);
    // A stopped server cannot be started again.
    let none = |_: &Request| -> Result<String, Failure> { unreachable!() };
    let worker = server.with_worker(|worker| worker.serve_one(none, PATIENCE));
    assert_eq!(worker, Err(Error::Closed));
}

/// Servers are started and stopped in turn while eight clients call without pause.
#[test]
fn drain_under_load_answers_each_call_once() {
    let queue = queue_name("drain");
    let args = ["--workers", "2", "--prefetch", "8"];
    let mut server = rpc_server(&queue, &args);
    let stopped = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    let served = thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let client = connect(&url(), &queue);
                while !stopped.load(Ordering::Relaxed) {
                    assert_eq!(client.call("10"), Ok(b"55".to_vec()));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                assert_eq!(client.counters().late, 0, "a request was answered twice");
            });
        }
        let _stop = SetOnDrop(&stopped);
        let mut served = 0;
        for signal in ["TERM", "INT", "TERM", "INT", "TERM", "INT"] {
            let next = rpc_server(&queue, &args);
            let until = answered.load(Ordering::Relaxed) + 200;
            await_value(|| answered.load(Ordering::Relaxed), |answered| *answered >= until);
            server.signal(signal);
            served += wait_for_served(&mut server);
            server = next;
        }
        served
    });
    server.signal("TERM");
    let served = served + wait_for_served(&mut server);
    assert_eq!(served, answered.load(Ordering::Relaxed));
}

#[test]
fn handler_failure_and_panic_are_answered() {
    logged::collect();
    let queue = queue_name("failure");
    let serving =
        Serving::start(&url(), &queue, ServerOptions::default(), |request| match request {
            b"panic" => panic!("the secret of {}", "the handler"),
            b"plain panic" => panic!("another\nsecret"),
            b"odd panic" => std::panic::panic_any(7),
            b"fail" => Err(Failure::new(Status::ResourceExhausted, "no paper left")),
            _ => Ok(b"done".to_vec()),
        });
    let client = connect(&url(), &queue);
    let failure = Failure::new(Status::ResourceExhausted, "no paper left");
    assert_eq!(client.call("fail"), Err(Error::Remote(failure)));
    for request in ["panic", "plain panic", "odd panic"] {
        let failure = Failure::new(Status::Internal, "the server failed on this request");
        assert_eq!(client.call(request), Err(Error::Remote(failure)));
        assert_eq!(client.call("work"), Ok(b"done".to_vec()), "the worker continues");
    }
    for text in ["the secret of the handler", "another secret", "no text"] {
        assert!(logged::contains(&format!("the handler panicked: {text}")), "{text}");
    }
    let counters = serving.stop();
    assert_eq!((counters.served, counters.failed, counters.redelivered), (3, 4, 0));
}

#[test]
fn log_has_ids_and_sizes_but_no_bodies() {
    let queue = queue_name("log");
    let mut server = rpc_server_that_logs(&queue, &["--workers", "2", "--prefetch", "3"]);
    let client = connect(&url(), &queue);
    assert_eq!(client.call("00000000000000000007"), Ok(b"13".to_vec()));
    assert!(client.call("a private matter").is_err());
    stop(&mut server);
    let log = server.stderr();
    for line in [
        &format!("serving queue {queue:?} (workers: 2, prefetch: 3)"),
        &format!("taking requests from {queue:?} on 127.0.0.1:"),
        ": OK, 20 bytes in, 2 out, ",
        ": INVALID_ARGUMENT, 16 bytes in, ",
        "stopping; requests in progress: 0",
        "served: 1, failed: 1, rejected: 0, redelivered: 0, returned: 0, in_progress: 0",
    ] {
        assert!(log.contains(line), "no {line:?} in {log}");
    }
    let requests: Vec<&str> = log.lines().filter(|line| line.contains("bytes in")).collect();
    assert_eq!(requests.len(), 2, "{log}");
    for line in requests {
        let id = line.split("request ").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
        assert!(uuid::Uuid::try_parse(id).is_ok(), "{line}");
    }
    for secret in ["private", "000007", "guest"] {
        assert!(!log.contains(secret), "{secret} in {log}");
    }
}

#[test]
fn reply_to_disconnected_requester_is_counted() {
    let queue = queue_name("disconnected");
    let (began, has_begun) = crossbeam_channel::bounded(0);
    let (go, may_go) = crossbeam_channel::bounded::<()>(0);
    let serving = Serving::start(&url(), &queue, ServerOptions::default(), move |_| {
        began.send(()).unwrap();
        may_go.recv().unwrap();
        Ok(Vec::new())
    });
    let mut requester = Raw::connect(Broker::shared().port(0));
    let reply_queue = requester.reply_queue();
    let properties = Properties::default().reply_to(reply_queue.as_bytes());
    requester.publish("", queue.as_bytes(), &properties, b"work");
    has_begun.recv_timeout(PATIENCE).unwrap();
    drop(requester);
    // RabbitMQ 4.3 deletes the queue some time after the end of its connection.
    let queues = || Broker::shared().ctl(&["list_queues", "name"]);
    await_value(queues, |queues| !queues.contains(&reply_queue));
    go.send(()).unwrap();
    await_value(|| serving.server.counters().returned, |returned| *returned == 1);
    assert_eq!(serving.stop().served, 1);
}

#[test]
fn more_workers_than_memory_allows_are_refused() {
    let (url, queue) = (Broker::shared().url(), queue_name("many-workers"));
    // Each thread needs 2 MiB of address space for its stack.
    let limited = ["-c", "ulimit -v 400000; exec \"$0\" \"$@\"", RPC_SERVER];
    let args = ["--url", &url, "--queue", &queue, "--workers", "500"];
    let start = || {
        let mut server = Process::spawn("sh", &[&limited[..], &args].concat());
        (server.wait(PATIENCE).code(), server)
    };
    // If a thread has a stack and no room for what Rust's runtime allocates next, the runtime aborts
    // the process.
    let started = (0..5).map(|_| start()).find(|(code, _)| code.is_some());
    let (code, mut server) = started.expect("most starts end in an orderly way");
    assert_eq!(code, Some(64), "{}", server.stderr());
    assert!(server.stderr().contains("ask for fewer workers"), "{}", server.stderr());
    assert_eq!(server.stdout(), "");
}

/// The panic of a handler is answered; a hook runs after the answer.
#[test]
fn panic_of_a_hook_ends_the_server_with_an_error() {
    let queue = queue_name("hook");
    let brokers = Brokers::parse(&url()).unwrap();
    let server = RpcServer::connect(brokers, &queue, ServerOptions::default()).unwrap();
    server.on_request(|_| panic!("this hook panics on purpose"));
    let client = connect(&url(), &queue);
    let (ended, has_ended) = crossbeam_channel::bounded(1);
    thread::scope(|scope| {
        scope.spawn(|| ended.send(server.serve(|_: &Request| Ok("answered"))).unwrap());
        assert_eq!(client.call("7").unwrap(), b"answered");
        let error = has_ended.recv_timeout(PATIENCE).unwrap().unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains("on_request")), "{error:?}");
    });
}
