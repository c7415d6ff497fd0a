//! Which fault comes when: a choice of the seed's alone, so that a seed repeats it.

use std::fmt;
use std::time::Duration;

use super::Service;

/// What is done to the cluster and its processes. Whatever has a duration lasts that long before
/// it is mended; what was killed is started again.
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
    DeleteQueue(Service),
    /// On the way to these nodes; at the end some networks forget their connections as well.
    SwallowPackets {
        nodes: [bool; 3],
        lasting: Duration,
        hang_up: bool,
    },
}

/// Faults without end: rounds in which every kind comes once, each round in an order of its own.
pub struct Schedule {
    random: Random,
    round: Vec<usize>,
}

impl Schedule {
    pub const KINDS: usize = 11;

    pub fn new(seed: u64) -> Schedule {
        Schedule { random: Random(seed), round: Vec::new() }
    }
}

impl Iterator for Schedule {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        if self.round.is_empty() {
            self.round = (0..Schedule::KINDS).collect();
        }
        let Schedule { random, round } = self;
        let kind = round.swap_remove(random.below(round.len()));
        Some(match kind {
            0 => Fault::KillServer(random.below(2)),
            1 => Fault::TerminateServer(random.below(2)),
            2 => Fault::KillClient,
            3 => Fault::TerminateClient,
            4 => Fault::KillNode(random.below(3)),
            5 => Fault::StopNode(random.below(3)),
            // The heartbeat gives a silent node up after 4 s, the cluster after 8 s.
            6 => Fault::FreezeNode(random.below(3), random.millis(2_000, 12_000)),
            7 => Fault::CloseConnections,
            8 => Fault::MemoryAlarm(random.below(3), random.millis(500, 5_000)),
            9 => Fault::DeleteQueue([Service::Fibonacci, Service::Named][random.below(2)]),
            _ => {
                let mut nodes = [0; 3].map(|_| random.below(2) == 0);
                nodes[random.below(3)] = true;
                let lasting = random.millis(1_000, 8_000);
                Fault::SwallowPackets { nodes, lasting, hang_up: random.below(2) == 0 }
            }
        })
    }
}

impl Fault {
    /// What the fault is called in the table, whatever it hits.
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
            Fault::DeleteQueue(_) => "queue deleted",
            Fault::SwallowPackets { .. } => "packets swallowed",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind();
        match self {
            Fault::KillServer(place) | Fault::TerminateServer(place) => {
                write!(f, "{kind}, {place}")
            }
            Fault::KillNode(node) | Fault::StopNode(node) => write!(f, "{kind}, {node}"),
            Fault::FreezeNode(node, lasting) | Fault::MemoryAlarm(node, lasting) => {
                write!(f, "{kind}, {node}, for {lasting:?}")
            }
            Fault::DeleteQueue(service) => write!(f, "{kind}, {}", service.queue()),
            Fault::SwallowPackets { nodes, lasting, hang_up } => {
                let hit: Vec<usize> = (0..3).filter(|node| nodes[*node]).collect();
                let end = if *hang_up { ", then hung up" } else { "" };
                write!(f, "{kind}, {hit:?}, for {lasting:?}{end}")
            }
            Fault::KillClient | Fault::TerminateClient | Fault::CloseConnections => {
                f.write_str(kind)
            }
        }
    }
}

/// SplitMix64: enough for choosing victims.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % limit as u64) as usize
    }

    fn millis(&mut self, least: usize, most: usize) -> Duration {
        Duration::from_millis((least + self.below(most - least)) as u64)
    }
}
