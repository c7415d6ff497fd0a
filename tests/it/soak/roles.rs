//! This test binary again, run by the soak as a client that reports each call, or as a server that
//! replies with its process id.
//!
//! Both print one line on standard output for each event, which [`super::ledger`] reads.

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

use super::{RECOVERY_TIMEOUT, Service};

/// The environment variable with the brokers' URLs for either role.
pub const URLS: &str = "RABBITMQ_RPC_SOAK_URLS";

/// How a call ended.
type Outcome = Result<Answer>;

enum Answer {
    Right { by: String },
    Wrong(String),
}

/// Calls until SIGTERM, in four threads through three clients. Does nothing unless the soak runs
/// it.
#[test]
fn client() {
    let Ok(urls) = env::var(URLS) else { return };
    start_logging();
    let stop = Arc::new(AtomicBool::new(false));
    flag::register(SIGTERM, Arc::clone(&stop)).unwrap();
    let brokers = Brokers::parse(&urls).unwrap();
    let keep_alive = Some(Duration::from_secs(1));
    let fibonacci = connected(|| {
        let (queue, timeout) = (Service::Fibonacci.queue(), Service::Fibonacci.timeout());
        let options = ClientOptions { timeout, keep_alive, ..FibonacciRpcClient::options() };
        FibonacciRpcClient::with_options(brokers.clone(), queue, options)
    });
    let [named, once] = [Service::Named, Service::Once].map(|service| {
        let options = ClientOptions {
            idempotent: service.is_idempotent(),
            timeout: service.timeout(),
            keep_alive: keep_alive.filter(|_| service.is_idempotent()),
            ..Default::default()
        };
        connected(|| RpcClient::connect(brokers.clone(), service.queue(), options.clone()))
    });
    thread::scope(|scope| {
        let stop = &stop;
        for _ in 0..2 {
            let ask = |n, _: &str| Ok(judge_number(n, fibonacci.call(n)?));
            scope.spawn(move || call_until(stop, Service::Fibonacci, ask));
        }
        for (service, client) in [(Service::Named, &named), (Service::Once, &once)] {
            let ask = |_, id: &str| Ok(judge_name(id, &client.call(id)?));
            scope.spawn(move || call_until(stop, service, ask));
        }
    });
    for client in [fibonacci.client(), &named, &once] {
        assert_eq!(client.counters().in_flight, 0);
    }
}

/// Tries again while the cluster recovers, since no node may accept connections.
fn connected<T>(connect: impl Fn() -> Result<T>) -> T {
    let deadline = Instant::now() + RECOVERY_TIMEOUT;
    loop {
        match connect() {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn call_until(stop: &AtomicBool, service: Service, ask: impl Fn(u64, &str) -> Outcome) {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let timeout = service.timeout().as_millis();
    while !stop.load(Ordering::Relaxed) {
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", process::id());
        print_event(&format!("started {id} {} {timeout}", service.name()));
        let began = Instant::now();
        let outcome = ask(number * 7 % (fibonacci::MAX_N + 1), &id);
        let took = began.elapsed().as_micros();
        print_event(&format!("ended {id} {took} {}", describe(&outcome)));
        // Without a pause these callers would use all processor time, and the gaps between answers
        // would show that instead of how fast they recover.
        let pause = if outcome.is_ok() { 30 } else { 200 };
        thread::sleep(Duration::from_millis(pause));
    }
}

fn judge_number(n: u64, number: u128) -> Answer {
    match number == fibonacci::fib(n) {
        true => Answer::Right { by: "rpc_server".into() },
        false => Answer::Wrong(format!("fib({n}) is not {number}")),
    }
}

/// Every request to a [`server`] is different, so a reply to another request is found wrong.
fn judge_name(id: &str, reply: &[u8]) -> Answer {
    let reply = String::from_utf8_lossy(reply);
    match reply.split_once(' ') {
        Some((by, echo)) if echo == id => Answer::Right { by: by.into() },
        _ => Answer::Wrong(format!("{reply:?}")),
    }
}

/// `right BY`, `wrong TEXT`, or `error KIND TEXT`, with an exclamation mark after the kind if the
/// error says that the request was not executed.
fn describe(outcome: &Outcome) -> String {
    let kind = match outcome {
        Ok(Answer::Right { by }) => return format!("right {by}"),
        Ok(Answer::Wrong(text)) => return format!("wrong {text}"),
        Err(Error::TimedOut { .. }) => "TimedOut",
        Err(Error::ServerSilent { .. }) => "ServerSilent",
        Err(Error::Blocked { .. }) => "Blocked",
        Err(Error::Unreachable { .. }) => "Unreachable",
        Err(Error::Unroutable { .. }) => "Unroutable",
        Err(Error::ConnectionLost { .. }) => "ConnectionLost",
        // No fault of the soak may cause any other error.
        Err(error) => return format!("wrong {error:?}").replace('\n', " "),
    };
    let error = outcome.as_ref().err().expect("answers have returned above");
    let not_executed = if error.may_have_executed() { "" } else { "!" };
    format!("error {kind}{not_executed} {error}").replace('\n', " ")
}

/// Answers each request with its process id and the request. Does nothing unless the soak runs it.
#[test]
fn server() {
    let Ok(urls) = env::var(URLS) else { return };
    start_logging();
    let options = ServerOptions {
        workers: 2,
        prefetch: 4,
        queue_type: QueueType::Quorum,
        ..Default::default()
    };
    let brokers = Brokers::parse(&urls).unwrap();
    let server = RpcServer::connect(brokers, Service::Named.queue(), options).unwrap();
    let server = server.on_ready(|| print_event("ready"));
    stop_on_sigterm(server.stopper());
    let name = process::id();
    let served = server.serve(move |request: &Request| {
        let request = String::from_utf8_lossy(request.body());
        print_event(&format!("executed {request}"));
        Ok(format!("{name} {request}"))
    });
    served.unwrap();
}

fn stop_on_sigterm(stopper: Stopper) {
    let mut signals = Signals::new([SIGTERM]).unwrap();
    thread::spawn(move || {
        signals.forever().next();
        stopper.stop();
    });
}

fn start_logging() {
    // The test harness may have printed the test's name without a line end.
    let _ = io::stdout().write_all(b"\n");
    env_logger::Builder::new()
        .filter_level(LevelFilter::Info)
        .filter_module("amiquip", LevelFilter::Error)
        .init();
}

/// Writes the line at once, so that a process that is killed leaves no part of a line. If the soak
/// no longer reads, the process has no purpose and ends.
fn print_event(text: &str) {
    let line = format!("soak {text}\n");
    if io::stdout().lock().write_all(line.as_bytes()).is_err() {
        process::exit(1);
    }
}
