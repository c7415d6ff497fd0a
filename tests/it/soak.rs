//! A test under faults and load: it injects faults into a cluster and its clients and servers, and
//! checks that each call ends in time, with the right answer or with an error, and that no process
//! grows.
//!
//! The cluster has three nodes. It carries two services, each on a quorum queue with two servers,
//! and clients call both. Faults come one at a time, and later two at once, in an order that the
//! seed determines. Some end processes, nodes or connections. Others have the broker refuse a message,
//! a login or a consumer: that may cost nobody else anything, and passes with its cause. After each
//! step, every client must get answers again before the next step.
//!
//! `RABBITMQ_RPC_SOAK_MINUTES` sets the duration (1 by default). In a run of [`FULL_RUN`] or more,
//! each kind of fault comes at least once alone; a shorter run has those that the seed puts first.
//! `RABBITMQ_RPC_SOAK_SEED` repeats the faults of an earlier run. `scripts/soak.sh` sets both.

mod faults;
mod leaders;
mod ledger;
mod processes;
mod refusals;
mod report;
mod roles;
mod schedule;
mod self_test;
mod short_lived_clients;
mod totals;

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use faults::System;
use ledger::Ledger;
use processes::Processes;
use report::{History, Report};
use schedule::{Fault, Schedule};
use short_lived_clients::ShortLivedClients;
use totals::{GROWN, LEFT_OVER, NOT_RECOVERED, UNACKED};

use crate::broker::Broker;
use crate::patience::{PATIENCE, poll};
use crate::settings;
use crate::usage::Usage;

const FULL_RUN: Duration = Duration::from_secs(5 * 60);

/// Longer than any recovery that succeeds.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(90);

// The test starts so many processes and nodes that no other test can run at the same time.
#[cfg_attr(feature = "soak", test)]
#[cfg_attr(not(feature = "soak"), expect(dead_code))]
fn every_call_ends_in_time_during_faults() {
    let minutes = settings::number("RABBITMQ_RPC_SOAK_MINUTES").unwrap_or(1);
    let seed = settings::seed("RABBITMQ_RPC_SOAK_SEED");
    println!("seed {seed}");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("soak-{seed}"));
    let ledger = Arc::new(Ledger::new(&path));
    let mut history = History::default();
    let began = Instant::now();

    let duration = Duration::from_secs(60 * minutes);
    let soak = AssertUnwindSafe(|| soak(seed, duration, &ledger, &mut history));
    if let Err(panic) = panic::catch_unwind(soak) {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        let faults = history.faults.len();
        ledger.record_violation(NOT_RECOVERED, format!("after {faults} faults: {text}"));
    }
    let totals = ledger.finish();
    let report = Report { seed, took: began.elapsed(), path, totals, history };
    println!("\n{report}");
    assert!(report.is_good(), "seed {seed}: {:#?}", report.totals.violations);
}

fn soak(seed: u64, duration: Duration, ledger: &Arc<Ledger>, history: &mut History) {
    let mut system = System::start(ledger);
    let wake_up_delay = WakeUpDelay::measure();
    ledger.wait_for_answers(&system.processes.clients(), 50, RECOVERY_TIMEOUT);
    let usage = |processes: &Processes| {
        let processes = processes.long_lived().into_iter();
        processes.map(|(name, process)| (name, process, Usage::of(process))).collect::<Vec<_>>()
    };
    let mut before = None;

    let urls = system.processes.urls(0, true);
    let short_lived_clients = ShortLivedClients::start(Arc::clone(ledger), urls);
    let began = Instant::now();
    for (number, faults) in Schedule::new(seed).enumerate() {
        let is_enough = number >= Schedule::SINGLES || duration < FULL_RUN;
        if is_enough && began.elapsed() >= duration {
            break;
        }
        if began.elapsed() >= duration / 2 && before.is_none() {
            wait_until_connected(&system);
            before = Some(usage(&system.processes));
        }
        let at = began.elapsed().as_secs_f64();
        let joined = |texts: Vec<String>| texts.join(" and ");
        let shown = joined(faults.iter().map(Fault::to_string).collect());
        ledger.announce(&format!("{at:6.1} s  {number}: {shown}"));
        ledger.take_longest_gaps();
        ledger.allow_refusals(faults.iter().any(Fault::refuses));
        system.inject(&faults, ledger);
        if faults.iter().any(Fault::leaves_no_answers) {
            ledger.restart_gaps();
        }
        system.wait_until_ready(ledger, &faults);
        ledger.allow_refusals(false);
        let kind = joined(faults.iter().map(|fault| fault.kind().to_owned()).collect());
        history.faults.push((kind, ledger.take_longest_gaps()));
    }

    let before = before.unwrap_or_else(|| usage(&system.processes));
    // One that has ended by itself is a violation already.
    let running = |process: &u32| Path::new(&format!("/proc/{process}")).exists();
    for (name, process, before) in before.into_iter().filter(|(_, process, _)| running(process)) {
        let growth = measure_growth(name, process, before);
        if growth.is_too_much() {
            ledger.record_violation(GROWN, format!("{growth:?}"));
        }
        history.growth.push(growth);
    }
    short_lived_clients.stop();
    system.processes.stop_clients();
    check_queues_are_empty(&system.broker, ledger);
    system.processes.stop_servers();
    history.wake_up_delay = wake_up_delay.longest();
    history.is_complete = true;
}

