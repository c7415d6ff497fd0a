//! A server that loses its broker or its connection, or waits for either.

use std::net::TcpListener;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use rabbitmq_rpc::{Brokers, Error, QueueType, Request, RpcServer, ServerOptions};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::patience::{PATIENCE, SECOND, await_value};
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_server_at, stop, wait_for_served};
use crate::queue;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, Verdict};
use crate::usage::cpu_time_of;

#[test]
fn server_exits_when_broker_does_not_answer_at_start() {
    // The kernel accepts connections to it, and nothing answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://127.0.0.1:{}", silent.local_addr().unwrap().port());
    for (url, least) in [(&*url, 500), ("amqp://127.0.0.1:1", 0)] {
        let began = Instant::now();
        let args = ["--url", url, "--connect-timeout", "0.5"];
        let mut server = Process::spawn(RPC_SERVER, &args);
        assert_eq!(server.wait(PATIENCE).code(), Some(69), "{}", server.stderr());
        let took = began.elapsed();
        assert!(
            (Duration::from_millis(least)..Duration::from_secs(15)).contains(&took),
            "{took:?}"
        );
        let address = url.strip_prefix("amqp://").unwrap();
        assert!(server.stderr().contains(address), "{}", server.stderr());
    }
}

#[test]
fn server_reconnects_after_operator_closes_connection() {
    let broker = Broker::fragile();
    let queue = queue_name("closed");
    let mut server = rpc_server_at(&broker.url(), &queue, &["--workers", "2"]);
    let client = connect_fibonacci(&broker.url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    broker.ctl(&["close_all_connections", "planned maintenance"]);
    let line = server.wait_for_line("trying again", PATIENCE);
    assert!(line.contains("planned maintenance"), "{line}");
    server.wait_for_line("taking requests", PATIENCE);
    assert_eq!(client.call(7), Ok(13));
    let tries = server.stderr().lines().filter(|line| line.contains("trying again")).count();
    assert_eq!(tries, 1, "{}", server.stderr());
}

/// RabbitMQ closes a channel on which a delivery waits for its acknowledgement past the
/// [consumer timeout](https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout).
#[test]
fn worker_resumes_after_consumer_timeout() {
    let broker = Broker::fragile();
    let set = |timeout: u32, tick: u32| {
        let set = "application:set_env(rabbit";
        let timeout = format!("{set}, consumer_timeout, {timeout})");
        broker.ctl(&["eval", &format!("{timeout}, {set}, channel_tick_interval, {tick}).")]);
    };
    set(3000, 200);
    let queue = queue_name("slow");
    // RabbitMQ 4.3 has this timeout for quorum queues only, and cancels the consumer.
    let queue_type = QueueType::Quorum;
    let options = ServerOptions { workers: 2, queue_type, ..Default::default() };
    // The worker works on the slow request until another worker gets it too, and waits for it.
    let (finish, may_finish) = bounded::<()>(0);
    let both = Barrier::new(2);
    let serving = Serving::start(&broker.url(), &queue, options, move |request| {
        match request {
            b"slow" => drop(may_finish.recv_timeout(PATIENCE)),
            _ => drop(both.wait()),
        }
        Ok(request.to_vec())
    });
    let client = connect(&broker.url(), &queue);
    let slow = client.send("slow").unwrap();
    await_value(|| serving.server.counters().redelivered, |count| *count > 0);
    drop(finish);
    assert_eq!(slow.wait(), Ok(b"slow".to_vec()));
    set(1_800_000, 60_000);
    // Each of these is answered only when both workers work at the same time.
    let calls = [client.send("both").unwrap(), client.send("both").unwrap()];
    for call in calls {
        assert_eq!(call.wait(), Ok(b"both".to_vec()));
    }
    let redelivered = serving.stop().redelivered;
    assert!((1..=3).contains(&redelivered), "{redelivered}");
}

/// What an operator takes away in a minute may be back in the next one.
#[test]
fn server_goes_on_when_login_and_permission_are_back() {
    let broker = Broker::fragile();
    broker.ctl(&["add_user", "ann", "first secret"]);
    broker.ctl(&["set_permissions", "ann", ".*", ".*", ".*"]);
    let url = broker.url().replace("guest:guest", "ann:first%20secret");
    let queue = queue_name("refused");
    let mut server = rpc_server_at(&url, &queue, &[]);
    let client = connect_fibonacci(&broker.url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    broker.ctl(&["change_password", "ann", "second secret"]);
    broker.ctl(&["close_all_connections", "new passwords"]);
    server.wait_for_line("refused the login of user \"ann\": check", PATIENCE);
    broker.ctl(&["change_password", "ann", "first secret"]);
    server.wait_for_line("taking requests", PATIENCE);

    // A permission counts from the next channel on.
    for permissions in [["", "", ""], [".*", "", ".*"]] {
        let [configure, write, read] = permissions;
        broker.ctl(&["set_permissions", "ann", configure, write, read]);
        broker.ctl(&["close_all_connections", "new permissions"]);
        let call = client.send(8).unwrap();
        server.wait_for_line("user \"ann\" lacks the permission", PATIENCE);
        broker.ctl(&["set_permissions", "ann", ".*", ".*", ".*"]);
        assert_eq!(call.wait(), Ok(21));
    }
    assert!(!server.stderr().contains("secret"), "{}", server.stderr());
    stop(&mut server);
}

/// An old broker needs another connection for a direct reply. If the login for it is refused, the
/// reply goes through the server's own connection.
#[test]
fn server_answers_direct_request_while_login_for_its_reply_is_refused() {
    let broker = Broker::shared();
    broker.ctl(&["add_user", "bob", "first"]);
    broker.ctl(&["set_permissions", "bob", ".*", ".*", ".*"]);
    let url = broker.url().replace("guest:guest", "bob:first");
    for (refuse, accept) in [
        (["change_password", "bob", "second"], ["change_password", "bob", "first"]),
        (
            ["set_user_limits", "bob", "{\"max-connections\": 1}"],
            ["clear_user_limits", "bob", "all"],
        ),
    ] {
        let queue = queue_name("direct-login");
        let mut server = rpc_server_at(&url, &queue, &["--workers", "2"]);
        broker.ctl(&refuse);
        let mut raw = Raw::connect(broker.port(0));
        raw.consume(DIRECT_REPLY_TO.as_bytes());
        let direct =
            Properties::default().correlation_id(b"id").reply_to(DIRECT_REPLY_TO.as_bytes());
        assert_eq!(raw.publish("", queue.as_bytes(), &direct, b"8"), Verdict::Confirmed);
        assert_eq!(raw.reply().body, b"21");
        assert_eq!(connect_fibonacci(&broker.url(), &queue).call(7), Ok(13));
        broker.ctl(&accept);
        assert!(!server.stderr().contains("trying again"), "{}", server.stderr());
        stop(&mut server);
    }
}

#[test]
fn server_resumes_after_node_restart() {
    let broker = Broker::fragile();
    let queue = queue_name("restart");
    let mut server = rpc_server_at(&broker.url(), &queue, &["--workers", "2"]);
    let client = connect_fibonacci(&broker.url(), &queue);
    assert_eq!(client.call(7), Ok(13));
    // It has no reply that the broker may not have.
    let mut stopped = rpc_server_at(&broker.url(), &queue, &[]);
    broker.kill(0);
    server.wait_for_line("trying again", PATIENCE);

    // A server that is stopped meanwhile does not wait for the broker.
    stopped.wait_for_line("trying again", PATIENCE);
    stop(&mut stopped);

    broker.start_node(0);
    server.wait_for_line("taking requests", PATIENCE);
    // A refused connection costs little, so the backoff is at most half a second.
    let stderr = server.stderr();
    let refused = || stderr.lines().filter(|line| line.contains("Connection refused"));
    assert!(refused().count() > 0 && refused().all(|line| line.ends_with("ms")), "{stderr}");
    assert_eq!(client.call(7), Ok(13));
    stop(&mut server);
}

#[test]
fn server_stops_while_node_is_frozen() {
    let broker = Broker::fragile();
    let queue = queue_name("frozen");
    let mut idle = rpc_server_at(&broker.url(), &queue, &["--drain-timeout", "1"]);
    broker.freeze(0);
    idle.signal("TERM");
    let ended = idle.wait(Duration::from_secs(15));
    broker.thaw(0);
    assert_eq!(ended.code(), Some(0), "{}", idle.stderr());
}

/// The reply fills the socket, so only missing heartbeats show that the broker does not answer.
#[test]
fn worker_replying_to_frozen_broker_stops_after_two_heartbeats() {
    let broker = Broker::fragile();
    let url = format!("{}?heartbeat=1", broker.url());
    let queue = queue_name("frozen-reply");
    let server = RpcServer::connect(Brokers::parse(&url).unwrap(), &queue, Default::default());
    let server = server.unwrap();
    let client = connect(&broker.url(), &queue);
    let call = client.send("7").unwrap();
    let (done, is_done) = bounded(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            let large = |_: &Request| {
                broker.freeze(0);
                Ok(vec![b'x'; 15 << 20])
            };
            done.send(server.with_worker(|worker| worker.serve_one(large, PATIENCE))).unwrap();
        });
        // Two heartbeats, one second until their absence is noticed, and two seconds to close the
        // worker's consumer and the connection.
        let ended = is_done.recv_timeout(PATIENCE / 3);
        broker.thaw(0);
        let error = ended.expect("the worker still writes").unwrap_err();
        assert!(matches!(&error, Error::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("silent for two heartbeats"), "{error}");
    });
    drop(call);
}

