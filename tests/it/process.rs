//! A program that a test runs: its input, its output and its end.
//!
//! ```ignore
//! let mut server = Process::spawn(RPC_SERVER, &["--url", &url]);
//! server.wait_for_line("Awaiting RPC requests", PATIENCE);
//! server.signal("TERM");
//! assert!(server.wait(PATIENCE).success(), "{}", server.stderr());
//! ```

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A running program whose output is collected line by line. Dropping it kills it.
pub struct Process {
    child: Child,
    name: String,
    stdin: Option<ChildStdin>,
    lines: Receiver<(Stream, String)>,
    stdout: String,
    stderr: String,
    /// How far [`Process::wait_for_line`] has read each stream.
    seen: [usize; 2],
}

#[derive(Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

impl Process {
    pub fn spawn(program: impl AsRef<OsStr>, args: &[&str]) -> Process {
        Process::from(Command::new(program).args(args))
    }

    /// Runs a command that needs more than arguments, such as environment variables.
    pub fn from(command: &mut Command) -> Process {
        Process::reading(Stdio::null(), command, |_| true)
    }

    /// Runs a command that reads what [`Process::write_stdin`] writes.
    pub fn with_stdin(command: &mut Command) -> Process {
        Process::reading(Stdio::piped(), command, |_| true)
    }

    /// As [`Process::from`]; also calls `watch` with each line of either stream as it arrives, on
    /// threads of its own, and keeps the lines for which it returns true. It has been called with
    /// all of them when [`Process::wait`] returns.
    pub fn watched(
        command: &mut Command,
        watch: impl FnMut(&str) -> bool + Clone + Send + 'static,
    ) -> Process {
        Process::reading(Stdio::null(), command, watch)
    }

    fn reading(
        stdin: Stdio,
        command: &mut Command,
        watch: impl FnMut(&str) -> bool + Clone + Send + 'static,
    ) -> Process {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be run: {error}"));
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().expect("stdout was asked for");
        let stderr = child.stderr.take().expect("stderr was asked for");
        read_lines(stdout, Stream::Stdout, sender.clone(), watch.clone());
        read_lines(stderr, Stream::Stderr, sender, watch);
        let (stdin, [stdout, stderr]) = (child.stdin.take(), [String::new(), String::new()]);
        Process { child, name, stdin, lines, stdout, stderr, seen: [0; 2] }
    }

    /// Writes to its standard input.
    pub fn write_stdin(&mut self, text: &str) {
        let stdin = self.stdin.as_mut().expect("it was started by with_stdin");
        // If the program has ended, the next wait for it fails and shows its output.
        let _ = stdin.write_all(text.as_bytes());
    }

    /// Waits for a line that contains this text, on either stream, and returns it. Each call
    /// searches behind the line that the last one returned. Panics if the program ends or the
    /// time is over first.
    pub fn wait_for_line(&mut self, text: &str, timeout: Duration) -> String {
        self.find_line(text, timeout).unwrap_or_else(|error| {
            self.fail(&format!("printed no line with {text:?} ({error})"));
        })
    }

    /// As [`Process::wait_for_line`], but returns an error if the program ends or is late.
    pub fn find_line(&mut self, text: &str, timeout: Duration) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(line) = self.next_line_with(text) {
                return Ok(line);
            }
            self.collect(deadline)?;
        }
    }

    /// The next line of standard output, without its end.
    pub fn next_line(&mut self, timeout: Duration) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + timeout;
        let [seen, _] = self.seen;
        loop {
            if let Some(length) = self.stdout[seen..].find('\n') {
                self.seen[0] += length + 1;
                return Ok(self.stdout[seen..seen + length].to_owned());
            }
            self.collect(deadline)?;
        }
    }

    /// Waits until standard output is as wanted. Panics if the program ends or the time is over
    /// first.
    pub fn wait_for_stdout(&mut self, wanted: impl Fn(&str) -> bool, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while !wanted(&self.stdout) {
            if let Err(error) = self.collect(deadline) {
                self.fail(&format!("did not print what it should ({error})"));
            }
        }
    }

    /// Sends a signal by its name: `TERM`, `INT`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        // The standard library can only send KILL; a crate for one call is too much.
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status()
            .unwrap_or_else(|error| panic!("kill cannot be run: {error}"));
        assert!(status.success(), "no SIG{name} for {}: {status}", self.name);
    }

    /// Closes its standard input, waits for the program to end and returns its status. Panics if it
    /// does not end in time.
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let ended = self.ends_within(timeout);
        ended.unwrap_or_else(|| self.fail(&format!("still runs after {timeout:?}")))
    }

    /// As [`Process::wait`], but returns `None` if the program still runs after that time.
    pub fn ends_within(&mut self, timeout: Duration) -> Option<ExitStatus> {
        drop(self.stdin.take());
        let deadline = Instant::now() + timeout;
        // Both streams end when the program does.
        while let Ok(()) = self.collect(deadline) {}
        if Instant::now() >= deadline
            && let Ok(None) = self.child.try_wait()
        {
            return None;
        }
        Some(self.child.wait().expect("the child was not waited for elsewhere"))
    }

    /// Whether the program still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Ends the program at once, as a crash would.
    pub fn kill(&mut self) {
        // An error means that the program has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Standard output so far.
    pub fn stdout(&mut self) -> &str {
        while self.collect(Instant::now()).is_ok() {}
        &self.stdout
    }

    /// Standard error so far.
    pub fn stderr(&mut self) -> &str {
        while self.collect(Instant::now()).is_ok() {}
        &self.stderr
    }

    /// Takes one line of output from the reading threads.
    fn collect(&mut self, deadline: Instant) -> Result<(), RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let (stream, line) = self.lines.recv_timeout(left)?;
        match stream {
            Stream::Stdout => self.stdout.push_str(&line),
            Stream::Stderr => self.stderr.push_str(&line),
        }
        Ok(())
    }

    fn next_line_with(&mut self, text: &str) -> Option<String> {
        for (output, seen) in [&self.stdout, &self.stderr].into_iter().zip(&mut self.seen) {
            while let Some(length) = output[*seen..].find('\n') {
                let line = &output[*seen..*seen + length];
                *seen += length + 1;
                if line.contains(text) {
                    return Some(line.to_owned());
                }
            }
        }
        None
    }

    fn fail(&mut self, what: &str) -> ! {
        self.kill();
        while self.collect(Instant::now()).is_ok() {}
        panic!(
            "{} {what}\n--- its standard output:\n{}--- its standard error:\n{}",
            self.name, self.stdout, self.stderr
        );
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lines(
    stream: impl Read + Send + 'static,
    kind: Stream,
    sender: Sender<(Stream, String)>,
    mut watch: impl FnMut(&str) -> bool + Send + 'static,
) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(stream.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            line.clear();
            // Sending fails once the process is dropped.
            if watch(&text) && sender.send((kind, text)).is_err() {
                break;
            }
        }
    });
}
