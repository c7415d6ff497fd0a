//! Request queues that a server cannot use: at its first start, and while it serves.

use amiquip::{AmqpValue, Connection, ConsumerOptions, FieldTable, QueueDeclareOptions};

use crate::broker::{Broker, queue_name, url};
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_client, rpc_server, stop};
use crate::queue;

#[test]
fn server_exits_with_advice_when_queue_is_refused() {
    let url = Broker::shared().url();
    // The broker quotes the name as it is.
    let locked = queue_name("locked\u{1b}[2J");
    let mut other = queue::connect(&url);
    let channel = other.open_channel(None).unwrap();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    channel.queue_declare(locked.as_str(), options).unwrap();

    for (queue, args, code, sentence) in [
        (locked.as_str(), &[][..], 78, "another connection has it for itself alone"),
        ("amq.mine", &[], 78, "names that begin with \"amq.\" are the broker's own"),
        ("q", &["--delivery-limit", "3"], 64, "a delivery limit needs a quorum queue"),
        ("q", &["--disconnected-timeout", "86401"], 64, "at most a day"),
        ("q", &["--workers", "0"], 64, "at least one worker"),
        ("q", &["--queue-type", "stream"], 64, "a queue is classic or quorum"),
    ] {
        let args = [&["--url", &url, "--queue", queue], args].concat();
        let mut server = Process::spawn(RPC_SERVER, &args);
        assert_eq!(server.wait(PATIENCE).code(), Some(code), "{queue}: {}", server.stderr());
        assert!(server.stderr().contains(sentence), "{queue}: {}", server.stderr());
        for absent in ["\u{1b}", "trying again"] {
            assert!(!server.stderr().contains(absent), "{:?}", server.stderr());
        }
        assert_eq!(server.stdout(), "");
    }
    other.close().unwrap();
}

/// Another program, until its connection ends, consumes from the queue exclusively.
fn consume_exclusively(queue: &str) -> Connection {
    let mut other = queue::connect(&url());
    let channel = other.open_channel(None).unwrap();
    let options = ConsumerOptions { exclusive: true, ..Default::default() };
    // Their ends would cancel it.
    std::mem::forget(channel.basic_consume(queue, options).unwrap());
    std::mem::forget(channel);
    other
}

fn declare_stream(queue: &str) {
    let kind = ("x-queue-type".to_string(), AmqpValue::LongString("stream".into()));
    queue::declare(&url(), queue, true, [kind].into_iter().collect());
}

#[test]
fn server_ends_when_it_cannot_consume_at_its_first_start() {
    let (taken, stream) = (queue_name("taken"), queue_name("stream"));
    queue::declare_durable(&url(), &taken);
    let other = consume_exclusively(&taken);
    declare_stream(&stream);
    let url = url();
    let kind = "neither classic nor quorum: a stream";
    for (queue, args, sentence) in [
        (&taken, &[][..], "another program consumes from it exclusively; end that program"),
        (&taken, &["--wait", "2"], "another program consumes from it exclusively"),
        (&stream, &[], kind),
        (&stream, &["--prefetch", "0"], kind),
    ] {
        let args = [&["--url", &url, "--queue", queue], args].concat();
        let mut server = Process::spawn(RPC_SERVER, &args);
        assert_eq!(server.wait(PATIENCE).code(), Some(78), "{args:?}: {}", server.stderr());
        assert!(server.stderr().contains(sentence), "{args:?}: {}", server.stderr());
        assert_eq!(server.stdout(), "");
    }
    other.close().unwrap();
}

#[test]
fn wait_covers_an_exclusive_consumer_that_ends() {
    let queue = queue_name("released");
    queue::declare_durable(&url(), &queue);
    let other = consume_exclusively(&queue);
    let args = ["--url", &url(), "--queue", &queue, "--wait", "60"];
    let mut server = Process::spawn(RPC_SERVER, &args);
    server.wait_for_line("consumes from it exclusively", PATIENCE);
    other.close().unwrap();
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    stop(&mut server);
}

/// It stays connected meanwhile, and logs an error each time.
#[test]
fn running_server_goes_on_when_its_queue_was_a_stream_or_taken_for_a_while() {
    let queue = queue_name("meanwhile");
    let mut server = rpc_server(&queue, &[]);
    for _ in 0..2 {
        replace(&queue, "stream");
        let line = server.wait_for_line("neither classic nor quorum", PATIENCE);
        assert!(line.contains("trying again"), "{line}");
        replace(&queue, "classic");
        server.wait_for_line("taking requests", PATIENCE);
        assert_eq!(rpc_client(&queue, &["--timeout", "30", "7"]).stdout, b"13\n");
    }
    stop(&mut server);
}

/// Deletes the queue and declares it as another kind. The server may be first: then tries again.
fn replace(queue: &str, kind: &str) {
    let mut operator = queue::connect(&url());
    let kind = [("x-queue-type".to_string(), AmqpValue::LongString(kind.into()))];
    let arguments: FieldTable = kind.into_iter().collect();
    let mut declare = || {
        let channel = operator.open_channel(None).unwrap();
        channel.queue_delete(queue, Default::default()).unwrap();
        let arguments = arguments.clone();
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        channel.queue_declare(queue, options).is_ok()
    };
    assert!((0..8).any(|_| declare()));
}

/// Whatever is full may have room again.
#[test]
fn limit_of_queues_is_reported_as_passing() {
    let broker = Broker::shared();
    let url = broker.virtual_host("full");
    let host = url.rsplit_once('/').unwrap().1;
    broker.ctl(&["set_vhost_limits", "-p", host, "{\"max-queues\": 0}"]);
    let args = ["--url", &url, "--queue", "q"];
    let mut server = Process::spawn(RPC_SERVER, &args);
    assert_eq!(server.wait(PATIENCE).code(), Some(69), "{}", server.stderr());
    assert!(server.stderr().contains("as many queues as there may be"), "{}", server.stderr());
    let mut server = Process::spawn(RPC_SERVER, &[&args[..], &["--wait", "60"]].concat());
    server.wait_for_line("raise that limit", PATIENCE);
    broker.ctl(&["clear_vhost_limits", "-p", host]);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    stop(&mut server);
}
