//! A call from end to end, in this crate's programs and in its types.

use std::process::Output;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{
    Brokers, Error, Failure, FibonacciRpcClient, PendingNumber, PendingReply, RpcClient, RpcServer,
    Served, ServerOptions, Status, Stopper, fibonacci,
};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect, connect_fibonacci};
use crate::patience::PATIENCE;
use crate::programs::{
    RPC_BENCH, RPC_CLIENT, RPC_SERVER, rpc_client, rpc_server, run_client, stop,
};

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("the output is UTF-8")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("the output is UTF-8")
}

#[test]
fn client_prints_numbers_in_order_of_arguments() {
    let queue = queue_name("numbers");
    let mut server = rpc_server(&queue, &[]);

    let output = rpc_client(&queue, &["7"]);
    assert_eq!((stdout(&output), output.status.code()), ("13\n", Some(0)), "{output:?}");

    let output = rpc_client(&queue, &["0", "1", "7", "93", "186"]);
    let expected = "0\n1\n13\n12200160415121876738\n332825110087067562321196029789634457848\n";
    assert_eq!((stdout(&output), output.status.code()), (expected, Some(0)), "{output:?}");

    stop(&mut server);
    assert_eq!(server.stdout().lines().count(), 1, "standard output has results only");
}

#[test]
fn recursive_server_gives_the_same_numbers() {
    let queue = queue_name("recursive");
    let _server = rpc_server(&queue, &["--recursive", "--workers", "2", "--prefetch", "2"]);
    let output = rpc_client(&queue, &["20", "0", "1", "2", "25"]);
    assert_eq!(stdout(&output), "6765\n0\n1\n1\n75025\n", "{output:?}");
}

#[test]
fn bad_arguments_are_usage_errors() {
    for args in [
        &["x"][..],
        &["-1"],
        &["1.5"],
        &["18446744073709551616"],
        &[],
        &["--timeout", "soon", "7"],
        &["--timeout", "-1", "7"],
        &["--nonsense", "7"],
        &["--url", "host:5672", "7"],
        &["--queue", &"q".repeat(256), "7"],
        &["amqp://ann:s3cret@host", "7"],
    ] {
        let output = run_client(args);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{args:?}");
        assert!(!stderr(&output).is_empty(), "{args:?}");
        assert!(!stderr(&output).contains("s3cret"), "{args:?}: {output:?}");
    }
}

#[test]
fn help_lists_examples_and_exit_codes() {
    for (program, example) in [
        (RPC_SERVER, "rpc_server --url"),
        (RPC_CLIENT, "rpc_client 7\n"),
        (RPC_BENCH, "rpc_bench --requests"),
    ] {
        let help = std::process::Command::new(program).arg("--help").output().unwrap();
        assert_eq!(help.status.code(), Some(0), "{help:?}");
        let text = stdout(&help);
        let (_, examples) = text.split_once("\nExamples:\n").expect(text);
        assert!(examples.contains(example), "{text}");
        let (_, codes) = text.split_once("\nError codes:\n").expect(text);
        for code in ["  0 ", "  64 usage", "  69 ", "  77 "] {
            assert!(codes.lines().any(|line| line.starts_with(code)), "{code}: {text}");
        }
    }
}

#[test]
fn server_refuses_number_too_large_for_128_bits() {
    let queue = queue_name("too-large");
    let _server = rpc_server(&queue, &[]);
    let output = rpc_client(&queue, &["187", "7"]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert_eq!(stdout(&output), "13\n", "the other number is answered");
    let text = stderr(&output);
    assert!(text.contains("n = 187: OUT_OF_RANGE: fib(187) does not fit"), "{text}");
}

#[test]
fn request_that_is_not_a_number_gets_an_error_reply() {
    let queue = queue_name("no-number");
    let _server = rpc_server(&queue, &[]);
    let client = connect(&Broker::shared().url(), &queue);
    for body in [&b"hello"[..], b"", &[b'9'; 1_000_000], b"\xff\xfe"] {
        match client.call(body) {
            Err(Error::Remote(Failure { status: Status::InvalidArgument, message, .. })) => {
                assert!(message.contains("not a decimal number"), "{message}");
            }
            other => panic!("{} bytes: {other:?}", body.len()),
        }
    }
    assert_eq!(client.call("7").unwrap(), b"13", "the server continues");
}

#[test]
fn connection_error_names_broker_and_hides_password() {
    let url = "amqp://ann:s3cret@127.0.0.1:1/%2f";
    for program in [RPC_CLIENT, RPC_SERVER] {
        let mut command = std::process::Command::new(program);
        command.args(["--url", url]).env("RUST_LOG", "trace");
        if program == RPC_CLIENT {
            command.arg("7");
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(69), "{output:?}");
        let text = stderr(&output);
        assert!(text.contains("127.0.0.1:1: Connection refused"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
}

#[test]
fn unanswered_call_ends_at_its_deadline() {
    let queue = queue_name("unserved");
    // The queue remains when its server ends.
    drop(rpc_server(&queue, &[]));
    let began = Instant::now();
    let output = rpc_client(&queue, &["--timeout", "3", "7"]);
    let took = began.elapsed();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(stderr(&output).contains(": no reply from queue"), "{output:?}");
    assert!((Duration::from_secs(3)..Duration::from_secs(20)).contains(&took), "{took:?}");
}

#[test]
fn clients_servers_and_pending_calls_are_send_and_sync() {
    fn assert_shared<T: Send + Sync + 'static>() {}
    assert_shared::<RpcClient>();
    assert_shared::<FibonacciRpcClient>();
    assert_shared::<RpcServer>();
    assert_shared::<Stopper>();
    assert_shared::<PendingReply>();
    assert_shared::<PendingNumber>();
}

#[test]
fn client_and_server_in_one_program_exchange_bytes() {
    let queue = queue_name("embedded");
    let url = Broker::shared().url();
    let serving = Serving::start(&url, &queue, ServerOptions::default(), |request| match request {
        b"fail" => Err(Failure::new(Status::NotFound, "no such thing")),
        text => Ok(text.to_ascii_uppercase()),
    });
    let client = connect(&url, &queue);
    assert_eq!(client.call("shout").unwrap(), b"SHOUT");
    assert_eq!(client.call(vec![0xff; 300_000]).unwrap(), vec![0xff; 300_000]);
    assert_eq!(client.call("").unwrap(), b"");
    let failure = Failure::new(Status::NotFound, "no such thing");
    assert_eq!(client.call("fail"), Err(Error::Remote(failure)));

    let counters = serving.stop();
    assert_eq!((counters.served, counters.failed, counters.in_progress), (3, 1, 0));
}

#[test]
fn with_worker_serves_in_callers_loop() {
    let queue = queue_name("own-loop");
    let url = Broker::shared().url();
    let brokers = Brokers::parse(&url).unwrap();
    let server = RpcServer::connect(brokers, &queue, ServerOptions::default()).unwrap();
    let client = connect_fibonacci(&url, &queue);
    server
        .with_worker(|worker| {
            let briefly = Duration::from_millis(50);
            assert_eq!(worker.serve_one(fibonacci::answer, briefly)?, Served::Nothing);
            let call = client.send(9)?;
            assert_eq!(worker.serve_one(fibonacci::answer, PATIENCE)?, Served::Request);
            assert_eq!(call.wait()?, 34);
            Ok(())
        })
        .unwrap();
    assert_eq!(server.counters().served, 1);
}
