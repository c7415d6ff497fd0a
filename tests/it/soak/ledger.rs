//! The ledger of every call: which service it calls, when it starts, how long it takes, how it
//! ends, and which process answers. One file has a row for each call; another has what the
//! processes log.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Service;
use super::totals::{
    EXECUTED, Gap, LATE, NO_OUTCOME, REFUSED, Totals, UNANSWERED, WRONG, is_refusal,
};

/// Filled from the output of the soak's clients and servers.
pub struct Ledger {
    state: Mutex<State>,
    /// Notified of every right answer.
    answered: Condvar,
}

struct State {
    began: Instant,
    rows: BufWriter<File>,
    log: BufWriter<File>,
    /// Calls that have started and not ended.
    pending: HashMap<String, Call>,
    totals: Totals,
    /// Right answers by client process and service.
    answers: HashMap<(u32, Service), u64>,
    gaps: HashMap<(u32, Service), Gap>,
    /// The requests that a server began to execute, and those that a client's error reported as not
    /// executed.
    executed: HashSet<String>,
    not_executed: HashSet<String>,
    /// Whether calls may be refused, and when that ended: a call that began before may be, too.
    may_be_refused: bool,
    refused_until: Option<Instant>,
}

struct Call {
    service: Service,
    timeout: Duration,
    started: Instant,
}

impl Ledger {
    /// Writes to `PATH.csv` and `PATH.log`.
    pub fn new(path: &Path) -> Ledger {
        let create = |extension| File::create(path.with_extension(extension)).unwrap();
        let (mut rows, log) = (BufWriter::new(create("csv")), BufWriter::new(create("log")));
        writeln!(rows, "started_ms,call,service,deadline_ms,took_ms,outcome,by").unwrap();
        let state = State {
            began: Instant::now(),
            rows,
            log,
            pending: HashMap::new(),
            totals: Totals::default(),
            answers: HashMap::new(),
            gaps: HashMap::new(),
            executed: HashSet::new(),
            not_executed: HashSet::new(),
            may_be_refused: false,
            refused_until: None,
        };
        Ledger { state: Mutex::new(state), answered: Condvar::new() }
    }

    /// Reads a line of a client's or server's output; [`super::roles`] prints them. All other lines
    /// go to the log; for these it returns true. A call's id begins with the process id of its
    /// client.
    pub fn read_line(&self, process: &str, line: &str) -> bool {
        let line = line.trim_end();
        let Some(words) = line.strip_prefix("soak ") else {
            self.state().log(&format!("{process}: {line}"));
            return true;
        };
        let (verb, words) = words.split_once(' ').unwrap_or((words, ""));
        let mut words = words.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        match verb {
            "started" => {
                let (id, service, timeout) = (word(), word(), word());
                let timeout = Duration::from_millis(timeout.parse().unwrap());
                self.started(id, Service::from_name(service), timeout);
            }
            "ended" => {
                let (id, took, outcome) = (word(), word(), word());
                self.ended(id, Duration::from_micros(took.parse().unwrap()), outcome);
            }
            "executed" => drop(self.state().executed.insert(word().to_owned())),
            _ => return true,
        }
        false
    }

    pub fn started(&self, id: &str, service: Service, timeout: Duration) {
        let mut state = self.state();
        state.totals.calls += 1;
        state.pending.insert(id.to_owned(), Call { service, timeout, started: Instant::now() });
    }

    /// `outcome` is `right BY`, `wrong TEXT` or `error KIND TEXT`.
    pub fn ended(&self, id: &str, took: Duration, outcome: &str) {
        let mut state = self.state();
        let Some(call) = state.pending.remove(id) else {
            return state
                .record_violation(NO_OUTCOME, format!("call {id} ended and had not started"));
        };
        if took > call.timeout + Duration::from_secs(1) {
            state.record_violation(LATE, format!("call {id} took {took:?}: {outcome}"));
        }
        let (verdict, rest) = outcome.split_once(' ').unwrap_or((outcome, ""));
        let Call { service, .. } = call;
        match verdict {
            "right" => {
                // Only executed calls without an answer matter later, and a soak may take hours.
                state.executed.remove(id);
                state.row(id, &call, took, verdict, rest);
                state.answer(id, service, rest);
                self.answered.notify_all();
            }
            "error" => {
                let word = rest.split(' ').next().unwrap_or_default();
                let kind = word.trim_end_matches('!');
                if kind != word {
                    state.not_executed.insert(id.to_owned());
                }
                let may_be_refused =
                    state.may_be_refused || state.refused_until >= Some(call.started);
                if is_refusal(kind) && !may_be_refused {
                    state.record_violation(REFUSED, format!("call {id}: {rest}"));
                }
                state.row(id, &call, took, kind, "");
                *state.totals.errors.entry((service, kind.to_owned())).or_default() += 1;
                state.totals.failures += u64::from(service.is_idempotent() && !may_be_refused);
            }
            _ => {
                state.row(id, &call, took, "wrong", "");
                state.record_violation(WRONG, format!("call {id}: {rest}"));
            }
        }
    }