/// Waits for the processes that run from start to end. One without a connection would seem to grow
/// when it connects.
fn wait_until_connected(system: &System) {
    let connected = || {
        let seen = system.broker.ctl(&["list_connections", "client_properties"]);
        let mut processes = system.processes.long_lived().into_iter();
        processes.all(|(_, process)| seen.contains(&format!("process {process}\"")))
    };
    let _ = poll(Duration::from_secs(20), connected, |connected| *connected);
}

/// What a process that runs from start to end uses after half of the time and at the end.
#[derive(Debug)]
struct Growth {
    name: String,
    before: Usage,
    after: Usage,
}

impl Growth {
    /// Each reconnect starts and ends threads, which leaves the allocator with arenas of different
    /// sizes. Their total is stable after some hundred reconnects; a leak of calls, replies or
    /// connections goes on. So growth counts from the middle of the soak. A client whose first
    /// request of a megabyte comes after that also keeps memory for a few of them: bodies, frames.
    fn is_too_much(&self) -> bool {
        const MEMORY_LIMIT: i64 = 8 * 1024;
        let Growth { before, after, .. } = self;
        after.memory - before.memory > MEMORY_LIMIT
            || after.threads > before.threads
            || after.descriptors > before.descriptors
    }
}

/// Measures the growth of a process, after waiting for its threads that only connect or close.
fn measure_growth(name: String, process: u32, before: Usage) -> Growth {
    let look = || Growth { name: name.clone(), before, after: Usage::of(process) };
    poll(Duration::from_secs(20), look, |growth| !growth.is_too_much())
        .unwrap_or_else(|growth| growth)
}

/// Once the clients have ended, no message and no reply queue may be left.
fn check_queues_are_empty(broker: &Broker, ledger: &Ledger) {
    let listed = || {
        let columns = ["list_queues", "name", "messages_ready", "messages_unacknowledged"];
        let listed = broker.ctl(&[&columns[..], &["--no-table-headers"]].concat());
        let (mut unacked, mut left_over) = (Vec::new(), Vec::new());
        for line in listed.lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if columns[2] != "0" {
                unacked.push(line.to_owned());
            }
            let is_request_queue = Service::ALL.iter().any(|service| service.queue() == columns[0]);
            if columns[1] != "0" || !is_request_queue {
                left_over.push(line.to_owned());
            }
        }
        [(UNACKED, unacked), (LEFT_OVER, left_over)]
    };
    let found = poll(Duration::from_secs(30), listed, |found| {
        found.iter().all(|(_, lines)| lines.is_empty())
    });
    for (heading, lines) in found.unwrap_or_else(|found| found) {
        lines.into_iter().for_each(|line| ledger.record_violation(heading, line));
    }
}

/// A server and a way of calling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// `rpc_server`, called by `FibonacciRpcClient`.
    Fibonacci,
    /// A server that replies with its process id, called by idempotent calls.
    Named,
    /// The same, without signs of life.
    Plain,
    /// The same server, called by calls that are not idempotent and have a short deadline.
    Once,
    /// Requests larger than the broker takes, by clients that make the other calls meanwhile. The
    /// right outcome is an error.
    Refused,
    /// Requests that no client library sends, or that ask for a reply that the broker refuses.
    Hostile,
    /// `rpc_server`, called by `rpc_client`.
    Shell,
}

impl Service {
    pub const ALL: [Service; 7] = [
        Service::Fibonacci,
        Service::Named,
        Service::Plain,
        Service::Once,
        Service::Shell,
        Service::Refused,
        Service::Hostile,
    ];
    /// Those that every client process calls.
    pub const CALLED: [Service; 4] =
        [Service::Fibonacci, Service::Named, Service::Plain, Service::Once];

    pub fn name(self) -> &'static str {
        match self {
            Service::Fibonacci => "fibonacci",
            Service::Named => "named",
            Service::Plain => "plain",
            Service::Once => "once",
            Service::Refused => "refused",
            Service::Hostile => "hostile",
            Service::Shell => "rpc_client",
        }
    }

    pub fn from_name(name: &str) -> Service {
        let service = Service::ALL.into_iter().find(|service| service.name() == name);
        service.unwrap_or_else(|| panic!("there is no service {name:?}"))
    }

    pub fn queue(self) -> &'static str {
        match self {
            Service::Fibonacci | Service::Shell => "soak-fibonacci",
            _ => "soak-named",
        }
    }

    pub fn is_idempotent(self) -> bool {
        !matches!(self, Service::Once | Service::Refused | Service::Hostile)
    }

    pub fn timeout(self) -> Duration {
        match self {
            Service::Fibonacci | Service::Named | Service::Plain => Duration::from_secs(15),
            Service::Once => Duration::from_secs(5),
            Service::Refused => Duration::from_secs(10),
            Service::Hostile => PATIENCE,
            Service::Shell => short_lived_clients::TIMEOUT,
        }
    }
}

/// Measures how late the machine wakes a sleeping thread.
struct WakeUpDelay {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Duration>,
}

impl WakeUpDelay {
    fn measure() -> WakeUpDelay {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            const SLEEP: Duration = Duration::from_millis(10);
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(SLEEP);
                longest = longest.max(began.elapsed() - SLEEP);
            }
            longest
        });
        WakeUpDelay { stop, thread }
    }

    fn longest(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
