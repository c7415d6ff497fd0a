//! Minutes of faults under load: whatever is killed, stopped, frozen, blocked, closed, deleted or
//! swallowed, each call ends in time, with the right answer or with an error, and nothing grows.
//!
//! Three nodes; two services, each on a quorum queue with two servers; clients of both. One fault
//! comes after the other, in an order that is the seed's choice, and everybody has to get answers
//! again before the next. `RABBITMQ_RPC_SOAK_MINUTES` says for how long (1 unless set; every kind
//! of fault comes at least once however long that takes), `RABBITMQ_RPC_SOAK_SEED` repeats a run's
//! choices. `scripts/soak.sh` sets both.

mod faults;
mod fleet;
mod ledger;
mod planted;
mod report;
mod roles;
mod schedule;
mod visitors;

use std::env;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use faults::Ground;
use ledger::{GROWTH, HARNESS, LEFT, Ledger, UNACKED};
use report::{History, Report};
use schedule::Schedule;
use visitors::Visitors;

use crate::broker::Broker;
use crate::usage::Usage;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(90);

// With that many processes and nodes it needs the machine for itself.
#[cfg_attr(feature = "soak", test)]
#[cfg_attr(not(feature = "soak"), expect(dead_code))]
fn faults_cost_no_answer() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let minutes = number("RABBITMQ_RPC_SOAK_MINUTES").unwrap_or(1);
    let seed = number("RABBITMQ_RPC_SOAK_SEED")
        .unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
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
        ledger.offend(HARNESS, format!("after {} faults: {text}", history.faults.len()));
    }
    let totals = ledger.balance();
    let report = Report { seed, took: began.elapsed(), path, totals, history };
    println!("\n{report}");
    assert!(report.is_good(), "seed {seed}: {:#?}", report.totals.offences);
}

fn soak(seed: u64, duration: Duration, ledger: &Arc<Ledger>, history: &mut History) {
    let mut ground = Ground::prepare(ledger);
    let stall = Stall::watch();
    // What stays for good with the first use of anything, or with the first loss of a connection,
    // is no growth.
    for _ in 0..2 {
        ledger.await_answers(&ground.fleet.clients(), 50, PATIENCE);
        ground.broker.ctl(&["close_all_connections", "the soak warms up"]);
    }
    ledger.await_answers(&ground.fleet.clients(), 50, PATIENCE);
    let steady = ground.fleet.steady();
    let before: Vec<Usage> = steady.iter().map(|(_, process)| Usage::of(*process)).collect();

    let visitors = Visitors::begin(Arc::clone(ledger), ground.fleet.urls(0, true));
    let began = Instant::now();
    for (number, fault) in Schedule::new(seed).enumerate() {
        if number >= Schedule::KINDS && began.elapsed() >= duration {
            break;
        }
        let at = began.elapsed().as_secs_f64();
        ledger.announce(&format!("{at:6.1} s  {number}: {fault}"));
        ledger.longest_gap();
        ground.suffer(fault);
        ground.fleet.muster();
        ledger.await_answers(&ground.fleet.clients(), 5, PATIENCE);
        history.faults.push((fault.kind(), ledger.longest_gap()));
    }

    for ((name, process), before) in steady.into_iter().zip(before) {
        let growth = settled(name, process, before);
        if growth.is_too_much() {
            ledger.offend(GROWTH, format!("{growth:?}"));
        }
        history.growth.push(growth);
    }
    visitors.end();
    ground.fleet.end_clients();
    expect_empty_queues(&ground.broker, ledger);
    ground.fleet.end_servers();
    history.stall = stall.longest();
    history.is_complete = true;
}

/// A process that lives from beginning to end: after the warm-up, and at the end.
#[derive(Debug)]
struct Growth {
    name: String,
    before: Usage,
    after: Usage,
}

