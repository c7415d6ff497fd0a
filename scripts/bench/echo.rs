//! A server that replies with the request's body, and its client, on this crate's interface.
//!
//! They have the options of `librabbitmq_server --echo` and `librabbitmq_client`, with which
//! `growth.py` compares them.

mod load_report;

use std::collections::VecDeque;
use std::io::{Read, stdin};
use std::time::{Duration, Instant};

use argh::FromArgs;
use load_report::Tally;
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, PendingReply, Request, RpcClient, RpcServer, ServerOptions,
};

/// Send bodies to a server that sends them back.
#[derive(FromArgs)]
struct Options {
    #[argh(subcommand)]
    side: Side,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Side {
    Server(Server),
    Client(Client),
}

/// Answer each request with its own body.
#[derive(FromArgs)]
#[argh(subcommand, name = "server")]
struct Server {
    /// broker
    #[argh(option, default = "String::from(\"amqp://guest:guest@localhost:5672/%2f\")")]
    url: String,
    /// request queue
    #[argh(option, default = "String::from(\"rpc_queue\")")]
    queue: String,
    /// unacknowledged requests at once
    #[argh(option, default = "1")]
    prefetch: u16,
}

/// Call an echo server again and again, from one thread.
#[derive(FromArgs)]
#[argh(subcommand, name = "client")]
struct Client {
    /// broker
    #[argh(option, default = "String::from(\"amqp://guest:guest@localhost:5672/%2f\")")]
    url: String,
    /// request queue
    #[argh(option, default = "String::from(\"rpc_queue\")")]
    queue: String,
    /// calls in all
    #[argh(option, default = "usize::MAX")]
    requests: usize,
    /// no further call after so many seconds
    #[argh(option, default = "1.0")]
    seconds: f64,
    /// calls at once
    #[argh(option, default = "1")]
    in_flight: usize,
    /// bytes of a request, and of its reply
    #[argh(option, default = "1")]
    body_size: usize,
    /// make one call, print `ready`, call when a line comes on standard input, and disconnect
    /// when that closes
    #[argh(switch)]
    on_cue: bool,
    /// print one JSON object
    #[argh(switch)]
    json: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options: Options = argh::from_env();
    match options.side {
        Side::Server(options) => Ok(serve(options)?),
        Side::Client(options) => call(&options),
    }
}

fn serve(Server { url, queue, prefetch }: Server) -> Result<(), Error> {
    let options = ServerOptions { prefetch, ..Default::default() };
    RpcServer::connect(Brokers::parse(&url)?, &queue, options)?
        .on_ready(move || println!("Awaiting RPC requests on {queue}"))
        .serve(|request: &Request| Ok(request.body().to_vec()))
}

fn call(options: &Client) -> Result<(), Box<dyn std::error::Error>> {
    let brokers = Brokers::parse(&options.url)?;
    let client_options =
        ClientOptions { max_in_flight: options.in_flight.max(1), ..Default::default() };
    let client = RpcClient::connect(brokers, &options.queue, client_options)?;
    let body: Vec<u8> = (0..=250).cycle().take(options.body_size).collect();
    if options.on_cue {
        client.call(&body[..])?;
        println!("ready");
        stdin().read_line(&mut String::new())?;
    }
    let tally = drive(&client, &body, options)?;
    let all_right = tally.all_right();
    tally.print(options.json);
    if options.on_cue {
        stdin().read_to_end(&mut Vec::new())?;
    }
    if all_right { Ok(()) } else { Err("some replies were wrong".into()) }
}

/// Makes calls up to the limits, and waits for them in the order in which they were sent.
fn drive(client: &RpcClient, body: &[u8], options: &Client) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    let mut in_flight: VecDeque<(Instant, PendingReply)> = VecDeque::new();
    let (mut sent, started) = (0, Instant::now());
    let limit = Duration::from_secs_f64(options.seconds);
    loop {
        while in_flight.len() < options.in_flight
            && sent < options.requests
            && started.elapsed() < limit
        {
            in_flight.push_back((Instant::now(), client.send(body)?));
            sent += 1;
        }
        let Some((since, call)) = in_flight.pop_front() else { break };
        let reply = call.wait()?;
        tally.latencies.push(since.elapsed());
        tally.ok += usize::from(same(&reply, body));
    }
    tally.elapsed = started.elapsed();
    Ok(tally)
}

/// Compares the length and both ends, as the C client does: comparing all of a large body would
/// cost more than the call that is measured.
fn same(reply: &[u8], body: &[u8]) -> bool {
    let part = body.len().min(64);
    let rest = body.len() - part;
    reply.len() == body.len() && reply[..part] == body[..part] && reply[rest..] == body[rest..]
}
