//! Three nodes that fail in turn: clients and servers of a failed node connect to another, and every
//! call is answered.
//!
//! One round takes about a minute; `RABBITMQ_RPC_ROUNDS` sets the number of rounds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rabbitmq_rpc::{Error, FibonacciRpcClient, QueueType, ServerOptions, fibonacci};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, SetOnDrop, await_value};
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_server_at, stop};
use crate::proxy::Proxy;
use crate::{queue, settings};

const CALLERS: usize = 8;

#[test]
fn cluster_serves_calls_while_its_nodes_fail_in_turn() {
    let broker = Broker::cluster(3);
    let urls: Vec<String> = (0..3).map(|node| broker.url_of(node)).collect();
    every_call_is_answered(&broker, &urls);
    another_server_answers_a_worker_whose_node_is_killed(&broker, &urls);
    server_leaves_a_node_that_delivers_nothing(&broker, &urls);
    classic_queue_is_served_again_once_its_node_is_back(&broker, &urls);
    client_connects_while_another_node_is_frozen(&broker, &urls);
}

fn start_server(urls: &str, queue: &str, kind: &str) -> Process {
    rpc_server_at(urls, queue, &["--queue-type", kind, "--prefetch", "8"])
}

/// All callers and two servers connect to node 0 first, and the third server to node 1. The quorum
/// queue has a replica on each node.
fn every_call_is_answered(broker: &Broker, urls: &[String]) {
    let queue = queue_name("quorum");
    let list = urls.join(",");
    let other = format!("{},{},{}", urls[1], urls[2], urls[0]);
    let mut servers = [&list, &list, &other].map(|urls| start_server(urls, &queue, "quorum"));
    let answers = Answers::default();
    thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| answers.collect(&connect_fibonacci(&list, &queue)));
        }
        let _stop = SetOnDrop(&answers.stopped);
        answers.await_more(500);
        answers.take_longest_gap();
        let rounds = settings::number("RABBITMQ_RPC_ROUNDS").unwrap_or(1);
        for round in 0..rounds as usize {
            let (first, second) = (round % 3, (round + 1) % 3);
            broker.kill(first);
            answers.await_more(500);
            println!("node {first} killed: no answer for {:?}", answers.take_longest_gap());
            broker.start_node(first);
            answers.await_more(500);
            println!("node {first} started: no answer for {:?}", answers.take_longest_gap());
            broker.stop(second);
            answers.await_more(500);
            println!("node {second} stopped: no answer for {:?}", answers.take_longest_gap());
            broker.start_node(second);
            answers.await_more(500);
            println!("node {second} started: no answer for {:?}", answers.take_longest_gap());
        }
    });
    println!("{} answers", answers.count.load(Ordering::Relaxed));
    assert_eq!(*answers.wrong.lock().unwrap(), Vec::<String>::new());
    servers.iter_mut().for_each(stop);
}

#[derive(Default)]
struct Answers {
    count: AtomicUsize,
    wrong: Mutex<Vec<String>>,
    stopped: AtomicBool,
    /// When the last answer arrived, and the longest time without one.
    gap: Mutex<Option<(Instant, Duration)>>,
}

impl Answers {
    /// Calls without pause until stopped.
    fn collect(&self, client: &FibonacciRpcClient) {
        for n in (0..=fibonacci::MAX_N).cycle() {
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            match client.call(n) {
                Ok(number) if number == fibonacci::fib(n) => self.note(),
                other => self.wrong.lock().unwrap().push(format!("fib({n}): {other:?}")),
            }
        }
    }

    fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let (mut gap, now) = (self.gap.lock().unwrap(), Instant::now());
        let (last, longest) = gap.unwrap_or((now, Duration::ZERO));
        *gap = Some((now, longest.max(now - last)));
    }

    /// The longest time without an answer since the last call of this function.
    fn take_longest_gap(&self) -> Duration {
        let mut gap = self.gap.lock().unwrap();
        let (_, longest) = gap.as_mut().expect("answers have arrived");
        std::mem::take(longest)
    }

    fn await_more(&self, answers: usize) {
        let enough = self.count.load(Ordering::Relaxed) + answers;
        let look = || (self.count.load(Ordering::Relaxed), self.wrong.lock().unwrap().clone());
        await_value(look, |(count, _)| *count >= enough);
    }
}

/// RabbitMQ 4.3 keeps a request for the consumers of a lost node for a minute by default. The call's
/// deadline is earlier.
fn another_server_answers_a_worker_whose_node_is_killed(broker: &Broker, urls: &[String]) {
    let queue = queue_name("kept");
    let options = ServerOptions { queue_type: QueueType::Quorum, ..Default::default() };
    let ((begin, begun), (release, released)) = (bounded(1), bounded::<()>(0));
    let _busy = Serving::start(&urls.join(","), &queue, options.clone(), move |_| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(b"late".to_vec())
    });
    let client = connect(&urls[1], &queue);
    let call = client.send_timeout("7", 3 * PATIENCE / 4).unwrap();
    begun.recv_timeout(PATIENCE).unwrap();
    let others = format!("{},{}", urls[2], urls[1]);
    let idle = Serving::start(&others, &queue, options, |body| Ok(body.to_vec()));
    broker.kill(0);
    let began = Instant::now();
    assert_eq!(call.wait(), Ok(b"7".to_vec()));
    println!("node of a busy worker killed: no answer for {:?}", began.elapsed());
    drop(release);
    assert_eq!(idle.stop().served, 1);
    broker.start_node(0);
}

