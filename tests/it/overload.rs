//! A server with a limit on waiting requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use amiquip::AmqpValue;
use crossbeam_channel::{Sender, unbounded};
use rabbitmq_rpc::{
    Brokers, Error, PendingReply, QueueType, RpcClient, RpcServer, ServerOptions, Status,
};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};
use crate::programs::{rpc_client, rpc_server_at, stop};
use crate::queue;
use crate::raw::{Properties, Raw, Verdict, entry, long};

const LIMIT: u32 = 2;

/// A server whose only worker is occupied by the first request of a client.
struct Busy {
    serving: Serving,
    client: RpcClient,
    first: PendingReply,
    executed: Arc<AtomicUsize>,
    /// Dropping it ends the first request, and later ones at once. All are answered with 13.
    release: Sender<()>,
}

impl Busy {
    fn start(queue: &str, options: ServerOptions) -> Busy {
        let url = Broker::shared().url();
        let (begin, begun) = unbounded();
        let (release, released) = unbounded::<()>();
        let executed = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&executed);
        let serving = Serving::start(&url, queue, options, move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            // Nobody receives that later ones begin.
            let _ = begin.send(());
            // An error here means that `release` was dropped.
            let _ = released.recv_timeout(PATIENCE);
            Ok(b"13".to_vec())
        });
        let client = connect(&url, queue);
        let first = client.send("7").unwrap();
        begun.recv_timeout(PATIENCE).unwrap();
        Busy { serving, client, first, executed, release }
    }
}

/// Sends one request that occupies the worker, as many as may wait, and three more. Returns for each
/// whether it was refused.
fn refused_of(queue_type: QueueType) -> Vec<bool> {
    let options = ServerOptions { queue_type, max_waiting: Some(LIMIT), ..Default::default() };
    let Busy { serving, client, first, executed, release } =
        Busy::start(&queue_name("overload"), options);
    let mut calls = vec![first];
    calls.extend((1..LIMIT + 4).map(|n| client.send(n.to_string()).unwrap()));

    let began = Instant::now();
    let mut is_refused = vec![false; calls.len()];
    while is_refused.iter().filter(|refused| **refused).count() < 3 {
        assert!(began.elapsed() < PATIENCE, "too few were refused: {is_refused:?}");
        for (call, refused) in
            calls.iter_mut().zip(&mut is_refused).filter(|(_, refused)| !**refused)
        {
            *refused = was_refused(call, queue_type);
        }
    }
    drop(release);
    for (call, refused) in calls.into_iter().zip(&is_refused) {
        assert!(*refused || call.wait().unwrap() == b"13");
    }
    assert_eq!(
        executed.load(Ordering::Relaxed),
        1 + LIMIT as usize,
        "a refused request was executed"
    );
    assert_eq!(serving.server.counters().refused, 3);
    is_refused
}

fn was_refused(call: &mut PendingReply, queue_type: QueueType) -> bool {
    match call.wait_timeout(Duration::from_millis(20)) {
        Ok(None) => false,
        Err(error @ Error::Remote(_)) => {
            // A quorum queue may refuse a request that a lost worker has executed.
            let (status, may_have_executed) = match queue_type {
                QueueType::Classic => (Status::ResourceExhausted, false),
                QueueType::Quorum => (Status::Unavailable, true),
            };
            assert_eq!(error.kind(), status.name());
            assert_eq!(error.may_have_executed(), may_have_executed, "{error}");
            true
        }
        outcome => panic!("{outcome:?}"),
    }
}

#[test]
fn classic_queue_refuses_the_newest_requests() {
    assert_eq!(refused_of(QueueType::Classic), [false, false, false, true, true, true]);
}

#[test]
fn quorum_queue_refuses_the_requests_that_have_waited_longest() {
    assert_eq!(refused_of(QueueType::Quorum), [false, true, true, true, false, false]);
}

#[test]
fn rpc_client_exits_with_75_when_service_is_overloaded() {
    let queue = queue_name("overload");
    let options = ServerOptions { max_waiting: Some(1), ..Default::default() };
    let Busy { serving: _serving, client, first, release, .. } = Busy::start(&queue, options);
    let second = client.send("7").unwrap();
    let waiting = || client.queue().unwrap().messages;
    await_value(waiting, |waiting| *waiting == 1);
    let output = rpc_client(&queue, &["7"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("RESOURCE_EXHAUSTED"), "{stderr}");
    drop(release);
    for call in [first, second] {
        assert_eq!(call.wait(), Ok(b"13".to_vec()));
    }
}

/// While no server runs, requests over the limit do not fill the broker's memory.
#[test]
fn overflow_queue_has_a_time_limit() {
    let (url, queue) = (Broker::shared().url(), queue_name("overflow"));
    let options = ServerOptions { max_waiting: Some(LIMIT), ..Default::default() };
    RpcServer::connect(Brokers::parse(&url).unwrap(), &queue, options).unwrap();
    let limit = [
        ("x-message-ttl".to_string(), AmqpValue::LongLongInt(60_000)),
        ("x-queue-type".to_string(), AmqpValue::LongString("classic".into())),
    ];
    // The broker refuses a declaration that differs from the first one.
    queue::declare(&url, &format!("{queue}.overflow"), true, limit.into_iter().collect());
}

/// A queue process that hangs keeps the broker from answering about its queue.
#[test]
fn server_does_without_an_overflow_queue_that_the_broker_says_nothing_about() {
    // Other tests list the queues of the shared broker, and would wait for the suspended one.
    let (broker, queue) = (Broker::fragile(), queue_name("overload-hangs"));
    let options = ServerOptions { max_waiting: Some(LIMIT), ..Default::default() };
    RpcServer::connect(Brokers::parse(&broker.url()).unwrap(), &queue, options).unwrap();
    let eval = |function: &str| {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}.overflow\">>)");
        let found = format!("{{ok, Q}} = rabbit_amqqueue:lookup({name})");
        broker.ctl(&["eval", &format!("{found}, sys:{function}(amqqueue:get_pid(Q)).")]);
    };
    eval("suspend");
    let limit = LIMIT.to_string();
    let args = ["--max-waiting", &limit, "--connect-timeout", "4"];
    let mut server = rpc_server_at(&broker.url(), &queue, &args);
    let warning = "requests over the limit are not answered at present";
    await_value(|| server.stderr().contains(warning), |has_come| *has_come);
    assert_eq!(connect(&broker.url(), &queue).call("7").unwrap(), b"13");
    eval("resume");
    stop(&mut server);
}

