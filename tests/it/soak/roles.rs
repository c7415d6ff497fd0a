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
    Brokers, ClientOptions, Error, Failure, FibonacciRpcClient, QueueType, Reply, Request, Result,
    RpcClient, RpcServer, ServerOptions, Status, Stopper, fibonacci,
};
use signal_hook::consts::{SIGTERM, SIGUSR1};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use super::{RECOVERY_TIMEOUT, Service};

/// The environment variable with the brokers' URLs for either role.
pub const URLS: &str = "RABBITMQ_RPC_SOAK_URLS";

/// More bytes than the broker takes, [`super::faults::MAX_MESSAGE_SIZE`].
pub const TOO_LARGE: usize = 1_200_000;

/// How a call ended.
type Outcome = rabbitmq_rpc::Result<Answer>;

enum Answer {
    Right { by: String },
    Wrong(String),
}

/// Calls until SIGTERM, in five threads through four clients. After SIGUSR1, two of these clients
/// also send a request that the broker refuses. Does nothing unless the soak runs it.
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
    let services = [Service::Named, Service::Plain, Service::Once];
    let [named, plain, once] = services.map(|service| {
        let options = ClientOptions {
            idempotent: service.is_idempotent(),
            timeout: service.timeout(),
            keep_alive: keep_alive.filter(|_| service == Service::Named),
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
        for (service, client) in services.into_iter().zip([&named, &plain, &once]) {
            let ask = |_, id: &str| Ok(judge_name(id, &client.call(id)?));
            scope.spawn(move || call_until(stop, service, ask));
        }
        let mut signals = Signals::new([SIGTERM, SIGUSR1]).unwrap();
        for _ in signals.forever().take_while(|signal| *signal == SIGUSR1) {
            for client in [&named, &once] {
                let ask = |_, _: &str| Ok(judge_refused(client.call(vec![b'7'; TOO_LARGE])));
                let _ = report(Service::Refused, ask);
            }
        }
    });
    for client in [fibonacci.client(), &named, &plain, &once] {
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
    while !stop.load(Ordering::Relaxed) {
        let outcome = report(service, &ask);
        // Without a pause these callers would use all processor time, and the gaps between answers
        // would show that instead of how fast they recover.
        let pause = if outcome.is_ok() { 30 } else { 200 };
        thread::sleep(Duration::from_millis(pause));
    }
}

/// Makes one call, and prints its begin and its end.
fn report(service: Service, ask: impl Fn(u64, &str) -> Outcome) -> Outcome {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let timeout = service.timeout().as_millis();
    let number = CALLS.fetch_add(1, Ordering::Relaxed);
    let id = format!("{}-{number}", process::id());
    print_event(&format!("started {id} {} {timeout}", service.name()));
    let began = Instant::now();
    let outcome = ask(number * 7 % (fibonacci::MAX_N + 1), &id);
    let took = began.elapsed().as_micros();
    print_event(&format!("ended {id} {took} {}", describe(&outcome)));
    outcome
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

/// A request that is too large ends with an error of its own.
fn judge_refused(outcome: Result<Vec<u8>>) -> Answer {
    match outcome {
        Ok(_) | Err(Error::TimedOut { .. } | Error::ServerSilent { .. }) => {
            Answer::Wrong(format!("{:?}", outcome.map(|reply| reply.len())))
        }
        Err(_) => Answer::Right { by: "broker".into() },
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
        Err(Error::Refused(_)) => "Refused",
        Err(Error::QueueRefused { .. }) => "QueueRefused",
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
        if let Some(outcome) = hostile(&request) {
            return outcome;
        }
        print_event(&format!("executed {request}"));
        // Long enough that a fault finds most workers at work.
        thread::sleep(Duration::from_millis(40));
        Ok(Reply::from(format!("{name} {request}")))
    });
    served.unwrap();
}

/// What [`super::refusals`] asks for by a word and a number.
fn hostile(request: &str) -> Option<Result<Reply, Failure>> {
    let (verb, number) = request.split_once(' ')?;
    let number = number.parse().ok()?;
    match verb {
        "reply" => Some(Ok(Reply::from("7".repeat(number)))),
        "failure" => Some(Err(Failure::new(Status::Internal, "7".repeat(number)))),
        "header" => Some(Ok(Reply::from("7").with_header("CC", "x"))),
        "sleep" => {
            thread::sleep(Duration::from_millis(number as u64));
            Some(Ok(Reply::from("awake")))
        }
        _ => None,
    }
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