/// RabbitMQ would close the whole connection over one channel more.
#[test]
fn server_with_too_many_workers_names_the_limit_of_channels() {
    let queue = queue_name("channels");
    let url = Broker::shared().url();
    for (url, workers, advice) in [
        (format!("{url}?channel_max=3"), "4", "3 channels at most; ask for fewer workers"),
        // As many threads would end the process.
        (url, "18446744073709551615", "channels at most; ask for fewer workers"),
    ] {
        let args = ["--url", &url, "--queue", &queue, "--workers", workers];
        let mut server = Process::spawn(RPC_SERVER, &args);
        assert_eq!(server.wait(PATIENCE).code(), Some(64), "{workers}: {}", server.stderr());
        assert!(server.stderr().contains(advice), "{workers}: {}", server.stderr());
    }
}

/// During an alarm the broker answers nothing on a connection that has published.
#[test]
fn server_keeps_connection_during_long_alarm() {
    let broker = Broker::fragile();
    let (url, queue) = (broker.url(), queue_name("alarm"));
    queue::declare_durable(&url, &queue);
    let mut raw = Raw::connect(broker.port(0));
    raw.request(&queue, b"7");
    broker.raise_memory_alarm(0);
    // The first worker replies before most of the other workers consume.
    let mut server = rpc_server_at(&url, &queue, &["--workers", "40", "--connect-timeout", "4"]);
    // The line may come before the one that says that the server is ready.
    let alarm = "takes no messages at present: low on memory";
    await_value(|| server.stderr().contains(alarm), |has_come| *has_come);
    // Longer than the time limit for connecting, and until idle workers have looked for requests.
    let before = cpu_time_of(server.pid());
    thread::sleep(Duration::from_secs(5));
    let used = cpu_time_of(server.pid()) - before;
    assert!(used < SECOND / 2, "{used:?} of CPU time in 5 s of waiting");
    broker.clear_memory_alarm(0);
    assert_eq!(raw.reply().body, b"13");
    assert_eq!(connect_fibonacci(&url, &queue).call(8), Ok(21));
    server.signal("TERM");
    let served = wait_for_served(&mut server);
    let stderr = server.stderr();
    assert!(!stderr.contains("trying again"), "{stderr}");
    assert_eq!(served, 2, "{stderr}");
}
