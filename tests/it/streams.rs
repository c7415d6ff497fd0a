//! Programs whose standard streams nobody reads or whose arguments are not text: none panics.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Output, Stdio};

use crate::broker::{queue_name, url};
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_BENCH, RPC_CLIENT, RPC_SERVER, rpc_client, rpc_server, stop};

/// No panic (101), and no signal.
const USAGE: Option<i32> = Some(64);
const IO_ERROR: Option<i32> = Some(74);

/// A stream on which every write fails.
enum Unwritable {
    Full,
    Unread,
}

impl Unwritable {
    fn open(&self) -> Stdio {
        match self {
            Unwritable::Full => OpenOptions::new().write(true).open("/dev/full").unwrap().into(),
            Unwritable::Unread => std::io::pipe().unwrap().1.into(),
        }
    }
}

#[test]
fn results_that_cannot_be_written_are_an_error_with_a_code() {
    let queue = queue_name("unwritable");
    let _server = rpc_server(&queue, &[]);
    for stream in [Unwritable::Full, Unwritable::Unread] {
        for (program, args) in [
            (RPC_CLIENT, &["7", "8"][..]),
            (RPC_CLIENT, &["--check"]),
            (RPC_CLIENT, &["--help"]),
            (RPC_BENCH, &["--requests", "10"]),
            (RPC_BENCH, &["--requests", "10", "--json"]),
            (RPC_SERVER, &["--help"]),
        ] {
            let mut command = Command::new(program);
            command.args(["--url", &url(), "--queue", &queue]).args(args);
            let output = command.stdout(stream.open()).output().unwrap();
            assert_eq!(output.status.code(), IO_ERROR, "{command:?}: {output:?}");
            let text = text(&output);
            assert!(text.contains("standard output cannot be written: "), "{command:?}: {text}");
        }
    }
}

#[test]
fn server_without_standard_output_serves_on() {
    for open in ["exec >/dev/full", "exec 3> >(:); wait $!; exec >&3 3>&-"] {
        let queue = queue_name("no-output");
        let script = format!("{open}; exec \"$0\" \"$@\"");
        let args = ["-c", &script, RPC_SERVER, "--url", &url(), "--queue", &queue];
        let mut server = Process::spawn("bash", &args);
        server.wait_for_line("standard output cannot be written", PATIENCE);
        assert_eq!(rpc_client(&queue, &["7"]).stdout, b"13\n", "{}", server.stderr());
        stop(&mut server);
    }
}

#[test]
fn programs_without_standard_error_do_their_work() {
    let queue = queue_name("no-errors");
    for stream in [Unwritable::Full, Unwritable::Unread] {
        let run = |program, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(["--url", &url(), "--queue", &queue]).args(args);
            command.stderr(stream.open()).output().unwrap()
        };
        assert_eq!(run(RPC_CLIENT, &[]).status.code(), USAGE);
        assert_eq!(run(RPC_SERVER, &["--workers", "0"]).status.code(), USAGE);
        let script = "exec \"$0\" \"$@\" 2>/dev/full";
        let args = ["-c", script, RPC_SERVER, "--url", &url(), "--queue", &queue];
        let mut server = Process::spawn("sh", &args);
        server.wait_for_line("Awaiting", PATIENCE);
        let output = run(RPC_CLIENT, &["187", "7"]);
        assert_eq!((output.status.code(), &*output.stdout), (Some(65), &b"13\n"[..]));
        stop(&mut server);
    }
}

#[test]
fn argument_or_url_that_is_not_utf_8_is_a_usage_error() {
    let not_text = OsStr::from_bytes(b"amqp://ann:s3cret@\xff");
    for program in [RPC_CLIENT, RPC_SERVER, RPC_BENCH] {
        let mut by_argument = Command::new(program);
        by_argument.arg("--url").arg(not_text);
        let mut by_environment = Command::new(program);
        by_environment.env("AMQP_URL", not_text);
        if program == RPC_CLIENT {
            by_argument.arg("7");
            by_environment.arg("7");
        }
        for (mut command, sentence) in
            [(by_argument, "Argument 2 is not UTF-8."), (by_environment, "AMQP_URL is not UTF-8")]
        {
            let output = command.output().unwrap();
            assert_eq!(output.status.code(), USAGE, "{command:?}: {output:?}");
            let text = text(&output);
            assert!(text.contains(sentence) && !text.contains("s3cret"), "{command:?}: {text}");
        }
    }
}

/// What a program needs for signals, a thread and descriptors, it may not get. A limit on
/// descriptors fails each step of the start in turn.
#[test]
fn program_that_cannot_handle_signals_says_so() {
    let queue = queue_name("no-descriptor");
    let _server = rpc_server(&queue, &[]);
    let script = "ulimit -n $1; shift; exec \"$@\"";
    let mut codes = Vec::new();
    while codes.last() != Some(&Some(0)) {
        let descriptors = (4 + codes.len()).to_string();
        let args =
            ["-c", script, "sh", &descriptors, RPC_BENCH, "--url", &url(), "--queue", &queue];
        let output = Command::new("sh").args(args).args(["--requests", "1"]).output().unwrap();
        let (code, text) = (output.status.code(), text(&output));
        assert!([0, 69, 71, 127].map(Some).contains(&code), "{descriptors}: {code:?}: {text}");
        assert_eq!(text.contains("SIGTERM cannot be handled"), code == Some(71), "{text}");
        codes.push(code);
    }
    assert!(codes.contains(&Some(71)), "{codes:?}");
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
