//! This crate's programs, run.

use std::process::{Command, Output};

use crate::broker::Broker;
use crate::patience::PATIENCE;
use crate::process::Process;

pub const RPC_BENCH: &str = env!("CARGO_BIN_EXE_rpc_bench");
pub const RPC_CLIENT: &str = env!("CARGO_BIN_EXE_rpc_client");
pub const RPC_SERVER: &str = env!("CARGO_BIN_EXE_rpc_server");

/// `rpc_server` on a queue of the shared broker, ready to be called.
pub fn rpc_server(queue: &str, args: &[&str]) -> Process {
    rpc_server_at(&Broker::shared().url(), queue, args)
}

/// `rpc_server` on a queue of some broker, ready to be called.
pub fn rpc_server_at(url: &str, queue: &str, args: &[&str]) -> Process {
    ready(Command::new(RPC_SERVER).args(["--url", url, "--queue", queue]).args(args), queue)
}

/// The same on the shared broker, with what the crate logs at `debug`.
pub fn rpc_server_that_logs(queue: &str, args: &[&str]) -> Process {
    let mut command = Command::new(RPC_SERVER);
    command.args(["--url", &Broker::shared().url(), "--queue", queue]).args(args);
    ready(command.env("RUST_LOG", "rabbitmq_rpc=debug"), queue)
}

fn ready(command: &mut Command, queue: &str) -> Process {
    let mut server = Process::from(command);
    let line = server.wait_for_line("Awaiting", PATIENCE);
    assert_eq!(line, format!("Awaiting RPC requests on {queue}"));
    server
}

/// Tells a server to stop, and sees it leave in good order.
pub fn stop(server: &mut Process) {
    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
}

/// How many requests it says it has answered, once it has left in good order.
pub fn served_until_its_end(server: &mut Process) -> u64 {
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
    let log = server.stderr();
    let counters = log.split("stopped: ServerCounters { served: ").nth(1);
    let number = counters.and_then(|counters| counters.split(',').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no counters: {log}"))
}

/// What `rpc_client` prints and exits with, on the shared broker.
pub fn rpc_client(queue: &str, args: &[&str]) -> Output {
    run_client(&[&["--url", &Broker::shared().url(), "--queue", queue], args].concat())
}

pub fn run_client(args: &[&str]) -> Output {
    Command::new(RPC_CLIENT).args(args).output().expect("rpc_client runs")
}
