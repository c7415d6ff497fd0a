//! Tutorial six, client side, as amiquip's own example `rpc_client` has it,
//! with options added and up to `--in-flight` requests outstanding at once.

mod amiquip_open;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, ConsumerMessage, ConsumerOptions, Exchange, Publish, QueueDeclareOptions,
};
use amiquip_open::{Result, open};
use argh::FromArgs;
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
    let mut latencies = Vec::with_capacity(options.requests);
    let (mut published, mut ok) = (0, 0);
    let started = Instant::now();
    while latencies.len() < options.requests {
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
                latencies.push(since.elapsed());
                ok += usize::from(delivery.body == expected.as_bytes());
            }
            other => return Err(format!("the consumer ended: {other:?}").into()),
        }
    }
    let seconds = started.elapsed().as_secs_f64();

    report(&options, ok, seconds, latencies);
    connection.close()?;
    if ok == options.requests { Ok(()) } else { Err("some answers were wrong".into()) }
}

fn report(options: &Options, ok: usize, seconds: f64, mut latencies: Vec<Duration>) {
    let requests = options.requests;
    let per_second = ok as f64 / seconds;
    if !options.json {
        println!("{ok} right of {requests}, {per_second:.0} calls/s");
        return;
    }
    latencies.sort_unstable();
    let micros = |latency: Duration| latency.as_secs_f64() * 1e6;
    let at = |share: f64| micros(latencies[((share * requests as f64) as usize).min(requests - 1)]);
    let mean = micros(latencies.iter().sum::<Duration>()) / requests as f64;
    let (p50, p90, p99, p999, max) = (at(0.5), at(0.9), at(0.99), at(0.999), at(1.0));
    println!(
        "{{\"requests\":{requests},\"ok\":{ok},\"errors\":{},\"seconds\":{seconds:.6},\
         \"calls_per_second\":{per_second:.1},\"latency_us\":{{\"mean\":{mean:.1},\
         \"p50\":{p50:.1},\"p90\":{p90:.1},\"p99\":{p99:.1},\"p999\":{p999:.1},\"max\":{max:.1}}}}}",
        requests - ok
    );
}

fn fib(n: u32) -> u128 {
    let (mut a, mut b) = (0, 1);
    for _ in 0..n {
        (a, b) = (b, a + b);
    }
    a
}
