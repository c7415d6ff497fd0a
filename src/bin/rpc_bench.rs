//! Puts load on any tutorial-six server, and reports its rate and latency.

mod common;
#[path = "common/signals.rs"]
mod signals;
#[path = "rpc_bench/tally.rs"]
mod tally;

use std::collections::VecDeque;
use std::env;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use argh::FromArgs;
use common::NAME;
use rabbitmq_rpc::{ClientOptions, Error, FibonacciRpcClient, PendingNumber, fibonacci};
use tally::Tally;

common::args! {
    /// Put load on the servers of a RabbitMQ queue, check every answer, and print rate and latency.
    #[derive(FromArgs, Clone)]
    #[argh(
        example = "rpc_bench --requests 100000 --in-flight 64\nrpc_bench --rate 500 --json",
        note = "Without --rate the loop is closed: a call starts when another call ends. With --rate the
loop is open: calls are due at fixed times, and latency counts from the due time, so that a stall
is not hidden. Each thread waits for its calls in the order in which it sent them.",
        error_code(0, "every call got the right answer"),
        error_code(1, "some calls did not get the right answer"),
        error_code(64, "usage"),
        error_code(69, "no broker could be reached"),
        error_code(71, "the system gave it no thread for signals"),
        error_code(74, "standard output could not be written"),
        error_code(77, "the broker refused the user or a permission"),
        error_code(130, "interrupted by SIGINT, after printing the results so far; SIGTERM: 143")
    )]
    struct Args {
        /// queue to send requests to (default: rpc_queue)
        #[argh(option, default = "String::from(FibonacciRpcClient::QUEUE)")]
        queue: String,
        /// exchange to publish requests to, with the queue's name as the routing key (default: the
        /// default exchange)
        #[argh(option)]
        exchange: Option<String>,
        /// calls to make (default: 10000)
        #[argh(option, default = "10_000")]
        requests: u64,
        /// calls in flight at once, over all threads (default: 1, or one for each thread)
        #[argh(option, default = "1")]
        in_flight: usize,
        /// threads that share the client (default: 1)
        #[argh(option, default = "1")]
        threads: usize,
        /// calls due each second; 0: as fast as --in-flight allows (default: 0)
        #[argh(option, default = "0.0")]
        rate: f64,
        /// seconds that each call may take (default: 30)
        #[argh(option, default = "Duration::from_secs(30)", from_str_fn(common::seconds))]
        timeout: Duration,
        /// which Fibonacci number to request, at most 186 (default: 7)
        #[argh(option, default = "7")]
        n: u64,
        /// print one JSON object instead of a table; latencies are in microseconds
        #[argh(switch)]
        json: bool,
    }
}

fn main() -> ExitCode {
    let args: Args = common::parse(env::args_os().skip(1));
    if args.n > fibonacci::MAX_N {
        common::usage_error("--n is at most 186: there is no larger answer to check.");
    }
    if args.threads == 0 || !(args.rate >= 0.0 && args.rate.is_finite()) {
        common::usage_error("--threads is at least 1, and --rate not negative.");
    }
    common::start_logger("warn");
    match connect(&args) {
        Ok(client) => run(&args, &client),
        Err(error) => ExitCode::from(common::report(NAME, &error)),
    }
}

fn connect(args: &Args) -> Result<FibonacciRpcClient, Error> {
    let options = ClientOptions {
        timeout: args.timeout,
        exchange: args.exchange.clone(),
        // In an open loop only the servers may delay a call.
        max_in_flight: if args.rate > 0.0 { usize::MAX } else { args.in_flight.max(args.threads) },
        ..FibonacciRpcClient::options()
    };
    FibonacciRpcClient::with_options(args.brokers()?, &args.queue, options)
}

