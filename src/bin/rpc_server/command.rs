//! Any command as a service: it runs once for each request, without a shell.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use rabbitmq_rpc::{Failure, HeaderValue, Request, Status};

use crate::running::{End, MAX_OUTPUT, Running};

pub struct Command {
    words: Vec<OsString>,
    /// Variables of this process that look like those of a request.
    foreign: Vec<OsString>,
    running: Running,
}

impl Command {
    /// Fails if there is no such program.
    pub fn new(words: Vec<OsString>) -> Result<Command, String> {
        let program = words.first().ok_or("There is no command after --.")?;
        if !is_in_path(program) {
            return Err(format!("The command {program:?} cannot be found."));
        }
        let names = env::vars_os().map(|(name, _)| name);
        let foreign = names.filter(|name| name.as_encoded_bytes().starts_with(b"RPC_")).collect();
        Ok(Command { words, foreign, running: Running::default() })
    }

    /// Runs the command with the request's body as its input. The reply is its output.
    pub fn answer(&self, request: &Request) -> Result<Vec<u8>, Failure> {
        let mut command = process::Command::new(&self.words[0]);
        command.args(&self.words[1..]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in &self.foreign {
            command.env_remove(name);
        }
        command.envs(variables(request));
        let child = command.spawn().map_err(|error| {
            log::error!("the command cannot be started: {error}");
            let status = match error.kind() {
                ErrorKind::ArgumentListTooLong => Status::InvalidArgument, // the headers
                _ => Status::Unavailable,
            };
            Failure::new(status, format!("the command cannot be started: {error}"))
        })?;
        let (end, sentence) = self.running.run(child, request);
        let (status, reason) = match end {
            End::Exited(status, output) if status.success() => return Ok(output),
            End::Exited(status, _) => (kind(status), format!("the command failed ({status})")),
            End::TooLarge => {
                let text = format!("the command wrote more than {MAX_OUTPUT} bytes");
                return Err(Failure::new(Status::Internal, text));
            }
            End::Abandoned => (Status::Cancelled, "nobody waited for the command".into()),
        };
        Err(Failure::new(status, sentence.unwrap_or(reason)))
    }

    /// Ends the commands that still run, with SIGTERM and then SIGKILL. Blocks for some 2 s.
    pub fn end_all(&self) {
        self.running.end_all();
    }

    pub fn kill_all(&self) {
        self.running.kill_all();
    }
}

/// Whether the system would find a program under this name.
fn is_in_path(program: &OsStr) -> bool {
    let is_program = |path: &Path| {
        fs::metadata(path)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    match program.as_encoded_bytes().contains(&b'/') {
        true => is_program(Path::new(program)),
        false => env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .any(|directory| is_program(&directory.join(program))),
    }
}

/// What the command learns of a request, as environment variables. A requester can set no other
/// variable, and none that other requesters' programs would set to something else: two headers
/// whose names become the same are left out.
fn variables(request: &Request) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for (name, value) in request.headers() {
        let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name = format!("RPC_HEADER_{}", name.chars().map(upper).collect::<String>());
        let HeaderValue::Text(text) = value else { continue };
        headers.entry(name).and_modify(|value| *value = None).or_insert(Some(text));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let deadline = request.remaining().and_then(|remaining| now.checked_add(remaining));
    let deadline = deadline.map(|deadline| format!("{:.3}", deadline.as_secs_f64()));
    let properties = [
        ("RPC_METHOD", request.method()),
        ("RPC_MESSAGE_ID", request.message_id()),
        ("RPC_CORRELATION_ID", request.correlation_id()),
        ("RPC_CONTENT_TYPE", request.content_type()),
        ("RPC_DEADLINE", deadline.as_deref()),
        ("RPC_REDELIVERED", Some(if request.redelivered() { "1" } else { "0" })),
    ];
    let properties = properties.map(|(name, value)| (name.to_owned(), value));
    headers
        .into_iter()
        .chain(properties)
        .filter_map(|(name, value)| Some((name, value?.to_owned())))
        .filter(|(_, value)| !value.contains('\0'))
        .collect()
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
