//! Any command as a service. It runs once for each request, in a process group of its own, until it
//! has ended or nobody waits for it any more.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{env, fs};

use rabbitmq_rpc::{Failure, HeaderValue, Request, Status};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::pipes::Pipes;

/// How long a command may go on after SIGTERM, and how long after its end the processes that it
/// started may keep its output open.
const GRACE: Duration = Duration::from_secs(2);
/// How often to see whether the requester still waits.
const TICK: Duration = Duration::from_millis(100);

#[derive(Default)]
pub struct Command {
    words: Vec<OsString>,
    /// The process groups of the commands that run. Nobody has waited for their leaders yet, so no
    /// other group can have the same number.
    running: Mutex<Vec<Pid>>,
    ended: Condvar,
    is_given_up: AtomicBool,
}

impl Command {
    /// Fails if there is no such program.
    pub fn new(words: Vec<OsString>) -> Result<Command, String> {
        let program = words.first().ok_or("There is no command after --.")?;
        match is_in_path(program) {
            true => Ok(Command { words, ..Default::default() }),
            false => Err(format!("The command {program:?} cannot be found.")),
        }
    }

    /// Runs the command with the request's body as its input. The reply is its output.
    pub fn answer(&self, request: &Request) -> Result<Vec<u8>, Failure> {
        let mut command = process::Command::new(&self.words[0]);
        command.args(&self.words[1..]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        set_variables(&mut command, request);
        let mut child = command.spawn().map_err(|error| {
            log::error!("the command cannot be started: {error}");
            let status = match error.kind() {
                ErrorKind::ArgumentListTooLong => Status::InvalidArgument, // the headers
                _ => Status::Unavailable,
            };
            Failure::new(status, format!("the command cannot be started: {error}"))
        })?;
        let group = Pid::from_child(&child);
        self.running().push(group);
        let mut pipes = Pipes::new(&mut child, request);
        let is_abandoned = self.attend(group, &mut pipes, request);
        let _ = kill_process_group(group, Signal::KILL);
        self.running().retain(|running| *running != group);
        self.ended.notify_all();
        // The status is lost if whoever started the server left SIGCHLD ignored.
        let status = child.wait().unwrap_or(ExitStatus::from_raw(255 << 8));
        if pipes.is_full() {
            Err(Failure::new(Status::Internal, "the command wrote more than 128 MiB"))
        } else if is_abandoned {
            Err(Failure::new(Status::Cancelled, "nobody waited for the command any more"))
        } else if status.success() {
            Ok(pipes.output)
        } else {
            let reason = pipes.last_line().unwrap_or(format!("the command failed ({status})"));
            Err(Failure::new(kind(status), reason))
        }
    }

    /// Returns when the command has ended and its output with it. Ends it if that is too large, or
    /// if nobody waits for it: then it returns true.
    fn attend(&self, group: Pid, pipes: &mut Pipes<'_>, request: &Request) -> bool {
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let (mut pause, mut kill_at, mut is_abandoned) = (Duration::from_micros(50), None, false);
        loop {
            let has_exited = !matches!(waitid(WaitId::Pid(group), look), Ok(None));
            if kill_at.is_none() {
                is_abandoned = !has_exited
                    && (request.is_abandoned() || self.is_given_up.load(Ordering::Relaxed));
                if is_abandoned {
                    let _ = kill_process_group(group, Signal::TERM);
                }
                kill_at = (is_abandoned || has_exited).then(|| Instant::now() + GRACE);
            }
            let is_late = pipes.is_full() || kill_at.is_some_and(|at| at <= Instant::now());
            if has_exited && (is_late || pipes.are_closed()) {
                return is_abandoned;
            }
            if is_late {
                let _ = kill_process_group(group, Signal::KILL);
            }
            if is_late || pipes.are_closed() {
                // No pipe tells any more when the command has ended.
                pipes.transfer(pause);
                pause = TICK.min(2 * pause);
            } else {
                pipes.transfer(TICK);
            }
        }
    }

    /// Ends the commands that still run, and returns when they have ended.
    pub fn end_all(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        let some_run = |running: &mut Vec<Pid>| !running.is_empty();
        drop(self.ended.wait_timeout_while(self.running(), 2 * GRACE, some_run));
    }

    /// Ends the commands that still run at once.
    pub fn kill_all(&self) {
        for group in &*self.running() {
            let _ = kill_process_group(*group, Signal::KILL);
        }
    }

    fn running(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the system finds a program under this name.
fn is_in_path(program: &OsStr) -> bool {
    let is_program = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    let path = env::var_os("PATH").unwrap_or_default();
    match program.as_encoded_bytes().contains(&b'/') {
        true => is_program(Path::new(program)),
        false => env::split_paths(&path).any(|directory| is_program(&directory.join(program))),
    }
}

/// Tells the command about the request. A requester cannot choose the names of variables, but for
/// what follows `RPC_HEADER_`.
fn set_variables(command: &mut process::Command, request: &Request) {
    // This server may itself be the command of another one.
    for (name, _) in env::vars_os().filter(|it| it.0.as_encoded_bytes().starts_with(b"RPC_")) {
        command.env_remove(name);
    }
    // Only this server speaks to the service manager that has started it.
    for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
        command.env_remove(name);
    }
    let mut variables = BTreeMap::new();
    for (name, value) in request.headers() {
        let HeaderValue::Text(text) = value else { continue };
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "_").to_ascii_uppercase();
        // Of two headers whose names become the same, neither is told.
        let variable = variables.entry(format!("RPC_HEADER_{name}"));
        variable.and_modify(|value| *value = None).or_insert(Some(text));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = request.remaining().and_then(|remaining| now.checked_add(remaining));
    let deadline = deadline.map(|deadline| format!("{:.3}", deadline.as_secs_f64()));
    variables.extend([
        ("RPC_METHOD".into(), request.method()),
        ("RPC_MESSAGE_ID".into(), request.message_id()),
        ("RPC_CORRELATION_ID".into(), request.correlation_id()),
        ("RPC_CONTENT_TYPE".into(), request.content_type()),
        ("RPC_REDELIVERED".into(), Some(if request.redelivered() { "1" } else { "0" })),
        ("RPC_DEADLINE".into(), deadline.as_deref()),
    ]);
    for (name, value) in variables {
        if let Some(value) = value.filter(|value| !value.contains('\0')) {
            command.env(name, value);
        }
    }
}

/// The status of a command that failed, by sysexits.h.
fn kind(status: ExitStatus) -> Status {
    match status.code() {
        Some(64 | 65) => Status::InvalidArgument,
        Some(66) => Status::NotFound,
        Some(69 | 75) => Status::Unavailable,
        Some(77) => Status::PermissionDenied,
        _ => Status::Internal,
    }
}
