//! An attempt that fails, by all four: client and server, in the library and as programs. The
//! password must be in none of their errors and outputs, with all logging on.

use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, RpcClient, RpcServer, ServerOptions, TlsFiles, fibonacci,
};

use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_CLIENT, RPC_SERVER};

/// The password in every URL. No other text contains it.
pub const PASSWORD: &str = "Tr0ub4dor&3";
/// The password as a URL has it.
pub const ENCODED: &str = "Tr0ub4dor%263";

/// The default of five seconds is too short on a busy machine.
const CONNECTING: Duration = Duration::from_secs(20);

/// A connection that client and server try.
#[derive(Clone)]
pub struct Attempt {
    pub url: String,
    pub queue: String,
    pub tls: TlsFiles,
}

impl Attempt {
    pub fn new(url: &str, queue: &str) -> Attempt {
        Attempt { url: url.into(), queue: queue.into(), tls: TlsFiles::default() }
    }

    /// Checks that client and server fail with this exit code and with all of these words.
    pub fn fails_for_all(&self, code: i32, words: &[&str]) {
        thread::scope(|scope| {
            let client = scope.spawn(|| self.fails_for_the_client(code, words));
            self.fails_for_the_server(code, words);
            client.join().unwrap();
        });
    }

    pub fn fails_for_the_client(&self, code: i32, words: &[&str]) {
        let mut program = self.start(RPC_CLIENT, &["7"]);
        let error = self.call().expect_err("the call should fail");
        check(&[error.to_string(), format!("{error:?}")], &error.to_string(), words);
        check_program("rpc_client", &mut program, code, words);
    }

    pub fn fails_for_the_server(&self, code: i32, words: &[&str]) {
        let mut program = self.start(RPC_SERVER, &[]);
        let error = self.serve().expect_err("the server should fail");
        check(&[error.to_string(), format!("{error:?}")], &error.to_string(), words);
        check_program("rpc_server", &mut program, code, words);
    }

    /// One call from the library.
    pub fn call(&self) -> Result<Vec<u8>, Error> {
        let options = ClientOptions { timeout: PATIENCE / 2, ..ClientOptions::default() };
        RpcClient::connect(self.brokers(), &self.queue, options)?.call("7")
    }

    fn serve(&self) -> Result<(), Error> {
        let server = RpcServer::connect(self.brokers(), &self.queue, ServerOptions::default())?;
        let stopper = server.stopper();
        let (_serving, over) = mpsc::channel::<()>();
        thread::spawn(move || {
            let _ = over.recv_timeout(PATIENCE);
            stopper.stop();
        });
        server.serve(fibonacci::answer)
    }

    pub fn brokers(&self) -> Brokers {
        let mut brokers = Brokers::parse(&self.url).unwrap();
        brokers.connect_timeout = CONNECTING;
        brokers.tls = self.tls.clone();
        brokers
    }

    /// `rpc_server`, ready to be called.
    pub fn start_server(&self) -> Process {
        let mut server = self.start(RPC_SERVER, &[]);
        server.wait_for_line("Awaiting RPC requests", PATIENCE);
        server
    }

    /// One of the two programs, with all logging on.
    pub fn start(&self, program: &str, args: &[&str]) -> Process {
        let mut command = Command::new(program);
        command.args(["--url", &self.url, "--queue", &self.queue]).args(args);
        command.args(["--connect-timeout", &CONNECTING.as_secs().to_string()]);
        let TlsFiles { ca, cert, key } = &self.tls;
        for (option, file) in [("--tls-ca", ca), ("--tls-cert", cert), ("--tls-key", key)] {
            if let Some(file) = file {
                command.arg(option).arg(file);
            }
        }
        Process::from(command.env("RUST_LOG", "trace"))
    }
}

fn check_program(name: &str, program: &mut Process, code: i32, words: &[&str]) {
    let ended = program.wait(PATIENCE);
    let stderr = program.stderr().to_string();
    let sentence = stderr.lines().rfind(|line| line.starts_with(&format!("{name}: ")));
    let sentence = sentence.unwrap_or_else(|| panic!("{name} prints no error: {stderr}"));
    check(&[stderr.clone(), program.stdout().to_string()], sentence, words);
    assert_eq!(ended.code(), Some(code), "{sentence}");
    // Before a refusal, amiquip has logged something.
    assert!(code != 77 || stderr.contains("TRACE"), "not all logging is on: {stderr}");
}

/// Checks that the sentence has these words, and that no text has the password in any form.
fn check(texts: &[String], sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
    let bytes = format!("{:?}", PASSWORD.as_bytes());
    for text in texts {
        for form in [PASSWORD, ENCODED, bytes.trim_matches(['[', ']'])] {
            assert!(!text.contains(form), "the password is in: {text}");
        }
    }
}
