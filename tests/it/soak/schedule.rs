//! The order of the faults. It depends on the seed alone, so the same seed repeats it.

use std::fmt;
use std::time::Duration;

use super::Service;
use crate::random::Random;

/// A fault in the cluster or its processes. One with a duration ends after it; a process or node
/// that a fault ends is started again.
#[derive(Clone, Copy)]
pub enum Fault {
    KillServer(usize),
    TerminateServer(usize),
    KillClient,
    TerminateClient,
    KillNode(usize),
    StopNode(usize),
    FreezeNode(usize, Duration),
    CloseConnections,
    MemoryAlarm(usize, Duration),
    /// The node is cut off from the other two; clients keep their connections to it.
    Partition(usize, Duration),
    DeleteQueue(Service),
    /// The proxies of these nodes forward nothing for a time. With `hang_up` they then close their
    /// connections, as a firewall does that has lost its state.
    StallNetwork {
        nodes: [bool; 3],
        duration: Duration,
        hang_up: bool,
    },
    /// Requests that no client library sends, and requests whose replies the broker refuses.
    HostileRequests,
    /// Clients send requests that are too large.
    RefusedRequests,
    /// A request takes longer than the broker lets a consumer work on it.
    ConsumerTimeout,
    /// Something is taken from the user of all clients and servers, and given back.
    Withdraw(Right, Duration),
    /// Another program consumes a server's queue exclusively.
    ExclusiveConsumer(Duration),
    RenewCertificates,
}

#[derive(Clone, Copy)]
pub enum Right {
    Permissions,
    Password,
    User,
    /// The virtual host takes no more connections.
    Connections,
    /// The virtual host takes no more queues.
    Queues,
}

/// An endless sequence of steps, in rounds. A step is a fault, or two faults at once. In each round
/// every kind of fault comes once alone, then every kind of pair comes once, in an order that
/// differs from round to round.
pub struct Schedule {
    random: Random,
    rounds: usize,
    singles: Vec<usize>,
    pairs: Vec<usize>,
}

impl Schedule {
    /// The number of steps at the start of a round that are single faults.
    pub const SINGLES: usize = 22;
    const PAIRS: usize = 2;

    pub fn new(seed: u64) -> Schedule {
        let (singles, pairs) = (Vec::new(), Vec::new());
        Schedule { random: Random::new(seed), rounds: 0, singles, pairs }
    }

    fn single(&mut self, kind: usize) -> Fault {
        let random = &mut self.random;
        // The first round has to fit into a short run.
        let is_first = self.rounds == 1;
        match kind {
            0 => Fault::KillServer(random.below(2)),
            1 => Fault::TerminateServer(random.below(2)),
            2 => Fault::KillClient,
            3 => Fault::TerminateClient,
            4 => Fault::KillNode(random.below(3)),
            5 => Fault::StopNode(random.below(3)),
            // Missing heartbeats end connections to a silent node after 2 s; the other nodes declare
            // it down after 4 s.
            6 => {
                let (least, most) = if is_first { (1_000, 3_000) } else { (2_000, 12_000) };
                Fault::FreezeNode(random.below(3), random.millis(least, most))
            }
            7 => Fault::CloseConnections,
            8 => Fault::MemoryAlarm(random.below(3), random.millis(500, 5_000)),
            9 => Fault::DeleteQueue([Service::Fibonacci, Service::Named][random.below(2)]),
            10 => {
                let (least, most) = if is_first { (3_000, 6_000) } else { (15_000, 25_000) };
                Fault::Partition(random.below(3), random.millis(least, most))
            }
            11 => {
                let mut nodes = [0; 3].map(|_| random.below(2) == 0);
                nodes[random.below(3)] = true;
                let duration = random.millis(1_000, 8_000);
                Fault::StallNetwork { nodes, duration, hang_up: random.below(2) == 0 }
            }
            12 => Fault::HostileRequests,
            13 => Fault::RefusedRequests,
            14 => Fault::ConsumerTimeout,
            15 => Fault::ExclusiveConsumer(random.millis(2_000, 6_000)),
            16 => Fault::RenewCertificates,
            _ => {
                use Right::*;
                let right = [Permissions, Password, User, Connections, Queues][kind - 17];
                Fault::Withdraw(right, random.millis(1_000, 5_000))
            }
        }
    }

    fn pair(&mut self, kind: usize) -> [Fault; 2] {
        let random = &mut self.random;
        let node = random.below(3);
        match kind {
            0 => [Fault::KillNode(node), Fault::KillServer(random.below(2))],
            _ => {
                // The alarm is on a node of the majority.
                let alarmed = (node + 1 + random.below(2)) % 3;
                let duration = random.millis(3_000, 6_000);
                [Fault::MemoryAlarm(alarmed, duration), Fault::Partition(node, duration)]
            }
        }
    }
}

