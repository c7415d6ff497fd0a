//! A peer in place of a broker. One sends random frames at any time: client and server end with an
//! error or continue, and do not panic, miss a deadline or grow. Others declare no queue: a client
//! still closes its connection, and a server says why.
//!
//! `scripts/lying_broker.sh` sends a million frames.

mod peer;

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient};

use self::peer::Peer;
use crate::patience::{PATIENCE, SECOND, await_value};
use crate::process::Process;
use crate::programs::{RPC_CLIENT, RPC_SERVER};
use crate::settings;
use crate::usage::memory_of;

/// How long the client may take: 1 s for its calls, 1 s to find the error and to close, and slack for
/// a busy machine.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(1 + 1 + 8);
/// How long the server may take to stop: 1 s to drain, 2 s to close, and slack.
const SERVER_TIMEOUT: Duration = Duration::from_secs(1 + 2 + 8);
/// The most memory that the server may use, in kB. An idle server uses about 10 MB.
const MEMORY_LIMIT: i64 = 64 << 10;

#[test]
fn client_and_server_survive_any_frames() {
    let frames = settings::number("RABBITMQ_RPC_FRAMES").unwrap_or(20_000);
    let seed = settings::number("RABBITMQ_RPC_SEED").unwrap_or(1);
    let peer = Peer::lying(seed);
    let options = "heartbeat=1&connection_timeout=1000";
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?{options}", peer.port);
    let server_args = ["--url", &url, "--workers", "2", "--drain-timeout", "1"];
    let mut server = Process::spawn(RPC_SERVER, &server_args);
    let mut round = 0;
    while peer.sent.load(Ordering::Relaxed) < frames {
        round += 1;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| check_client(&url, &format!("seed {seed}, round {round}")));
            }
        });
        // The server reconnects until it is stopped, or ends when its login is refused.
        let runs = server.runs();
        let memory = memory_of(server.pid()).unwrap_or(0);
        assert!(memory < MEMORY_LIMIT, "seed {seed}, round {round}: {memory} kB");
        if round % 8 == 0 || !runs {
            if runs {
                server.signal("TERM");
            }
            let ended = server.ends_within(SERVER_TIMEOUT).and_then(|ended| ended.code());
            check(&mut server, ended, &format!("seed {seed}, round {round}"));
            server = Process::spawn(RPC_SERVER, &server_args);
        }
    }
    println!("seed {seed}: {} frames in {round} rounds", peer.sent.load(Ordering::Relaxed));
}

#[test]
fn client_closes_its_connection_although_its_reply_queue_never_comes() {
    let peer = Peer::declaring_no_queue();
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?heartbeat=0", peer.port);
    let brokers = Brokers::parse(&url).unwrap();
    // This time is over before direct reply-to takes the place of the reply queue.
    let options = ClientOptions { timeout: SECOND / 5, ..Default::default() };
    let error = RpcClient::connect(brokers.clone(), "any", options).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    peer.ends.recv_timeout(PATIENCE / 4).expect("the connection of the failed connect is closed");
    let client = RpcClient::connect(brokers, "any", ClientOptions::default()).unwrap();
    drop(client);
    peer.ends.recv_timeout(PATIENCE / 4).expect("the client's connection is closed");
}

#[test]
fn check_ends_at_one_deadline_for_connecting_and_asking() {
    let peer = Peer::declaring_no_queue();
    let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?heartbeat=0", peer.port);
    let ends_in_time = || {
        let began = Instant::now();
        let mut client = Process::spawn(RPC_CLIENT, &["--url", &url, "--check", "--timeout", "3"]);
        assert_eq!(client.wait(PATIENCE).code(), Some(75), "{}", client.stderr());
        let took = began.elapsed();
        assert!(took >= 3 * SECOND, "{took:?}: {}", client.stderr());
        // Connecting takes a second, in which the peer declares no reply queue.
        took < 4 * SECOND
    };
    // A busy machine may take longer, but not each time.
    assert!((0..8).any(|_| ends_in_time()));
}

/// A request waits for room in the socket when the broker closes the channel because of another one.
/// It has not been written, and the broker has not ignored it either: it is sent, once.
#[test]
fn request_that_waits_to_be_written_when_another_is_refused_is_sent_once() {
    let (refuse, may_refuse) = unbounded();
    let (port, requests) = Peer::refusing(may_refuse);
    let url = format!("amqp://guest:guest@127.0.0.1:{port}/%2f?heartbeat=0");
    let brokers = Brokers::parse(&url).unwrap();
    let client = RpcClient::connect(brokers, "any", ClientOptions::default()).unwrap();
    let refused = client.send(vec![b'7'; 2000]).unwrap();
    // Fills the socket: its rest is written before the next request.
    let begun = client.call_timeout(vec![b'8'; 32 << 20], 2 * SECOND);
    assert!(begun.unwrap_err().may_have_executed());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| client.call_timeout("9", 8 * SECOND));
        await_value(|| client.counters().in_flight, |in_flight| *in_flight == 2);
        refuse.send(()).unwrap();
        let error = refused.wait().unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        // The peer answers no request.
        assert!(matches!(waiting.join().unwrap(), Err(Error::TimedOut { sent: true, .. })));
    });
    assert_eq!(requests.try_iter().filter(|request| request == b"9").count(), 1);
}

/// What keeps a broker from declaring a queue may be the queue's kind, or the state of its cluster.
#[test]
fn reason_why_no_queue_can_be_declared_is_told_and_decides_the_exit_code() {
    for (text, code, sentence) in [
        (
            "INTERNAL_ERROR - Cannot declare a queue 'queue 'q' in vhost '/'' of type \
             'rabbit_quorum_queue' on node 'n': the corresponding feature flag is disabled",
            78,
            "this broker has queues of that type disabled",
        ),
        (
            "INTERNAL_ERROR - Could not declare queue 'q' in vhost '/' on node 'n' because the \
             metadata store operation timed out",
            69,
            "too few nodes of the cluster are up, or they are too slow",
        ),
    ] {
        let peer = Peer::refusing_queues(text);
        let url = format!("amqp://guest:guest@127.0.0.1:{}/%2f?heartbeat=0", peer.port);
        let mut server = Process::spawn(RPC_SERVER, &["--url", &url, "--queue", "q"]);
        assert_eq!(server.wait(PATIENCE).code(), Some(code), "{}", server.stderr());
        assert!(server.stderr().contains(sentence), "{}", server.stderr());
    }
}

fn check_client(url: &str, round: &str) {
    let numbers: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    let mut args = vec!["--url", url, "--timeout", "1"];
    args.extend(numbers.iter().map(String::as_str));
    let began = Instant::now();
    let mut client = Process::spawn(RPC_CLIENT, &args);
    let ended = client.wait(PATIENCE).code();
    let took = began.elapsed();
    assert!(took < CLIENT_TIMEOUT, "{round}: took {took:?}: {}", client.stderr());
    check(&mut client, ended, round);
}

/// Checks that the exit code is one that the programs document, so none ended by a signal or a
/// panic.
fn check(process: &mut Process, ended: Option<i32>, round: &str) {
    let stderr = process.stderr();
    assert!(!stderr.contains("panicked"), "{round}: {stderr}");
    let codes = [0, 65, 69, 70, 75, 76, 77, 78];
    assert!(ended.is_some_and(|code| codes.contains(&code)), "{round}: {ended:?}: {stderr}");
}
