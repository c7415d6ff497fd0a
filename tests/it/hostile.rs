//! Requests that no client library sends. None of them may stop a server, close its connection,
//! disturb another request or stay unacknowledged.

mod corpus;
mod under_load;

use corpus::Corpus;
use corpus::Outcome::*;

use crate::broker::Broker;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, entry, long};

const NOT_UTF8: &[u8] = b"\xff\xfe\x80";

/// Makes the properties of a request, given the requester's reply queue.
type MakeProperties = fn(&[u8]) -> Properties;

fn none() -> Properties {
    Properties::default()
}

fn usual(reply_queue: &[u8]) -> Properties {
    none().correlation_id(b"id").reply_to(reply_queue)
}

fn with_headers(entries: &[u8]) -> impl FnOnce(&[u8]) -> Properties {
    let headers = none().headers(entries);
    move |reply_queue| headers.correlation_id(b"id").reply_to(reply_queue)
}

#[test]
fn server_survives_invalid_reply_addresses() {
    let mut corpus = Corpus::start("reply-to");
    corpus.send("an ordinary request", Reply("13"), usual);
    corpus.send("no properties at all", Rejected, |_| none());
    corpus.send("no reply_to", Rejected, |_| none().correlation_id(b"id"));
    corpus.send("an empty reply_to", Rejected, |_| none().reply_to(b""));
    corpus.send("no correlation_id", ReplyWithoutId, |queue| none().reply_to(queue));
    corpus.send("reply_to names no queue", ReturnedReply, |_| none().reply_to(b"no such queue"));
    let itself = corpus.queue.clone();
    corpus.send("reply_to is the request queue", Rejected, |_| none().reply_to(itself.as_bytes()));

    corpus.send("direct reply-to that nobody consumes", RefusedByBroker(406), |_| {
        none().reply_to(DIRECT_REPLY_TO.as_bytes())
    });
    // RabbitMQ up to 4.0 closes the connection that publishes to some of these.
    for address in [
        &b"amq.rabbitmq.reply-to.x"[..],
        b"amq.rabbitmq.reply-to.x.y",
        b"amq.rabbitmq.reply-to.!!!!.y",
        // The address of a process on a node that RabbitMQ does not name so.
        b"amq.rabbitmq.reply-to.g1h2AA9nZW5lcmF0ZWRAOTk5OTkAAAABAAAAAAAAAAA=.aGVsbG8=",
    ] {
        let name = address.escape_ascii().to_string();
        corpus.send(&name, Rejected, |_| none().reply_to(address));
    }
    // A node with the hash 99999, which no node of this broker has.
    let gone = b"amq.rabbitmq.reply-to.g1h2AAtyZXBseUA5OTk5OQAAAAEAAAAAAAAAAA==.aGVsbG8=";
    let outcome = match Broker::shared().version() {
        (3, 10, 0..12) | (3, 11, 0..4) => Rejected, // It closes the connection with 541.
        (3, ..) | (4, 0..2, _) => LostReply,
        _ => ReturnedReply,
    };
    corpus.send("a direct address on a node that is gone", outcome, |_| none().reply_to(gone));
    let direct = usual(DIRECT_REPLY_TO.as_bytes());
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let verdict = raw.publish("", corpus.queue.as_bytes(), &direct, b"7");
    corpus.check("a valid direct address", Reply("13"), verdict, &mut raw);
    corpus.finish();
}

#[test]
fn server_survives_properties_that_are_not_utf8() {
    let mut corpus = Corpus::start("bytes");
    for (name, outcome, properties) in [
        (
            "content_type",
            Reply("13"),
            (|queue| none().content_type(NOT_UTF8).correlation_id(b"id").reply_to(queue))
                as MakeProperties,
        ),
        ("content_encoding", Reply("13"), |queue| {
            none().content_encoding(NOT_UTF8).correlation_id(b"id").reply_to(queue)
        }),
        ("correlation_id", ReplyWithoutId, |queue| none().correlation_id(NOT_UTF8).reply_to(queue)),
        ("reply_to", Rejected, |_| none().correlation_id(b"id").reply_to(NOT_UTF8)),
        ("expiration", RefusedByBroker(406), |queue| usual(queue).expiration(NOT_UTF8)),
        ("message_id", Reply("13"), |queue| usual(queue).message_id(NOT_UTF8)),
        ("type", Reply("13"), |queue| usual(queue).type_(NOT_UTF8)),
        ("user_id", RefusedByBroker(406), |queue| usual(queue).user_id(NOT_UTF8)),
        ("app_id", Reply("13"), |queue| usual(queue).app_id(NOT_UTF8)),
        ("cluster_id", Reply("13"), |queue| usual(queue).cluster_id(NOT_UTF8)),
        ("all at once", Rejected, |_| {
            none()
                .content_type(NOT_UTF8)
                .content_encoding(NOT_UTF8)
                .headers(&entry(NOT_UTF8, b'S', &long(NOT_UTF8)))
                .correlation_id(NOT_UTF8)
                .reply_to(NOT_UTF8)
                .message_id(NOT_UTF8)
                .type_(NOT_UTF8)
                .app_id(NOT_UTF8)
                .cluster_id(NOT_UTF8)
        }),
        ("odd numbers", Reply("13"), |queue| {
            none()
                .delivery_mode(2)
                .priority(255)
                .correlation_id(b"id")
                .reply_to(queue)
                .timestamp(u64::MAX)
        }),
    ] {
        corpus.send(name, outcome, properties);
    }

    // With another exchange than the default one, a routing key can be any bytes.
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_queue = raw.reply_queue();
    let fanout = raw.fanout_to(&corpus.queue);
    let properties = usual(reply_queue.as_bytes());
    let verdict = raw.publish(&fanout, NOT_UTF8, &properties, b"7");
    corpus.check("routing key", Reply("13"), verdict, &mut raw);
    corpus.finish();
}

