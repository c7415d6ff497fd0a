//! A service whose requests and replies are JSON, and its client.
//!
//! With the broker's URL in `$AMQP_URL`, start the server, and call it from another shell:
//!
//! ```console
//! $ cargo run --features json --example json_service
//! Awaiting orders on prices
//! $ cargo run --features json --example json_service -- bolts 3
//! 36
//! ```

use rabbitmq_rpc::{
    Brokers, ClientOptions, Failure, Methods, Request, RpcClient, RpcServer, ServerOptions, Status,
    json,
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
        let price = client.function::<Order, u64>("price");
        println!("{}", price.call(&Order { item: item.clone(), count: count.parse()? })?);
        return Ok(());
    }
    let server = RpcServer::connect(brokers, QUEUE, ServerOptions::default())?;
    let methods = Methods::new().on("price", json(price));
    Ok(server.on_ready(|| println!("Awaiting orders on {QUEUE}")).serve(methods)?)
}

fn price(order: Order, _request: &Request) -> Result<u64, Failure> {
    match &*order.item {
        "bolts" => Ok(12 * u64::from(order.count)),
        "nuts" => Ok(5 * u64::from(order.count)),
        item => Err(Failure::new(Status::NotFound, format!("there are no {item}"))),
    }
}
