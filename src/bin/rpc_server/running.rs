//! Commands that run, each in a process group of its own, until they have ended or nobody waits
//! for them any more.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rabbitmq_rpc::Request;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

/// The most that a command may write: what RabbitMQ takes by default (16 MiB from 4.0 on).
pub const MAX_OUTPUT: usize = 128 << 20;
/// How long a command may go on after SIGTERM, and how long after its end the processes that it
/// started may keep its output open.
const GRACE: Duration = Duration::from_secs(2);
/// How often to see whether the requester still waits.
const TICK: Duration = Duration::from_millis(100);

/// How a command ended.
pub enum End {
    Exited(ExitStatus, Vec<u8>),
    /// It wrote more than [`MAX_OUTPUT`].
    TooLarge,
    /// The deadline passed, the requester is gone, or the server ends.
    Abandoned,
}

/// The process groups of the commands that run. All are children that were not waited for yet, so
/// that no other group can have the same number.
#[derive(Default)]
pub struct Running {
    groups: Mutex<Vec<Pid>>,
    changed: Condvar,
    is_given_up: AtomicBool,
}

impl Running {
    /// Runs a command that is the leader of a process group, whose last processes end with it.
    /// Returns how it ended, and the last line of its standard error.
    pub fn run(&self, mut child: Child, request: &Request) -> (End, Option<String>) {
        let group = Pid::from_child(&child);
        self.groups().push(group);
        let mut pipes = Pipes::new(&mut child, request);
        let (mut pause, mut kill_at, mut is_abandoned) = (Duration::from_micros(50), None, false);
        loop {
            let now = Instant::now();
            let has_exited = has_exited(group);
            if kill_at.is_none() {
                let is_given_up = || self.is_given_up.load(Ordering::Relaxed);
                is_abandoned = !has_exited && (request.is_abandoned() || is_given_up());
                if is_abandoned {
                    let _ = kill_process_group(group, Signal::TERM);
                }
                kill_at = (is_abandoned || has_exited).then_some(now + GRACE);
            }
            let is_late = kill_at.is_some_and(|at| at <= now) || pipes.is_full();
            if has_exited && (pipes.are_closed() || is_late) {
                break;
            }
            if is_late {
                let _ = kill_process_group(group, Signal::KILL);
            }
            // Nothing tells when a command has ended that has closed its output before.
            match pipes.are_closed() || is_late {
                true => {
                    pipes.transfer(pause);
                    pause = TICK.min(pause * 2);
                }
                false => pipes.transfer(TICK),
            }
        }
        let _ = kill_process_group(group, Signal::KILL);
        self.groups().retain(|running| *running != group);
        self.changed.notify_all();
        // The status is lost if whoever started the server left SIGCHLD ignored.
        let status = child.wait().unwrap_or(ExitStatus::from_raw(255 << 8));
        let end = if pipes.is_full() {
            End::TooLarge
        } else if is_abandoned {
            End::Abandoned
        } else {
            End::Exited(status, mem::take(&mut pipes.output))
        };
        (end, pipes.errors.end())
    }

    /// Ends the commands that still run, and returns when they have ended.
    pub fn end_all(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
        let still_run = |groups: &mut Vec<Pid>| !groups.is_empty();
        let limit = 2 * GRACE;
        drop(self.changed.wait_timeout_while(self.groups(), limit, still_run));
    }

    /// Ends the commands that still run at once.
    pub fn kill_all(&self) {
        for group in &*self.groups() {
            let _ = kill_process_group(*group, Signal::KILL);
        }
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Pid>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_exited(process: Pid) -> bool {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::Pid(process), look), Ok(None))
}

/// The standard streams of a command. `None` if one side has closed it.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    input: &'a [u8],
    output: Vec<u8>,
    errors: ErrorLines<'a>,
}

impl<'a> Pipes<'a> {
    fn new(child: &mut Child, request: &'a Request) -> Pipes<'a> {
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let fds = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd)];
        for fd in fds.into_iter().chain([stderr.as_ref().map(AsFd::as_fd)]).flatten() {
            ioctl_fionbio(fd, true).expect("a pipe can be made non-blocking");
        }
        let errors = ErrorLines { request, line: Vec::new(), last: None };
        Pipes { stdin, stdout, stderr, input: request.body(), output: Vec::new(), errors }
    }

    fn are_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    fn is_full(&self) -> bool {
        self.output.len() > MAX_OUTPUT
    }

    /// Waits until a pipe is ready, and moves what it takes or gives.
    fn transfer(&mut self, timeout: Duration) {
        let mut fds = Vec::with_capacity(3);
        fds.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
        fds.extend(self.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        fds.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        // An error means that a signal came.
        let _ = poll(&mut fds, Some(&timeout));
        step(&mut self.stdin, |pipe| {
            let written = pipe.write(self.input)?;
            self.input = &self.input[written..];
            Ok(!self.input.is_empty())
        });
        let mut buffer = [0; 64 << 10];
        step(&mut self.stdout, |pipe| {
            let read = pipe.read(&mut buffer)?;
            self.output.extend_from_slice(&buffer[..read]);
            Ok(read > 0)
        });
        step(&mut self.stderr, |pipe| {
            let read = pipe.read(&mut buffer)?;
            self.errors.add(&buffer[..read]);
            Ok(read > 0)
        });
    }
}

/// Moves bytes through a pipe, and closes it if that says that nothing more comes, or fails: the
/// command may close its input before it has read all.
fn step<P>(pipe: &mut Option<P>, mut moves: impl FnMut(&mut P) -> io::Result<bool>) {
    let Some(open) = pipe else { return };
    match moves(open) {
        Ok(true) => {}
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Ok(false) | Err(_) => *pipe = None,
    }
}

/// The standard error of a command, on its way to the log.
struct ErrorLines<'a> {
    request: &'a Request,
    line: Vec<u8>,
    last: Option<String>,
}

impl ErrorLines<'_> {
    fn add(&mut self, bytes: &[u8]) {
        /// A longer line is logged in parts.
        const MAX_LINE: usize = 4096;
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ => self.line.push(*byte),
            }
            if self.line.len() == MAX_LINE {
                self.end_line();
            }
        }
    }

    fn end_line(&mut self) {
        let line =
            String::from_utf8_lossy(&mem::take(&mut self.line)).replace(char::is_control, " ");
        let line = line.trim();
        if !line.is_empty() {
            log::info!("request {:?}: {line}", self.request.message_id().unwrap_or_default());
            self.last = Some(line.to_owned());
        }
    }

    /// The last line that is not empty.
    fn end(&mut self) -> Option<String> {
        self.end_line();
        self.last.take()
    }
}
