//! The results of the calls, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The number of right answers and of errors, and the latencies.
pub struct Tally {
    pub ok: u64,
    /// In microseconds, of the calls that got the right answer.
    latency: Histogram<u64>,
    errors: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn new() -> Tally {
        const DAY: u64 = 86_400_000_000;
        let latency = Histogram::new_with_max(DAY, 3).expect("three digits are allowed");
        Tally { ok: 0, latency, errors: BTreeMap::new() }
    }

    pub fn right(&mut self, latency: Duration) {
        self.ok += 1;
        self.latency.saturating_record(latency.as_micros() as u64);
    }

    pub fn wrong(&mut self, kind: &'static str) {
        *self.errors.entry(kind).or_default() += 1;
    }

    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    fn percentiles(&self) -> [(&'static str, u64); 5] {
        [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)]
            .map(|(name, quantile)| (name, self.latency.value_at_quantile(quantile)))
    }

    pub fn table(&self, seconds: f64) -> String {
        let mut table = format!(
            "calls      {:>10}   in {seconds:.2} s, {:.0} a second\nerrors     {:>10}\n",
            self.ok + self.errors(),
            self.ok as f64 / seconds,
            self.errors()
        );
        for (kind, count) in &self.errors {
            let _ = writeln!(table, "           {count:>10}   {kind}");
        }
        let _ = writeln!(table, "latency    {:>10.1} µs mean", self.latency.mean());
        for (name, value) in self.percentiles() {
            let _ = writeln!(table, "           {value:>10} µs {name}");
        }
        table
    }

    pub fn json(&self, seconds: f64) -> String {
        let errors: Vec<String> =
            self.errors.iter().map(|(kind, count)| format!("\"{kind}\":{count}")).collect();
        let percentiles: Vec<String> =
            self.percentiles().iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!(
            "{{\"requests\":{},\"ok\":{},\"errors\":{},\"errors_by_kind\":{{{}}},\
             \"seconds\":{seconds:.6},\"calls_per_second\":{:.1},\
             \"latency_us\":{{\"mean\":{:.1},{}}}}}",
            self.ok + self.errors(),
            self.ok,
            self.errors(),
            errors.join(","),
            self.ok as f64 / seconds,
            self.latency.mean(),
            percentiles.join(",")
        )
    }
}
