//! A pool of workers that drains on SIGTERM: it answers the jobs that it has begun, gives the others
//! back to the broker for another server, and exits 0.
//!
//! Each request names how many milliseconds its job takes. With the broker's URL in `$AMQP_URL`:
//!
//! ```console
//! $ cargo run --example drain
//! Awaiting jobs on jobs
//! ```
//!
//! Call it, and stop it by `kill`, which sends the same signal as systemd, Docker and Kubernetes.

use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{Brokers, Error, Failure, Request, RpcServer, ServerOptions, Status};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const QUEUE: &str = "jobs";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let options = ServerOptions {
        workers: 4,
        // Less than the time after which the supervisor kills this process.
        drain_timeout: Duration::from_secs(20),
        ..Default::default()
    };
    // It connects in `serve`: the signals are caught before.
    let server = RpcServer::new(Brokers::parse(&url)?, QUEUE, options)?
        .on_ready(|| println!("Awaiting jobs on {QUEUE}"));

    let stopper = server.stopper();
    let mut signals = Signals::new([SIGINT, SIGTERM]).expect("these two can be caught");
    thread::spawn(move || {
        signals.forever().next();
        println!("draining");
        stopper.stop();
    });

    server.serve(work)?; // An error if jobs are still in progress after the drain timeout.
    println!("{} jobs done", server.counters().served);
    Ok(())
}

fn work(request: &Request) -> Result<String, Failure> {
    let millis = str::from_utf8(request.body()).ok().and_then(|text| text.parse().ok());
    let millis = millis.ok_or_else(|| {
        Failure::new(Status::InvalidArgument, "a job is a number of milliseconds")
    })?;
    println!("begun with a job of {millis} ms");
    thread::sleep(Duration::from_millis(millis)); // In place of real work.
    Ok(format!("worked for {millis} ms"))
}
