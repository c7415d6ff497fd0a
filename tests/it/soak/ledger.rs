//! The ledger of every call: what was asked, when, how long it took, how it ended, and who
//! answered. Each call is also a row of a file; what the processes log goes to another.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Service;

/// Kept by the soak, from what its clients and servers say.
pub struct Ledger {
    book: Mutex<Book>,
    /// Notified of every answer.
    answered: Condvar,
}

/// What the ledger comes to.
#[derive(Default)]
pub struct Totals {
    pub calls: u64,
    pub right: BTreeMap<Service, u64>,
    pub errors: BTreeMap<(Service, String), u64>,
    pub client_killed: u64,
    /// Answers by the process or program that gave them.
    pub by: BTreeMap<String, u64>,
    /// What must not be, by its heading, each told in a sentence.
    pub offences: BTreeMap<&'static str, Vec<String>>,
}

pub const WRONG: &str = "answers wrong";
pub const LATE: &str = "calls more than 1 s past their deadline";
pub const NO_OUTCOME: &str = "calls without an outcome";
pub const DENIED: &str = "calls executed that were said not to be";
pub const UNANSWERED: &str = "idempotent calls: more than 1 % in error";
pub const HUNG: &str = "processes hung";
pub const DIED: &str = "processes ended unasked or badly";
pub const UNACKED: &str = "requests left unacked";
pub const LEFT: &str = "requests and reply queues left over";
pub const GROWTH: &str = "processes grown";
pub const HARNESS: &str = "faults not recovered from";

/// In the order of the table.
pub const OFFENCES: [&str; 11] =
    [WRONG, LATE, NO_OUTCOME, DENIED, UNANSWERED, HUNG, DIED, UNACKED, LEFT, GROWTH, HARNESS];

struct Book {
    began: Instant,
    rows: BufWriter<File>,
    log: BufWriter<File>,
    open: HashMap<String, Call>,
    totals: Totals,
    /// Right answers by client process and service.
    answers: HashMap<(u32, Service), u64>,
    gaps: HashMap<(u32, Service), Gap>,
    /// The requests that a server began with, and those that were said not to be executed.
    ran: HashSet<String>,
    not_executed: HashSet<String>,
}

struct Call {
    service: Service,
    timeout: Duration,
    asked: Instant,
}

#[derive(Clone, Copy)]
struct Gap {
    last_answer: Instant,
    longest: Duration,
}

impl Ledger {
    /// Writes to `PATH.csv` and `PATH.log`.
    pub fn new(path: &Path) -> Ledger {
        let create = |extension| File::create(path.with_extension(extension)).unwrap();
        let (mut rows, log) = (BufWriter::new(create("csv")), BufWriter::new(create("log")));
        writeln!(rows, "asked_ms,call,service,deadline_ms,took_ms,outcome,by").unwrap();
        let book = Book {
            began: Instant::now(),
            rows,
            log,
            open: HashMap::new(),
            totals: Totals::default(),
            answers: HashMap::new(),
            gaps: HashMap::new(),
            ran: HashSet::new(),
            not_executed: HashSet::new(),
        };
        Ledger { book: Mutex::new(book), answered: Condvar::new() }
    }

    /// Takes a line of a client's or server's output; see [`super::roles`] for what they say. All
    /// else goes to the log, and is worth keeping. Calls' names begin with the process id of their
    /// client.
    pub fn take(&self, process: &str, line: &str) -> bool {
        let line = line.trim_end();
        let Some(words) = line.strip_prefix("soak ") else {
            self.book().log(&format!("{process}: {line}"));
            return true;
        };
        let (verb, words) = words.split_once(' ').unwrap_or((words, ""));
        let mut words = words.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        match verb {
            "asked" => {
                let (id, service, timeout) = (word(), word(), word());
                let timeout = Duration::from_millis(timeout.parse().unwrap());
                self.asked(id, Service::named(service), timeout);
            }
            "ended" => {
                let (id, took, outcome) = (word(), word(), word());
                self.ended(id, Duration::from_micros(took.parse().unwrap()), outcome);
            }
            "ran" => drop(self.book().ran.insert(word().to_owned())),
            _ => return true,
        }
        false
    }

    pub fn asked(&self, id: &str, service: Service, timeout: Duration) {
        let mut book = self.book();
        book.totals.calls += 1;
        book.open.insert(id.to_owned(), Call { service, timeout, asked: Instant::now() });
    }

    /// `outcome` is `right BY`, `wrong TEXT` or `error KIND TEXT`.
    pub fn ended(&self, id: &str, took: Duration, outcome: &str) {
        let mut book = self.book();
        let Some(call) = book.open.remove(id) else {
            return book.offend(NO_OUTCOME, format!("call {id} ended without having been asked"));
        };
        if took > call.timeout + Duration::from_secs(1) {
            book.offend(LATE, format!("call {id} took {took:?}: {outcome}"));
        }
        let (verdict, rest) = outcome.split_once(' ').unwrap_or((outcome, ""));
        let Call { service, .. } = call;
        match verdict {
            "right" => {
                // A soak may last for hours; what was executed and answered needs no memory.
                book.ran.remove(id);
                book.row(id, &call, took, verdict, rest);
                book.answer(id, service, rest);
                self.answered.notify_all();
            }
            "error" => {
                let said = rest.split(' ').next().unwrap_or_default();
                let kind = said.trim_end_matches('!');
                if kind != said {
                    book.not_executed.insert(id.to_owned());
                }
                book.row(id, &call, took, kind, "");
                *book.totals.errors.entry((service, kind.to_owned())).or_default() += 1;
            }
            _ => {
                book.row(id, &call, took, "wrong", "");
                book.offend(WRONG, format!("call {id}: {rest}"));
            }
        }
    }

