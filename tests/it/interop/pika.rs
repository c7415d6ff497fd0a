//! pika: tutorial six as client and server, and each kind of reply queue.

use rabbitmq_rpc::fibonacci;

use super::*;
use crate::programs::wait_for_served;

const CLIENT: &str = "scripts/bench/tutorial_six_client.py";
const SERVER: &str = "scripts/bench/tutorial_six_server.py";

fn requester(queue: &str, reply_to: &str, bodies: &[&str]) -> Process {
    let args = [&["--reply-to", reply_to], bodies].concat();
    python("tests/it/interop/pika_requester.py", queue, &args)
}

/// Checks that two requesters at the same time each get their own 100 replies.
fn check_two_requesters(queue: &str, reply_to: &str) {
    let bodies: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let both = [(); 2].map(|()| requester(queue, reply_to, &bodies));
    assert_eq!(both.map(replies), [numbers(100), numbers(100)]);
}

#[test]
fn pika_client_calls_our_server() {
    let queue = queue_name("pika-client");
    let _server = rpc_server(&queue, &[]);
    let mut client = python(CLIENT, &queue, &["--requests", "50", "--n", "186"]);
    assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    assert!(client.stdout().starts_with("50 right of 50"), "{}", client.stdout());
}

#[test]
fn our_client_calls_pika_server() {
    let queue = queue_name("pika-server");
    let _server = python_server(SERVER, &queue, &[]);
    let output = rpc_client(&queue, &["0", "7", "186"]);
    let expected = "0\n13\n332825110087067562321196029789634457848\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

/// The tutorial declares a quorum queue today, and declared a classic one before.
#[test]
fn our_server_shares_queue_with_pika_server_that_starts_before_or_after_it() {
    for kind in ["classic", "quorum"] {
        shares_queue_with_pika_server(kind, true);
        shares_queue_with_pika_server(kind, false);
    }
}

fn shares_queue_with_pika_server(kind: &str, we_start_first: bool) {
    let queue = queue_name("pika-beside");
    let theirs = || python_server(SERVER, &queue, &["--queue-type", kind]);
    let before = (!we_start_first).then(theirs);
    let mut ours = rpc_server(&queue, &["--queue-type", kind]);
    let _theirs = before.unwrap_or_else(theirs);
    let bodies: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let bodies: Vec<&str> = bodies.iter().map(String::as_str).collect();
    let expected: String = (0..40).map(|n| format!("{}\n", fibonacci::fib(n))).collect();
    let output = rpc_client(&queue, &bodies);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{kind}: {output:?}");

    // The queue remains when our server ends.
    ours.signal("TERM");
    let served = wait_for_served(&mut ours);
    assert!((1..40).contains(&served), "{kind}: ours answered {served} of 40");
    let output = rpc_client(&queue, &bodies);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{kind}: {output:?}");
}

#[test]
fn pika_client_recognizes_error_reply() {
    let queue = queue_name("pika-errors");
    let _server = rpc_server(&queue, &[]);
    assert_eq!(replies(requester(&queue, "", &REQUESTS)), REPLIES);

    // The client of the tutorial fails to read the message as a number.
    let mut tutorial = python(CLIENT, &queue, &["--requests", "1", "--n", "187"]);
    let expected = "ValueError: invalid literal for int() with base 10: b'fib(187) does not fit";
    tutorial.wait_for_line(expected, PATIENCE);
    assert_eq!(tutorial.wait(PATIENCE).code(), Some(1));
}

#[test]
fn pika_clients_get_replies_by_direct_reply_to() {
    let queue = queue_name("pika-direct");
    let mut server = rpc_server(&queue, &["--workers", "2"]);
    assert_eq!(replies(requester(&queue, DIRECT_REPLY_TO, &REQUESTS)), REPLIES);

    check_two_requesters(&queue, DIRECT_REPLY_TO);

    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(0));
    let counters = "served: 201, failed: 2, rejected: 0, redelivered: 0, returned: 0";
    assert!(server.stderr().contains(counters), "{}", server.stderr());
}

#[test]
fn pika_clients_share_durable_reply_queue() {
    let queue = queue_name("pika-shared");
    let shared = queue_name("pika-replies");
    let _server = rpc_server(&queue, &[]);
    assert_eq!(replies(requester(&queue, &shared, &REQUESTS)), REPLIES);

    check_two_requesters(&queue, &shared);
    assert_kept_and_empty(&shared);
}

#[test]
fn client_of_the_guide_survives_what_may_come() {
    let queue = queue_name("pika-guide");
    let _server = rpc_server(&queue, &[]);
    let guide = source("src/guide/wire_contract.md");
    let client = python(
        "tests/it/interop/pika_guide.py",
        &queue,
        &[guide.to_str().expect("a path is text")],
    );
    let expected = format!(
        "b'13'\nb'13'\n\
         RuntimeError: OUT_OF_RANGE: fib(187) does not fit into 128 bits; n goes from 0 to 186\n\
         None None\nUNKNOWN: no header \u{fffd}\nTimeoutError: no reply from {queue}-none\n"
    );
    assert_eq!(replies(client), expected);
}
