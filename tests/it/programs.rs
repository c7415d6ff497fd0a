//! Runs this crate's programs.

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
    ready(&mut server_command(url, queue, args), queue)
}

/// As [`rpc_server`], with the crate's log at `debug`.
pub fn rpc_server_that_logs(queue: &str, args: &[&str]) -> Process {
    let mut command = server_command(&Broker::shared().url(), queue, args);
    ready(command.env("RUST_LOG", "rabbitmq_rpc=debug"), queue)
}

/// On a busy machine, connecting may take longer than it may by default: the first connection is
/// tried again.
fn server_command(url: &str, queue: &str, args: &[&str]) -> Command {
    let mut command = Command::new(RPC_SERVER);
    command.args(["--url", url, "--queue", queue, "--wait", "60"]).args(args);
    command
}

fn ready(command: &mut Command, queue: &str) -> Process {
    let mut server = Process::from(command);
    let line = server.wait_for_line("Awaiting", PATIENCE);
    assert_eq!(line, format!("Awaiting RPC requests on {queue}"));
    server
}

/// Stops a server by SIGTERM and checks that it exits 0.
pub fn stop(server: &mut Process) {
    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
}

/// Waits for a server to exit 0, and returns the number of requests that its log says it served.
pub fn wait_for_served(server: &mut Process) -> u64 {
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
    let log = server.stderr();
    let counters = log.split("stopped: ServerCounters { served: ").nth(1);
    let number = counters.and_then(|counters| counters.split(',').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no counters: {log}"))
}

/// Runs `rpc_client` on the shared broker until it ends.
pub fn rpc_client(queue: &str, args: &[&str]) -> Output {
    let place = ["--url", &Broker::shared().url(), "--queue", queue, "--connect-timeout", "20"];
    run_client(&[&place, args].concat())
}

pub fn run_client(args: &[&str]) -> Output {
    Command::new(RPC_CLIENT).args(args).output().expect("rpc_client runs")
}