/// An operator may move a request back and forth: its last refusal does not prove that no worker had
/// it before.
#[test]
fn refusal_claims_that_nothing_was_executed_only_if_the_request_died_this_once() {
    let (broker, queue) = (Broker::shared(), queue_name("overload-moved"));
    let options = ServerOptions { max_waiting: Some(1), ..Default::default() };
    let server = Serving::start(&broker.url(), &queue, options, |request| Ok(request.to_vec()));
    let mut raw = Raw::connect(broker.port(0));
    let reply_queue = raw.reply_queue();
    let overflow = format!("{queue}.overflow");
    let text = |key: &str, value: &str| entry(key.as_bytes(), b'S', &long(value.as_bytes()));
    let death = |queue: &str, reason, count: u8| {
        let count = entry(b"count", b'l', &[[0; 7].as_slice(), &[count]].concat());
        let table = [count, text("reason", reason), text("queue", queue)].concat();
        [b"F".as_slice(), &long(&table)].concat()
    };
    let newest = death(&queue, "maxlen", 1);
    for (deaths, status) in [
        (newest.clone(), "RESOURCE_EXHAUSTED"),
        ([newest.clone(), death(&queue, "rejected", 1)].concat(), "UNAVAILABLE"),
        (death(&queue, "maxlen", 2), "UNAVAILABLE"),
        (death("another", "maxlen", 1), "UNAVAILABLE"),
        (Vec::new(), "UNAVAILABLE"),
        ([death(&queue, "expired", 1), newest].concat(), "DEADLINE_EXCEEDED"),
    ] {
        let first = text("x-first-death-reason", "maxlen");
        let headers = [first, entry(b"x-death", b'A', &long(&deaths))].concat();
        let properties = Properties::default().headers(&headers).reply_to(reply_queue.as_bytes());
        assert_eq!(raw.publish("", overflow.as_bytes(), &properties, b"7"), Verdict::Confirmed);
        let header = raw.reply().header;
        let has = |part: &str| header.windows(part.len()).any(|bytes| bytes == part.as_bytes());
        assert!(has(status), "{} for {}", header.escape_ascii(), deaths.escape_ascii());
    }
    server.stop();
}

/// A queue that another program declared may drop a request that was delivered before.
#[test]
fn refusal_by_a_queue_of_another_program_does_not_claim_that_nothing_was_executed() {
    let (url, queue) = (Broker::shared().url(), queue_name("overload-foreign"));
    let arguments = [
        ("x-max-length".to_string(), AmqpValue::LongLongInt(1)),
        ("x-dead-letter-exchange".to_string(), AmqpValue::LongString(String::new())),
        (
            "x-dead-letter-routing-key".to_string(),
            AmqpValue::LongString(format!("{queue}.overflow")),
        ),
    ];
    queue::declare(&url, &queue, true, arguments.into_iter().collect());
    let options = ServerOptions { max_waiting: Some(1), ..Default::default() };
    let Busy { serving: _serving, client, first, release, .. } = Busy::start(&queue, options);
    let dropped = client.send("2").unwrap();
    let last = client.send("3").unwrap();
    let error = dropped.wait().unwrap_err();
    assert!(matches!(&error, Error::Remote(failure) if failure.status == Status::Unavailable));
    assert!(error.may_have_executed(), "{error}");
    drop(release);
    assert_eq!((first.wait(), last.wait()), (Ok(b"13".to_vec()), Ok(b"13".to_vec())));
}

/// `amqp://127.0.0.1:1` is no broker's.
#[test]
fn options_that_no_queue_can_keep_are_refused_before_anything_is_sent() {
    let limited = |limit| ServerOptions { max_waiting: Some(limit), ..Default::default() };
    let dead_lettered = |exchange: &str, max_waiting| ServerOptions {
        max_waiting,
        dead_letter_exchange: Some(exchange.into()),
        ..Default::default()
    };
    let (short, long) = ("q".repeat(246), "q".repeat(247));
    for (queue, options, sentence) in [
        ("q", dead_lettered("amq.fanout", Some(LIMIT)), "set no dead-letter exchange, or no limit"),
        // Rejected requests would return to the queue that they come from.
        ("q", dead_lettered("", None), "the name of the exchange is empty"),
        ("q", dead_lettered(&"x".repeat(256), None), "has 256 bytes; AMQP allows 255"),
        ("q", limited(0), "set max_waiting to 1 or more"),
        (&long, limited(LIMIT), "the name of the overflow queue has 256 bytes; AMQP allows 255"),
    ] {
        let brokers = Brokers::parse("amqp://127.0.0.1:1").unwrap();
        let error = RpcServer::connect(brokers, queue, options).unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(sentence)), "{error:?}");
    }
    for (queue, options) in [(&short, limited(LIMIT)), (&long, ServerOptions::default())] {
        let brokers = Brokers::parse(&Broker::shared().url()).unwrap();
        RpcServer::connect(brokers, queue, options).unwrap();
    }
}
