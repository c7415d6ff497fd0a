//! Measures what needs no broker: `cargo bench`, or `cargo bench routing` for a part of it.

// Not all that these modules offer is measured, and what tests them is not run here.
#![allow(unused)]

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use amiquip::AmqpProperties;
use amq_protocol::frame::{AMQPFrame, parsing::parse_frame};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rabbitmq_rpc::fibonacci;
use uuid::Uuid;

use sources::client::pending::{PendingCalls, Registered};
use sources::{error, frames, wire};

/// The library keeps these to itself, and a benchmark is no reason to show them: so they are
/// compiled into this program once more. For their `crate::` the imports above stand in.
#[path = "../../src"]
mod sources {
    pub(crate) mod client {
        pub(crate) mod pending;
    }
    pub(crate) mod error;
    pub(crate) mod frames;
    pub(crate) mod wire;
}

criterion_main!(benches);
criterion_group!(benches, encode, decode, routing, fib);

const WAY: wire::Way<'_> =
    wire::Way { channel: 1, queue: "rpc_queue", mandatory: true, frame_max: 131_072 };
/// A number of Fibonacci's, and what fills half a frame.
const SIZES: [usize; 2] = [1, 65_536];

fn request(body: &[u8]) -> Vec<u8> {
    let head = wire::RequestHead {
        reply_to: "amq.gen-JzTY20BRgKO-HjmUJj0wLg",
        correlation_id: Uuid::from_u128(7),
        message_id: Uuid::from_u128(8),
        content_type: "text/plain",
        app_id: "rpc_client",
        remaining: Duration::from_secs(30),
    };
    wire::encode_request(WAY, &head, body)
}

fn reply(outcome: &Result<Vec<u8>, error::Failure>) -> Vec<u8> {
    let correlation_id = Uuid::from_u128(7).to_string();
    wire::encode_reply(WAY, Some(&correlation_id), "rpc_server", outcome)
}

fn failure() -> error::Failure {
    error::Failure::new(error::Status::OutOfRange, "fib(187) does not fit into 128 bits")
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for size in SIZES {
        let body = vec![b'7'; size];
        let result = Ok(body.clone());
        group.bench_function(BenchmarkId::new("request", size), |bencher| {
            bencher.iter(|| request(black_box(&body)));
        });
        group.bench_function(BenchmarkId::new("result", size), |bencher| {
            bencher.iter(|| reply(black_box(&result)));
        });
    }
    let failure = Err(failure());
    group.bench_function("error reply", |bencher| bencher.iter(|| reply(black_box(&failure))));
}

/// From the bytes that the socket gives to what a handler or a caller gets.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for size in SIZES {
        let body = vec![b'7'; size];
        let (request, result) = (request(&body), reply(&Ok(body)));
        group.bench_function(BenchmarkId::new("request", size), |bencher| {
            bencher.iter(|| {
                let (properties, body) = read(black_box(&request));
                (wire::reply_address(&properties, "rpc_queue").expect("it has one"), body)
            });
        });
        group.bench_function(BenchmarkId::new("result", size), |bencher| {
            bencher.iter(|| {
                let (properties, body) = read(black_box(&result));
                (wire::correlation_id(&properties), wire::decode_reply(&properties, body))
            });
        });
    }
    let failure = reply(&Err(failure()));
    group.bench_function("error reply", |bencher| {
        bencher.iter(|| {
            let (properties, body) = read(black_box(&failure));
            (wire::correlation_id(&properties), wire::decode_reply(&properties, body))
        });
    });
}

/// Cleans the frames of one message and decodes them, as amiquip does.
fn read(bytes: &[u8]) -> (AmqpProperties, Vec<u8>) {
    let mut clean = Vec::new();
    frames::Cleaner::default().push(bytes, &mut clean);
    let (mut properties, mut content) = (None, Vec::new());
    let mut rest = &clean[..];
    while !rest.is_empty() {
        let (left, frame) = parse_frame(rest).expect("what is clean can be decoded");
        match frame {
            AMQPFrame::Header(_, _, header) => properties = Some(header.properties),
            AMQPFrame::Body(_, part) => content.extend(part),
            _ => {}
        }
        rest = left;
    }
    (properties.expect("every message has a content header"), content)
}

/// One call enters the table of those in flight, and the oldest gets its outcome.
fn routing(criterion: &mut Criterion) {
    const MOST: usize = 1024;
    let mut group = criterion.benchmark_group("routing");
    for in_flight in [1, 64, MOST] {
        let pending = PendingCalls::new(MOST);
        let mut ids = (0..).map(Uuid::from_u128);
        let mut enter = || {
            let id = ids.next().expect("there is no end to them");
            match pending.register(id) {
                Registered::Waiting(outcome) => (id, outcome),
                _ => panic!("there is room for {in_flight}"),
            }
        };
        let mut flying: VecDeque<_> = (1..in_flight).map(|_| enter()).collect();
        group.bench_function(BenchmarkId::new("in flight", in_flight), |bencher| {
            bencher.iter(|| {
                flying.push_back(enter());
                let (id, outcome) = flying.pop_front().expect("one has just come in");
                pending.settle(id, Ok(Vec::new()));
                outcome.try_recv().expect("it was settled")
            });
        });
    }
}

fn fib(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fib");
    for n in [7, fibonacci::MAX_N] {
        group.bench_function(BenchmarkId::new("number", n), |bencher| {
            bencher.iter(|| fibonacci::fib(black_box(n)));
        });
        let text = n.to_string();
        group.bench_function(BenchmarkId::new("from text to text", n), |bencher| {
            bencher.iter(|| fibonacci::answer(black_box(text.as_bytes())));
        });
    }
}
