//! Code that the three binaries share: arguments, logging and exit codes.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::process::exit;
use std::time::Duration;

use argh::FromArgs;
use log::LevelFilter;
use rabbitmq_rpc::{Brokers, Error, Status};

/// The name of the program.
pub const NAME: &str = env!("CARGO_BIN_NAME");

/// Parses the program's arguments. Ends the process if they ask for help (0) or are invalid (64).
pub fn parse<Args: FromArgs>(words: impl IntoIterator<Item = OsString>) -> Args {
    // An argument may contain a password, so the message does not repeat it.
    let not_utf_8 = |number| usage_error(&format!("Argument {number} is not UTF-8."));
    let words: Vec<String> = (1..)
        .zip(words)
        .map(|(number, word)| word.into_string().unwrap_or_else(|_| not_utf_8(number)))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Args::from_args(&[NAME], &words).unwrap_or_else(|early| match early.status {
        Ok(()) => exit(print(early.output + "\n").map_or_else(i32::from, |()| 0)),
        Err(()) => usage_error(&without_passwords(&early.output)),
    })
}

pub fn usage_error(text: &str) -> ! {
    say(format_args!("{}\nRun {NAME} --help for more information.", text.trim_end()));
    exit(i32::from(USAGE))
}

/// Writes results to standard output. In contrast to `print!`, it does not panic if nobody reads
/// them any more or the disk is full. It says so, and returns the exit code.
pub fn print(results: impl AsRef<[u8]>) -> Result<(), u8> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(results.as_ref()).and_then(|()| stdout.flush());
    written.map_err(|error| {
        say(format_args!("{NAME}: standard output cannot be written: {error}"));
        IO_ERROR
    })
}

/// Writes a line to standard error. A line that cannot be written is lost: there is no other place
/// to report it.
pub fn say(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Removes logins from URLs: the parser's error message repeats an unexpected argument as it is.
fn without_passwords(text: &str) -> String {
    let mut parts = text.split("://");
    let first = parts.next().unwrap_or_default().to_string();
    parts.fold(first, |shown, part| {
        let (_login, host) = part.rsplit_once('@').unwrap_or(("", part));
        shown + "://" + host
    })
}

/// Logs to standard error, at `level` unless RUST_LOG says otherwise.
pub fn start_logger(level: &str) {
    let level = format!("{level},amiquip=error");
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level))
        // At debug, this module logs the login, which contains the password.
        .filter_module("amiquip::io_loop::handshake_state", LevelFilter::Off)
        .init();
}

/// Defines the arguments of a program: its own, and those that tell how to reach the brokers. argh
/// takes no struct of arguments into another.
macro_rules! args {
    ($(#[$about:meta])* struct $Args:ident { $($own:tt)* }) => {
        $(#[$about])*
        struct $Args {
            $($own)*
            /// brokers, comma-separated: amqp://user:password@host:port/vhost (default: $AMQP_URL,
            /// else amqp://guest:guest@localhost:5672/%2f)
            #[argh(option)]
            url: Option<String>,
            /// file with the password, in place of the one in the URL; read again for each
            /// connection
            #[argh(option)]
            password_file: Option<PathBuf>,
            /// seconds to keep trying if no broker is up yet (default: 0)
            #[argh(option, default = "Duration::ZERO", from_str_fn(common::seconds))]
            wait: Duration,
            /// seconds that connecting to one broker may take (default: 5)
            #[argh(option, default = "Duration::from_secs(5)", from_str_fn(common::seconds))]
            connect_timeout: Duration,
            /// PEM file of the authorities to trust for amqps:// (default: the system's)
            #[argh(option)]
            tls_ca: Option<PathBuf>,
            /// PEM file of the client certificate to show to the broker
            #[argh(option)]
            tls_cert: Option<PathBuf>,
            /// PEM file of the key of --tls-cert
            #[argh(option)]
            tls_key: Option<PathBuf>,
        }

        impl $Args {
            fn brokers(&self) -> Result<rabbitmq_rpc::Brokers, Error> {
                let mut brokers = common::brokers(self.url.clone())?;
                brokers.password_file = self.password_file.clone();
                brokers.wait = self.wait;
                brokers.connect_timeout = self.connect_timeout;
                brokers.tls.ca = self.tls_ca.clone();
                brokers.tls.cert = self.tls_cert.clone();
                brokers.tls.key = self.tls_key.clone();
                Ok(brokers)
            }
        }
    };
}
pub(crate) use args;

/// The brokers in `--url`, or else in $AMQP_URL, or else the one on this machine.
pub fn brokers(url: Option<String>) -> Result<Brokers, Error> {
    match url.map_or_else(|| env::var("AMQP_URL"), Ok) {
        Ok(url) => Brokers::parse(&url),
        Err(VarError::NotPresent) => Brokers::parse("amqp://guest:guest@localhost:5672/%2f"),
        Err(VarError::NotUnicode(_)) => {
            Err(Error::Config("the environment variable AMQP_URL is not UTF-8".into()))
        }
    }
}

/// A time span in seconds, such as `30`, `0.25` or `inf`.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(f64::INFINITY) => Ok(Duration::MAX),
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => Err("a time span is a number of seconds, such as 30 or 0.25".into()),
    }
}

/// Says what went wrong with a program or with one of its requests, and returns the exit code.
pub fn report(what: &str, error: &Error) -> u8 {
    say(format_args!("{what}: {error}"));
    exit_code(error)
}

const USAGE: u8 = 64;
pub const UNAVAILABLE: u8 = 69;
pub const OS_ERROR: u8 = 71;
pub const IO_ERROR: u8 = 74;

/// The exit code of an error, from sysexits.h.
fn exit_code(error: &Error) -> u8 {
    match error {
        Error::Config(_) => USAGE,
        Error::Remote(failure) => match failure.status {
            Status::InvalidArgument | Status::OutOfRange => 65, // EX_DATAERR
            Status::Unavailable | Status::ResourceExhausted => 75,
            _ => 70, // EX_SOFTWARE
        },
        Error::Unreachable { .. } | Error::Unroutable { .. } => UNAVAILABLE,
        Error::BadReply(_) => 76,         // EX_PROTOCOL
        Error::Refused(_) => 77,          // EX_NOPERM
        Error::QueueRefused { .. } => 78, // EX_CONFIG
        _ => 75,                          // EX_TEMPFAIL
    }
}
