//! The processes under test that are no program of this crate: this test binary again, as a
//! client that keeps a ledger, or as a server that says its name.
//!
//! What they have to say goes to standard output, a line each, which [`super::ledger`] reads.

use std::env;
use std::io::{self, Write};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::LevelFilter;
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, FibonacciRpcClient, QueueType, Request, Result, RpcClient,
    RpcServer, ServerOptions, Stopper, fibonacci,
};
use signal_hook::consts::SIGTERM;
use signal_hook::flag;
use signal_hook::iterator::Signals;

use super::{PATIENCE, Service};

/// Tells either role its brokers.
pub const URLS: &str = "RABBITMQ_RPC_SOAK_URLS";

/// How a call ended.
type Outcome = Result<Answer>;

enum Answer {
    Right { by: String },
    Wrong(String),
}

/// Calls without end, in four threads through three clients. Does nothing unless the soak runs
/// it.
#[test]
fn client() {
    let Ok(urls) = env::var(URLS) else { return };
    start();
    let over = Arc::new(AtomicBool::new(false));
    flag::register(SIGTERM, Arc::clone(&over)).unwrap();
    let brokers = Brokers::parse(&urls).unwrap();
    let fibonacci = connected(|| {
        let (queue, timeout) = (Service::Fibonacci.queue(), Service::Fibonacci.timeout());
        let options = ClientOptions { timeout, ..FibonacciRpcClient::options() };
        FibonacciRpcClient::with_options(brokers.clone(), queue, options)
    });
    let [named, once] = [Service::Named, Service::Once].map(|service| {
        let options = ClientOptions {
            idempotent: service.is_idempotent(),
            timeout: service.timeout(),
            ..Default::default()
        };
        connected(|| RpcClient::connect(brokers.clone(), service.queue(), options.clone()))
    });
    thread::scope(|scope| {
        let over = &over;
        for _ in 0..2 {
            let ask = |n, _: &str| Ok(judge_number(n, fibonacci.call(n)?));
            scope.spawn(move || call_until(over, Service::Fibonacci, ask));
        }
        for (service, client) in [(Service::Named, &named), (Service::Once, &once)] {
            let ask = |_, id: &str| Ok(judge_name(id, &client.call(id)?));
            scope.spawn(move || call_until(over, service, ask));
        }
    });
    for client in [fibonacci.client(), &named, &once] {
        assert_eq!(client.counters().in_flight, 0);
    }
}

/// A cluster that is still healing may have nobody to connect to.
fn connected<T>(connect: impl Fn() -> Result<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match connect() {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn call_until(over: &AtomicBool, service: Service, ask: impl Fn(u64, &str) -> Outcome) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let timeout = service.timeout().as_millis();
    while !over.load(Ordering::Relaxed) {
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", process::id());
        say(&format!("asked {id} {} {timeout}", service.name()));
        let began = Instant::now();
        let outcome = ask(number * 7 % (fibonacci::MAX_N + 1), &id);
        let took = began.elapsed().as_micros();
        say(&format!("ended {id} {took} {}", told(&outcome)));
        // A few callers without pause would keep the machine too busy to see anything else.
        let pause = if outcome.is_ok() { 10 } else { 200 };
        thread::sleep(Duration::from_millis(pause));
    }
}

fn judge_number(n: u64, number: u128) -> Answer {
    match number == fibonacci::fib(n) {
        true => Answer::Right { by: "rpc_server".into() },
        false => Answer::Wrong(format!("fib({n}) is not {number}")),
    }
}

/// Each request to the servers of [`server`] is another, so that no reply can pass for another's.
fn judge_name(id: &str, reply: &[u8]) -> Answer {
    let reply = String::from_utf8_lossy(reply);
    match reply.split_once(' ') {
        Some((by, echo)) if echo == id => Answer::Right { by: by.into() },
        _ => Answer::Wrong(format!("{reply:?}")),
    }
}

/// `right BY`, `wrong TEXT`, or `error KIND TEXT` with an exclamation mark behind the kind if the
/// error says that the request was not executed.
fn told(outcome: &Outcome) -> String {
    let kind = match outcome {
        Ok(Answer::Right { by }) => return format!("right {by}"),
        Ok(Answer::Wrong(text)) => return format!("wrong {text}"),
        Err(Error::TimedOut { .. }) => "TimedOut",
        Err(Error::Blocked { .. }) => "Blocked",
        Err(Error::Unreachable { .. }) => "Unreachable",
        Err(Error::Unroutable { .. }) => "Unroutable",
        Err(Error::ConnectionLost { .. }) => "ConnectionLost",
        // Nobody refuses, closes or garbles anything here.
        Err(error) => return format!("wrong {error:?}").replace('\n', " "),
    };
    let error = outcome.as_ref().err().expect("answers were told above");
    let not_executed = if error.may_have_executed() { "" } else { "!" };
    format!("error {kind}{not_executed} {error}").replace('\n', " ")
}

/// Answers each request with its process id and the request. Does nothing unless the soak runs it.
#[test]
fn server() {
    let Ok(urls) = env::var(URLS) else { return };
    start();
    let options = ServerOptions {
        workers: 2,
        prefetch: 4,
        queue_type: QueueType::Quorum,
        ..Default::default()
    };
    let brokers = Brokers::parse(&urls).unwrap();
    let server = RpcServer::connect(brokers, Service::Named.queue(), options).unwrap();
    let server = server.on_ready(|| say("ready"));
    stop_on_a_signal(server.stopper());
    let name = process::id();
    let served = server.serve(move |request: &Request| {
        let request = String::from_utf8_lossy(request.body());
        say(&format!("ran {request}"));
        Ok(format!("{name} {request}"))
    });
    served.unwrap();
}

fn stop_on_a_signal(stopper: Stopper) {
    let mut signals = Signals::new([SIGTERM]).unwrap();
    thread::spawn(move || {
        signals.forever().next();
        stopper.stop();
    });
}

fn start() {
    // The test harness may have begun a line with the test's name.
    let _ = io::stdout().write_all(b"\n");
    env_logger::Builder::new()
        .filter_level(LevelFilter::Info)
        .filter_module("amiquip", LevelFilter::Error)
        .init();
}

/// In one piece, so that a process that is killed leaves no half of a line. Without a soak that
/// listens there is nothing left to do.
fn say(text: &str) {
    let line = format!("soak {text}\n");
    if io::stdout().lock().write_all(line.as_bytes()).is_err() {
        process::exit(1);
    }
}
