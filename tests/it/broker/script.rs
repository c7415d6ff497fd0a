//! `scripts/broker.sh` as a running process; its head says which commands it takes.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Longer than the script itself allows a node (120 s), so that its own message comes first.
const BOOT_TIMEOUT: Duration = Duration::from_secs(400);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(130);
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The running script: commands go in, lines come out.
pub struct Script {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    stderr: Option<JoinHandle<String>>,
    facts: HashMap<String, String>,
}

impl Script {
    pub fn run(args: &[&str]) -> Script {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");
        let mut child = Command::new("bash")
            .arg(path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("bash {path} cannot be run: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was asked for");
        let mut stderr = child.stderr.take().expect("stderr was asked for");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more once the broker is dropped.
                let _ = sender.send(line);
            }
        });
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut script =
            Script { child, stdin, lines, stderr: Some(stderr), facts: HashMap::new() };
        loop {
            match script.lines.recv_timeout(BOOT_TIMEOUT) {
                Ok(line) if line == "ready" => return script,
                Ok(line) => {
                    let (key, value) = line.split_once('=').expect("facts are key=value");
                    script.facts.insert(key.to_owned(), value.to_owned());
                }
                Err(error) => panic!(
                    "These tests need a RabbitMQ and none started ({error}). `scripts/test.sh` \
                     installs it; so does `apt-get install rabbitmq-server`.\n{}",
                    script.end()
                ),
            }
        }
    }

    pub fn fact(&self, key: &str) -> String {
        let fact = self.facts.get(key).cloned();
        fact.unwrap_or_else(|| panic!("this broker has no {key}"))
    }

    /// Gives one command; returns the reason if it failed.
    pub fn command(&mut self, command: &str) -> Result<(), String> {
        assert!(!command.contains('\n'), "a command is one line: {command}");
        let stdin = self.stdin.as_mut().expect("open until the end");
        stdin
            .write_all(format!("{command}\n").as_bytes())
            .map_err(|error| format!("broker.sh is gone: {error}"))?;
        let answer = self
            .lines
            .recv_timeout(COMMAND_TIMEOUT)
            .map_err(|error| format!("no answer from broker.sh: {error}"))?;
        match answer.split_once(' ').unwrap_or((&answer, "")) {
            ("ok", _) => Ok(()),
            (_, reason) => Err(reason.to_owned()),
        }
    }

    /// Ends the broker and returns what the script wrote to standard error.
    fn end(&mut self) -> String {
        drop(self.stdin.take());
        // The lines end when the script does.
        while self.lines.recv_timeout(END_TIMEOUT).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
        let stderr = self.stderr.take().map(JoinHandle::join);
        stderr.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.end();
    }
}
