//! What `rpc_server` tells probes and the service manager.

use std::fs;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::{self, Command};
use std::time::{Duration, Instant};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{connect, connect_fibonacci};
use crate::patience::{AT_ONCE, PATIENCE, await_value, poll};
use crate::process::Process;
use crate::programs::RPC_SERVER;
use crate::proxy::{Mode, Proxy};
use crate::scratch;

/// The next message to the service manager in which a line begins with this text.
fn next(manager: &UnixDatagram, start: &str) -> String {
    let (mut bytes, began) = ([0; 4096], Instant::now());
    while began.elapsed() < PATIENCE {
        let length = match manager.recv(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            received => received.unwrap_or_else(|error| panic!("{start}: {error}")),
        };
        let text = String::from_utf8(bytes[..length].to_vec()).unwrap();
        if text.lines().any(|line| line.starts_with(start)) {
            return text;
        }
    }
    panic!("no message with {start}");
}

fn manager(address: &SocketAddr) -> UnixDatagram {
    let manager = UnixDatagram::bind_addr(address).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    manager
}

/// The command waits for a file.
#[test]
fn readiness_goes_with_the_connection_and_with_the_stop_of_a_busy_server() {
    let queue = queue_name("readiness");
    let directory = scratch::directory("readiness");
    let [file, began, go] = ["ready", "began", "go"].map(|name| directory.join(name));
    let [began_path, go_path] = [&began, &go].map(|path| path.to_str().unwrap());
    fs::write(&file, "of a server that was killed").unwrap();
    let proxy = Proxy::to(Broker::shared().port(0));
    proxy.set(Mode::Refuse);
    let name = format!("manager of {queue}");
    let manager = manager(&SocketAddr::from_abstract_name(&name).unwrap());
    let script = format!(
        "touch {began_path}; until [ -e {go_path} ]; do sleep 0.05; done; \
                          echo ${{NOTIFY_SOCKET-none}}"
    );
    let mut server = Process::from(
        Command::new(RPC_SERVER)
            .args(["--url", &proxy.url(), "--queue", &queue, "--workers", "2", "--wait", "60"])
            .args(["--ready-file", file.to_str().unwrap(), "--", "sh", "-c", &script])
            .env("NOTIFY_SOCKET", format!("@{name}"))
            .env("WATCHDOG_USEC", "1000000"),
    );
    let exists = || file.exists();
    await_value(exists, |exists| !exists);
    let first = next(&manager, "STATUS=");
    assert!(first.contains("0 of 2 workers take requests, not connected"), "{first}");
    next(&manager, "WATCHDOG=1");

    proxy.set(Mode::Forward);
    let ready = next(&manager, "READY=1");
    let line = format!("2 of 2 workers take requests from 127.0.0.1:{}, ", proxy.port());
    assert!(ready.contains(&format!("\nSTATUS={line}")), "{ready}");
    let shown = fs::read_to_string(&file).unwrap();
    assert!(shown.starts_with(&line) && shown.ends_with('\n'), "{shown}");

    proxy.set(Mode::Refuse);
    proxy.cut();
    assert_eq!(poll(AT_ONCE, exists, |exists| !exists), Ok(false));
    next(&manager, "STATUS=0 of 2");
    next(&manager, "WATCHDOG=1");
    next(&manager, "WATCHDOG=1");
    proxy.set(Mode::Forward);
    await_value(exists, |exists| *exists);

    let client = connect(&url(), &queue);
    let call = client.send("7").unwrap();
    await_value(|| began.exists(), |exists| *exists);
    let busy = await_value(
        || fs::read_to_string(&file).unwrap_or_default(),
        |text| text.contains("requests in progress: 1, the oldest for "),
    );
    assert!(busy.starts_with(&line), "{busy}");
    server.signal("TERM");
    next(&manager, "STOPPING=1");
    assert!(!file.exists() && server.runs());
    next(&manager, "STATUS=stopping; 0 of 2 workers take requests");
    assert!(!file.exists() && server.runs());
    fs::write(&go, "").unwrap();
    assert_eq!(call.wait().unwrap(), b"none\n", "the command has no manager");
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
    assert!(!file.exists() && !directory.join("ready.new").exists());
}

/// The manager listens at a path, and its watchdog watches another process.
#[test]
fn server_serves_on_if_the_service_manager_goes_away() {
    let queue = queue_name("manager");
    let path = scratch::directory("readiness").join("manager");
    let manager = manager(&SocketAddr::from_pathname(&path).unwrap());
    let mut server = Process::from(
        Command::new(RPC_SERVER)
            .args(["--url", &url(), "--queue", &queue])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "100000")
            .env("WATCHDOG_PID", process::id().to_string()),
    );
    next(&manager, "READY=1");
    manager.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut bytes = [0; 4096];
    while let Ok(length) = manager.recv(&mut bytes) {
        let text = String::from_utf8_lossy(&bytes[..length]);
        assert!(text.starts_with("READY=1\nSTATUS=1 of 1 workers"), "{text}");
        if !text.contains("connected for 0 s") {
            break;
        }
    }
    drop(manager);
    fs::remove_file(&path).unwrap();
    server.wait_for_line("the service manager cannot be told", PATIENCE);
    assert_eq!(connect_fibonacci(&url(), &queue).call(7), Ok(13));
    server.signal("TERM");
    assert_eq!(server.wait(PATIENCE).code(), Some(0), "{}", server.stderr());
}

