//! The report of a load client: number of calls, number of right answers, rate and latency.

use std::time::Duration;

/// The outcomes of all calls.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: usize,
    /// Of all calls, with right and wrong answers.
    pub latencies: Vec<Duration>,
    pub elapsed: Duration,
}

impl Tally {
    pub fn all_right(&self) -> bool {
        self.ok == self.latencies.len()
    }

    pub fn print(mut self, json: bool) {
        let (ok, requests) = (self.ok, self.latencies.len());
        let seconds = self.elapsed.as_secs_f64();
        let per_second = ok as f64 / seconds;
        if !json {
            println!("{ok} right of {requests}, {per_second:.0} calls/s");
            return;
        }
        self.latencies.sort_unstable();
        let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
        let at = |share: f64| {
            micros(self.latencies[((share * requests as f64) as usize).min(requests - 1)])
        };
        let mean = micros(self.latencies.iter().sum::<Duration>()) / requests as f64;
        let (p50, p90, p99, p999, max) = (at(0.5), at(0.9), at(0.99), at(0.999), at(1.0));
        println!(
            "{{\"requests\":{requests},\"ok\":{ok},\"errors\":{},\"seconds\":{seconds:.6},\
             \"calls_per_second\":{per_second:.1},\"latency_us\":{{\"mean\":{mean:.1},\
             \"p50\":{p50:.1},\"p90\":{p90:.1},\"p99\":{p99:.1},\"p999\":{p999:.1},\
             \"max\":{max:.1}}}}}",
            requests - ok
        );
    }
}
