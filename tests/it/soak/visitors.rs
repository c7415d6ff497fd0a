//! `rpc_client` from the shell, again and again, whatever is going on: each run ends in time, and
//! prints right numbers or fails with an exit code that says what to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rabbitmq_rpc::fibonacci;

use super::Service;
use super::ledger::{HUNG, Ledger};
use crate::process::Process;

/// Three brokers with two seconds for each and twice as much to log in, ten for the calls, and
/// two for closing.
pub const TIMEOUT: Duration = Duration::from_secs(24);

pub struct Visitors {
    over: Arc<AtomicBool>,
    coming: JoinHandle<()>,
}

impl Visitors {
    /// They come one after the other, until [`Visitors::end`].
    pub fn begin(ledger: Arc<Ledger>, urls: String) -> Visitors {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let coming = thread::spawn(move || {
            for n in (0..=fibonacci::MAX_N - 2).cycle() {
                if until.load(Ordering::Relaxed) {
                    return;
                }
                visit(&ledger, &urls, [n, n + 1, n + 2]);
                thread::sleep(Duration::from_millis(300));
            }
        });
        Visitors { over, coming }
    }

    pub fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.coming.join().unwrap();
    }
}

fn visit(ledger: &Ledger, urls: &str, numbers: [u64; 3]) {
    let began = Instant::now();
    let args = ["--url", urls, "--queue", Service::Shell.queue()];
    let args = [&args[..], &["--timeout", "10", "--connect-timeout", "2"]].concat();
    let shown = numbers.map(|n| n.to_string());
    let args = [&args[..], &shown.each_ref().map(String::as_str)].concat();
    let mut client = Process::spawn(env!("CARGO_BIN_EXE_rpc_client"), &args);
    let id = |n: u64| format!("{}-{n}", client.pid());
    let ids = numbers.map(id);
    for id in &ids {
        ledger.asked(id, Service::Shell, Service::Shell.timeout());
    }
    let Some(status) = client.ends_within(2 * TIMEOUT) else {
        ledger.offend(HUNG, format!("rpc_client {}: {}", client.pid(), client.stderr()));
        client.kill();
        return ledger.close(client.pid(), false);
    };
    let took = began.elapsed();
    let errors = client.stderr().to_owned();
    let mut printed = client.stdout().lines();
    for (n, id) in numbers.into_iter().zip(&ids) {
        // What has failed is told by its number, and leaves no line.
        let failed = errors.contains(&format!("n = {n}: "));
        let number = if failed { None } else { printed.next() };
        let outcome = match (number, status.code()) {
            (Some(number), _) if number == fibonacci::fib(n).to_string() => {
                "right rpc_server".into()
            }
            (None, Some(code @ (69 | 75))) => format!("error exit-code-{code}"),
            (number, _) => format!("wrong {number:?}, {status}: {errors}"),
        };
        ledger.ended(id, took, &outcome);
    }
}
