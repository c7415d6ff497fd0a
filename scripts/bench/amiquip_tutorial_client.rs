//! Tutorial six, client side, as amiquip's own example `rpc_client` has it,
//! with options added and up to `--in-flight` requests outstanding at once.

mod amiquip_open;
mod load_report;

use std::collections::HashMap;
use std::time::Instant;

use amiquip::{
    AmqpProperties, ConsumerMessage, ConsumerOptions, Exchange, Publish, QueueDeclareOptions,
};
use amiquip_open::{Result, open};
use argh::FromArgs;
use load_report::Tally;
use uuid::Uuid;

/// Call a Fibonacci server again and again.
#[derive(FromArgs)]
struct Options {
    /// broker
    #[argh(option, default = "String::from(\"amqp://guest:guest@localhost:5672/%2f\")")]
    url: String,
    /// request queue
    #[argh(option, default = "String::from(\"rpc_queue\")")]
    queue: String,
    /// calls in all
    #[argh(option, default = "10000")]
    requests: usize,
    /// calls at once
    #[argh(option, default = "1")]
    in_flight: usize,
    /// which Fibonacci number to ask for
    #[argh(option, default = "7")]
    n: u32,
    /// set TCP_NODELAY, which amiquip does not
    #[argh(switch)]
    nodelay: bool,
    /// print one JSON object
    #[argh(switch)]
    json: bool,
}

fn main() -> Result<()> {
    let options: Options = argh::from_env();
    let mut connection = open(&options.url, options.nodelay)?;
    let channel = connection.open_channel(None)?;
    let exchange = Exchange::direct(&channel);
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("", exclusive)?;
    let consumer = queue.consume(ConsumerOptions { no_ack: true, ..ConsumerOptions::default() })?;

    let expected = fib(options.n).to_string();
    let mut waiting = HashMap::new();
    let mut tally = Tally { latencies: Vec::with_capacity(options.requests), ..Tally::default() };
    let mut published = 0;
    let started = Instant::now();
    while tally.latencies.len() < options.requests {
        while waiting.len() < options.in_flight && published < options.requests {
            let correlation_id = Uuid::new_v4().to_string();
            waiting.insert(correlation_id.clone(), Instant::now());
            exchange.publish(Publish::with_properties(
                options.n.to_string().as_bytes(),
                &options.queue,
                AmqpProperties::default()
                    .with_reply_to(queue.name().to_string())
                    .with_correlation_id(correlation_id),
            ))?;
            published += 1;
        }
        match consumer.receiver().recv()? {
            ConsumerMessage::Delivery(delivery) => {
                let id = delivery.properties.correlation_id().as_ref();
                let Some(since) = id.and_then(|id| waiting.remove(id)) else {
                    continue;
                };
                tally.latencies.push(since.elapsed());
                tally.ok += usize::from(delivery.body == expected.as_bytes());
            }
            other => return Err(format!("the consumer ended: {other:?}").into()),
        }
    }
    tally.elapsed = started.elapsed();

    let all_right = tally.all_right();
    tally.print(options.json);
    connection.close()?;
    if all_right { Ok(()) } else { Err("some answers were wrong".into()) }
}

fn fib(n: u32) -> u128 {
    let (mut a, mut b) = (0, 1);
    for _ in 0..n {
        (a, b) = (b, a + b);
    }
    a
}
