//! The shell blocks of the README and the guide, run in one session as a reader would who types
//! them in and waits for what their comments promise.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::broker::Broker;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::RPC_SERVER;
use crate::scratch;

/// In the order of reading: a later block may need what an earlier one has started.
const TEXTS: &str = concat!(
    include_str!("../../README.md"),
    include_str!("../../src/guide/requests.md"),
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
/// What each comment in a block promises to be printed.
const PROMISES: [(&str, &[&str]); 5] = [
    ("Awaiting RPC requests on rpc_queue", &["Awaiting RPC requests on rpc_queue"]),
    ("13", &["13"]),
    (
        "five numbers, in the order asked",
        &["0", "1", "13", "12200160415121876738", "332825110087067562321196029789634457848"],
    ),
    ("the server refuses it: exit code 65", &["exit code 65"]),
    // Its exit code is asked for at the end.
    ("the server answers what it has begun with, and leaves", &[]),
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
        session.bash.wait_for_stdout(|said| has_in_order(said, &promised), PATIENCE);
    }
    assert_eq!((blocks, promised.len()), (3, 8), "{promised:?}");

    // Under `set -e` each of these ends the session if it fails, as all commands before them do.
    session.bash.write_stdin("wait $!\n");
    session.bash.write_stdin("openssl verify -CAfile ca.pem ca.pem client.pem\n");
    session
        .bash
        .write_stdin("openssl verify -CAfile ca.pem -verify_hostname rabbit-1 server.pem\n");
    let ended = session.bash.wait(PATIENCE);
    let (said, complained) = (session.bash.stdout().to_string(), session.bash.stderr().to_string());
    assert!(ended.success(), "{ended}\n{said}{complained}");
    assert!(said.ends_with("ca.pem: OK\nclient.pem: OK\nserver.pem: OK\n"), "{said}");
    assert!(complained.contains("n = 187: OUT_OF_RANGE"), "{complained}");
}

/// The lines that a command's comment promises.
fn promise(line: &str) -> &'static [&'static str] {
    let Some((_, comment)) = line.split_once("# ") else { return &[] };
    let known = PROMISES.iter().find(|(text, _)| *text == comment);
    known.unwrap_or_else(|| panic!("nobody checks what {comment:?} promises")).1
}

/// Whether these are among the lines, in this order.
fn has_in_order(said: &str, lines: &[&str]) -> bool {
    let mut said = said.lines();
    lines.iter().all(|line| said.any(|said| said == *line))
}

/// A shell with the programs at hand, and a virtual host of its own: the README uses the default
/// queue.
struct Session {
    bash: Process,
}

impl Session {
    fn start() -> Session {
        let programs = Path::new(RPC_SERVER).parent().unwrap();
        let path = std::env::var("PATH").expect("there is a PATH");
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

/// What a reader's own shell need not do: to end with the first command that fails, and to leave
/// nothing behind, neither at its end nor when the tests' process is killed.
const PREAMBLE: &str = r"
set -eu
while kill -0 $PPID; do sleep 1; done >/dev/null 2>&1 && kill -s KILL -- -$$ &
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
";

impl Drop for Session {
    fn drop(&mut self) {
        // What a test that failed has left running is in the shell's process group.
        let group = format!("-{}", self.bash.pid());
        let _ = Command::new("kill").args(["-s", "KILL", "--", &group]).output();
    }
}
