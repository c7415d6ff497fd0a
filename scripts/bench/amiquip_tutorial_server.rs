//! Tutorial six, server side, as amiquip's own example `rpc_server` has it,
//! with options added and a quick `fib`, so that it measures the RPC layer.

mod amiquip_open;

use amiquip::{
    AmqpProperties, ConsumerMessage, ConsumerOptions, Exchange, Publish, QueueDeclareOptions,
};
use amiquip_open::{Result, open};
use argh::FromArgs;

/// Answer Fibonacci requests.
#[derive(FromArgs)]
struct Options {
    /// broker
    #[argh(option, default = "String::from(\"amqp://guest:guest@localhost:5672/%2f\")")]
    url: String,
    /// request queue
    #[argh(option, default = "String::from(\"rpc_queue\")")]
    queue: String,
    /// unacknowledged requests at once
    #[argh(option, default = "1")]
    prefetch: u16,
    /// set TCP_NODELAY, which amiquip does not
    #[argh(switch)]
    nodelay: bool,
}

fn main() -> Result<()> {
    let options: Options = argh::from_env();
    let mut connection = open(&options.url, options.nodelay)?;
    let channel = connection.open_channel(None)?;
    channel.qos(0, options.prefetch, false)?;
    let exchange = Exchange::direct(&channel);
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare(&options.queue, durable)?;
    let consumer = queue.consume(ConsumerOptions::default())?;
    println!("Awaiting RPC requests on {}", options.queue);

    for message in consumer.receiver().iter() {
        match message {
            ConsumerMessage::Delivery(delivery) => {
                let body = String::from_utf8_lossy(&delivery.body);
                let (reply_to, corr_id) =
                    match (delivery.properties.reply_to(), delivery.properties.correlation_id()) {
                        (Some(r), Some(c)) => (r.clone(), c.clone()),
                        _ => {
                            consumer.ack(delivery)?;
                            continue;
                        }
                    };
                let response = match body.parse() {
                    Ok(n @ 0..=186) => fib(n).to_string(),
                    _ => "invalid input".to_string(),
                };
                exchange.publish(Publish::with_properties(
                    response.as_bytes(),
                    reply_to,
                    AmqpProperties::default().with_correlation_id(corr_id),
                ))?;
                consumer.ack(delivery)?;
            }
            other => {
                eprintln!("Consumer ended: {other:?}");
                break;
            }
        }
    }
    Ok(connection.close()?)
}

fn fib(n: u32) -> u128 {
    let (mut a, mut b) = (0, 1);
    for _ in 0..n {
        (a, b) = (b, a + b);
    }
    a
}