impl Growth {
    /// Threads that come and go with connections leave the allocator arenas of different sizes,
    /// which settle within some reconnects; a leak of any call, reply or connection goes on.
    fn is_too_much(&self) -> bool {
        const MOST: i64 = 3 * 1024;
        let Growth { before, after, .. } = self;
        after.memory - before.memory > MOST
            || after.threads > before.threads
            || after.descriptors > before.descriptors
    }
}

/// What a process has grown by, once the threads that only connect and close have ended.
fn settled(name: String, process: u32, before: Usage) -> Growth {
    let until = Instant::now() + Duration::from_secs(20);
    let mut growth = Growth { name, before, after: Usage::of(process) };
    while growth.is_too_much() && Instant::now() < until {
        thread::sleep(Duration::from_millis(100));
        growth.after = Usage::of(process);
    }
    growth
}

/// After the clients have ended nothing is left to do, and their reply queues are gone.
fn expect_empty_queues(broker: &Broker, ledger: &Ledger) {
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let columns = ["list_queues", "name", "messages_ready", "messages_unacknowledged"];
        let listed = broker.ctl(&[&columns[..], &["--no-table-headers"]].concat());
        let (mut unacked, mut left) = (Vec::new(), Vec::new());
        for line in listed.lines() {
            let columns: Vec<&str> = line.split_whitespace().collect();
            if columns[2] != "0" {
                unacked.push(line);
            }
            let is_ours = Service::ALL.iter().any(|service| service.queue() == columns[0]);
            if columns[1] != "0" || !is_ours {
                left.push(line);
            }
        }
        if unacked.is_empty() && left.is_empty() {
            return;
        }
        if Instant::now() > until {
            unacked.iter().for_each(|line| ledger.offend(UNACKED, (*line).to_owned()));
            left.iter().for_each(|line| ledger.offend(LEFT, (*line).to_owned()));
            return;
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// What is called, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// `rpc_server`, by `FibonacciRpcClient`.
    Fibonacci,
    /// A server that says its name, by calls that may run twice.
    Named,
    /// The same server, by calls that may not, and that do not wait for long.
    Once,
    /// `rpc_server`, by `rpc_client`.
    Shell,
}

impl Service {
    pub const ALL: [Service; 4] =
        [Service::Fibonacci, Service::Named, Service::Once, Service::Shell];
    /// Those that every client of the fleet calls.
    pub const CALLED: [Service; 3] = [Service::Fibonacci, Service::Named, Service::Once];

    pub fn name(self) -> &'static str {
        match self {
            Service::Fibonacci => "fibonacci",
            Service::Named => "named",
            Service::Once => "once",
            Service::Shell => "rpc_client",
        }
    }

    pub fn named(name: &str) -> Service {
        let service = Service::ALL.into_iter().find(|service| service.name() == name);
        service.unwrap_or_else(|| panic!("there is no service {name:?}"))
    }

    pub fn queue(self) -> &'static str {
        match self {
            Service::Fibonacci | Service::Shell => "soak-fibonacci",
            Service::Named | Service::Once => "soak-named",
        }
    }

    pub fn is_idempotent(self) -> bool {
        self != Service::Once
    }

    pub fn timeout(self) -> Duration {
        match self {
            Service::Fibonacci | Service::Named => Duration::from_secs(15),
            Service::Once => Duration::from_secs(5),
            Service::Shell => visitors::TIMEOUT,
        }
    }
}

/// Measures how late the machine wakes a thread that sleeps.
struct Stall {
    over: Arc<AtomicBool>,
    watching: JoinHandle<Duration>,
}

impl Stall {
    fn watch() -> Stall {
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let watching = thread::spawn(move || {
            const NAP: Duration = Duration::from_millis(10);
            let mut longest = Duration::ZERO;
            while !until.load(Ordering::Relaxed) {
                let began = Instant::now();
                thread::sleep(NAP);
                longest = longest.max(began.elapsed() - NAP);
            }
            longest
        });
        Stall { over, watching }
    }

    fn longest(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.watching.join().unwrap()
    }
}
