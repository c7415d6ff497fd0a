//! Measures code that needs no broker: `cargo bench`, or `cargo bench encode` for a part of it.

// This program uses only a part of these modules, and does not run their tests.
#![allow(unused)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rabbitmq_rpc::fibonacci;
use uuid::Uuid;

use sources::{error, frames, wire};

/// These modules are private in the library, so they are compiled into this program again. The
/// imports above resolve their `crate::` paths.
#[path = "../../src"]
mod sources {
    pub(crate) mod error;
    pub(crate) mod frames;
    pub(crate) mod wire;
}

criterion_main!(benches);
criterion_group!(benches, encode, decode, fib);

const ROUTE: frames::Route<'_> = frames::Route {
    channel: 1,
    exchange: "",
    routing_key: "rpc_queue",
    mandatory: true,
    frame_max: 131_072,
};
/// Bodies of one digit and of half a frame, in bytes.
const SIZES: [usize; 2] = [1, 65_536];

fn request(body: &[u8]) -> Vec<u8> {
    let head = wire::RequestHead {
        reply_to: "amq.gen-JzTY20BRgKO-HjmUJj0wLg",
        correlation_id: Uuid::from_u128(7),
        message_id: "00000000-0000-0000-0000-000000000008",
        method: None,
        user_id: None,
        content_type: "text/plain",
        app_id: "rpc_client",
        headers: &wire::Headers::default(),
        keep_alive: None,
        wants_progress: false,
        remaining: Duration::from_secs(30),
    };
    wire::encode_request(ROUTE, &head, body).rest(0)
}

fn reply(outcome: &Result<wire::Reply, error::Failure>) -> Vec<u8> {
    let correlation_id = Uuid::from_u128(7).to_string();
    wire::encode_reply(ROUTE, Some(correlation_id.as_bytes()), "rpc_server", outcome).rest(0)
}

fn failure() -> error::Failure {
    error::Failure::new(error::Status::OutOfRange, "fib(187) does not fit into 128 bits")
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for size in SIZES {
        let body = vec![b'7'; size];
        let result = Ok(wire::Reply::from(body.clone()));
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

/// From the bytes of the socket to the request of a handler or the reply of a caller.
fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for size in SIZES {
        let body = vec![b'7'; size];
        let (request, result) = (delivery(&request(&body)), delivery(&reply(&Ok(body.into()))));
        let mut decoder = frames::Decoder::default();
        group.bench_function(BenchmarkId::new("request", size), |bencher| {
            bencher.iter(|| {
                let delivery = read(&mut decoder, black_box(&request));
                let request = wire::Request::from_delivery(delivery);
                wire::reply_address(&request.properties(), "rpc_queue").expect("it has one");
                request
            });
        });
        group.bench_function(BenchmarkId::new("result", size), |bencher| {
            bencher.iter(|| {
                let message = read(&mut decoder, black_box(&result)).message;
                (wire::identify(&message), wire::decode_reply(message))
            });
        });
    }
    let failure = delivery(&reply(&Err(failure())));
    let mut decoder = frames::Decoder::default();
    group.bench_function("error reply", |bencher| {
        bencher.iter(|| {
            let message = read(&mut decoder, black_box(&failure)).message;
            (wire::identify(&message), wire::decode_reply(message))
        });
    });
}

/// The frames of a published message as the broker delivers them, with basic.deliver.
fn delivery(published: &[u8]) -> Vec<u8> {
    const DELIVER: &[u8] = b"\x01\0\x01\0\0\0\x11\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x01\0\0\0\xce";
    let size = u32::from_be_bytes(published[3..7].try_into().expect("there are four"));
    [DELIVER, &published[size as usize + 8..]].concat()
}

fn read(decoder: &mut frames::Decoder, bytes: &[u8]) -> frames::Delivery {
    for part in bytes.chunks(64 << 10) {
        decoder.unfilled()[..part.len()].copy_from_slice(part);
        decoder.filled(part.len());
        if let Ok(Some(frames::Incoming::Event {
            event: frames::Event::Delivery(delivery), ..
        })) = decoder.next()
        {
            return delivery;
        }
    }
    unreachable!("it is a whole message")
}

fn fib(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fib");
    for n in [7, fibonacci::MAX_N] {
        group.bench_function(BenchmarkId::new("number", n), |bencher| {
            bencher.iter(|| fibonacci::fib(black_box(n)));
        });
        let request = rabbitmq_rpc::Request::new(n.to_string());
        group.bench_function(BenchmarkId::new("from text to text", n), |bencher| {
            bencher.iter(|| fibonacci::answer(black_box(&request)));
        });
    }
}
