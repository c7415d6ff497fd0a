//! Tests of the soak itself: it reports violations that the tests cause on purpose.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ledger::Ledger;
use super::totals::{DIED, EXECUTED, HUNG, LATE, NO_OUTCOME, Totals, UNANSWERED, WRONG};
use super::{Growth, processes};
use crate::process::Process;
use crate::usage::Usage;

const PID: u32 = 7;

#[test]
fn ledger_reports_violations() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["started 7-1 once 1000", "executed 7-1", "ended 7-1 1900000 right 8"], &[]),
        (&["started 7-1 once 1000", "executed 7-1", "ended 7-1 900 error TimedOut no reply"], &[]),
        (&["started 7-1 once 1000", "ended 7-1 900 wrong 12 for 13"], &[WRONG]),
        (&["started 7-1 once 1000", "ended 7-1 2100000 right 8"], &[LATE]),
        (&["started 7-1 once 1000"], &[NO_OUTCOME]),
        (&["ended 7-1 900 right 8"], &[NO_OUTCOME]),
        (
            &["started 7-1 once 1000", "ended 7-1 900 error Blocked! alarm", "executed 7-1"],
            &[EXECUTED],
        ),
        (&["started 7-1 named 1000", "ended 7-1 900 error TimedOut no reply"], &[UNANSWERED]),
    ];
    for (number, (lines, expected)) in cases.into_iter().enumerate() {
        let totals = totals(&format!("ledger-{number}"), |ledger| {
            for line in lines {
                assert!(!ledger.read_line("client", &format!("soak {line}\n")), "{line}");
            }
            ledger.close(PID, false);
        });
        assert_eq!(headings(&totals), expected, "{lines:?}");
    }
    // A call whose client was killed has no outcome, which is no violation.
    let totals = totals("ledger-killed", |ledger| {
        ledger.read_line("client", "soak started 7-1 named 1000");
        ledger.close(PID, true);
    });
    assert_eq!((headings(&totals), totals.client_killed), (vec![], 1));
}

#[test]
fn processes_that_hang_or_fail_are_reported() {
    const LIMIT: Duration = Duration::from_secs(2);
    // Each prints a line when its signal handler is set.
    let good = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let fails = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let ignores_signal = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let ends = "echo ready";
    let expected: [(&str, &[&str]); 4] =
        [(good, &[]), (fails, &[DIED]), (ignores_signal, &[HUNG]), (ends, &[DIED])];
    for (number, (script, expected)) in expected.into_iter().enumerate() {
        let totals = totals(&format!("processes-{number}"), |ledger| {
            let mut process = Process::spawn("sh", &["-c", script]);
            process.wait_for_line("ready", 10 * LIMIT);
            if script == ends {
                process.wait(10 * LIMIT);
            }
            processes::terminate(&mut process, ledger, LIMIT);
        });
        assert_eq!(headings(&totals), expected, "{script}");
    }
}

#[test]
fn growth_is_reported() {
    let before = Usage { memory: 5_000, threads: 7, descriptors: 11 };
    let grown = |after| Growth { name: String::new(), before, after }.is_too_much();
    assert!(!grown(Usage { memory: 12_000, ..before }));
    assert!(!grown(Usage { memory: 4_000, threads: 6, descriptors: 9 }));
    assert!(grown(Usage { memory: 14_000, ..before }));
    assert!(grown(Usage { threads: 8, ..before }));
    assert!(grown(Usage { descriptors: 12, ..before }));
}

/// The totals of a new ledger after `fill`.
fn totals(name: &str, fill: impl FnOnce(&Arc<Ledger>)) -> Totals {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("self-test-{name}"));
    let ledger = Arc::new(Ledger::new(&path));
    fill(&ledger);
    ledger.finish()
}

fn headings(totals: &Totals) -> Vec<&str> {
    totals.violations.keys().copied().collect()
}
