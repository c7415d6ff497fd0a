//! Whether the broker can answer at all: whether the request queues have leaders.

use std::thread;
use std::time::{Duration, Instant};

use super::Service;
use super::ledger::Ledger;
use crate::broker::Broker;

/// Looks at the request queues until then, through these nodes. While none of them reaches a leader
/// that a majority follows, no server gets the queue's requests, so the time without an answer
/// counts from the end of that.
pub fn watch(broker: &Broker, nodes: &[usize], ledger: &Ledger, until: Instant) {
    const INTERVAL: Duration = Duration::from_millis(100);
    let mut queues = [Service::Fibonacci, Service::Named].map(|service| (service.queue(), None));
    while Instant::now() < until {
        for (queue, since) in &mut queues {
            let looked = Instant::now();
            if nodes.iter().any(|node| has_leader(broker, *node, queue)) {
                announce(ledger, queue, since.take());
            } else {
                since.get_or_insert(looked);
                ledger.end_gaps(queue);
            }
        }
        thread::sleep(INTERVAL.min(until.saturating_duration_since(Instant::now())));
    }
    queues.into_iter().for_each(|(queue, since)| announce(ledger, queue, since));
}

fn announce(ledger: &Ledger, queue: &str, since: Option<Instant>) {
    if let Some(since) = since {
        let time = since.elapsed().as_secs_f64();
        ledger.announce(&format!("          {queue} had no leader for {time:.1} s"));
    }
}

/// Asks the queue's member on this node for an answer of its leader that a majority confirms.
fn has_leader(broker: &Broker, node: usize, queue: &str) -> bool {
    let query = format!(
        "catch begin \
         {{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
         {{Name, _}} = amqqueue:get_pid(Q), \
         {{ok, _, _}} = ra:consistent_query({{Name, node()}}, {{erlang, is_tuple, []}}, 500) end."
    );
    broker.ctl_on(node, &["eval", &query]).starts_with("{ok,")
}
