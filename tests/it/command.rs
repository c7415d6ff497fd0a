//! `rpc_server -- COMMAND`: any command as a service.

mod ends;

use std::fs;
use std::process::Command;
use std::time::Duration;

use rabbitmq_rpc::{Error, Failure, RpcClient, Status};

use crate::broker::{queue_name, url};
use crate::embedded::connect;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_SERVER, rpc_client, rpc_server, stop};
use crate::scratch;

/// `rpc_server OPTIONS -- COMMAND` and a client.
fn serve(test: &str, options: &[&str], command: &[&str]) -> (Process, RpcClient) {
    let queue = queue_name(test);
    let server = rpc_server(&queue, &[options, &["--"], command].concat());
    (server, connect(&url(), &queue))
}

fn shell(test: &str, script: &str) -> (Process, RpcClient) {
    serve(test, &[], &["sh", "-c", script])
}

fn text(reply: Result<Vec<u8>, Error>) -> String {
    String::from_utf8(reply.unwrap()).unwrap()
}

fn failure(reply: Result<Vec<u8>, Error>) -> (Status, String) {
    match reply {
        Err(Error::Remote(Failure { status, message, .. })) => (status, message),
        other => panic!("no failure: {other:?}"),
    }
}

#[test]
fn output_of_the_command_is_the_reply() {
    let queue = queue_name("upper");
    let mut server = rpc_server(&queue, &["--workers", "4", "--", "tr", "a-z", "A-Z"]);
    let output = rpc_client(&queue, &["--body", "hello"]);
    assert_eq!((&*output.stdout, output.status.code()), (&b"HELLO"[..], Some(0)), "{output:?}");
    assert_eq!(connect(&url(), &queue).call(b"\0\xff\n").unwrap(), b"\0\xff\n");
    stop(&mut server);
}

#[test]
fn large_input_and_output_pass_at_the_same_time() {
    let (_server, client) = serve("large", &[], &["cat"]);
    let body: Vec<u8> = (0..10_000_000_u32).map(|n| (n / 7) as u8).collect();
    assert!(client.call(body.clone()).unwrap() == body);
}

#[test]
fn command_that_closes_a_stream_early_is_answered() {
    let large = vec![b'x'; 3_000_000];
    for (script, reply) in [
        ("true", ""),
        ("exec <&-; echo hi", "hi\n"),
        ("head -c 3", "xxx"),
        ("echo hi; exec >&- 2>&-; sleep 0.3", "hi\n"),
        ("exec >&-; cat >/dev/null", ""),
    ] {
        let (_server, client) = shell("early", script);
        assert_eq!(text(client.call(large.clone())), reply, "{script}");
    }
    let (_server, client) = shell("early-failure", "echo hi; exec >&- 2>&-; sleep 0.3; exit 66");
    assert_eq!(failure(client.call(large)).0, Status::NotFound);
}

#[test]
fn endless_output_ends_the_command() {
    let (_server, client) = serve("endless", &[], &["yes"]);
    let (status, message) = failure(client.call(""));
    assert_eq!(status, Status::Internal);
    assert_eq!(message, "the command wrote more than 128 MiB");
}

#[test]
fn exit_code_and_last_line_of_standard_error_are_the_failure() {
    let script =
        "echo first >&2; printf 'the \\033[1mreason\\n\\n' >&2; echo no reply; exit $RPC_METHOD";
    let (mut server, client) = shell("codes", script);
    for (code, expected) in [
        ("64", Status::InvalidArgument),
        ("65", Status::InvalidArgument),
        ("66", Status::NotFound),
        ("69", Status::Unavailable),
        ("75", Status::Unavailable),
        ("77", Status::PermissionDenied),
        ("1", Status::Internal),
        ("127", Status::Internal),
    ] {
        let (status, message) = failure(client.request("").method(code).call());
        assert_eq!((status, &*message), (expected, "the  [1mreason"), "{code}");
    }
    for text in [": first", "the  [1mreason"] {
        let line = server.wait_for_line(text, PATIENCE);
        assert!(line.ends_with(text), "{line}");
    }

    let (_server, client) = shell("no-word", "exit 3");
    let message = "the command failed (exit status: 3)".to_owned();
    assert_eq!(failure(client.call("")), (Status::Internal, message));
    let (_server, client) = shell("killed", "kill -s USR1 $$");
    assert_eq!(failure(client.call("")).0, Status::Internal);
}

