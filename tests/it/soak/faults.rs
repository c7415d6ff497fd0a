//! How each fault is injected and ended.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::leaders;
use super::ledger::Ledger;
use super::processes::{Addresses, Processes};
use super::refusals::Refusals;
use super::schedule::Fault;
use super::{RECOVERY_TIMEOUT, Service};
use crate::broker::{self, Broker};
use crate::certificates::Certificates;
use crate::patience::poll;
use crate::proxy::{Mode, Proxy};
use crate::scratch;

/// The broker's limit. The default differs from version to version.
pub const MAX_MESSAGE_SIZE: usize = 1 << 20;

/// All that faults are injected into: the cluster, the proxies in front of it, and the clients and
/// servers.
pub struct System {
    pub broker: Broker,
    pub processes: Processes,
    /// One for each node, then one for each node's TLS listener.
    proxies: Vec<Proxy>,
    refusals: Refusals,
}

impl System {
    pub const NODES: usize = 3;

    pub fn start(ledger: &Arc<Ledger>) -> System {
        // A connection is lost after two intervals of silence, which is two seconds, and no broker
        // is waited for longer than two seconds. A lost request is sent again after three.
        const PARAMETERS: &str = "?heartbeat=1&connection_timeout=2000";
        let certificates = Certificates::make("certificates");
        let config = scratch::directory("soak").join("rabbitmq.conf");
        fs::write(&config, format!("max_message_size = {MAX_MESSAGE_SIZE}\n")).unwrap();
        let text = |path: &Path| path.to_str().expect("the path is text").to_owned();
        let (tls, config) = (text(certificates.directory()), text(&config));
        let nodes = System::NODES.to_string();
        let broker = Broker::with(&["--nodes", &nodes, "--tls", &tls, "--config", &config]);
        let files = certificates.files("ca", Some("client"));
        let refusals = Refusals::new(Arc::clone(ledger), certificates);
        refusals.add_user(&broker);

        let nodes = 0..System::NODES;
        let ports = nodes.clone().map(|node| broker.port(node));
        let ports = ports.chain(nodes.clone().map(|node| broker.tls_port(node)));
        let proxies: Vec<Proxy> = ports.map(Proxy::to).collect();
        let as_user = |url: String| url.replace("guest:guest", &Refusals::login()) + PARAMETERS;
        let as_tls = |url: String| url.replace("amqp:", "amqps:").replace("127.0.0.1", "localhost");
        let (plain, tls) = proxies.split_at(System::NODES);
        let addresses = Addresses {
            direct: nodes.map(|node| as_user(broker.url_of(node))).collect(),
            proxied: plain.iter().map(|proxy| as_user(proxy.url())).collect(),
            tls: tls.iter().map(|proxy| as_tls(as_user(proxy.url()))).collect(),
            files,
        };
        let processes = Processes::start(Arc::clone(ledger), addresses);
        System { broker, processes, proxies, refusals }
    }

    /// Injects the faults at once, waits for as long as the longest lasts, and ends them, the last
    /// one first.
    pub fn inject(&mut self, faults: &[Fault], ledger: &Ledger) {
        faults.iter().for_each(|fault| self.begin(*fault));
        let until = Instant::now() + faults.iter().map(Fault::duration).max().unwrap_or_default();
        if let Some(lost) = faults.iter().find_map(Fault::lost_node) {
            let others: Vec<usize> = (0..System::NODES).filter(|node| *node != lost).collect();
            leaders::watch(&self.broker, &others, ledger, until);
        }
        thread::sleep(until.saturating_duration_since(Instant::now()));
        faults.iter().rev().for_each(|fault| self.end(*fault));
    }

    fn begin(&mut self, fault: Fault) {
        let System { broker, processes, proxies, refusals } = self;
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
            Fault::HostileRequests => refusals.send_hostile_requests(broker),
            Fault::RefusedRequests => processes.send_refused_requests(),
            Fault::ConsumerTimeout => refusals.exceed_consumer_timeout(broker),
            Fault::Withdraw(right, _) => refusals.withdraw(broker, right),
            Fault::ExclusiveConsumer(_) => {
                refusals.consume_exclusively(broker, &processes.urls(0, false));
            }
            Fault::RenewCertificates => refusals.renew_certificates(broker),
        }
    }

    fn end(&mut self, fault: Fault) {
        let System { broker, processes, proxies, refusals } = self;
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
            Fault::Withdraw(right, _) => refusals.restore(broker, right),
            Fault::ExclusiveConsumer(_) => {
                refusals.stop_consuming(broker, &processes.urls(0, false))
            }
            // The processes have been replaced already; the other faults have no duration.
            _ => {}
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
        let running = (0..System::NODES).map(|node| {
            let running = catch_unwind(AssertUnwindSafe(|| self.broker.running_nodes(node)));
            format!("node {node} counts {:?} running nodes\n", running.ok())
        });
        let mut text: String = running.collect();
        text += &ctl(&[&["list_queues"], &columns[..]].concat());
        text += &ctl(&["list_consumers"]);
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
    let nodes = nodes.into_iter().cycle();
    proxies.iter().zip(nodes).filter_map(|(proxy, is_affected)| is_affected.then_some(proxy))
}

fn wait_until_rejoined(broker: &Broker, node: usize) {
    let rejoined = rejoins(broker, node, RECOVERY_TIMEOUT);
    assert!(rejoined, "node {node} has not rejoined the cluster after {RECOVERY_TIMEOUT:?}");
}

/// Whether the node runs, and the others list it as running, within that time, and it has what they
/// write. A node that was frozen for long finds itself in a minority, pauses, and then rejoins. Or
/// it is listed as running, and never gets to know what the others declare.
fn rejoins(broker: &Broker, node: usize, timeout: Duration) -> bool {
    let other = (node + 1) % System::NODES;
    let is_listed = || broker.running_nodes(other) == System::NODES && broker.is_running(node);
    let has_what_others_write = || {
        let mark = broker::queue_name("mark");
        broker.ctl_on(other, &["set_global_parameter", "soak", &format!("\"{mark}\"")]);
        broker.ctl_on(node, &["list_global_parameters"]).contains(&mark)
    };
    let is_back = || is_listed() && has_what_others_write();
    poll(timeout, is_back, |is_back| *is_back).is_ok()
}