/// A quorum queue delivers through its member on the consumer's node. RabbitMQ 3.10 was seen without
/// that member after the queue had been deleted and declared again. The first request then counts as
/// delivered and is lost. The second one waits.
fn server_leaves_a_node_that_delivers_nothing(broker: &Broker, urls: &[String]) {
    let queue = queue_name("without-member");
    // The queue's leader is on the node on which the queue was declared.
    stop(&mut rpc_server_at(&urls[0], &queue, &["--queue-type", "quorum"]));
    let mut server = rpc_server_at(&format!("{},{}", urls[2], urls[1]), &queue, &[]);
    let client = connect_fibonacci(&urls[0], &queue);
    assert_eq!(client.call(7), Ok(13));
    let stop_member = format!(
        "{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<\"/\">>, queue, <<\"{queue}\">>)), \
         {{Name, _}} = amqqueue:get_pid(Q), ok = ra:stop_server(quorum_queues, {{Name, node()}})."
    );
    broker.ctl_on(2, &["eval", &stop_member]);
    let began = Instant::now();
    thread::scope(|scope| {
        for n in [8, 9] {
            let client = &client;
            scope.spawn(move || assert_eq!(client.call(n), Ok(fibonacci::fib(n))));
        }
    });
    println!("member of the queue stopped: no answer for {:?}", began.elapsed());
    server.wait_for_line("the broker gives the workers none", PATIENCE);
    stop(&mut server);
}

/// A classic queue is on one node. While that node is down, servers and calls fail.
fn classic_queue_is_served_again_once_its_node_is_back(broker: &Broker, urls: &[String]) {
    let queue = queue_name("classic");
    // A classic queue is on the node on which it was declared.
    let (home, others) = (&urls[2], format!("{},{}", urls[0], urls[1]));
    let mut server = start_server(&format!("{home},{others}"), &queue, "classic");
    let client = connect(&others, &queue);
    assert_eq!(client.call("7").unwrap(), b"13");

    // One of two workers is busy when the node of its queue fails. The idle one leaves the connection.
    let (busy_queue, proxy) = (queue_name("busy"), Proxy::to(broker.port(0)));
    queue::declare_durable(home, &busy_queue);
    let ((begin, begun), (release, released)) = (bounded(1), bounded::<()>(0));
    let options = ServerOptions { workers: 2, ..Default::default() };
    let _busy = Serving::start(&proxy.url(), &busy_queue, options, move |body| {
        begin.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(body.to_vec())
    });
    let busy_client = connect(&urls[1], &busy_queue);
    let call = busy_client.send("9").unwrap();
    begun.recv_timeout(PATIENCE).unwrap();

    broker.kill(2);
    await_value(|| proxy.tries(), |tries| *tries > 1);
    drop(release);
    assert_eq!(call.wait(), Ok(b"9".to_vec()));
    let line = server.wait_for_line("home node", PATIENCE);
    assert!(line.contains("trying again"), "{line}");
    let mut second = Process::spawn(RPC_SERVER, &["--url", &others, "--queue", &queue]);
    assert_eq!(second.wait(PATIENCE).code(), Some(69));
    assert!(second.stderr().contains("home node"), "{}", second.stderr());
    let error = client.call_timeout("7", PATIENCE / 4).expect_err("the queue's node is down");
    println!("{error}");
    assert!(matches!(error, Error::Unroutable { .. } | Error::TimedOut { .. }), "{error:?}");

    broker.start_node(2);
    assert_eq!(await_value(|| client.call("7"), Result::is_ok).unwrap(), b"13");
    stop(&mut server);
}

/// While a node is frozen, the others declare no reply queue until they count it as down. Replies
/// come by direct reply-to until then.
fn client_connects_while_another_node_is_frozen(broker: &Broker, urls: &[String]) {
    let queue = queue_name("frozen");
    let server = ManualServer::start(&urls[0], &queue);
    broker.freeze(1);
    let client = connect(&urls[0], &queue);
    let reply_to = server.answer_call(&client);
    // From RabbitMQ 4.3 on, the majority of the nodes may declare a queue meanwhile.
    if broker.version() < (4, 3, 0) {
        assert!(reply_to.starts_with("amq.rabbitmq.reply-to."), "{reply_to}");
    }
    await_value(|| server.answer_call(&client), |reply_to| reply_to.starts_with("amq.gen-"));
    assert_eq!(client.counters().reconnects, 0);
}
