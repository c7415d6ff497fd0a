//! Serves Fibonacci numbers, and shows the durations of calls and requests as Prometheus metrics,
//! under OpenTelemetry's names for RPC. With the broker's URL in `$AMQP_URL`:
//!
//! ```console
//! $ cargo run --example metrics -- 127.0.0.1:9464 &
//! $ curl http://127.0.0.1:9464/metrics
//! ```

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use rabbitmq_rpc::{Brokers, ClientOptions, Observation, RpcClient, RpcServer, fibonacci};

const BOUNDS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, f64::INFINITY]; // Seconds.
const METHODS: [&str; 1] = ["fib"]; // A requester can name any: the others share one series.

/// By metric and labels: the number of calls within each bound, and the sum of their seconds.
type Durations = Arc<Mutex<BTreeMap<(&'static str, String), ([u64; 8], f64)>>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let durations = Durations::default();
    let server = RpcServer::connect(Brokers::parse(&url)?, "rpc_queue", Default::default())?;
    server.on_request(observe(&durations, "rpc_server_call_duration_seconds"));
    thread::spawn(move || server.serve(fibonacci::answer));
    let client = RpcClient::connect(Brokers::parse(&url)?, "rpc_queue", ClientOptions::default())?;
    client.on_call(observe(&durations, "rpc_client_call_duration_seconds"));
    client.request("7").method("fib").call()?; // So that there is something to see.

    let listener = TcpListener::bind(std::env::args().nth(1).unwrap_or("127.0.0.1:9464".into()))?;
    println!("http://{}/metrics", listener.local_addr()?);
    for mut scrape in listener.incoming().flatten() {
        // Every path gets the metrics. Closing a connection with unread bytes would lose them.
        let lines = BufReader::new(&scrape).lines().map_while(Result::ok);
        lines.take_while(|line| !line.is_empty()).for_each(drop);
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
        let _ = scrape.write_all([head, &text(&durations)].concat().as_bytes());
    }
    Ok(())
}

fn observe(all: &Durations, metric: &'static str) -> impl Fn(&Observation<'_>) + use<> {
    let all = Arc::clone(all);
    move |Observation { method, status, time, .. }| {
        let method = METHODS.into_iter().find(|known| *method == Some(known)).unwrap_or("other");
        let labels = format!("rpc_method=\"{method}\",rpc_response_status_code=\"{status}\"");
        let (mut all, seconds) = (all.lock().unwrap(), time.as_secs_f64());
        let (counts, sum) = all.entry((metric, labels)).or_default();
        *sum += seconds;
        let within = counts.iter_mut().zip(BOUNDS).filter(|(_, bound)| seconds <= *bound);
        within.for_each(|(count, _)| *count += 1);
    }
}

fn text(all: &Durations) -> String {
    let lines = |((metric, labels), (counts, sum)): (&(&str, String), &([u64; 8], f64))| {
        let count =
            |(bound, count)| format!("{metric}_bucket{{{labels},le=\"{bound}\"}} {count}\n");
        let buckets: String = BOUNDS.iter().zip(counts).map(count).collect();
        let total = counts[7];
        format!("{buckets}{metric}_sum{{{labels}}} {sum}\n{metric}_count{{{labels}}} {total}\n")
    };
    all.lock().unwrap().iter().map(lines).collect::<String>().replace("\"inf\"", "\"+Inf\"")
}
