//! A service for callers that use NestJS's `ClientRMQ`, whose requests and replies are JSON: a request
//! is `{"pattern": …, "data": …, "id": …}`, a reply `{"response": …, "isDisposed": true}`, and a
//! failure `{"err": …, "isDisposed": true}`.
//!
//! Start it with the broker's URL in `$AMQP_URL`:
//!
//! ```console
//! $ cargo run --example nestjs
//! Awaiting NestJS on sums
//! ```
//!
//! In NestJS, with `queue: 'sums'` and `queueOptions: { durable: true }`:
//!
//! ```text
//! client.send('sum', [1, 2, 3]).subscribe({ next: console.log, error: console.error });
//! ```

use rabbitmq_rpc::{Brokers, Failure, Reply, Request, RpcServer, ServerOptions, Status};
use serde_json::{Value, json};

const QUEUE: &str = "sums";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let options = ServerOptions { render_failure: Some(render), ..Default::default() };
    let server = RpcServer::connect(Brokers::parse(&url)?, QUEUE, options)?;
    server.on_ready(|| println!("Awaiting NestJS on {QUEUE}")).serve(answer)?;
    Ok(())
}

/// NestJS names the method in the body.
fn answer(request: &Request) -> Result<Reply, Failure> {
    let body: Value = serde_json::from_slice(request.body())
        .map_err(|error| Failure::new(Status::InvalidArgument, error.to_string()))?;
    let response = match body["pattern"].as_str() {
        Some("sum") => sum(&body["data"])?,
        pattern => {
            return Err(Failure::new(Status::Unimplemented, format!("no pattern {pattern:?}")));
        }
    };
    Ok(packet(json!({ "response": response, "isDisposed": true })))
}

fn sum(data: &Value) -> Result<Value, Failure> {
    let numbers = data.as_array().map(|values| values.iter().map(Value::as_f64));
    let sum: Option<f64> = numbers.and_then(Iterator::sum);
    let sum = sum.ok_or_else(|| Failure::new(Status::InvalidArgument, "data is no numbers"))?;
    Ok(json!(sum))
}

/// How NestJS reads failures: also that of a handler that panics. It takes any other reply for a
/// result.
fn render(_request: &Request, failure: &Failure) -> Reply {
    let err = json!({ "status": failure.status.name(), "message": failure.message });
    packet(json!({ "err": err, "isDisposed": true }))
}

fn packet(packet: Value) -> Reply {
    Reply::from(packet.to_string()).with_content_type("application/json")
}
