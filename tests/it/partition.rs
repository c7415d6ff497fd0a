//! A node that is cut off from the other two: idempotent calls from both sides are answered by the
//! majority, whether the minority pauses or continues until the partition ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use rabbitmq_rpc::{Brokers, ClientOptions, Error, FibonacciRpcClient, fibonacci};

use crate::broker::{Broker, queue_name};
use crate::patience::{PATIENCE, SetOnDrop, await_value, poll};
use crate::programs::{rpc_server_at, stop};

const NODES: usize = 3;
/// The node that is cut off. The quorum queue's first leader is on it, since the first server
/// declares the queue there.
const ISOLATED: usize = 0;
const DURATION: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(25);
/// How far past its deadline a call may end.
const LATENESS: Duration = Duration::from_secs(5);
/// How long a caller on either side may go without an answer.
const LONGEST_GAP: Duration = Duration::from_secs(20);

/// The setting of `scripts/broker.sh`.
#[test]
fn calls_are_answered_while_a_minority_pauses() {
    calls_are_answered_while_a_node_is_cut_off("pause_minority");
}

/// The broker restarts the minority's node when the partition ends.
#[test]
fn calls_are_answered_while_a_minority_continues() {
    calls_are_answered_while_a_node_is_cut_off("autoheal");
}

/// Two callers and one server connect to each node first.
fn calls_are_answered_while_a_node_is_cut_off(handling: &str) {
    let broker = Broker::cluster(NODES);
    broker.set_partition_handling(handling);
    let queue = queue_name("partition");
    let urls = |first: usize| {
        let urls = (0..NODES).map(|node| broker.url_of((first + node) % NODES));
        urls.collect::<Vec<_>>().join(",")
    };
    let quorum = ["--queue-type", "quorum", "--prefetch", "8"];
    let servers = [ISOLATED, ISOLATED + 1, ISOLATED + 2].map(|node| urls(node % NODES));
    let mut servers = servers.map(|urls| rpc_server_at(&urls, &queue, &quorum));
    let stopped = Arc::new(AtomicBool::new(false));
    let callers: Vec<Caller> = (0..2 * NODES)
        .map(|number| Caller::start(number % NODES, &urls(number % NODES), &queue, &stopped))
        .collect();
    {
        let _stop = SetOnDrop(&stopped);
        callers.iter().for_each(|caller| caller.wait_for_answers(50));
        broker.isolate(ISOLATED);
        thread::sleep(DURATION);
        broker.reconnect(ISOLATED);
        // The node may restart first.
        let has_rejoined = |running: &usize| *running == NODES;
        poll(2 * PATIENCE, || broker.running_nodes(ISOLATED), has_rejoined).unwrap();
        callers.iter().for_each(|caller| caller.wait_for_answers(50));
    }
    let calls: Vec<(usize, Calls)> = callers.into_iter().map(Caller::calls).collect();
    for (node, calls) in &calls {
        println!("caller that began on node {node}: {calls:?}");
    }
    for (node, Calls { violations, errors, longest_gap, .. }) in &calls {
        assert!(violations.is_empty(), "caller that began on node {node}: {violations:#?}");
        assert!(errors.is_empty(), "caller that began on node {node}: {errors:#?}");
        assert!(
            *longest_gap <= LONGEST_GAP,
            "a caller that began on node {node} got no answer for {longest_gap:?}"
        );
    }
    servers.iter_mut().for_each(stop);
}

/// A thread that calls without pause until it is stopped.
struct Caller {
    node: usize,
    calls: Arc<Mutex<Calls>>,
    ended: Receiver<()>,
}

#[derive(Default, Debug, Clone)]
struct Calls {
    answers: usize,
    errors: Vec<Error>,
    longest_gap: Duration,
    violations: Vec<String>,
}

impl Caller {
    fn start(node: usize, urls: &str, queue: &str, stopped: &Arc<AtomicBool>) -> Caller {
        let (timeout, keep_alive) = (DEADLINE, Some(Duration::from_secs(1)));
        let options = ClientOptions { timeout, keep_alive, ..FibonacciRpcClient::options() };
        let brokers = Brokers::parse(urls).unwrap();
        let client = FibonacciRpcClient::with_options(brokers, queue, options).unwrap();
        let (calls, stopped) = (Arc::new(Mutex::new(Calls::default())), Arc::clone(stopped));
        let shared = Arc::clone(&calls);
        let (end, ended) = unbounded();
        thread::spawn(move || {
            call_until(&stopped, &client, &shared);
            let _ = end.send(());
        });
        Caller { node, calls, ended }
    }

    fn wait_for_answers(&self, more: usize) {
        let answers = || self.calls.lock().unwrap().answers;
        let enough = answers() + more;
        await_value(answers, |answers| *answers >= enough);
    }

    /// Waits for the caller to end and returns its calls. Panics if a call does not end.
    fn calls(self) -> (usize, Calls) {
        let ended = self.ended.recv_timeout(DEADLINE + LATENESS);
        ended.expect("every call has an outcome at its deadline");
        let calls = self.calls.lock().unwrap().clone();
        (self.node, calls)
    }
}

fn call_until(stopped: &AtomicBool, client: &FibonacciRpcClient, calls: &Mutex<Calls>) {
    let mut last_answer = Instant::now();
    for n in (0..=fibonacci::MAX_N).cycle() {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let began = Instant::now();
        let outcome = client.call(n);
        let now = Instant::now();
        let mut calls = calls.lock().unwrap();
        if now - began > DEADLINE + LATENESS {
            calls.violations.push(format!("fib({n}) took {:?}: {outcome:?}", now - began));
        }
        match outcome {
            Ok(number) if number == fibonacci::fib(n) => {
                calls.answers += 1;
                calls.longest_gap = calls.longest_gap.max(now - last_answer);
                last_answer = now;
            }
            Ok(number) => calls.violations.push(format!("fib({n}) is not {number}")),
            Err(error) => calls.errors.push(error),
        }
    }
}
