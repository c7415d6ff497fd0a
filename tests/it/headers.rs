//! Content headers of any size, and properties of any type: each concerns its message alone.

use crossbeam_channel::bounded;
use rabbitmq_rpc::{Error, HeaderValue, Request, ServerOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::manual_server::ManualServer;
use crate::patience::PATIENCE;
use crate::programs::rpc_server_at;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Reply, Verdict, entry, long};
use crate::scratch;

/// RabbitMQ does not split a content header: it passes on those of requesters with a larger
/// `frame_max`.
#[test]
fn content_header_larger_than_a_frame_costs_neither_server_nor_client_its_connection() {
    const FRAME_MAX: usize = 1 << 20;
    let config = scratch::directory("large-header").join("rabbitmq.conf");
    std::fs::write(&config, format!("frame_max = {FRAME_MAX}\n")).unwrap();
    let broker = Broker::with(&["--config", config.to_str().unwrap()]);
    let large = entry(b"large", b'S', &long(&vec![b'7'; 300_000]));
    let mut raw = Raw::connect_with_frame_max(broker.port(0), FRAME_MAX);

    let queue = queue_name("large-request");
    let mut server = rpc_server_at(&broker.url(), &queue, &[]);
    raw.request_with(&queue, Properties::default().headers(&large), b"7");
    assert_eq!(raw.reply().body, b"13");
    assert!(!server.stderr().contains("trying again"), "{}", server.stderr());
    crate::programs::stop(&mut server);

    let manual = ManualServer::start(&broker.url(), &queue);
    let client = connect(&broker.url(), &queue);
    let calls = [client.send("large").unwrap(), client.send("small").unwrap()];
    let (first, second) = (manual.next(), manual.next());
    let properties = |request: &amiquip::Delivery| {
        let id = request.properties.correlation_id().clone().unwrap();
        let to = request.properties.reply_to().clone().unwrap();
        (Properties::default().headers(&large).correlation_id(id.as_bytes()), to)
    };
    let (reply, to) = properties(&first);
    assert_eq!(raw.publish("", to.as_bytes(), &reply, b"with headers"), Verdict::Confirmed);
    manual.reply(&second, b"without");
    let [first, second] = calls.map(|call| call.wait_reply().unwrap());
    assert_eq!(first.body(), b"with headers");
    assert_eq!(first.header("large").map(str::len), Some(300_000));
    assert_eq!((second.body(), client.counters().reconnects), (&b"without"[..], 0));
}

/// RabbitMQ replaces `amq.rabbitmq.reply-to` by a longer name, so a header frame that just fits
/// when it is published is larger than `frame_max` when it is delivered.
#[test]
fn header_frame_that_the_broker_lengthens_is_served() {
    let queue = queue_name("lengthened");
    let mut server = rpc_server_at(&url(), &queue, &[]);
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let request = |length: usize| {
        Properties::default()
            .headers(&entry(b"large", b'S', &long(&vec![b'7'; length])))
            .correlation_id(b"id")
            .reply_to(DIRECT_REPLY_TO.as_bytes())
    };
    // The whole frame: its prefix and end, class, weight and body size, flags and properties.
    let length = 131_072 - (8 + 12 + 2 + request(0).bytes.len());
    assert_eq!(raw.publish("", queue.as_bytes(), &request(length), b"7"), Verdict::Confirmed);
    assert_eq!(raw.reply().body, b"13");
    assert!(!server.stderr().contains("trying again"), "{}", server.stderr());
    crate::programs::stop(&mut server);
}

/// RabbitMQ's Erlang tutorial sends sixteen raw bytes as its correlation id.
#[test]
fn reply_carries_a_correlation_id_of_any_bytes() {
    let queue = queue_name("raw-id");
    let server =
        Serving::requests(&url(), &queue, ServerOptions::default(), |request: &Request| {
            Ok(format!("{:?}", request.correlation_id()))
        });
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    for id in [&b"\x00\xff\xfe\x80\n\r\x1b[31m\x01\x02\x03\x04\x05\x06"[..], &[0xf0; 255], b""] {
        let request = Properties::default().correlation_id(id).reply_to(reply_to.as_bytes());
        assert_eq!(raw.publish("", queue.as_bytes(), &request, b"7"), Verdict::Confirmed);
        let reply = raw.reply();
        let expected = [&[id.len() as u8], id].concat();
        let found = reply.header.windows(expected.len()).any(|bytes| bytes == expected);
        assert!(found, "{}", reply.header.escape_ascii());
        assert_eq!(reply.body, format!("{:?}", std::str::from_utf8(id).ok()).into_bytes());
    }
    assert_eq!(server.stop().served, 3);
}

