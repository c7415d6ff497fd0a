//! How a command ends that nobody waits for, and what it leaves behind.

use std::fs;
use std::time::Duration;

use super::{serve, shell, text};
use crate::patience::{PATIENCE, await_value};
use crate::process::Process;

/// Ignores SIGTERM, as its child does, and logs the numbers of both.
const STUBBORN: &str = "trap '' TERM; sleep 300 & echo pids $$ $! >&2; wait";

/// That of a request whose command is ended. On a busy machine, the command begins late.
const DEADLINE: Duration = Duration::from_secs(4);

/// The processes that a command's log line names.
fn pids(server: &mut Process) -> Vec<u32> {
    let line = server.wait_for_line("pids ", PATIENCE);
    let (_, pids) = line.split_once("pids ").unwrap();
    pids.split(' ').map(|pid| pid.parse().unwrap()).collect()
}

/// Whether a process is alive: a zombie is not.
fn lives(pid: &u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|state| !state.is_empty() && !state.starts_with('Z'))
}

fn await_ended(pids: &[u32]) {
    await_value(|| pids.iter().filter(|pid| lives(pid)).count(), |living| *living == 0);
}

#[test]
fn command_gets_sigterm_when_the_deadline_passes() {
    let script = "trap 'echo got TERM >&2; exit' TERM; echo pids $$ >&2; sleep 300 & wait";
    let (mut server, client) = shell("term", script);
    let call = client.request("").timeout(DEADLINE).send().unwrap();
    let pids = pids(&mut server);
    call.wait().unwrap_err();
    server.wait_for_line("got TERM", PATIENCE);
    await_ended(&pids);
}

#[test]
fn command_that_ignores_sigterm_is_killed_with_its_children() {
    let (mut server, client) = shell("kill", STUBBORN);
    let call = client.request("").timeout(DEADLINE).send().unwrap();
    let pids = pids(&mut server);
    assert_eq!(pids.len(), 2);
    call.wait().unwrap_err();
    await_ended(&pids);
}

#[test]
fn command_of_a_requester_that_is_gone_is_ended() {
    let (mut server, client) = shell("abandoned", "echo pids $$ >&2; exec sleep 300");
    let second = Duration::from_secs(1);
    let call = client.request("").timeout(PATIENCE).keep_alive(second).send().unwrap();
    let pids = pids(&mut server);
    drop(call);
    client.close();
    await_ended(&pids);
}

#[test]
fn what_a_command_leaves_behind_ends_with_it() {
    // The first holds the output open, the second does not.
    for (script, reply) in [
        ("sleep 300 & echo pids $! >&2; echo done", "done\n"),
        ("sleep 300 >/dev/null 2>&1 & echo pids $! >&2; echo done", "done\n"),
        ("(sleep 0.5; echo later) & echo pids $! >&2; echo done", "done\nlater\n"),
    ] {
        let (mut server, client) = shell("left-behind", script);
        assert_eq!(text(client.call("")), reply, "{script}");
        await_ended(&pids(&mut server));
    }
}

#[test]
fn drain_waits_for_the_command() {
    let (mut server, client) = shell("drain", "echo pids $$ >&2; read line; sleep 1; echo $line");
    let call = client.send("finished\n").unwrap();
    pids(&mut server);
    server.signal("TERM");
    assert_eq!(text(call.wait()), "finished\n");
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
}

#[test]
fn server_that_ends_leaves_no_command_behind() {
    let (mut server, client) =
        serve("drained", &["--drain-timeout", "0.3"], &["sh", "-c", STUBBORN]);
    let _call = client.send("").unwrap();
    let drained = pids(&mut server);
    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(75), "{}", server.stderr());
    await_ended(&drained);

    let (mut server, client) = shell("second-signal", STUBBORN);
    let _call = client.send("").unwrap();
    let killed = pids(&mut server);
    server.signal("TERM");
    server.wait_for_line("stopping", PATIENCE);
    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(128 + 15), "{}", server.stderr());
    await_ended(&killed);
}
