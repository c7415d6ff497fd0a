//! A handler that calls another service, and passes on the deadline and trace of the outer call.
//!
//! ```text
//! client ── 5 s, traceparent ──▶ orders ── what is left of 5 s, traceparent ──▶ stock
//! ```
//!
//! Here one program is all three. Run it with the broker's URL in `$AMQP_URL`:
//! `cargo run --example nested_call`.

use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{Brokers, ClientOptions, Error, Failure, Request, RpcClient, RpcServer, Status};

/// A header as a tracing library makes it: <https://www.w3.org/TR/trace-context/#traceparent-header>.
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn main() -> Result<(), Error> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let brokers = Brokers::parse(&url)?;
    let serve = |queue| RpcServer::connect(brokers.clone(), queue, Default::default());
    let call = |queue| RpcClient::connect(brokers.clone(), queue, ClientOptions::default());
    let (stock, orders) = (serve("stock")?, serve("orders")?);
    let (stock_client, orders_client) = (call("stock")?, call("orders")?);
    thread::scope(|scope| {
        let stock_thread = scope.spawn(|| stock.serve(count));
        let orders_thread = scope.spawn(|| {
            orders.serve(move |request: &Request| {
                report("orders", request);
                // `?` answers the outer caller with the inner failure, or with a fitting status.
                Ok(stock_client.request(request.body()).within(request).call()?)
            })
        });
        for item in ["bolts", "unicorns"] {
            let call = orders_client.request(item).timeout(Duration::from_secs(5));
            match call.header("traceparent", TRACE).call() {
                Ok(count) => println!("{item}: {}", String::from_utf8_lossy(&count)),
                Err(error) => println!("{item}: {error}"),
            }
        }
        orders.stopper().stop();
        stock.stopper().stop();
        let served = [orders_thread.join(), stock_thread.join()];
        served.into_iter().try_for_each(|served| served.expect("serving does not panic"))
    })
}

fn count(request: &Request) -> Result<&'static str, Failure> {
    report("stock", request);
    let missing = || Failure::new(Status::NotFound, "there is no such item");
    (request.body() == b"bolts").then_some("7").ok_or_else(missing)
}

fn report(service: &str, request: &Request) {
    let trace = request.header("traceparent").unwrap_or("none");
    println!("{service}: {:.3?} left, trace {trace}", request.remaining().unwrap_or(Duration::MAX));
}