impl Iterator for Schedule {
    type Item = Vec<Fault>;

    fn next(&mut self) -> Option<Vec<Fault>> {
        if self.singles.is_empty() && self.pairs.is_empty() {
            self.rounds += 1;
            self.singles = (0..Schedule::SINGLES).collect();
            self.pairs = (0..Schedule::PAIRS).collect();
        }
        let Schedule { random, singles, pairs, .. } = self;
        if singles.is_empty() {
            let kind = pairs.swap_remove(random.below(pairs.len()));
            return Some(self.pair(kind).to_vec());
        }
        let kind = singles.swap_remove(random.below(singles.len()));
        Some(vec![self.single(kind)])
    }
}

impl Fault {
    /// How long the fault lasts.
    pub fn duration(&self) -> Duration {
        match self {
            Fault::FreezeNode(_, duration)
            | Fault::MemoryAlarm(_, duration)
            | Fault::Partition(_, duration)
            | Fault::ExclusiveConsumer(duration)
            | Fault::Withdraw(_, duration)
            | Fault::StallNetwork { duration, .. } => *duration,
            _ => Duration::ZERO,
        }
    }

    /// The node that the others lose for as long as the fault lasts.
    pub fn lost_node(&self) -> Option<usize> {
        match self {
            Fault::FreezeNode(node, _) | Fault::Partition(node, _) => Some(*node),
            _ => None,
        }
    }

    /// Whether no broker can answer some client for as long as the fault lasts.
    pub fn leaves_no_answers(&self) -> bool {
        match self {
            Fault::MemoryAlarm(..) => true,
            Fault::StallNetwork { nodes, .. } => *nodes == [true; 3],
            fault => fault.refuses(),
        }
    }

    /// Whether the broker refuses clients and servers during the fault.
    pub fn refuses(&self) -> bool {
        matches!(self, Fault::Withdraw(..))
    }

    /// The fault's name in the table, without its parameters.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::KillServer(_) => "SIGKILL of a server",
            Fault::TerminateServer(_) => "SIGTERM of a server",
            Fault::KillClient => "SIGKILL of a client",
            Fault::TerminateClient => "SIGTERM of a client",
            Fault::KillNode(_) => "SIGKILL of a node",
            Fault::StopNode(_) => "stop of a node",
            Fault::FreezeNode(..) => "SIGSTOP of a node",
            Fault::CloseConnections => "connections closed",
            Fault::MemoryAlarm(..) => "memory alarm",
            Fault::Partition(..) => "partition",
            Fault::DeleteQueue(_) => "queue deleted",
            Fault::StallNetwork { .. } => "network stalled",
            Fault::HostileRequests => "hostile requests",
            Fault::RefusedRequests => "requests that are too large",
            Fault::ConsumerTimeout => "consumer timeout",
            Fault::ExclusiveConsumer(_) => "exclusive consumer",
            Fault::RenewCertificates => "certificates renewed",
            Fault::Withdraw(Right::Permissions, _) => "permissions withdrawn",
            Fault::Withdraw(Right::Password, _) => "password changed",
            Fault::Withdraw(Right::User, _) => "user deleted",
            Fault::Withdraw(Right::Connections, _) => "limit of connections",
            Fault::Withdraw(Right::Queues, _) => "limit of queues",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Fault::KillServer(number) | Fault::TerminateServer(number) => {
                write!(f, "{kind}, {number}")
            }
            Fault::KillNode(node) | Fault::StopNode(node) => write!(f, "{kind}, {node}"),
            Fault::FreezeNode(node, duration)
            | Fault::MemoryAlarm(node, duration)
            | Fault::Partition(node, duration) => {
                write!(f, "{kind}, {node}, for {duration:?}")
            }
            Fault::DeleteQueue(service) => write!(f, "{kind}, {}", service.queue()),
            Fault::StallNetwork { nodes, duration, hang_up } => {
                let affected: Vec<usize> = (0..3).filter(|node| nodes[*node]).collect();
                let end = if *hang_up { ", then hung up" } else { "" };
                write!(f, "{kind}, {affected:?}, for {duration:?}{end}")
            }
            Fault::ExclusiveConsumer(duration) | Fault::Withdraw(_, duration) => {
                write!(f, "{kind}, for {duration:?}")
            }
            _ => f.write_str(kind),
        }
    }
}