    /// Closes the calls of a process that has ended, once all its output is read.
    pub fn close(&self, process: u32, killed: bool) {
        let mut state = self.state();
        state.gaps.retain(|(client, _), _| *client != process);
        let prefix = format!("{process}-");
        let ids = state.pending.keys().filter(|id| id.starts_with(&prefix));
        let pending: Vec<String> = ids.cloned().collect();
        for id in pending {
            let call = state.pending.remove(&id).expect("the key is from this map");
            let took = call.started.elapsed();
            if killed {
                state.totals.client_killed += 1;
                state.row(&id, &call, took, "client killed", "");
            } else {
                state.row(&id, &call, took, "none", "");
                state.record_violation(NO_OUTCOME, format!("call {id}, started {took:?} ago"));
            }
        }
    }

    /// Whether calls may be refused, from now on.
    pub fn allow_refusals(&self, allow: bool) {
        let mut state = self.state();
        if state.may_be_refused {
            state.refused_until = Some(Instant::now());
        }
        state.may_be_refused = allow;
    }

    /// Prints the line and logs it.
    pub fn announce(&self, line: &str) {
        println!("{line}");
        self.state().log(line);
    }

    pub fn record_violation(&self, heading: &'static str, what: String) {
        self.state().record_violation(heading, what);
    }

    /// Waits until each of these clients has `more` further answers from every service. Panics
    /// after `timeout`.
    pub fn wait_for_answers(&self, clients: &[u32], more: u64, timeout: Duration) {
        let pairs: Vec<_> = clients
            .iter()
            .flat_map(|client| Service::CALLED.map(|service| (*client, service)))
            .collect();
        let count = |state: &State, pair| state.answers.get(pair).copied().unwrap_or(0);
        let state = self.state();
        let enough: Vec<u64> = pairs.iter().map(|pair| count(&state, pair) + more).collect();
        let missing = |state: &mut State| {
            let mut pairs = pairs.iter().zip(&enough);
            pairs.find(|(pair, enough)| count(state, pair) < **enough).map(|(pair, _)| *pair)
        };
        let waited =
            self.answered.wait_timeout_while(state, timeout, |state| missing(state).is_some());
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        let missing = missing(&mut state);
        drop(state);
        assert!(
            !waited.timed_out(),
            "client and service {missing:?} got fewer than {more} further answers in {timeout:?}"
        );
    }

    /// Counts the time without an answer from now on: until now, nothing could answer.
    pub fn restart_gaps(&self) {
        let now = Instant::now();
        let restarted = Gap { last_answer: now, longest: Duration::ZERO };
        self.state().gaps.values_mut().for_each(|gap| *gap = restarted);
    }

    /// Ends the gaps of a queue's services: no server can get its requests now.
    pub fn end_gaps(&self, queue: &str) {
        let (now, mut state) = (Instant::now(), self.state());
        let affected = state.gaps.iter_mut().filter(|((_, service), _)| service.queue() == queue);
        affected.for_each(|(_, gap)| gap.end(now));
    }

    /// The longest time without an answer to idempotent calls, of any client process from any
    /// service, since the last call of this function: to calls with signs of life, and to those
    /// without.
    pub fn take_longest_gaps(&self) -> [Duration; 2] {
        let mut state = self.state();
        let mut longest = [Duration::ZERO; 2];
        for ((_, service), gap) in &mut state.gaps {
            let longest = &mut longest[usize::from(*service == Service::Plain)];
            *longest = std::mem::take(&mut gap.longest).max(*longest);
        }
        longest
    }

    /// Judges the calls as a whole, once all processes have ended, and returns the totals.
    pub fn finish(&self) -> Totals {
        let mut state = self.state();
        let executed: Vec<String> =
            state.executed.intersection(&state.not_executed).cloned().collect();
        executed.into_iter().for_each(|id| state.record_violation(EXECUTED, format!("call {id}")));
        let (answers, errors) = (state.totals.idempotent(), state.totals.failures);
        if errors * 100 > answers {
            state.record_violation(UNANSWERED, format!("{errors} errors, {answers} answers"));
        }
        state.rows.flush().unwrap();
        state.log.flush().unwrap();
        std::mem::take(&mut state.totals)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answer(&mut self, id: &str, service: Service, by: &str) {
        *self.totals.right.entry(service).or_default() += 1;
        *self.totals.by.entry(by.to_owned()).or_default() += 1;
        let client = id.split('-').next().and_then(|process| process.parse().ok());
        let pair = (client.expect("a call's id begins with a process id"), service);
        *self.answers.entry(pair).or_default() += 1;
        // The others are not called all the time, or end with an error when an answer is lost.
        if !Service::CALLED.contains(&service) || !service.is_idempotent() {
            return;
        }
        let now = Instant::now();
        let gap = Gap { last_answer: now, longest: Duration::ZERO };
        let gap = self.gaps.entry(pair).or_insert(gap);
        gap.end(now);
    }

    fn record_violation(&mut self, heading: &'static str, what: String) {
        println!("VIOLATION: {heading}: {what}");
        self.log(&format!("VIOLATION: {heading}: {what}"));
        self.totals.violations.entry(heading).or_default().push(what);
    }

    fn log(&mut self, line: &str) {
        writeln!(self.log, "{:8.3} {line}", self.began.elapsed().as_secs_f64()).unwrap();
    }

    fn row(&mut self, id: &str, call: &Call, took: Duration, outcome: &str, by: &str) {
        let started = (call.started - self.began).as_millis();
        let (service, timeout) = (call.service.name(), call.timeout.as_millis());
        let took = took.as_secs_f64() * 1e3;
        writeln!(self.rows, "{started},{id},{service},{timeout},{took:.3},{outcome},{by}").unwrap();
    }
}
