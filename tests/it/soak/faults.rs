//! How each fault is injected and ended.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::RECOVERY_TIMEOUT;
use super::ledger::Ledger;
use super::processes::Processes;
use super::schedule::Fault;
use crate::broker::Broker;
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
        // A connection is lost after two intervals of silence, which is four seconds.
        const HEARTBEAT: &str = "?heartbeat=2";
        let broker = Broker::cluster(System::NODES);
        let nodes = 0..System::NODES;
        let proxies: Vec<Proxy> = nodes.clone().map(|node| Proxy::to(broker.port(node))).collect();
        let direct = nodes.map(|node| broker.url_of(node) + HEARTBEAT).collect();
        let proxied = proxies.iter().map(|proxy| proxy.url() + HEARTBEAT).collect();
        let processes = Processes::start(Arc::clone(ledger), direct, proxied);
        System { broker, processes, proxies }
    }

    /// Injects the fault, waits for its duration, and ends it.
    pub fn inject(&mut self, fault: Fault) {
        let System { broker, processes, proxies } = self;
        match fault {
            Fault::KillServer(number) => processes.kill_server(Processes::LONG_LIVED + number),
            Fault::TerminateServer(number) => {
                processes.terminate_server(Processes::LONG_LIVED + number);
            }
            Fault::KillClient => processes.kill_client(),
            Fault::TerminateClient => processes.terminate_client(),
            Fault::KillNode(node) => {
                broker.kill(node);
                broker.start_node(node);
                wait_until_rejoined(broker, node);
            }
            Fault::StopNode(node) => {
                broker.stop(node);
                broker.start_node(node);
                wait_until_rejoined(broker, node);
            }
            Fault::FreezeNode(node, duration) => {
                broker.freeze(node);
                thread::sleep(duration);
                broker.thaw(node);
                // If the other nodes declared it down, it may never rejoin them, and needs a
                // restart.
                if !rejoins(broker, node, Duration::from_secs(30)) {
                    broker.kill(node);
                    broker.start_node(node);
                    wait_until_rejoined(broker, node);
                }
            }
            Fault::CloseConnections => {
                broker.ctl(&["close_all_connections", "fault of the soak"]);
            }
            Fault::MemoryAlarm(node, duration) => {
                broker.ctl_on(node, &["set_vm_memory_high_watermark", "absolute", "1"]);
                thread::sleep(duration);
                broker.ctl_on(node, &["set_vm_memory_high_watermark", "0.4"]);
            }
            Fault::Partition(node, duration) => {
                broker.isolate(node);
                thread::sleep(duration);
                broker.reconnect(node);
                wait_until_rejoined(broker, node);
            }
            Fault::DeleteQueue(service) => {
                broker.ctl(&["delete_queue", service.queue()]);
            }
            Fault::SwallowPackets { nodes, duration, hang_up } => {
                let affected = || proxies.iter().zip(nodes).filter(|(_, affected)| *affected);
                affected().for_each(|(proxy, _)| proxy.set(Mode::Swallow));
                thread::sleep(duration);
                if hang_up {
                    affected().for_each(|(proxy, _)| proxy.cut());
                }
                affected().for_each(|(proxy, _)| proxy.set(Mode::Forward));
            }
        }
    }

    /// Replaces the processes that have ended, and waits until every client gets answers from every
    /// service.
    pub fn wait_until_ready(&mut self, ledger: &Ledger) {
        self.processes.replace_ended();
        ledger.wait_for_answers(&self.processes.clients(), 5, RECOVERY_TIMEOUT);
    }
}

fn wait_until_rejoined(broker: &Broker, node: usize) {
    let rejoined = rejoins(broker, node, RECOVERY_TIMEOUT);
    assert!(rejoined, "node {node} has not rejoined the cluster after {RECOVERY_TIMEOUT:?}");
}

/// Whether the other nodes list this node as running within that time. A node that was frozen for
/// long finds itself in a minority, pauses, and then rejoins.
fn rejoins(broker: &Broker, node: usize, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    let other = (node + 1) % System::NODES;
    while broker.running_nodes(other) != System::NODES {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    true
}
