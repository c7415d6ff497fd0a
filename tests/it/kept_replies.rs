//! Finished replies whose channel or connection ends before the broker has them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{Sender, bounded};
use rabbitmq_rpc::{Error, Failure, QueueType, RpcClient, ServerOptions, Status};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::patience::{PATIENCE, await_value};
use crate::proxy::Proxy;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};

/// A handler that counts its runs.
fn counted(runs: &Arc<AtomicUsize>) -> Arc<AtomicUsize> {
    Arc::clone(runs)
}

/// The failure `INTERNAL` takes the place of whatever the broker refuses, in another try.
#[test]
fn refused_failure_is_replaced_and_its_handler_runs_once() {
    let broker = Broker::fragile();
    broker.limit_messages(1000);
    let queue = queue_name("refused-failure");
    let runs = Arc::new(AtomicUsize::new(0));
    let count = counted(&runs);
    let serving = Serving::start(&broker.url(), &queue, ServerOptions::default(), move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        match request {
            b"fail" => Err(Failure::new(Status::NotFound, "x".repeat(5000))),
            _ => Ok(vec![]),
        }
    });
    let error = connect(&broker.url(), &queue).call("fail").unwrap_err();
    let Error::Remote(failure) = &error else { panic!("{error}") };
    assert_eq!(failure.status, Status::Internal);
    assert!(failure.message.contains("message size 5000"), "{failure}");
    let mut raw = Raw::connect(broker.port(0));
    raw.consume(DIRECT_REPLY_TO.as_bytes());
    let direct = Properties::default().correlation_id(b"id").reply_to(DIRECT_REPLY_TO.as_bytes());
    assert_eq!(raw.publish("", queue.as_bytes(), &direct, b"fail"), Verdict::Confirmed);
    let reply = String::from_utf8(raw.reply().body).unwrap();
    assert!(reply.contains("message size 5000"), "{reply}");
    assert_eq!(runs.load(Ordering::SeqCst), 2, "one run for each request");
    serving.stop();
    broker.limit_messages(16 << 20);
}

/// The broker ignores what follows a refused reply on its channel, and delivers those requests
/// again.
#[test]
fn replies_behind_a_refused_one_arrive_without_another_run() {
    let broker = Broker::fragile();
    broker.limit_messages(1000);
    let queue = queue_name("behind-refused");
    let runs = Arc::new(AtomicUsize::new(0));
    let count = counted(&runs);
    let options = ServerOptions {
        prefetch: 8,
        queue_type: QueueType::Quorum,
        delivery_limit: Some(2),
        ..Default::default()
    };
    let serving = Serving::start(&broker.url(), &queue, options, move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        match request {
            b"large" => Ok(vec![b'x'; 2000]),
            request => Ok(request.to_vec()),
        }
    });
    let client = connect(&broker.url(), &queue);
    let calls: Vec<_> = (0..24)
        .map(|number| if number % 8 == 0 { "large".into() } else { number.to_string() })
        .map(|body| (client.request(body.clone()).send().unwrap(), body))
        .collect();
    for (call, body) in calls {
        match (call.wait(), &*body) {
            (Err(Error::Remote(failure)), "large") => assert_eq!(failure.status, Status::Internal),
            (reply, body) => assert_eq!(reply.unwrap(), body.as_bytes()),
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 24);
    serving.stop();
    broker.limit_messages(16 << 20);
}

/// Another worker gets the request while the first one still executes it, and waits for it.
#[test]
fn request_that_outlives_its_connection_runs_once() {
    let broker = Broker::fragile();
    let queue = queue_name("outlived");
    let runs = Arc::new(AtomicUsize::new(0));
    let count = counted(&runs);
    let (began, has_begun) = bounded(1);
    let (finish, may_finish) = bounded::<()>(0);
    let options = ServerOptions { workers: 2, ..Default::default() };
    let proxy = Proxy::to(broker.port(0));
    let serving = Serving::start(&proxy.url(), &queue, options, move |request| {
        count.fetch_add(1, Ordering::SeqCst);
        began.send(()).unwrap();
        let _ = may_finish.recv_timeout(PATIENCE);
        Ok(request.to_vec())
    });
    let mut raw = Raw::connect(broker.port(0));
    raw.request(&queue, b"7");
    has_begun.recv_timeout(PATIENCE).unwrap();
    proxy.cut();
    await_value(|| serving.server.counters().redelivered, |count| *count >= 1);
    drop(finish);
    assert_eq!(raw.reply().body, b"7");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    serving.stop();
}

