//! librabbitmq as client and server: the programs of the benchmark, and one that prints replies.

use super::*;

#[test]
fn c_client_calls_our_server() {
    let queue = queue_name("c-client");
    let _server = rpc_server(&queue, &["--workers", "2"]);
    let client = Compiled::from("scripts/bench/librabbitmq_client.c");
    let load = ["--requests", "200", "--in-flight", "16", "--n", "186"];
    let url = Broker::shared().url();
    let mut client = client.start(&[&["--url", &url, "--queue", &queue], &load[..]].concat());
    assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    assert!(client.stdout().starts_with("200 right of 200"), "{}", client.stdout());
}

#[test]
fn our_client_calls_c_server() {
    let queue = queue_name("c-server");
    let server = Compiled::from("scripts/bench/librabbitmq_server.c");
    let mut server = server.start(&["--url", &Broker::shared().url(), "--queue", &queue]);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    let output = rpc_client(&queue, &["0", "7", "187", "186"]);
    let expected = "0\n13\n332825110087067562321196029789634457848\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");

    // This server has no error replies: it sends a text instead of a number as a result.
    let expected = "n = 187: the reply is \"invalid input\", not a number";
    assert!(String::from_utf8_lossy(&output.stderr).contains(expected), "{output:?}");
    assert_eq!(output.status.code(), Some(76));
}

#[test]
fn c_client_recognizes_error_reply() {
    let queue = queue_name("c-errors");
    let _server = rpc_server(&queue, &[]);
    let requester = Compiled::from("tests/it/interop/c_requester.c");
    let shared = queue_name("c-replies");
    let url = Broker::shared().url();
    for reply_to in [DIRECT_REPLY_TO, &shared] {
        let args = [&[&*url, &queue, reply_to], &REQUESTS[..]].concat();
        assert_eq!(replies(requester.start(&args)), REPLIES, "{reply_to}");
    }
    assert_kept_and_empty(&shared);
}

/// A C program of this repository, compiled for one test.
struct Compiled(PathBuf);

impl Compiled {
    fn from(program: &str) -> Compiled {
        let flags = Command::new("pkg-config").args(["--cflags", "--libs", "librabbitmq"]).output();
        let flags = flags.expect("pkg-config can be run");
        assert!(flags.status.success(), "install librabbitmq-dev: {flags:?}");
        let flags = String::from_utf8(flags.stdout).expect("flags are text");

        let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join(queue_name("c"));
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-Wall", "-Wextra", "-I"]).arg(source("scripts/bench"));
        compiler.arg("-o").arg(&compiled).arg(source(program)).args(flags.split_whitespace());
        let output = compiler.output().expect("cc can be run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Compiled(compiled)
    }

    fn start(&self, args: &[&str]) -> Process {
        Process::spawn(&self.0, args)
    }
}

impl Drop for Compiled {
    fn drop(&mut self) {
        // A program that still runs is not disturbed by this.
        let _ = std::fs::remove_file(&self.0);
    }
}
