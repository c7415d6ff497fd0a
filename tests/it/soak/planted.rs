//! What must not be, done on purpose: those who judge a soak notice it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::ledger::{DENIED, DIED, HUNG, LATE, Ledger, NO_OUTCOME, Totals, UNANSWERED, WRONG};
use super::{Growth, fleet};
use crate::process::Process;
use crate::usage::Usage;

const PID: u32 = 7;

#[test]
fn the_ledger_notices_what_must_not_be() {
    let offences: [(&[&str], &[&str]); 8] = [
        (&["asked 7-1 once 1000", "ran 7-1", "ended 7-1 1900000 right 8"], &[]),
        (&["asked 7-1 once 1000", "ran 7-1", "ended 7-1 900 error TimedOut no reply"], &[]),
        (&["asked 7-1 once 1000", "ended 7-1 900 wrong 12 for 13"], &[WRONG]),
        (&["asked 7-1 once 1000", "ended 7-1 2100000 right 8"], &[LATE]),
        (&["asked 7-1 once 1000"], &[NO_OUTCOME]),
        (&["ended 7-1 900 right 8"], &[NO_OUTCOME]),
        (&["asked 7-1 once 1000", "ended 7-1 900 error Blocked! alarm", "ran 7-1"], &[DENIED]),
        (&["asked 7-1 named 1000", "ended 7-1 900 error TimedOut no reply"], &[UNANSWERED]),
    ];
    for (number, (lines, expected)) in offences.into_iter().enumerate() {
        let totals = balance(&format!("ledger-{number}"), |ledger| {
            for line in lines {
                assert!(!ledger.take("client", &format!("soak {line}\n")), "{line}");
            }
            ledger.close(PID, false);
        });
        assert_eq!(headings(&totals), expected, "{lines:?}");
    }
    // Nobody can tell the outcome of a call whose client was killed.
    let totals = balance("ledger-killed", |ledger| {
        ledger.take("client", "soak asked 7-1 named 1000");
        ledger.close(PID, true);
    });
    assert_eq!((headings(&totals), totals.client_killed), (vec![], 1));
}

#[test]
fn processes_that_hang_or_end_badly_are_noticed() {
    const LIMIT: Duration = Duration::from_secs(2);
    // Each says when it is ready for the signal.
    let good = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let bad = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    let gone = "echo ready";
    let expected: [(&str, &[&str]); 4] =
        [(good, &[]), (bad, &[DIED]), (deaf, &[HUNG]), (gone, &[DIED])];
    for (number, (script, expected)) in expected.into_iter().enumerate() {
        let totals = balance(&format!("processes-{number}"), |ledger| {
            let mut process = Process::spawn("sh", &["-c", script]);
            process.wait_for_line("ready", 10 * LIMIT);
            if script == gone {
                process.wait(10 * LIMIT);
            }
            fleet::terminate(&mut process, ledger, LIMIT);
        });
        assert_eq!(headings(&totals), expected, "{script}");
    }
}

#[test]
fn growth_is_noticed() {
    let before = Usage { memory: 5_000, threads: 7, descriptors: 11 };
    let grown = |after| Growth { name: String::new(), before, after }.is_too_much();
    assert!(!grown(Usage { memory: 7_000, ..before }));
    assert!(!grown(Usage { memory: 4_000, threads: 6, descriptors: 9 }));
    assert!(grown(Usage { memory: 9_000, ..before }));
    assert!(grown(Usage { threads: 8, ..before }));
    assert!(grown(Usage { descriptors: 12, ..before }));
}

/// What a ledger comes to of which this is all.
fn balance(name: &str, keep: impl FnOnce(&Arc<Ledger>)) -> Totals {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("planted-{name}"));
    let ledger = Arc::new(Ledger::new(&path));
    keep(&ledger);
    ledger.balance()
}

fn headings(totals: &Totals) -> Vec<&str> {
    totals.offences.keys().copied().collect()
}