/// An integer is AMQP's natural type for a number; this crate writes texts.
#[test]
fn numbers_in_headers_may_be_integers() {
    let queue = queue_name("integers");
    let (sign_arrived, may_reply) = bounded(1);
    let _server =
        Serving::requests(&url(), &queue, ServerOptions::default(), move |request: &Request| {
            may_reply.recv_timeout(PATIENCE).expect("the sign of life arrives first");
            let left = request.remaining().map(|left| left.as_secs());
            let values: Vec<_> = request.headers().filter(|(name, _)| *name == "v").collect();
            Ok(format!("{left:?} {values:?}"))
        });
    let mut raw = Raw::connect(Broker::shared().port(0));
    let reply_to = raw.reply_queue();
    let in_a_minute = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let since_1970 = in_a_minute.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    for (kind, value, expected) in [
        (b'b', vec![0xff], HeaderValue::Integer(-1)),
        (b'B', vec![0xff], HeaderValue::Integer(255)),
        (b's', vec![0x80, 0], HeaderValue::Integer(-32_768)),
        (b'I', vec![0, 0, 0, 7], HeaderValue::Integer(7)),
        (b'l', vec![0xff; 8], HeaderValue::Integer(-1)),
        (b't', vec![1], HeaderValue::Boolean(true)),
        (b'd', 1.5f64.to_be_bytes().to_vec(), HeaderValue::Float(1.5)),
        (b'T', 7u64.to_be_bytes().to_vec(), HeaderValue::Time(7)),
        (b'x', long(b"\xff"), HeaderValue::Bytes(b"\xff")),
        (b'S', long(b"\xff"), HeaderValue::Bytes(b"\xff")),
        (b'S', long(b"blue"), HeaderValue::Text("blue")),
    ] {
        let headers = [
            entry(b"table", b'F', &long(&entry(b"a", b'I', &[0; 4]))),
            entry(b"v", kind, &value),
            entry(b"rpc-deadline", b'l', &since_1970.to_be_bytes()),
            entry(b"rpc-keep-alive", b'I', &1000i32.to_be_bytes()),
        ];
        let request = Properties::default()
            .headers(&headers.concat())
            .correlation_id(b"id")
            .reply_to(reply_to.as_bytes())
            .expiration(b"90000");
        assert_eq!(raw.publish("", queue.as_bytes(), &request, b"7"), Verdict::Confirmed);
        let is_sign = |reply: &Reply| reply.header.windows(10).any(|bytes| bytes == b"keep-alive");
        let sign = raw.reply();
        assert!(is_sign(&sign) && sign.body.is_empty(), "{sign:?}");
        sign_arrived.send(()).unwrap();
        let mut replies = std::iter::repeat_with(|| raw.reply()).take(100);
        let reply = replies.find(|reply| !is_sign(reply)).expect("a reply, not signs alone");
        let body = String::from_utf8(reply.body).unwrap();
        let (left, values) = body.split_once(") ").unwrap();
        let left: u64 = left.trim_start_matches("Some(").parse().unwrap();
        assert!((60 - PATIENCE.as_secs().min(50)..=60).contains(&left), "{body}");
        assert_eq!(values, format!("[(\"v\", {expected:?})]"));
    }
}

/// RabbitMQ takes `CC` and `BCC` for arrays of routing keys. It closes the channel over a text.
#[test]
fn headers_that_the_broker_refuses_cost_their_own_call_alone() {
    let queue = queue_name("copies");
    let _server = Serving::echo(&url(), &queue);
    let client = connect(&url(), &queue);
    let others: Vec<_> = (0..8).map(|_| client.send("8").unwrap()).collect();
    for name in ["CC", "BCC"] {
        let error = client.request("7").header(name, "x").call().unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(name)), "{error:?}");
        assert!(!error.may_have_executed());
    }
    for other in others {
        assert_eq!(other.wait().unwrap(), b"8");
    }
    assert_eq!(client.counters().reconnects, 0);
}
