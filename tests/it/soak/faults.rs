//! How each fault is done, and mended.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::fleet::Fleet;
use super::ledger::Ledger;
use super::schedule::Fault;
use crate::broker::Broker;
use crate::proxy::{Mode, Proxy};

/// All that faults happen to.
pub struct Ground {
    pub broker: Broker,
    pub fleet: Fleet,
    proxies: Vec<Proxy>,
}

impl Ground {
    pub const NODES: usize = 3;

    pub fn prepare(ledger: &Arc<Ledger>) -> Ground {
        // A node that is silent for two seconds, and then for two more, counts as lost.
        const HEARTBEAT: &str = "?heartbeat=2";
        let broker = Broker::cluster(Ground::NODES);
        let nodes = 0..Ground::NODES;
        let proxies: Vec<Proxy> = nodes.clone().map(|node| Proxy::to(broker.port(node))).collect();
        let direct = nodes.map(|node| broker.url_of(node) + HEARTBEAT).collect();
        let proxied = proxies.iter().map(|proxy| proxy.url() + HEARTBEAT).collect();
        let fleet = Fleet::launch(Arc::clone(ledger), direct, proxied);
        Ground { broker, fleet, proxies }
    }

    /// Does the fault, keeps it up for as long as it lasts, and mends it.
    pub fn suffer(&mut self, fault: Fault) {
        let Ground { broker, fleet, proxies } = self;
        match fault {
            Fault::KillServer(victim) => fleet.kill_server(Fleet::MORTAL + victim),
            Fault::TerminateServer(victim) => fleet.terminate_server(Fleet::MORTAL + victim),
            Fault::KillClient => fleet.kill_client(),
            Fault::TerminateClient => fleet.terminate_client(),
            Fault::KillNode(node) => {
                broker.kill(node);
                broker.start_node(node);
                await_return(broker, node);
            }
            Fault::StopNode(node) => {
                broker.stop(node);
                broker.start_node(node);
                await_return(broker, node);
            }
            Fault::FreezeNode(node, lasting) => {
                broker.freeze(node);
                thread::sleep(lasting);
                broker.thaw(node);
                // A node that the others took for dead may stay apart from them for good. Then
                // somebody has to restart it.
                if !returns(broker, node, Duration::from_secs(30)) {
                    broker.kill(node);
                    broker.start_node(node);
                    await_return(broker, node);
                }
            }
            Fault::CloseConnections => {
                broker.ctl(&["close_all_connections", "the soak closes them"]);
            }
            Fault::MemoryAlarm(node, lasting) => {
                broker.ctl_on(node, &["set_vm_memory_high_watermark", "absolute", "1"]);
                thread::sleep(lasting);
                broker.ctl_on(node, &["set_vm_memory_high_watermark", "0.4"]);
            }
            Fault::DeleteQueue(service) => {
                broker.ctl(&["delete_queue", service.queue()]);
            }
            Fault::SwallowPackets { nodes, lasting, hang_up } => {
                let hit = || proxies.iter().zip(nodes).filter(|(_, hit)| *hit);
                hit().for_each(|(proxy, _)| proxy.set(Mode::Swallow));
                thread::sleep(lasting);
                if hang_up {
                    hit().for_each(|(proxy, _)| proxy.cut());
                }
                hit().for_each(|(proxy, _)| proxy.set(Mode::Forward));
            }
        }
    }
}

fn await_return(broker: &Broker, node: usize) {
    assert!(returns(broker, node, PATIENCE), "node {node} is not back after {PATIENCE:?}");
}

/// Waits until the other nodes have this one with them: one that was frozen for long finds itself
/// in a minority, pauses, and comes back.
fn returns(broker: &Broker, node: usize, patience: Duration) -> bool {
    let program = "length(rabbit_mnesia:cluster_nodes(running)).";
    let until = Instant::now() + patience;
    let other = (node + 1) % Ground::NODES;
    while broker.ctl_on(other, &["eval", program]).trim() != Ground::NODES.to_string() {
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    true
}
