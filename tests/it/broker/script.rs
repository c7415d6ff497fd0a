//! `scripts/broker.sh` as a running process; the comment at its top lists its commands.

use std::collections::HashMap;
use std::process::Command;
use std::time::Duration;

use crate::process::Process;

/// Longer than the script itself allows a node (120 s), so that its own message comes first.
const BOOT_TIMEOUT: Duration = Duration::from_secs(400);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(130);
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The running script: it reads commands and answers each with one line.
pub struct Script {
    process: Process,
    facts: HashMap<String, String>,
}

impl Script {
    pub fn run(args: &[&str]) -> Script {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");
        let process = Process::with_stdin(Command::new("bash").arg(path).args(args));
        let mut script = Script { process, facts: HashMap::new() };
        loop {
            match script.process.next_line(BOOT_TIMEOUT) {
                Ok(line) if line == "ready" => return script,
                Ok(line) => {
                    let (key, value) = line.split_once('=').expect("facts are key=value");
                    script.facts.insert(key.to_owned(), value.to_owned());
                }
                Err(error) => {
                    script.process.ends_within(END_TIMEOUT);
                    panic!(
                        "These tests need a RabbitMQ and none started ({error}). `scripts/test.sh` \
                         installs it; so does `apt-get install rabbitmq-server`.\n{}",
                        script.process.stderr()
                    );
                }
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
        self.process.write_stdin(&format!("{command}\n"));
        let answer = self
            .process
            .next_line(COMMAND_TIMEOUT)
            .map_err(|error| format!("no answer from broker.sh: {error}"))?;
        match answer.split_once(' ').unwrap_or((&answer, "")) {
            ("ok", _) => Ok(()),
            (_, reason) => Err(reason.to_owned()),
        }
    }
}

impl Drop for Script {
    /// Lets the script end its nodes and remove its directory.
    fn drop(&mut self) {
        self.process.ends_within(END_TIMEOUT);
    }
}