/// The manager reads nothing while the server becomes ready: its socket is full of signs of life.
#[test]
fn readiness_that_a_busy_service_manager_misses_is_told_again() {
    let queue = queue_name("busy_manager");
    let directory = scratch::directory("readiness");
    let [path, file] = ["busy_manager", "told_again"].map(|name| directory.join(name));
    let manager = manager(&SocketAddr::from_pathname(&path).unwrap());
    let proxy = Proxy::to(Broker::shared().port(0));
    proxy.set(Mode::Refuse);
    let mut server = Process::from(
        Command::new(RPC_SERVER)
            .args(["--url", &proxy.url(), "--queue", &queue, "--wait", "60"])
            .args(["--ready-file", file.to_str().unwrap()])
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "2000"),
    );
    server.wait_for_line("the service manager cannot be told", PATIENCE);
    proxy.set(Mode::Forward);
    let shown = || fs::read_to_string(&file).unwrap_or_default();
    await_value(shown, |text| !text.is_empty() && !text.contains("connected for 0 s"));
    next(&manager, "READY=1");
    next(&manager, "WATCHDOG=1");
}

/// As on a network file system whose server is gone. A C library before the system's stands in for
/// it: to rename or to remove the ready file never ends.
#[test]
fn server_serves_on_and_ends_in_time_although_the_disk_of_its_ready_file_hangs() {
    let queue = queue_name("hung_disk");
    let directory = scratch::directory("readiness");
    let [library, file, disk, noticed] =
        ["hung_disk.so", "on_disk", "disk", "disk.noticed"].map(|name| directory.join(name));
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-o"]).arg(&library);
    compiler.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/readiness/hung_disk.c"));
    assert!(compiler.status().expect("cc can be run").success());
    let mut server = Process::from(
        Command::new(RPC_SERVER)
            .args(["--url", &url(), "--queue", &queue, "--ready-file", file.to_str().unwrap()])
            .env("LD_PRELOAD", &library)
            .env("HUNG_DISK", &disk),
    );
    await_value(|| file.exists(), |exists| *exists);
    fs::write(&disk, "").unwrap();
    await_value(|| noticed.exists(), |exists| *exists);
    assert_eq!(connect_fibonacci(&url(), &queue).call(7), Ok(13));
    server.signal("TERM");
    assert_eq!(server.wait(AT_ONCE).code(), Some(0), "{}", server.stderr());
}

#[test]
fn ready_file_is_written_through_no_symbolic_link() {
    let directory = scratch::directory("readiness");
    let [file, new, other] = ["own", "own.new", "other"].map(|name| directory.join(name));
    fs::write(&other, "of somebody else").unwrap();
    symlink(&other, &new).unwrap();
    let args = ["--url", "amqp://127.0.0.1:1", "--ready-file", file.to_str().unwrap()];
    let output = Command::new(RPC_SERVER).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(64) && text.contains("no regular file"), "{output:?}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "of somebody else");
    assert!(new.is_symlink());
}

#[test]
fn what_cannot_be_told_is_refused_with_a_sentence() {
    let directory = scratch::directory("readiness");
    let nowhere = directory.join("no/such/ready");
    // Like a device, which root could remove.
    let link = directory.join("link");
    let _ = symlink("/dev/null", &link);
    for (file, variable, named) in [
        (Some(nowhere.to_str().unwrap()), None, "No such file or directory"),
        (Some(directory.to_str().unwrap()), None, "no regular file"),
        (Some(link.to_str().unwrap()), None, "no regular file"),
        (Some(""), None, "no regular file"),
        (None, Some(("NOTIFY_SOCKET", "vsock:2:1234")), "neither a path nor begins with @"),
        (None, Some(("WATCHDOG_USEC", "soon")), "no number of microseconds"),
        (None, Some(("WATCHDOG_USEC", "0")), "no number of microseconds"),
    ] {
        let mut command = Command::new(RPC_SERVER);
        command.args(["--url", "amqp://127.0.0.1:1"]).env("NOTIFY_SOCKET", "@nobody");
        if let Some(file) = file {
            command.args(["--ready-file", file]);
        }
        command.envs(variable);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(64) && text.contains(named), "{named}: {output:?}");
    }
    assert!(link.is_symlink());
}

#[test]
fn server_that_fails_leaves_no_ready_file() {
    let file = scratch::directory("readiness").join("stale");
    for (url, code) in [("amqp://127.0.0.1:1", 69), ("nonsense", 64)] {
        fs::write(&file, "of a server that was killed").unwrap();
        let args = ["--url", url, "--ready-file", file.to_str().unwrap()];
        let output = Command::new(RPC_SERVER).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(!file.exists());
    }
}
