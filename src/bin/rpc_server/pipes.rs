//! The standard streams of a command.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use std::time::Duration;

use rabbitmq_rpc::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;

/// The most that a command may write: what RabbitMQ takes by default (16 MiB from 4.0 on).
const MAX_OUTPUT: usize = 128 << 20;
/// The most that is read from a pipe at once.
const CHUNK: u64 = 64 << 10;

/// A stream is `None` once either side has closed it.
pub struct Pipes<'a> {
    request: &'a Request,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    /// What the command has not read yet.
    input: &'a [u8],
    pub output: Vec<u8>,
    /// What was not logged yet.
    errors: Vec<u8>,
    last_line: Option<String>,
}

impl<'a> Pipes<'a> {
    pub fn new(child: &mut Child, request: &'a Request) -> Pipes<'a> {
        let unblocked = |pipe: &dyn AsFd| ioctl_fionbio(pipe, true).is_ok();
        Pipes {
            request,
            stdin: child.stdin.take().filter(|pipe| unblocked(pipe)),
            stdout: child.stdout.take().filter(|pipe| unblocked(pipe)),
            stderr: child.stderr.take().filter(|pipe| unblocked(pipe)),
            input: request.body(),
            output: Vec::new(),
            errors: Vec::new(),
            last_line: None,
        }
    }

    pub fn are_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    pub fn is_full(&self) -> bool {
        self.output.len() > MAX_OUTPUT
    }

    /// Waits for less than a second until a pipe is ready, and moves what it takes or gives.
    pub fn transfer(&mut self, timeout: Duration) {
        let mut pipes = Vec::with_capacity(3);
        pipes.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        pipes.extend(self.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        pipes.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        // An error means that a signal came.
        let _ = poll(&mut pipes, Some(&timeout));
        step(&mut self.stdin, |pipe| {
            let written = pipe.write(self.input)?;
            self.input = &self.input[written..];
            Ok(!self.input.is_empty())
        });
        step(&mut self.stdout, |pipe| read(pipe, &mut self.output));
        step(&mut self.stderr, |pipe| read(pipe, &mut self.errors));
        self.log_lines(false);
    }

    /// The last line of standard error that is not empty.
    pub fn last_line(mut self) -> Option<String> {
        self.log_lines(true);
        self.last_line
    }

    /// Logs the lines of standard error that are complete, or are all that comes.
    fn log_lines(&mut self, is_end: bool) {
        let complete = match self.errors.iter().rposition(|byte| *byte == b'\n') {
            Some(end) if !is_end => end + 1,
            None if !is_end && self.errors.len() < CHUNK as usize => 0,
            _ => self.errors.len(),
        };
        let lines: Vec<u8> = self.errors.drain(..complete).collect();
        for line in lines.split(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(line).replace(char::is_control, " ");
            if !line.trim().is_empty() {
                log::info!("request {:?}: {line}", self.request.message_id().unwrap_or_default());
                self.last_line = Some(line.trim().into());
            }
        }
    }
}

/// Moves bytes through a pipe, and closes it if nothing more comes or it fails: the command may
/// close its input before it has read all.
fn step<P>(pipe: &mut Option<P>, mut moves: impl FnMut(&mut P) -> io::Result<bool>) {
    match pipe.as_mut().map(&mut moves) {
        None | Some(Ok(true)) => {}
        Some(Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
        Some(_) => *pipe = None,
    }
}

/// Reads what is there. Returns whether more may come.
fn read(pipe: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    Ok(pipe.take(CHUNK).read_to_end(buffer)? as u64 == CHUNK)
}
