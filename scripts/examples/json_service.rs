//! A service whose requests and replies are JSON, and its client.
//!
//! With the broker's URL in `$AMQP_URL`, start the server, and call it from another shell:
//!
//! ```console
//! $ cargo run --example json_service
//! Awaiting orders on prices
//! $ cargo run --example json_service -- bolts 3
//! 36
//! ```

use std::time::Duration;

use rabbitmq_rpc::{
    Brokers, ClientOptions, Failure, Reply, Request, RpcClient, RpcServer, ServerOptions, Status,
};
use serde::{Deserialize, Serialize};

const QUEUE: &str = "prices";

#[derive(Serialize, Deserialize)]
struct Order {
    item: String,
    count: u32,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let brokers = Brokers::parse(&url)?;
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [item, count] = &words[..] {
        let client = RpcClient::connect(brokers, QUEUE, ClientOptions::default())?;
        let order = Order { item: item.clone(), count: count.parse()? };
        let call = client.request(serde_json::to_vec(&order)?).content_type("application/json");
        let price: u64 = serde_json::from_slice(&call.timeout(Duration::from_secs(5)).call()?)?;
        println!("{price}");
        return Ok(());
    }
    let server = RpcServer::connect(brokers, QUEUE, ServerOptions::default())?;
    server.on_ready(|| println!("Awaiting orders on {QUEUE}")).serve(price)?;
    Ok(())
}

/// The handler: it needs no broker, so a unit test can give it a [`Request::new`].
fn price(request: &Request) -> Result<Reply, Failure> {
    let order: Order = serde_json::from_slice(request.body())
        .map_err(|error| Failure::new(Status::InvalidArgument, format!("not an order: {error}")))?;
    let each = match &*order.item {
        "bolts" => 12,
        "nuts" => 5,
        item => return Err(Failure::new(Status::NotFound, format!("there are no {item}"))),
    };
    let price = each * u64::from(order.count);
    Ok(Reply::from(price.to_string()).with_content_type("application/json"))
}
