//! `rpc_client` as a caller of any service: bodies, lines, headers.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{Failure, Request, ServerOptions, Status};

use crate::broker::{queue_name, url};
use crate::embedded::Serving;
use crate::manual_server::ManualServer;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_CLIENT, rpc_client, rpc_server, stop};

/// Runs a script in which `"$@"` is `rpc_client` on a queue, with these arguments.
fn bash(script: &str, queue: &str, args: &[&str]) -> Output {
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", RPC_CLIENT, "--url", &url(), "--queue", queue]).args(args);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn body_and_reply_are_any_bytes() {
    let queue = queue_name("body");
    let _server = Serving::echo(&url(), &queue);
    let output = rpc_client(&queue, &["--body", "hello"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("hello", Some(0)), "{output:?}");
    let output = rpc_client(&queue, &["--body", ""]);
    assert_eq!((text(&output.stdout), output.status.code()), ("", Some(0)), "{output:?}");

    let output = bash(r#"printf '\0\377\n\r\n' | "$@""#, &queue, &["--body", "-"]);
    assert_eq!((&*output.stdout, output.status.code()), (&b"\0\xff\n\r\n"[..], Some(0)));
    let output = bash(r#"head -c 5000000 /dev/zero | "$@""#, &queue, &["--body", "-"]);
    assert_eq!((output.stdout.len(), output.status.code()), (5_000_000, Some(0)));
}

#[test]
fn options_of_a_request_reach_the_handler() {
    let queue = queue_name("properties");
    let server = |request: &Request| {
        let headers = (request.header("tenant"), request.header("note"));
        let life = request.header("rpc-keep-alive");
        let (id, kind) = (request.message_id(), request.content_type());
        Ok(format!("{:?}", (id, request.method(), kind, headers, life)))
    };
    let _server = Serving::requests(&url(), &queue, ServerOptions::default(), server);
    let args = ["--header", "tenant=7", "--header", "note=a=b", "--content-type", "text/x"];
    let more =
        ["--message-id", "order-17", "--method", "price.get", "--keep-alive", "0.5", "--body", ""];
    let output = rpc_client(&queue, &[&args[..], &more].concat());
    let (tenant, note) = (Some("7"), Some("a=b"));
    let expected =
        (Some("order-17"), Some("price.get"), Some("text/x"), (tenant, note), Some("500"));
    assert_eq!(text(&output.stdout), format!("{expected:?}"), "{output:?}");
    let output = rpc_client(&queue, &["--body", ""]);
    let (_, rest) = text(&output.stdout).split_once(' ').unwrap();
    assert_eq!(
        rest, r#"None, Some("application/octet-stream"), (None, None), None)"#,
        "{output:?}"
    );
}

#[test]
fn ping_succeeds_only_if_a_worker_answers() {
    let queue = queue_name("ping");
    let ping = || rpc_client(&queue, &["--ping", "--timeout", "20"]);
    assert_eq!(ping().status.code(), Some(69), "there is no queue");
    let mut server = rpc_server(&queue, &[]);
    let output = ping();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let pong = text(&output.stdout);
    assert!(pong.starts_with(r#"{"program":"rpc_server","version":"#), "{pong}");
    assert!(pong.ends_with("}\n") && pong.contains(r#""served":"#), "{pong}");
    server.signal("STOP");
    assert_eq!(rpc_client(&queue, &["--check"]).status.code(), Some(0), "it has a consumer");
    let ping = rpc_client(&queue, &["--ping", "--timeout", "2"]);
    assert_eq!(ping.status.code(), Some(75), "no worker answers");
    server.signal("CONT");
    stop(&mut server);

    let queue = queue_name("ping-other");
    let other = ManualServer::start(&url(), &queue);
    let output = thread::scope(|scope| {
        let pinging = scope.spawn(|| rpc_client(&queue, &["--ping"]));
        let request = other.next();
        other.reply(&request, b"0");
        pinging.join().unwrap()
    });
    assert_eq!(output.status.code(), Some(76), "{output:?}");
    assert!(text(&output.stderr).contains("does not know rpc.ping"), "{output:?}");
}

#[test]
fn tasks_and_options_that_do_not_go_together_are_usage_errors() {
    for args in [
        &["--body", "x", "7"][..],
        &["--body", "x", "--lines"],
        &["--lines", "--check"],
        &["--ping", "7"],
        &["--header", "a=b", "7"],
        &["--header", "a", "--body", "x"],
        &["--header", "rpc-mine=1", "--body", "x"],
        &["--message-id", "x", "--lines"],
        &["--method", "x", "--check"],
        &["--message-id", "x", "7"],
        &["--in-flight", "0", "--lines"],
        &["--keep-alive", "0", "--body", "x"],
    ] {
        let output = rpc_client(&queue_name("usage"), args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
    }
}

#[test]
fn lines_are_answered_in_their_order_and_a_failed_one_is_named() {
    let queue = queue_name("lines");
    let options = ServerOptions { workers: 4, prefetch: 4, ..Default::default() };
    let _server = Serving::start(&url(), &queue, options, |line| match line {
        b"500" => Err(Failure::new(Status::NotFound, "no such\n\x1b[2Jline")),
        b"600" => Err(Failure::new(Status::InvalidArgument, "bad line")),
        // Some replies end with a newline, as the output of most commands does.
        line if line.ends_with(b"7") => Ok([line, b"\n"].concat()),
        line => Ok(line.to_vec()),
    });
    let output = bash(r#"seq 1 1000 | "$@""#, &queue, &["--lines"]);
    assert_eq!(output.status.code(), Some(70), "the first failure's: {output:?}");
    let expected = (1..=1000).filter(|n| ![500, 600].contains(n)).map(|n| format!("{n}\n"));
    assert_eq!(text(&output.stdout), expected.collect::<String>());
    let errors = "rpc_client: line 500: NOT_FOUND: no such  [2Jline\n\
                  rpc_client: line 600: INVALID_ARGUMENT: bad line\n";
    assert_eq!(text(&output.stderr), errors);

    let output =
        bash(r#"printf 'a\n\n\377\r\nlast' | "$@""#, &queue, &["--lines", "--in-flight", "1"]);
    let expected = &b"a\n\n\xff\r\nlast\n"[..];
    assert_eq!((&*output.stdout, output.status.code()), (expected, Some(0)), "{output:?}");
    let output =
        bash(r#"true | "$@""#, &queue, &["--lines", "--in-flight", "18446744073709551615"]);
    assert_eq!((&*output.stdout, output.status.code()), (&b""[..], Some(0)), "{output:?}");
}

#[test]
fn lines_are_a_stream_in_both_directions() {
    let queue = queue_name("stream");
    let (begun, has_begun) = unbounded();
    let (go_on, may_go_on) = bounded::<()>(0);
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let options = ServerOptions { workers: 6, ..Default::default() };
    let _server = Serving::start(&url(), &queue, options, move |line| {
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        begun.send(()).unwrap();
        may_go_on.recv_timeout(PATIENCE).unwrap();
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Ok(line.to_vec())
    });
    let mut command = Command::new(RPC_CLIENT);
    command.args(["--url", &url(), "--queue", &queue, "--lines", "--in-flight", "3"]);
    let mut client = Process::with_stdin(&mut command);
    client.write_stdin("first\n");
    go_on.send_timeout((), PATIENCE).unwrap();
    assert_eq!(client.next_line(PATIENCE).as_deref(), Ok("first"), "the input goes on");

    client.write_stdin(&"more\n".repeat(30));
    for _ in 0..1 + 3 {
        has_begun.recv_timeout(PATIENCE).unwrap();
    }
    thread::scope(|scope| {
        scope.spawn(|| (0..30).for_each(|_| go_on.send_timeout((), PATIENCE).unwrap()));
        assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    });
    assert_eq!(client.stdout(), format!("first\n{}", "more\n".repeat(30)));
    assert_eq!(MOST.load(Ordering::SeqCst), 3, "no line is sent before there is room for it");
}

#[test]
fn lines_end_when_nobody_reads_the_replies() {
    let queue = queue_name("unread-lines");
    let _server = Serving::echo(&url(), &queue);
    // A busy machine may end `head` late, when the first replies are written already.
    let script = "(seq 1 100; sleep 3; seq 1 100; exec sleep 60) | \
                  (\"$@\"; echo exit code $? >&2) | head -n 1";
    let args = ["-c", script, "bash", RPC_CLIENT, "--url", &url(), "--queue", &queue, "--lines"];
    let mut shell = Process::spawn("bash", &args);
    shell.wait_for_line("exit code 74", PATIENCE);
    assert_eq!(shell.stdout(), "1\n");
}

#[test]
fn input_that_cannot_be_read_is_an_error_with_a_code() {
    let queue = queue_name("unreadable");
    let _server = Serving::echo(&url(), &queue);
    for task in [&["--lines"][..], &["--body", "-"]] {
        let output = bash(r#""$@" </"#, &queue, task);
        assert_eq!(output.status.code(), Some(74), "{output:?}");
        assert!(text(&output.stderr).contains("standard input cannot be read"), "{output:?}");
    }
}