#[test]
fn properties_are_variables_that_a_requester_cannot_name() {
    let queue = queue_name("variables");
    let mut command = Command::new(RPC_SERVER);
    command.args(["--url", &url(), "--queue", &queue, "--", "sh", "-c", "env | grep RPC_ | sort"]);
    // Left over from a server that was itself started for a request.
    let mut server =
        Process::from(command.envs([("RPC_METHOD", "old"), ("RPC_HEADER_TENANT", "old")]));
    server.wait_for_line("Awaiting", PATIENCE);
    let client = connect(&url(), &queue);
    let request = client.request("").message_id("id-1").content_type("text/plain");
    let request = request.method("price.get").timeout(Duration::from_secs(100));
    let request = request.header("PATH", "/tmp").header("x=LD_PRELOAD", "1").header("ä-1", "ä\n");
    // Two of these have the same name, one value cannot be in a variable.
    let request = request.header("Tenant", "7").header("tenant", "8").header("nul", "\0");
    let reply = text(request.call());
    let variables: Vec<&str> = reply.lines().filter(|line| !line.starts_with("GRPC")).collect();
    let [content_type, correlation_id, deadline, rest @ ..] = &*variables else {
        panic!("{reply}")
    };
    assert_eq!(*content_type, "RPC_CONTENT_TYPE=text/plain");
    assert_eq!(correlation_id.strip_prefix("RPC_CORRELATION_ID=").map(str::len), Some(36));
    let deadline = deadline.strip_prefix("RPC_DEADLINE=").unwrap().parse::<f64>().unwrap();
    let left = deadline - std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((30.0..=100.0).contains(&left), "{left}");
    assert_eq!(
        rest.iter().filter(|line| !line.starts_with("RPC_HEADER_RPC_")).collect::<Vec<_>>(),
        [
            &"RPC_HEADER_PATH=/tmp",
            &"RPC_HEADER_X_LD_PRELOAD=1",
            &"RPC_HEADER___1=ä",
            &"RPC_MESSAGE_ID=id-1",
            &"RPC_METHOD=price.get",
            &"RPC_REDELIVERED=0",
        ]
    );
    assert!(!text(client.call("")).lines().any(|line| line.starts_with("RPC_METHOD")));
}

#[test]
fn command_that_cannot_be_found_is_a_usage_error() {
    let text = scratch::directory("commands").join("text");
    fs::write(&text, "no program").unwrap();
    for command in [&["no-such-command"][..], &["/"], &[text.to_str().unwrap()], &[""], &[]] {
        let mut server = Command::new(RPC_SERVER);
        let output = server.args(["--url", &url(), "--"]).args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{command:?}: {output:?}");
    }
}

#[test]
fn command_that_is_gone_later_fails_its_request_only() {
    let directory = scratch::directory("commands");
    let [script, away] = ["script", "away"].map(|name| directory.join(name));
    // Another thread's child would have a file open that this process writes: it could not be run.
    let write = "printf '#!/bin/sh\\necho here\\n' >\"$0\"; chmod +x \"$0\"";
    assert!(Command::new("sh").args(["-c", write]).arg(&script).status().unwrap().success());
    let (_server, client) = serve("gone", &[], &[script.to_str().unwrap()]);
    assert_eq!(text(client.call("")), "here\n");
    fs::rename(&script, &away).unwrap();
    let (status, message) = failure(client.call(""));
    assert_eq!(status, Status::Unavailable);
    assert!(message.starts_with("the command cannot be started: "), "{message}");
    fs::rename(&away, &script).unwrap();
    assert_eq!(text(client.call("")), "here\n");
}

#[test]
fn each_worker_runs_a_command() {
    // Each command waits until there are four.
    let directory = scratch::directory("four");
    let script =
        "touch $RPC_MESSAGE_ID; until [ $(ls | wc -l) = 4 ]; do sleep 0.02; done; echo met";
    let script = format!("cd '{}'; {script}", directory.display());
    let (_server, client) = serve("four", &["--workers", "4"], &["sh", "-c", &script]);
    let calls: Vec<_> = (0..4).map(|_| client.send("").unwrap()).collect();
    calls.into_iter().for_each(|call| assert_eq!(text(call.wait()), "met\n"));
}
