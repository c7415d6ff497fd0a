//! Serves Fibonacci numbers, as RabbitMQ's tutorial six does, or any command.

#[path = "rpc_server/command.rs"]
mod command;
mod common;
#[path = "rpc_server/pipes.rs"]
mod pipes;
#[path = "rpc_server/readiness.rs"]
mod readiness;
#[path = "common/signals.rs"]
mod signals;

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use argh::FromArgs;
use command::Command;
use common::NAME;
use rabbitmq_rpc::{Error, QueueType, Request, RpcServer, ServerOptions, Stopper, fibonacci};
use readiness::Readiness;

common::args! {
    /// Serve a RabbitMQ queue until interrupted: answer each request with a Fibonacci number, or, if
    /// the options end with -- COMMAND ARG..., with what this command prints.
    #[derive(FromArgs)]
    #[argh(
        example = "rpc_server --url amqp://ann:s3cret@rabbit-1,amqp://ann:s3cret@rabbit-2 --workers 4
rpc_server --queue upper --workers 4 -- tr a-z A-Z",
        note = "\
The command runs once for each request, without a shell: it gets the body as its input, and the
other properties as variables (RPC_METHOD, RPC_HEADER_...). Its output is the reply, its exit code
the status, the last line of its standard error the reason. The guide, src/guide/shell.md, says
more.

On SIGINT or SIGTERM the server answers the requests in progress, returns the others to
the queue, and exits. A second signal ends it at once.",
        error_code(0, "stopped, after answering every request in progress"),
        error_code(64, "usage, or there is no such command"),
        error_code(69, "no broker could be reached"),
        error_code(71, "the system gave it no thread for signals"),
        error_code(75, "after --drain-timeout, requests were in progress, or replies not confirmed"),
        error_code(77, "the broker refused the user or a permission"),
        error_code(78, "the broker refused the queue"),
        error_code(130, "a second SIGINT ended it; SIGTERM: 143")
    )]
    struct Args {
        /// queue to take requests from (default: rpc_queue)
        #[argh(option, default = "String::from(\"rpc_queue\")")]
        queue: String,
        /// requests to work on at once (default: 1)
        #[argh(option, default = "1")]
        workers: usize,
        /// unacknowledged requests that the broker sends to each worker; 0: no limit (default: 1)
        #[argh(option, default = "1")]
        prefetch: u16,
        /// compute by double recursion, to make the job slow on purpose
        #[argh(switch)]
        recursive: bool,
        /// kind of queue to declare if it does not exist: classic or quorum (default: classic)
        #[argh(option, default = "QueueType::Classic", from_str_fn(queue_type))]
        queue_type: QueueType,
        /// how often a request is redelivered at most (quorum queues only)
        #[argh(option)]
        delivery_limit: Option<u32>,
        /// exchange for requests that were rejected, expired or delivered too often; not with
        /// --max-waiting
        #[argh(option)]
        dead_letter_exchange: Option<String>,
        /// exchange to bind the queue to, with the queue's name as the routing key; declared if it does
        /// not exist
        #[argh(option)]
        exchange: Option<String>,
        /// key to bind the queue with, in place of its name: a pattern for a topic exchange, a weight such
        /// as 1 for a consistent-hash exchange
        #[argh(option)]
        binding_key: Option<String>,
        /// requests that may wait in the queue, if this server declares it; callers over the limit
        /// learn at once that the service is overloaded
        #[argh(option)]
        max_waiting: Option<u32>,
        /// seconds after which RabbitMQ 4.3 returns the requests of workers on a lost node, if this
        /// server declares a quorum queue; 0: the broker's own time, a minute (default: 2 if there are
        /// several brokers, else 0)
        #[argh(option, from_str_fn(common::seconds))]
        disconnected_timeout: Option<Duration>,
        /// file that exists only while every worker takes requests, for probes; it contains the status
        #[argh(option)]
        ready_file: Option<PathBuf>,
        /// seconds to wait for requests in progress when stopping (default: 30)
        #[argh(option, default = "Duration::from_secs(30)", from_str_fn(common::seconds))]
        drain_timeout: Duration,
    }
}

fn main() -> ExitCode {
    let mut words: Vec<OsString> = env::args_os().skip(1).collect();
    let separator = words.iter().position(|word| word == "--");
    let command = separator.map(|at| words.drain(at..).skip(1).collect());
    let args: Args = common::parse(words);
    if args.recursive && command.is_some() {
        common::usage_error("--recursive is not for a command.");
    }
    let command = command.map(Command::new).transpose();
    let command = command.unwrap_or_else(|mistake| common::usage_error(&mistake));
    common::start_logger("info");
    match serve(args, command.map(Arc::new)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(common::report(NAME, &error)),
    }
}

fn serve(args: Args, command: Option<Arc<Command>>) -> Result<(), Error> {
    let brokers = args.brokers();
    // Even if they cannot be used, the ready file of an earlier server goes.
    let readiness = Readiness::new(args.ready_file)?;
    let options = ServerOptions {
        workers: args.workers,
        prefetch: args.prefetch,
        queue_type: args.queue_type,
        delivery_limit: args.delivery_limit,
        dead_letter_exchange: args.dead_letter_exchange,
        exchange: args.exchange,
        binding_key: args.binding_key,
        max_waiting: args.max_waiting,
        render_failure: None,
        disconnected_timeout: args.disconnected_timeout,
        version: Some(env!("CARGO_PKG_VERSION").into()),
        drain_timeout: args.drain_timeout,
    };
    let queue = args.queue;
    let server = RpcServer::new(brokers?, &queue, options)?.on_ready(move || {
        // If nobody reads this line, the server serves all the same.
        let _ = common::print(format!("Awaiting RPC requests on {queue}\n"));
    });
    let watch = readiness.watch(server.stopper())?;
    stop_on_a_signal(server.stopper(), command.clone());
    let served = match command {
        Some(command) => {
            let runs = Arc::clone(&command);
            let served = server.serve(move |request: &Request| runs.answer(request));
            command.end_all();
            served
        }
        None if args.recursive => server.serve(fibonacci::answer_slowly),
        None => server.serve(fibonacci::answer),
    };
    watch.end();
    served
}

/// The first signal stops the server, the second one ends the process.
fn stop_on_a_signal(stopper: Stopper, command: Option<Arc<Command>>) {
    let mut is_stopping = false;
    signals::handle(move |signal| {
        if is_stopping {
            command.iter().for_each(|command| command.kill_all());
            signals::end_by(signal);
        }
        is_stopping = true;
        stopper.stop();
    });
}

fn queue_type(text: &str) -> Result<QueueType, String> {
    match text {
        "classic" => Ok(QueueType::Classic),
        "quorum" => Ok(QueueType::Quorum),
        _ => Err("a queue is classic or quorum".into()),
    }
}
