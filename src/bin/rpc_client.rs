//! Calls any service from the shell. By default, requests Fibonacci numbers, as RabbitMQ's tutorial
//! six does.

mod common;
#[path = "rpc_client/lines.rs"]
mod lines;

use std::env;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use common::NAME;
use rabbitmq_rpc::{
    CallBuilder, ClientOptions, Error, FibonacciRpcClient, PendingNumber, QueueStatus, RpcClient,
};

common::args! {
    /// Send requests to the servers on a RabbitMQ queue, and print their replies: Fibonacci numbers,
    /// one a line in the order of the arguments, or with --body or --lines any requests.
    #[derive(FromArgs)]
    #[argh(
        example = "rpc_client 7
rpc_client --timeout 2 0 1 7 93 186
rpc_client --queue upper --body hello
rpc_client --queue prices --method price.get --header tenant=7 --body - <order.json
seq 1 1000 | rpc_client --queue upper --lines
rpc_client --ping",
        note = "Numbers are all requested together. If some requests fail, the others go on, and the first
failure gives the exit code. The bytes of a reply are printed as they are; a missing newline at
their end is added on a terminal and with --lines.",
        error_code(0, "every request was answered; --check: somebody serves the queue"),
        error_code(64, "usage"),
        error_code(65, "the server refused a request"),
        error_code(69, "no broker could be reached, no such queue, or --check: nobody serves it"),
        error_code(70, "the server failed"),
        error_code(74, "standard output could not be written, or standard input not be read"),
        error_code(75, "timed out, connection lost, or busy (may have been executed), or overloaded"),
        error_code(76, "a reply was not what was asked for, such as a number"),
        error_code(77, "the broker refused the user or a permission")
    )]
    struct Args {
        /// queue to send requests to (default: rpc_queue)
        #[argh(option, default = "String::from(FibonacciRpcClient::QUEUE)")]
        queue: String,
        /// exchange to publish requests to, with the queue's name as the routing key (default: the
        /// default exchange)
        #[argh(option)]
        exchange: Option<String>,
        /// routing key of the requests, in place of the queue's name; with --body or --lines
        #[argh(option)]
        routing_key: Option<String>,
        /// seconds from the program's start for all that it does; from the end of the input with
        /// --body -; for each line with --lines (default: 30)
        #[argh(option, default = "Duration::from_secs(30)", from_str_fn(common::seconds))]
        timeout: Duration,
        /// send one request with this body; - takes it from standard input, whatever bytes it has
        #[argh(option, arg_name = "text")]
        body: Option<String>,
        /// send each line of standard input as a request, and print one reply a line, in order
        #[argh(switch)]
        lines: bool,
        /// with --lines: how many lines may be without a printed reply (default: 64)
        #[argh(option, default = "64")]
        in_flight: usize,
        /// name of the method to call
        #[argh(option)]
        method: Option<String>,
        /// header of the requests, as NAME=VALUE; may be repeated
        #[argh(option, from_str_fn(header), arg_name = "name=value")]
        header: Vec<(String, String)>,
        /// media type of the bodies (default: application/octet-stream)
        #[argh(option)]
        content_type: Option<String>,
        /// id of the request; a service may take a second request with this id for the same one
        #[argh(option)]
        message_id: Option<String>,
        /// the requests may be executed twice: send them again if the connection is lost
        #[argh(switch)]
        idempotent: bool,
        /// seconds between the signs of life that the server is to send while it works; if they stop,
        /// the call ends
        #[argh(option, from_str_fn(common::seconds))]
        keep_alive: Option<Duration>,
        /// have a worker of a rabbitmq-rpc server answer, and print what it says of itself as JSON
        #[argh(switch)]
        ping: bool,
        /// send no request: print how many consumers the queue has, and how many messages wait
        #[argh(switch)]
        check: bool,
        /// which Fibonacci numbers to request: whole, not negative
        #[argh(positional, arg_name = "N")]
        numbers: Vec<u64>,
    }
}

fn main() -> ExitCode {
    let began = Instant::now();
    let args: Args = common::parse(env::args_os().skip(1));
    if let Some(mistake) = args.mistake() {
        common::usage_error(mistake);
    }
    common::start_logger("warn");
    match run(&args, began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => ExitCode::from(code),
    }
}