fn run(args: &Args, client: &FibonacciRpcClient) -> ExitCode {
    let load = Arc::new(Load {
        args: args.clone(),
        expected: fibonacci::fib(args.n),
        began: Instant::now(),
        next: AtomicU64::new(0),
        tally: Mutex::new(Tally::new()),
        shows_progress: stderr().is_terminal(),
    });
    let so_far = Arc::clone(&load);
    signals::handle(move |signal| {
        let _ = so_far.print();
        signals::end_by(signal);
    });
    thread::scope(|scope| {
        for _ in 0..args.threads {
            let drive = || load.drive(client);
            if let Err(error) = thread::Builder::new().spawn_scoped(scope, drive) {
                let text = format!("No thread for a caller: {error}. Ask for fewer --threads.");
                common::usage_error(&text);
            }
        }
    });
    let printed = load.print();
    let all_right = lock(&load.tally).ok == args.requests;
    ExitCode::from(printed.map_or_else(|code| code, |()| u8::from(!all_right)))
}

/// The calls to make and their results, shared by the threads.
struct Load {
    args: Args,
    expected: u128,
    began: Instant,
    /// The number of the next call.
    next: AtomicU64,
    tally: Mutex<Tally>,
    shows_progress: bool,
}

impl Load {
    /// Makes calls until all threads together have made all. Keeps at most this thread's share of
    /// the calls in flight.
    fn drive(&self, client: &FibonacciRpcClient) {
        let share = match self.args.rate > 0.0 {
            true => usize::MAX,
            false => self.args.in_flight.div_ceil(self.args.threads).max(1),
        };
        let mut pending = VecDeque::new();
        while let Some(due) = self.next_due() {
            while pending.len() >= share || !pending.is_empty() && due > Instant::now() {
                let until = (pending.len() < share).then_some(due);
                self.settle_oldest(&mut pending, until);
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // In a closed loop a call is due as soon as there is room for it.
            let due = if self.args.rate > 0.0 { due } else { Instant::now() };
            match client.send(self.args.n) {
                Ok(call) => pending.push_back((due, call)),
                Err(error) => self.count(due, Err(error)),
            }
        }
        while !pending.is_empty() {
            self.settle_oldest(&mut pending, None);
        }
    }

    /// When the next call is due. In a closed loop, every call is due from the start. In an open
    /// loop, the number of the call decides. `None` if all calls are made.
    fn next_due(&self) -> Option<Instant> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.args.requests).then(|| match self.args.rate > 0.0 {
            true => self.began + Duration::from_secs_f64(number as f64 / self.args.rate),
            false => self.began,
        })
    }

    /// Waits for the oldest call and counts its result. Stops waiting at `until`.
    fn settle_oldest(
        &self,
        pending: &mut VecDeque<(Instant, PendingNumber)>,
        until: Option<Instant>,
    ) {
        let Some((due, mut call)) = pending.pop_front() else { return };
        let answer = match until {
            None => call.wait(),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                match call.wait_timeout(left).transpose() {
                    Some(answer) => answer,
                    None => return pending.push_front((due, call)),
                }
            }
        };
        self.count(due, answer);
    }

    fn count(&self, due: Instant, answer: Result<u128, Error>) {
        let latency = due.elapsed();
        let mut tally = lock(&self.tally);
        match answer {
            Ok(number) if number == self.expected => tally.right(latency),
            Ok(_) => tally.wrong("wrong answer"),
            Err(error) => tally.wrong(error.kind()),
        }
        let (errors, done) = (tally.errors(), tally.ok + tally.errors());
        drop(tally);
        let requests = self.args.requests;
        if self.shows_progress && done.is_multiple_of(requests.div_ceil(10)) {
            common::say(format_args!("{done} of {requests} calls, {errors} errors"));
        }
    }

    /// Prints the results so far. Returns the exit code if they cannot be written.
    fn print(&self) -> Result<(), u8> {
        let seconds = self.began.elapsed().as_secs_f64();
        let tally = lock(&self.tally);
        common::print(match self.args.json {
            true => tally.json(seconds) + "\n",
            false => tally.table(seconds),
        })
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
