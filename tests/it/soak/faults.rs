//! How each fault is injected and ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::ledger::Ledger;
use super::processes::Processes;
use super::schedule::Fault;
use super::{RECOVERY_TIMEOUT, Service};
use crate::broker::Broker;
use crate::patience::poll;
use crate::proxy::{Mode, Proxy};

/// All that faults are injected into: the cluster, the proxies in front of it, and the clients and
/// servers.
pub struct System {
    pub broker: Broker,
    pub processes: Processes,
    proxies: Vec<Proxy>,
}

impl System {
    pub const NODES: usize = 3;

    pub fn start(ledger: &Arc<Ledger>) -> System {
        // A connection is lost after two intervals of silence, which is four seconds, and no broker
        // is waited for longer than two seconds.
        const PARAMETERS: &str = "?heartbeat=2&connection_timeout=2000";
        let broker = Broker::cluster(System::NODES);
        let nodes = 0..System::NODES;
        let proxies: Vec<Proxy> = nodes.clone().map(|node| Proxy::to(broker.port(node))).collect();
        let direct = nodes.map(|node| broker.url_of(node) + PARAMETERS).collect();
        let proxied = proxies.iter().map(|proxy| proxy.url() + PARAMETERS).collect();
        let processes = Processes::start(Arc::clone(ledger), direct, proxied);
        System { broker, processes, proxies }
    }

    /// Injects the faults at once, waits for as long as the longest lasts, and ends them, the last
    /// one first.
    pub fn inject(&mut self, faults: &[Fault]) {
        faults.iter().for_each(|fault| self.begin(*fault));
        let durations = faults.iter().map(Fault::duration);
        thread::sleep(durations.max().unwrap_or_default());
        faults.iter().rev().for_each(|fault| self.end(*fault));
    }

    fn begin(&mut self, fault: Fault) {
        let System { broker, processes, proxies } = self;
        match fault {
            Fault::KillServer(number) => processes.kill_server(Processes::LONG_LIVED + number),
            Fault::TerminateServer(number) => {
                processes.terminate_server(Processes::LONG_LIVED + number);
            }
            Fault::KillClient => processes.kill_client(),
            Fault::TerminateClient => processes.terminate_client(),
            Fault::KillNode(node) => broker.kill(node),
            Fault::StopNode(node) => broker.stop(node),
            Fault::FreezeNode(node, _) => broker.freeze(node),
            Fault::CloseConnections => {
                broker.ctl(&["close_all_connections", "fault of the soak"]);
            }
            Fault::MemoryAlarm(node, _) => broker.raise_memory_alarm(node),
            Fault::Partition(node, _) => broker.isolate(node),
            Fault::DeleteQueue(service) => {
                broker.ctl(&["delete_queue", service.queue()]);
            }
            Fault::StallNetwork { nodes, .. } => {
                affected(proxies, nodes).for_each(|proxy| proxy.set(Mode::Stall));
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        let System { broker, proxies, .. } = self;
        match fault {
            Fault::KillNode(node) | Fault::StopNode(node) => {
                broker.start_node(node);
                wait_until_rejoined(broker, node);
            }
            Fault::FreezeNode(node, _) => {
                broker.thaw(node);
                // If the other nodes declared it down, it may never rejoin them, and needs a
                // restart.
                if !rejoins(broker, node, Duration::from_secs(10)) {
                    broker.kill(node);
                    broker.start_node(node);
                    wait_until_rejoined(broker, node);
                }
            }
            Fault::MemoryAlarm(node, _) => broker.clear_memory_alarm(node),
            Fault::Partition(node, _) => {
                broker.reconnect(node);
                wait_until_rejoined(broker, node);
            }
            Fault::StallNetwork { nodes, hang_up, .. } => {
                if hang_up {
                    affected(proxies, nodes).for_each(Proxy::cut);
                }
                affected(proxies, nodes).for_each(|proxy| proxy.set(Mode::Forward));
            }
            // The processes have been replaced already; the other faults have no duration.
            Fault::KillServer(_)
            | Fault::TerminateServer(_)
            | Fault::KillClient
            | Fault::TerminateClient
            | Fault::CloseConnections
            | Fault::DeleteQueue(_) => {}
        }
    }

    /// Replaces the processes that have ended, and waits until every client gets answers from every
    /// service.
    pub fn wait_until_ready(&mut self, ledger: &Ledger, after: &[Fault]) {
        self.processes.replace_ended();
        ledger.wait_for_answers(&self.processes.clients(), 5, RECOVERY_TIMEOUT);
        if after.iter().any(|fault| matches!(fault, Fault::DeleteQueue(_))) {
            // RabbitMQ 3.10 writes the name of a new queue member to disk half a second later. If
            // SIGKILL ends a node before that, it never starts this member again ("could not be
            // restarted {error,enoent}"), and every later fault meets a queue of two members.
            thread::sleep(Duration::from_secs(2));
        }
    }

    /// The queues with their consumers, and the state of each member of the request queues.
    fn describe_queues(&self, node: usize) -> String {
        let ctl = |args: &[&str]| self.broker.ctl_on(node, args);
        let columns = ["name", "leader", "members", "online", "messages", "consumers"];
        let mut text = ctl(&[&["list_queues"], &columns[..]].concat()) + &ctl(&["list_consumers"]);
        for queue in [Service::Fibonacci, Service::Named].map(Service::queue) {
            let status = format!("catch rabbit_quorum_queue:status(<<\"/\">>, <<\"{queue}\">>).");
            text += &ctl(&["eval", &status]);
        }
        text
    }
}

/// If the soak fails, prints what a running node knows about the queues.
impl Drop for System {
    fn drop(&mut self) {
        if thread::panicking() {
            let describe =
                |node| catch_unwind(AssertUnwindSafe(|| self.describe_queues(node))).ok();
            println!("{}", (0..System::NODES).find_map(describe).unwrap_or_default());
        }
    }
}

fn affected(proxies: &[Proxy], nodes: [bool; 3]) -> impl Iterator<Item = &Proxy> {
    proxies.iter().zip(nodes).filter_map(|(proxy, is_affected)| is_affected.then_some(proxy))
}

fn wait_until_rejoined(broker: &Broker, node: usize) {
    let rejoined = rejoins(broker, node, RECOVERY_TIMEOUT);
    assert!(rejoined, "node {node} has not rejoined the cluster after {RECOVERY_TIMEOUT:?}");
}

/// Whether the node runs, and the others list it as running, within that time. A node that was
/// frozen for long finds itself in a minority, pauses, and then rejoins.
fn rejoins(broker: &Broker, node: usize, timeout: Duration) -> bool {
    let other = (node + 1) % System::NODES;
    let is_back = || broker.running_nodes(other) == System::NODES && broker.is_running(node);
    poll(timeout, is_back, |is_back| *is_back).is_ok()
}