fn run(args: &Args, mut began: Instant) -> Result<(), u8> {
    let failed = |error| common::report(NAME, &error);
    let body = match args.body.as_deref() {
        Some("-") => {
            let body = lines::read_body()?;
            began = Instant::now();
            Some(body)
        }
        body => body.map(|text| text.as_bytes().to_vec()),
    };
    let left = || args.timeout.saturating_sub(began.elapsed());
    let fibonacci = connect(args, left()).map_err(failed)?;
    let client = fibonacci.client();
    let done = match body {
        Some(body) => {
            let reply = args.request(client, body).timeout(left()).call();
            reply.map_err(failed).and_then(lines::print)
        }
        None if args.ping => ping(client, left()).map_err(failed).and_then(lines::print_line),
        None if args.check => client.queue_timeout(left()).map_err(failed).and_then(report_queue),
        None if args.lines => lines::call(args.in_flight, |line| args.request(client, line).send()),
        None => ask(&fibonacci, &args.numbers, left),
    };
    close(fibonacci, left());
    done
}

fn connect(args: &Args, timeout: Duration) -> Result<FibonacciRpcClient, Error> {
    let mut options = FibonacciRpcClient::options();
    if args.numbers.is_empty() {
        options = ClientOptions { idempotent: args.idempotent, ..Default::default() };
        options.max_in_flight = args.in_flight;
    }
    let content_type = args.content_type.clone().unwrap_or(options.content_type);
    let (exchange, keep_alive) = (args.exchange.clone(), args.keep_alive);
    let options = ClientOptions { content_type, exchange, keep_alive, timeout, ..options };
    FibonacciRpcClient::with_options(args.brokers()?, &args.queue, options)
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

/// What a worker says of itself: one that really answers, in contrast to a consumer of the queue.
fn ping(client: &RpcClient, timeout: Duration) -> Result<Vec<u8>, Error> {
    // A server of another kind takes this for a request. It can compute fib(0) at once.
    let request = client.request("0").method("rpc.ping").timeout(timeout).idempotent(true);
    let pong = request.reply()?;
    match pong.content_type() == Some("application/json")
        && pong.body().starts_with(b"{\"program\"")
    {
        true => Ok(pong.into_body()),
        false => Err(Error::BadReply("the server answers, but does not know rpc.ping".into())),
    }
}

fn report_queue(QueueStatus { consumers, messages, .. }: QueueStatus) -> Result<(), u8> {
    common::print(format!("consumers {consumers}\nmessages {messages}\n"))?;
    if consumers == 0 { Err(common::UNAVAILABLE) } else { Ok(()) }
}

fn ask(
    client: &FibonacciRpcClient,
    numbers: &[u64],
    left: impl Fn() -> Duration,
) -> Result<(), u8> {
    let calls: Vec<_> = numbers.iter().map(|n| client.send_timeout(*n, left())).collect();
    let mut outcome = Ok(());
    for (n, call) in numbers.iter().zip(calls) {
        match call.and_then(PendingNumber::wait) {
            Ok(number) => common::print(format!("{number}\n"))?,
            Err(error) => {
                outcome = outcome.and(Err(common::report(&format!("{NAME}: n = {n}"), &error)));
            }
        }
    }
    outcome
}

impl Args {
    /// What is wrong with them together.
    fn mistake(&self) -> Option<&'static str> {
        let numbers = !self.numbers.is_empty();
        let tasks = [numbers, self.body.is_some(), self.lines, self.ping, self.check];
        let has_id = self.message_id.is_some();
        let is_special = has_id
            || self.method.is_some()
            || !self.header.is_empty()
            || self.routing_key.is_some();
        if tasks.iter().filter(|task| **task).count() != 1 {
            Some("Give one of these: numbers, --body, --lines, --ping, --check.")
        } else if self.lines && has_id {
            Some("With --lines each request has an id of its own: leave out --message-id.")
        } else if is_special && self.body.is_none() && !self.lines {
            Some("--method, --header, --message-id and --routing-key need --body or --lines.")
        } else {
            None
        }
    }

    fn request<'a>(&self, client: &'a RpcClient, body: Vec<u8>) -> CallBuilder<'a> {
        let mut request = client.request(body).timeout(self.timeout);
        for (name, value) in &self.header {
            request = request.header(name, value);
        }
        if let Some(method) = &self.method {
            request = request.method(method);
        }
        if let Some(key) = &self.routing_key {
            request = request.routing_key(key);
        }
        if stderr().is_terminal() {
            request = request.on_progress(|text| {
                common::say(format_args!("{NAME}: {}", text.replace(char::is_control, " ")));
            });
        }
        // Without one it gets a random id.
        request.message_id(self.message_id.clone().unwrap_or_default())
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("a header is NAME=VALUE")?;
    Ok((pair.0.into(), pair.1.into()))
}