/// RabbitMQ 4.3 has a consumer timeout for quorum queues only, and cancels the consumer; before, it
/// closes the channel.
#[test]
fn request_that_outlasts_the_consumer_timeout_runs_once_and_is_answered() {
    let broker = Broker::fragile();
    let Slow { serving, client, runs, finish } = Slow::start(&broker, 2, 4);
    let slow = client.request("slow").timeout(PATIENCE).send().unwrap();
    await_value(|| serving.server.counters().redelivered, |count| *count > 0);
    drop(finish);
    assert_eq!(slow.wait().unwrap(), b"slow");
    // The other copy is acknowledged, and the workers go on.
    assert_eq!(client.call("quick").unwrap(), b"quick");
    await_value(|| client.queue().unwrap().messages, |waiting| *waiting == 0);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    serving.stop();
    broker.ctl(&["eval", USUAL_CONSUMER_TIMEOUT]);
}

/// With a limit on its waiting, a request that never ends occupies two workers at most.
///
/// The other calls are needed: after a consumer timeout, a quorum queue of RabbitMQ 4.3 may not set
/// its timer again before the next message or acknowledgement (`handle_aux` in `rabbit_fifo` takes
/// a timer that ended in the same millisecond for one that still runs).
#[test]
fn request_that_never_ends_is_answered_after_two_consumer_timeouts() {
    let broker = Broker::fragile();
    let Slow { serving, client, runs, finish } = Slow::start(&broker, 4, 1);
    let error = thread::scope(|scope| {
        let slow = scope.spawn(|| client.request("slow").timeout(PATIENCE).call().unwrap_err());
        while !slow.is_finished() {
            assert_eq!(client.call("quick").unwrap(), b"quick");
        }
        slow.join().unwrap()
    });
    assert!(error.to_string().contains("consumer_timeout"), "{error}");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    // A broker before 4.3 closed the channel of the second worker, whose last reply is then proved
    // by its next channel.
    await_value(|| serving.stopper.status().workers_ready, |ready| *ready == 3);
    drop(finish);
    serving.stop();
    broker.ctl(&["eval", USUAL_CONSUMER_TIMEOUT]);
}

/// A server of a quorum queue on a broker with a short consumer timeout.
struct Slow {
    serving: Serving,
    client: RpcClient,
    /// How often the handler has begun with a request `slow`.
    runs: Arc<AtomicUsize>,
    /// Those runs end when this is dropped.
    finish: Sender<()>,
}

impl Slow {
    fn start(broker: &Broker, workers: usize, prefetch: u16) -> Slow {
        broker.ctl(&["eval", SHORT_CONSUMER_TIMEOUT]);
        let queue = queue_name("consumer-timeout");
        let runs = Arc::new(AtomicUsize::new(0));
        let count = counted(&runs);
        let (finish, may_finish) = bounded::<()>(0);
        let queue_type = QueueType::Quorum;
        let options = ServerOptions { workers, prefetch, queue_type, ..Default::default() };
        let serving = Serving::start(&broker.url(), &queue, options, move |request| {
            if request == b"slow" {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = may_finish.recv_timeout(PATIENCE);
            }
            Ok(request.to_vec())
        });
        Slow { serving, client: connect(&broker.url(), &queue), runs, finish }
    }
}

/// Channels look at it at each tick. On a busy machine, quick requests take less than this, too.
const SHORT_CONSUMER_TIMEOUT: &str = "application:set_env(rabbit, consumer_timeout, 3000), \
                                      application:set_env(rabbit, channel_tick_interval, 500).";
const USUAL_CONSUMER_TIMEOUT: &str = "application:set_env(rabbit, consumer_timeout, 1800000), \
                                      application:set_env(rabbit, channel_tick_interval, 60000).";
