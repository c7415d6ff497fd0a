//! The shell blocks of the README and the guide, run in one shell. The test waits for the output
//! that their comments promise.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::broker::Broker;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::RPC_SERVER;
use crate::scratch;

/// In the order in which they are read: a block may need a process that an earlier block started.
const TEXTS: &str = concat!(
    include_str!("../../README.md"),
    include_str!("../../src/guide/services.md"),
    include_str!("../../src/guide/requests.md"),
    include_str!("../../src/guide/shell.md"),
    include_str!("../../src/guide/wire_contract.md"),
    include_str!("../../src/guide/errors.md"),
    include_str!("../../src/guide/operating.md"),
    include_str!("../../src/guide/connecting.md"),
    include_str!("../../src/guide/tls.md"),
    include_str!("../../src/guide/clusters.md"),
    include_str!("../../src/guide/performance.md"),
    include_str!("../../src/guide/scaling.md"),
    include_str!("../../src/guide/contributing.md"),
);
/// The output that each comment in a block promises.
const PROMISES: [(&str, &[&str]); 12] = [
    ("Awaiting RPC requests on rpc_queue", &["Awaiting RPC requests on rpc_queue"]),
    ("two numbers, in the order asked", &["13", "12200160415121876738"]),
    ("too large for 128 bits, refused: exit code 65", &["exit code 65"]),
    // The test checks the exit code of the last server at the end.
    ("the server answers what is in progress, and exits", &[]),
    ("Awaiting RPC requests on upper", &["Awaiting RPC requests on upper"]),
    // A newline after the reply comes on a terminal only.
    ("HELLO", &[]),
    ("{\"ID\": 7}", &["HELLO{\"ID\": 7}"]),
    ("a thousand replies, in the order of the lines", &["1", "2", "500", "999", "1000"]),
    ("Awaiting RPC requests on scale", &["Awaiting RPC requests on scale"]),
    ("63", &["63"]),
    ("2, 4 and 6", &["2", "4", "6"]),
    ("INVALID_ARGUMENT: failed with 65", &["failed with 65"]),
];

#[test]
fn shell_blocks_do_what_their_comments_say() {
    let mut session = Session::start();
    let mut promised = Vec::new();
    let mut blocks = 0;
    for block in TEXTS.split("```sh\n").skip(1) {
        let (block, _) = block.split_once("```").expect("a block has an end");
        blocks += 1;
        session.bash.write_stdin(block);
        promised.extend(block.lines().flat_map(promise));
        session.bash.wait_for_stdout(|output| has_in_order(output, &promised), PATIENCE);
    }
    assert_eq!((blocks, promised.len()), (6, 17), "{promised:?}");

    // Under `set -e`, any command that fails ends the session.
    session.bash.write_stdin("wait $!\n");
    session.bash.write_stdin("openssl verify -CAfile ca.pem ca.pem client.pem\n");
    session
        .bash
        .write_stdin("openssl verify -CAfile ca.pem -verify_hostname rabbit-1 server.pem\n");
    let ended = session.bash.wait(PATIENCE);
    let (stdout, stderr) = (session.bash.stdout().to_string(), session.bash.stderr().to_string());
    assert!(ended.success(), "{ended}\n{stdout}{stderr}");
    assert!(stdout.ends_with("ca.pem: OK\nclient.pem: OK\nserver.pem: OK\n"), "{stdout}");
    assert!(stderr.contains("n = 187: OUT_OF_RANGE"), "{stderr}");
}

/// The output lines that a command's comment promises.
fn promise(line: &str) -> &'static [&'static str] {
    let Some((_, comment)) = line.split_once("# ") else { return &[] };
    let known = PROMISES.iter().find(|(text, _)| *text == comment);
    known.unwrap_or_else(|| panic!("the comment {comment:?} is not in PROMISES")).1
}

/// Whether the output has these lines, in this order.
fn has_in_order(output: &str, lines: &[&str]) -> bool {
    let mut output = output.lines();
    lines.iter().all(|line| output.any(|printed| printed == *line))
}

/// A shell with the programs in its `PATH`, and a virtual host of its own, since the README uses the
/// default queue.
struct Session {
    bash: Process,
}

impl Session {
    fn start() -> Session {
        let programs = Path::new(RPC_SERVER).parent().unwrap();
        let path = std::env::var("PATH").expect("PATH is set");
        let mut command = Command::new("bash");
        command
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("AMQP_URL", Broker::shared().virtual_host("readme"))
            .current_dir(scratch::directory("readme"))
            .process_group(0);
        let mut bash = Process::with_stdin(&mut command);
        bash.write_stdin(PREAMBLE);
        Session { bash }
    }
}

/// Makes the shell end with the first command that fails, and leave no process behind when it ends
/// or when the tests' process is killed.
const PREAMBLE: &str = r"
set -eu
while kill -0 $PPID; do sleep 1; done >/dev/null 2>&1 && kill -s KILL -- -$$ &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
";

impl Drop for Session {
    fn drop(&mut self) {
        // If the test fails, its processes still run in the shell's process group.
        let group = format!("-{}", self.bash.pid());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).output();
    }
}