#[test]
fn server_survives_unusual_headers() {
    let mut corpus = Corpus::start("headers");
    let many: Vec<u8> = (0..900)
        .flat_map(|number| entry(format!("key {number}").as_bytes(), b'S', &long(b"value")))
        .collect();
    corpus.send("900 headers", Reply("13"), with_headers(&many));
    for kind in [b'F', b'A'] {
        for depth in [200, 20_000] {
            let name = format!("{} nested {depth} deep", char::from(kind));
            corpus.send(&name, Reply("13"), with_headers(&nested(kind, depth)));
        }
    }
    corpus.send("a key", Reply("13"), with_headers(&entry(NOT_UTF8, b'S', &long(b"value"))));

    // Every type in RabbitMQ's errata, and types that RabbitMQ does not know.
    for (kind, value, outcome) in [
        (b't', vec![1], Reply("13")),
        (b'b', vec![255], Reply("13")),
        (b'B', vec![255], Reply("13")),
        (b's', vec![255, 1], Reply("13")),
        (b'u', vec![255, 1], Reply("13")),
        (b'I', vec![255; 4], Reply("13")),
        (b'i', vec![255; 4], Reply("13")),
        (b'l', vec![255; 8], Reply("13")),
        (b'L', vec![255; 8], Reply("13")),
        (b'f', vec![1; 4], Reply("13")),
        (b'd', vec![1; 8], Reply("13")),
        (b'D', vec![255, 0, 0, 0, 1], Reply("13")),
        (b'S', long(b"text"), Reply("13")),
        (b'S', long(NOT_UTF8), Reply("13")),
        (b'x', long(NOT_UTF8), Reply("13")),
        (b'T', vec![255; 8], Reply("13")),
        (b'V', vec![], Reply("13")),
        (b'F', long(b""), Reply("13")),
        (b'F', long(&entry(b"key", b'x', &long(NOT_UTF8))), Reply("13")),
        (b'A', long(b""), Reply("13")),
        (b'A', long(b"VVx\0\0\0\x01\xff"), Reply("13")),
        // The short string and unsigned short of the specification, NaN, and an unknown type.
        (b's', b"\x04text".to_vec(), RefusedByBroker(541)),
        (b'U', vec![1, 2], RefusedByBroker(541)),
        (b'f', vec![255; 4], RefusedByBroker(541)),
        (b'd', vec![255; 8], RefusedByBroker(541)),
        (b'Z', vec![0; 4], RefusedByBroker(541)),
    ] {
        let name = format!("{} {value:?}", char::from(kind));
        corpus.send(&name, outcome, with_headers(&entry(b"key", kind, &value)));
    }
    corpus.finish();
}

#[test]
fn server_survives_truncated_long_and_empty_requests() {
    let mut corpus = Corpus::start("lengths");
    corpus.send_body("an empty body", Failure, b"", usual);
    corpus.send_body("a body of 16 MB", Failure, &vec![b'9'; 16 << 20], usual);
    let seven = [&[b' '; 300_000][..], b"7"].concat();
    corpus.send_body("a body of several frames", Reply("13"), &seven, usual);

    // RabbitMQ decodes all properties of a published message, and closes the connection for these.
    let cut: [(&str, MakeProperties); 7] = [
        ("reply_to cut", |_| none().correlation_id(b"id").property(9, b"\x20amq".to_vec())),
        ("reply_to absent", |_| none().correlation_id(b"id").property(9, vec![])),
        ("headers cut", |queue| {
            let cut = none().property(13, b"\0\0\xff\xff".to_vec());
            cut.correlation_id(b"id").reply_to(queue)
        }),
        ("an entry cut", |queue| {
            let cut = entry(b"key", b'S', &[0, 0, 0, 99]);
            none().headers(&cut).correlation_id(b"id").reply_to(queue)
        }),
        ("timestamp cut", |queue| usual(queue).property(6, vec![0; 3])),
        ("app_id cut", |queue| usual(queue).property(3, b"\x20a".to_vec())),
        ("bytes after the last property", |queue| usual(queue).property(3, b"\x01abc".to_vec())),
    ];
    for (name, properties) in cut {
        corpus.send(name, RefusedByBroker(541), properties);
    }
    // These two flags belong to no property; the lowest says that more flags follow.
    corpus.send("the reserved flag", Reply("13"), |queue| usual(queue).property(1, vec![]));
    corpus.send("the continuation flag", Reply("13"), |queue| usual(queue).property(0, vec![]));
    corpus.finish();
}

/// A header whose value is a table or array that nests others `depth` levels deep.
fn nested(kind: u8, depth: usize) -> Vec<u8> {
    let (key, size): (&[u8], usize) = if kind == b'F' { (b"\0", 6) } else { (b"", 5) };
    let mut bytes = b"\x03key".to_vec();
    for level in (0..depth).rev() {
        bytes.push(kind);
        bytes.extend(((level * size) as u32).to_be_bytes());
        if level > 0 {
            bytes.extend(key);
        }
    }
    bytes
}
