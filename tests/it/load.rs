//! `rpc_bench`: the load it makes and its report.

use crate::broker::{Broker, queue_name, url};
use crate::embedded::connect;
use crate::patience::{PATIENCE, await_value};
use crate::process::Process;
use crate::programs::{RPC_BENCH, rpc_server, rpc_server_that_logs};

fn rpc_bench(queue: &str, args: &[&str]) -> Process {
    let place = ["--url", &Broker::shared().url(), "--queue", queue];
    Process::spawn(RPC_BENCH, &[&place, args].concat())
}

/// Waits for `rpc_bench --json` to exit with this code, and returns its output.
fn report(mut bench: Process, code: i32) -> String {
    assert_eq!(bench.wait(PATIENCE).code(), Some(code), "{}", bench.stderr());
    assert_eq!(bench.stderr(), "", "progress is shown only on a terminal");
    bench.stdout().to_string()
}

fn number(report: &str, name: &str) -> f64 {
    let (_, value) = report.split_once(&format!("\"{name}\":")).expect(report);
    let end = value.find([',', '}']).expect(report);
    value[..end].parse().expect(report)
}

#[test]
fn closed_loop_keeps_given_number_of_calls_in_flight() {
    let queue = queue_name("closed-loop");
    let _server = rpc_server(&queue, &["--prefetch", "16"]);
    for (in_flight, threads) in [(1, 1), (16, 1), (16, 4)] {
        let (calls, threads) = (in_flight.to_string(), threads.to_string());
        let args = ["--requests", "400", "--n", "186", "--json"];
        let args = [&args[..], &["--in-flight", &calls, "--threads", &threads]].concat();
        let keeps_the_number = || {
            let json = report(rpc_bench(&queue, &args), 0);
            for (name, count) in [("requests", 400.0), ("ok", 400.0), ("errors", 0.0)] {
                assert_eq!(number(&json, name), count, "{json}");
            }
            let rate = number(&json, "calls_per_second") * number(&json, "seconds");
            assert!((399.0..=401.0).contains(&rate), "{json}");
            let [p50, p99, max] = ["p50", "p99", "max"].map(|name| number(&json, name));
            assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{json}");
            // Little's law: the mean number of calls in flight is rate times mean latency.
            let mean = number(&json, "mean") * 400.0 / 1e6 / number(&json, "seconds");
            assert!(mean / f64::from(in_flight) <= 1.05, "{json}");
            mean / f64::from(in_flight) >= 0.3
        };
        // A busy machine may stop the program between two calls, but not each time.
        assert!((0..8).any(|_| keeps_the_number()), "fewer than {in_flight} calls in flight");
    }
}

#[test]
fn open_loop_latency_includes_stalls() {
    /// The number of requests that the load makes in a second.
    const STALLED: u32 = 100;
    let queue = queue_name("open-loop");
    let server = rpc_server(&queue, &[]);
    server.signal("STOP");
    let bench = rpc_bench(&queue, &["--requests", "150", "--rate", "100", "--json"]);
    let client = connect(&url(), &queue);
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting >= STALLED);
    server.signal("CONT");
    let json = report(bench, 0);
    assert_eq!(number(&json, "ok"), 150.0, "{json}");
    // The last call is due 1.5 s after the first.
    assert!(number(&json, "seconds") >= 1.49, "{json}");
    // Calls were due during the whole stall, and each waited for its end.
    assert!(number(&json, "p50") >= 50_000.0, "{json}");
    assert!(number(&json, "max") >= 500_000.0, "{json}");
}

#[test]
fn errors_are_counted_by_kind() {
    let json = report(rpc_bench(&queue_name("no-such"), &["--requests", "20", "--json"]), 1);
    assert!(
        json.contains("\"ok\":0,\"errors\":20,\"errors_by_kind\":{\"UNROUTABLE\":20}"),
        "{json}"
    );
}

#[test]
fn interrupt_prints_results_so_far() {
    let queue = queue_name("interrupted");
    let mut server = rpc_server_that_logs(&queue, &[]);
    let mut bench = rpc_bench(&queue, &["--requests", "1000000000"]);
    // One call is in flight at a time: when the second request arrives, the first call has ended.
    for _ in 0..2 {
        server.wait_for_line("bytes in", PATIENCE);
    }
    bench.signal("INT");
    assert_eq!(bench.wait(PATIENCE).code(), Some(130), "{}", bench.stderr());
    let table = bench.stdout();
    for row in ["calls  ", "errors              0", "latency  ", "p50", "p999", "max"] {
        assert!(table.contains(row), "no {row}: {table}");
    }
}
