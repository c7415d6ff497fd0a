//! Code that the three binaries share: arguments, logging and exit codes.

use std::env::{self, VarError};
use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::exit;
use std::time::Duration;

use argh::FromArgs;
use log::LevelFilter;
use rabbitmq_rpc::{Brokers, Error, Status, TlsFiles};

/// Parses the program's arguments. Ends the process if they ask for help (0) or are invalid (64).
pub fn parse<Args: FromArgs>(name: &str, words: impl IntoIterator<Item = OsString>) -> Args {
    // An argument may contain a password, so the message does not repeat it.
    let not_utf_8 = |number| usage_error(name, &format!("Argument {number} is not UTF-8."));
    let words: Vec<String> = (1..)
        .zip(words)
        .map(|(number, word)| word.into_string().unwrap_or_else(|_| not_utf_8(number)))
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Args::from_args(&[name], &words).unwrap_or_else(|early| match early.status {
        Ok(()) => exit(print(name, early.output + "\n").map_or_else(i32::from, |()| 0)),
        Err(()) => usage_error(name, &without_passwords(&early.output)),
    })
}

pub fn usage_error(name: &str, text: &str) -> ! {
    say(format_args!("{}\nRun {name} --help for more information.", text.trim_end()));
    exit(i32::from(USAGE))
}

/// Writes results to standard output. In contrast to `print!`, it does not panic if nobody reads
/// them any more or the disk is full. It says so, and returns the exit code.
pub fn print(name: &str, results: impl AsRef<[u8]>) -> Result<(), u8> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(results.as_ref()).and_then(|()| stdout.flush());
    written.map_err(|error| {
        say(format_args!("{name}: standard output cannot be written: {error}"));
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

/// The brokers in `--url`, or else in $AMQP_URL, or else the one on this machine.
pub fn brokers(
    url: Option<String>,
    connect_timeout: Duration,
    wait: Duration,
    password_file: Option<PathBuf>,
    tls: TlsFiles,
) -> Result<Brokers, Error> {
    let url = match url.map_or_else(|| env::var("AMQP_URL"), Ok) {
        Ok(url) => url,
        Err(VarError::NotPresent) => "amqp://guest:guest@localhost:5672/%2f".into(),
        Err(VarError::NotUnicode(_)) => {
            return Err(Error::Config("the environment variable AMQP_URL is not UTF-8".into()));
        }
    };
    let mut brokers = Brokers::parse(&url)?;
    brokers.connect_timeout = connect_timeout;
    brokers.wait = wait;
    brokers.password_file = password_file;
    brokers.tls = tls;
    Ok(brokers)
}

pub fn tls_files(ca: Option<PathBuf>, cert: Option<PathBuf>, key: Option<PathBuf>) -> TlsFiles {
    TlsFiles { ca, cert, key }
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
