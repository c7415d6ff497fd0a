//! Requests Fibonacci numbers, as RabbitMQ's tutorial six does.

mod common;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use rabbitmq_rpc::{ClientOptions, Error, FibonacciRpcClient, PendingNumber, QueueStatus};

/// Request Fibonacci numbers from the servers on a RabbitMQ queue. Print one number a line, in
/// the order of the arguments.
#[derive(FromArgs)]
#[argh(
    example = "rpc_client 7\nrpc_client --timeout 2 0 1 7 93 186\nrpc_client --check",
    note = "All requests are sent together. If some fail, the first failure gives the exit code.",
    error_code(0, "every number was answered, or with --check: somebody serves the queue"),
    error_code(64, "usage"),
    error_code(65, "the server refused a number"),
    error_code(69, "no broker could be reached, no such queue, or with --check: nobody serves it"),
    error_code(70, "the server failed"),
    error_code(74, "standard output could not be written"),
    error_code(75, "timed out, connection lost, or busy (may have been executed), or overloaded"),
    error_code(76, "a reply was not a number"),
    error_code(77, "the broker refused the user or a permission")
)]
struct Args {
    /// brokers, comma-separated: amqp://user:password@host:port/vhost (default: $AMQP_URL, else
    /// amqp://guest:guest@localhost:5672/%2f)
    #[argh(option)]
    url: Option<String>,
    /// queue to send requests to (default: rpc_queue)
    #[argh(option, default = "String::from(FibonacciRpcClient::QUEUE)")]
    queue: String,
    /// seconds from the program's start for all that it does (default: 30)
    #[argh(option, default = "Duration::from_secs(30)", from_str_fn(common::seconds))]
    timeout: Duration,
    /// request no number: print how many consumers the queue has, and how many messages wait
    #[argh(switch)]
    check: bool,
    /// seconds to keep trying if no broker is up yet (default: 0)
    #[argh(option, default = "Duration::ZERO", from_str_fn(common::seconds))]
    wait: Duration,
    /// seconds that connecting to one broker may take (default: 5)
    #[argh(option, default = "Duration::from_secs(5)", from_str_fn(common::seconds))]
    connect_timeout: Duration,
    /// PEM file of the authorities to trust for amqps:// (default: the system's)
    #[argh(option)]
    tls_ca: Option<PathBuf>,
    /// PEM file of the client certificate to show to the broker
    #[argh(option)]
    tls_cert: Option<PathBuf>,
    /// PEM file of the key of --tls-cert
    #[argh(option)]
    tls_key: Option<PathBuf>,
    /// which Fibonacci numbers to request: whole, not negative
    #[argh(positional, arg_name = "N")]
    numbers: Vec<u64>,
}

const NAME: &str = "rpc_client";

fn main() -> ExitCode {
    let began = Instant::now();
    let args: Args = common::parse(NAME);
    if args.numbers.is_empty() && !args.check {
        common::usage_error(NAME, "There is no number to ask for.");
    }
    if args.check && !args.numbers.is_empty() {
        common::usage_error(NAME, "With --check no number is asked for.");
    }
    common::start_logger("warn");
    let (is_check, numbers, timeout) = (args.check, args.numbers.clone(), args.timeout);
    let left = || timeout.saturating_sub(began.elapsed());
    let client = match connect(args, left()) {
        Ok(client) => client,
        Err(error) => return common::report(NAME, &error),
    };
    let code = match is_check {
        true => check(&client, left()),
        false => ask(&client, &numbers, left),
    };
    close(client, left());
    code
}

fn connect(args: Args, timeout: Duration) -> Result<FibonacciRpcClient, Error> {
    let tls = common::tls_files(args.tls_ca, args.tls_cert, args.tls_key);
    let brokers = common::brokers(args.url, args.connect_timeout, args.wait, tls)?;
    let options = ClientOptions { timeout, ..FibonacciRpcClient::options() };
    FibonacciRpcClient::with_options(brokers, &args.queue, options)
}

/// Closes the connection, and waits for the broker no longer than the program may take.
fn close(client: FibonacciRpcClient, left: Duration) {
    const MIN_WAIT: Duration = Duration::from_millis(200);
    let (closing, closed) = mpsc::channel::<()>();
    let close = move || {
        drop(client);
        drop(closing);
    };
    // If there is no thread, the closure is dropped here, and so is the client.
    if thread::Builder::new().spawn(close).is_ok() {
        let _ = closed.recv_timeout(left.max(MIN_WAIT));
    }
}

fn check(client: &FibonacciRpcClient, left: Duration) -> ExitCode {
    match client.client().queue_timeout(left) {
        Ok(QueueStatus { consumers, messages, .. }) => {
            match common::print(format!("consumers {consumers}\nmessages {messages}\n")) {
                Err(error) => ExitCode::from(common::cannot_print(NAME, &error)),
                Ok(()) if consumers == 0 => ExitCode::from(common::UNAVAILABLE),
                Ok(()) => ExitCode::SUCCESS,
            }
        }
        Err(error) => common::report(NAME, &error),
    }
}

fn ask(client: &FibonacciRpcClient, numbers: &[u64], left: impl Fn() -> Duration) -> ExitCode {
    let calls: Vec<_> = numbers.iter().map(|n| client.send_timeout(*n, left())).collect();
    let mut first_failure = None;
    for (n, call) in numbers.iter().zip(calls) {
        match call.and_then(PendingNumber::wait) {
            Ok(number) => {
                if let Err(error) = common::print(format!("{number}\n")) {
                    return ExitCode::from(common::cannot_print(NAME, &error));
                }
            }
            Err(error) => {
                common::say(format_args!("{NAME}: n = {n}: {error}"));
                first_failure.get_or_insert(common::exit_code(&error));
            }
        }
    }
    ExitCode::from(first_failure.unwrap_or(0))
}