    /// What is open of a process that has ended, and whose last word was taken, stays so.
    pub fn close(&self, process: u32, killed: bool) {
        let mut book = self.book();
        let prefix = format!("{process}-");
        let open: Vec<String> =
            book.open.keys().filter(|id| id.starts_with(&prefix)).cloned().collect();
        for id in open {
            let call = book.open.remove(&id).expect("it was just found");
            let took = call.asked.elapsed();
            if killed {
                book.totals.client_killed += 1;
                book.row(&id, &call, took, "client killed", "");
            } else {
                book.row(&id, &call, took, "none", "");
                book.offend(NO_OUTCOME, format!("call {id}, asked {took:?} ago"));
            }
        }
    }

    /// Prints the line, and logs it.
    pub fn announce(&self, line: &str) {
        println!("{line}");
        self.book().log(line);
    }

    pub fn offend(&self, heading: &'static str, what: String) {
        self.book().offend(heading, what);
    }

    /// Waits until each of these clients has that many more answers from every service.
    pub fn await_answers(&self, clients: &[u32], more: u64, patience: Duration) {
        let places: Vec<_> = clients
            .iter()
            .flat_map(|client| Service::CALLED.map(|service| (*client, service)))
            .collect();
        let count = |book: &Book, place| book.answers.get(place).copied().unwrap_or(0);
        let book = self.book();
        let enough: Vec<u64> = places.iter().map(|place| count(&book, place) + more).collect();
        let missing = |book: &mut Book| {
            let mut places = places.iter().zip(&enough);
            places.find(|(place, enough)| count(book, place) < **enough).map(|(place, _)| *place)
        };
        let waited =
            self.answered.wait_timeout_while(book, patience, |book| missing(book).is_some());
        let (mut book, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        let missing = missing(&mut book);
        drop(book);
        assert!(
            !timeout.timed_out(),
            "no {more} answers (client, service) for {missing:?} within {patience:?}"
        );
    }

    /// The longest time that any client got no answer from a service since this was asked before.
    pub fn longest_gap(&self) -> Duration {
        let mut book = self.book();
        let gaps = book.gaps.values_mut();
        gaps.map(|gap| std::mem::take(&mut gap.longest)).max().unwrap_or_default()
    }

    /// What it all comes to, once everybody has ended.
    pub fn balance(&self) -> Totals {
        let mut book = self.book();
        let denied: Vec<String> = book.ran.intersection(&book.not_executed).cloned().collect();
        denied.into_iter().for_each(|id| book.offend(DENIED, format!("call {id}")));
        let (answers, errors) = book.totals.idempotent();
        if errors * 100 > answers {
            book.offend(UNANSWERED, format!("{errors} errors, {answers} answers"));
        }
        book.rows.flush().unwrap();
        book.log.flush().unwrap();
        std::mem::take(&mut book.totals)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Totals {
    /// Answers to calls that may run twice, and their errors.
    pub fn idempotent(&self) -> (u64, u64) {
        let answers = self.right.iter().filter(|(service, _)| service.is_idempotent());
        let errors = self.errors.iter().filter(|((service, _), _)| service.is_idempotent());
        (answers.map(|(_, count)| count).sum(), errors.map(|(_, count)| count).sum())
    }
}

impl Book {
    fn answer(&mut self, id: &str, service: Service, by: &str) {
        *self.totals.right.entry(service).or_default() += 1;
        *self.totals.by.entry(by.to_owned()).or_default() += 1;
        let client = id.split('-').next().and_then(|process| process.parse().ok());
        let place = (client.expect("calls are named after their client"), service);
        *self.answers.entry(place).or_default() += 1;
        let now = Instant::now();
        let gap = Gap { last_answer: now, longest: Duration::ZERO };
        let gap = self.gaps.entry(place).or_insert(gap);
        gap.longest = gap.longest.max(now - gap.last_answer);
        gap.last_answer = now;
    }

    fn offend(&mut self, heading: &'static str, what: String) {
        println!("OFFENCE: {heading}: {what}");
        self.log(&format!("OFFENCE: {heading}: {what}"));
        self.totals.offences.entry(heading).or_default().push(what);
    }

    fn log(&mut self, line: &str) {
        writeln!(self.log, "{:8.3} {line}", self.began.elapsed().as_secs_f64()).unwrap();
    }

    fn row(&mut self, id: &str, call: &Call, took: Duration, outcome: &str, by: &str) {
        let asked = (call.asked - self.began).as_millis();
        let (service, timeout) = (call.service.name(), call.timeout.as_millis());
        let took = took.as_secs_f64() * 1e3;
        writeln!(self.rows, "{asked},{id},{service},{timeout},{took:.3},{outcome},{by}").unwrap();
    }
}
