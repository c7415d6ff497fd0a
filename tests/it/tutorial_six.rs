//! pika's tutorial six on either side.

use std::path::Path;
use std::process::Command;

use rabbitmq_rpc::fibonacci;

use crate::broker::{Broker, queue_name};
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{rpc_client, rpc_server, served_until_its_end};

/// One of the benchmark's peers: the tutorial's program, but for what it is asked for.
fn pika(program: &str, queue: &str, args: &[&str]) -> Process {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench").join(program);
    // Debian's own python3 is the one that has Debian's python3-pika.
    let mut command = Command::new("/usr/bin/python3");
    command.arg("-B").arg(path).args(["--url", &Broker::shared().url(), "--queue", queue]);
    Process::from(command.args(args))
}

#[test]
fn a_pika_client_calls_our_server() {
    let queue = queue_name("pika-client");
    let _server = rpc_server(&queue, &[]);
    let mut client = pika("tutorial_six_client.py", &queue, &["--requests", "50", "--n", "186"]);
    assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    assert!(client.stdout().starts_with("50 right of 50"), "{}", client.stdout());
}

#[test]
fn our_client_calls_a_pika_server() {
    let queue = queue_name("pika-server");
    let mut server = pika("tutorial_six_server.py", &queue, &[]);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    let output = rpc_client(&queue, &["0", "7", "186"]);
    let expected = "0\n13\n332825110087067562321196029789634457848\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn our_server_takes_turns_with_a_pika_server() {
    let queue = queue_name("pika-beside");
    let mut ours = rpc_server(&queue, &[]);
    let mut theirs = pika("tutorial_six_server.py", &queue, &[]);
    theirs.wait_for_line("Awaiting RPC requests", PATIENCE);
    let numbers: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let expected: String = (0..40).map(|n| format!("{}\n", fibonacci::fib(n))).collect();
    let output = rpc_client(&queue, &numbers);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");

    // The queue outlives our server.
    ours.signal("TERM");
    let served = served_until_its_end(&mut ours);
    assert!((1..40).contains(&served), "ours answered {served} of 40");
    let output = rpc_client(&queue, &numbers);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
}
