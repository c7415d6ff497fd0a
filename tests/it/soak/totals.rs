//! What the ledger adds up: answers, errors and violations.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Service;

/// The result of a soak.
#[derive(Default)]
pub struct Totals {
    pub calls: u64,
    pub right: BTreeMap<Service, u64>,
    pub errors: BTreeMap<(Service, String), u64>,
    /// Errors of idempotent calls, except while the broker refuses clients: there can be no answers
    /// then.
    pub failures: u64,
    pub client_killed: u64,
    /// Number of right answers from each process or program.
    pub by: BTreeMap<String, u64>,
    /// Each violation in a sentence, by heading.
    pub violations: BTreeMap<&'static str, Vec<String>>,
}

impl Totals {
    /// The number of answers to idempotent calls.
    pub fn idempotent(&self) -> u64 {
        let answers = self.right.iter().filter(|(service, _)| service.is_idempotent());
        answers.map(|(_, count)| count).sum()
    }
}

/// The time without an answer to a client from a service.
#[derive(Clone, Copy)]
pub struct Gap {
    pub last_answer: Instant,
    pub longest: Duration,
}

impl Gap {
    pub fn end(&mut self, now: Instant) {
        self.longest = self.longest.max(now - self.last_answer);
        self.last_answer = now;
    }
}

/// Whether an error of this kind says that the broker refuses something.
pub fn is_refusal(kind: &str) -> bool {
    ["Refused", "QueueRefused", "exit-code-77", "exit-code-78"].contains(&kind)
}

// The headings of violations.
pub const WRONG: &str = "answers wrong";
pub const LATE: &str = "calls more than 1 s past their deadline";
pub const NO_OUTCOME: &str = "calls without an outcome";
pub const EXECUTED: &str = "calls executed, reported as not executed";
pub const REFUSED: &str = "calls refused without a cause";
pub const UNANSWERED: &str = "idempotent calls: more than 1 % fail";
pub const HUNG: &str = "processes that hang";
pub const DIED: &str = "processes that end by themselves or fail";
pub const UNACKED: &str = "requests left unacked";
pub const LEFT_OVER: &str = "requests and reply queues left over";
pub const GROWN: &str = "processes that grow";
pub const NOT_RECOVERED: &str = "faults not recovered from";

/// All of them, in the order of the table.
pub const VIOLATIONS: [&str; 12] = [
    WRONG,
    LATE,
    NO_OUTCOME,
    EXECUTED,
    REFUSED,
    UNANSWERED,
    HUNG,
    DIED,
    UNACKED,
    LEFT_OVER,
    GROWN,
    NOT_RECOVERED,
];
