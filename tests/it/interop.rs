//! Clients and servers on other AMQP libraries, and what those clients see of a reply.

mod amqp_tools; // amqp-publish, amqp-get and amqp-consume
mod c; // librabbitmq
mod kombu;
mod pika; // tutorial six itself

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::broker::{Broker, queue_name};
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{rpc_client, rpc_server};
use crate::raw::DIRECT_REPLY_TO;

/// A valid request and two invalid ones.
const REQUESTS: [&str; 3] = ["7", "187", "seven"];

/// What every requester prints of the replies to them. `None` stands for an absent property: a
/// result has only the properties of tutorial six.
const REPLIES: &str = "\
type=None rpc-status=None body=13
type=error rpc-status=OUT_OF_RANGE body=fib(187) does not fit into 128 bits; n goes from 0 to 186
type=error rpc-status=INVALID_ARGUMENT body=the request is \"seven\", not a decimal number
";

/// Waits until the requester has all its replies, and returns what it prints of them.
fn replies(mut requester: Process) -> String {
    let status = requester.wait(PATIENCE);
    assert!(status.success(), "{status}: {}", requester.stderr());
    requester.stdout().to_string()
}

/// What a requester prints of replies with the first `count` Fibonacci numbers.
fn numbers(count: u64) -> String {
    let line = |n| format!("type=None rpc-status=None body={}\n", rabbitmq_rpc::fibonacci::fib(n));
    (0..count).map(line).collect()
}

/// Runs a Python program on a queue of the shared broker. Only Debian's own python3 finds Debian's
/// packages.
fn python(program: &str, queue: &str, args: &[&str]) -> Process {
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-B").arg(source(program));
    Process::from(command.args(["--url", &Broker::shared().url(), "--queue", queue]).args(args))
}

/// A server in Python, ready to be called.
fn python_server(program: &str, queue: &str, args: &[&str]) -> Process {
    let mut server = python(program, queue, args);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    server
}

/// The path of a file of this repository.
fn source(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(program)
}

/// Checks that the durable queue still exists and is empty.
fn assert_kept_and_empty(queue: &str) {
    let queues = Broker::shared().ctl(&["list_queues", "name", "durable", "messages"]);
    assert!(queues.lines().any(|row| row == format!("{queue}\ttrue\t0")), "{queue}: {queues}");
}
