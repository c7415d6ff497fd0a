//! `rpc_client`, run again and again during the faults. Each run must end in time, and either print
//! the right numbers or fail with the exit code of a temporary error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rabbitmq_rpc::fibonacci;

use super::Service;
use super::ledger::Ledger;
use super::totals::HUNG;
use crate::process::Process;
use crate::programs::RPC_CLIENT;

/// Two seconds to connect to each of three brokers, twice as much to log in to each, ten seconds
/// for the calls, and two for closing.
pub const TIMEOUT: Duration = Duration::from_secs(24);

pub struct ShortLivedClients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl ShortLivedClients {
    /// Runs one client after the other, until [`ShortLivedClients::stop`].
    pub fn start(ledger: Arc<Ledger>, urls: String) -> ShortLivedClients {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for n in (0..=fibonacci::MAX_N - 2).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                run_client(&ledger, &urls, [n, n + 1, n + 2]);
                // Without a pause, starting programs would use all processor time.
                thread::sleep(Duration::from_millis(300));
            }
        });
        ShortLivedClients { stop, thread }
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

fn run_client(ledger: &Ledger, urls: &str, numbers: [u64; 3]) {
    let began = Instant::now();
    let args = ["--url", urls, "--queue", Service::Shell.queue()];
    let args = [&args[..], &["--timeout", "10", "--connect-timeout", "2"]].concat();
    let texts = numbers.map(|n| n.to_string());
    let args = [&args[..], &texts.each_ref().map(String::as_str)].concat();
    let mut client = Process::spawn(RPC_CLIENT, &args);
    let id = |n: u64| format!("{}-{n}", client.pid());
    let ids = numbers.map(id);
    for id in &ids {
        ledger.started(id, Service::Shell, Service::Shell.timeout());
    }
    let Some(status) = client.ends_within(2 * TIMEOUT) else {
        let what = format!("rpc_client {}: {}", client.pid(), client.stderr());
        ledger.record_violation(HUNG, what);
        client.kill();
        return ledger.close(client.pid(), false);
    };
    let took = began.elapsed();
    let errors = client.stderr().to_owned();
    let mut printed = client.stdout().lines();
    for (n, id) in numbers.into_iter().zip(&ids) {
        // A call that fails prints an error with its number, and no line on standard output.
        let failed = errors.contains(&format!("n = {n}: "));
        let number = if failed { None } else { printed.next() };
        let outcome = match (number, status.code()) {
            (Some(number), _) if number == fibonacci::fib(n).to_string() => {
                "right rpc_server".into()
            }
            (None, Some(code @ (69 | 75 | 77 | 78))) => format!("error exit-code-{code}"),
            (number, _) => format!("wrong {number:?}, {status}: {errors}"),
        };
        ledger.ended(id, took, &outcome);
    }
}
