//! Lines of standard input as requests, and replies as lines of standard output.

use std::io::{self, BufRead, IsTerminal, Read, Write, stderr, stdin, stdout};
use std::process::exit;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rabbitmq_rpc::{Error, PendingReply};

use crate::common::{self, NAME};

/// Larger bodies are refused by every RabbitMQ, whatever its configuration.
const MAX_BODY: u64 = 512 << 20;

/// Calls with each line, and prints the replies in the order of the lines. If some fail, returns
/// the exit code of the first failure.
///
/// A thread reads and sends, this one waits and prints. At most `in_flight` lines are read ahead
/// of the printed replies. Memory is therefore bounded however long the input is, and a slow reader
/// of the output slows down the requests.
pub fn call(
    in_flight: usize,
    send: impl Fn(Vec<u8>) -> Result<PendingReply, Error> + Send,
) -> Result<(), u8> {
    let (printed, places) = mpsc::channel();
    let (sender, calls) = mpsc::channel();
    let read = move || -> io::Result<()> {
        let mut input = stdin().lock();
        // An error of a channel means that nobody waits for replies any more.
        for number in 0.. {
            if number >= in_flight && places.recv().is_err() {
                break;
            }
            let mut line = Vec::new();
            if (&mut input).take(MAX_BODY).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.pop_if(|last| *last == b'\n').is_none() && line.len() as u64 == MAX_BODY {
                return Err(io::Error::other("a line is longer than 512 MiB"));
            }
            let _ = sender.send(send(line));
        }
        Ok(())
    };
    thread::scope(|scope| {
        let reader = thread::Builder::new().spawn_scoped(scope, read).map_err(|error| {
            common::say(format_args!("{NAME}: no thread to read the lines: {error}"));
            common::OS_ERROR
        })?;
        // A line on the terminal says how far the program is, unless the replies appear there.
        let shows_progress = stderr().is_terminal() && !stdout().is_terminal();
        let progress = |text: String| drop(shows_progress.then(|| write!(stderr(), "\r{text}")));
        let (mut next, mut outcome) = (Instant::now(), Ok(()));
        for (number, call) in (1..).zip(calls) {
            match call.and_then(PendingReply::wait) {
                // The thread may wait for input, so the process ends without it.
                Ok(reply) => print_line(reply).unwrap_or_else(|code| exit(code.into())),
                Err(error) => {
                    progress("\x1b[K".into());
                    let line = format!("{NAME}: line {number}");
                    outcome = outcome.and(Err(common::report(&line, &error)));
                }
            }
            let _ = printed.send(());
            if next <= Instant::now() {
                progress(format!("{number} lines"));
                next = Instant::now() + Duration::from_millis(200);
            }
        }
        progress("\x1b[K".into());
        let input = reader.join().expect("the thread that reads does not panic");
        outcome.and(input.map_err(cannot_read))
    })
}

/// The body of one request: all of standard input.
pub fn read_body() -> Result<Vec<u8>, u8> {
    let mut body = Vec::new();
    // One byte more than a broker takes, so that a body that is too large is refused, not cut off.
    let read = stdin().take(MAX_BODY + 1).read_to_end(&mut body);
    read.map_err(cannot_read)?;
    Ok(body)
}

fn cannot_read(error: io::Error) -> u8 {
    common::say(format_args!("{NAME}: standard input cannot be read: {error}"));
    common::IO_ERROR
}

/// Prints the reply of one request as it is. A terminal also gets the newline that may be missing.
pub fn print(reply: Vec<u8>) -> Result<(), u8> {
    if stdout().is_terminal() { print_line(reply) } else { common::print(reply) }
}

/// Prints a reply, and a newline unless it ends with one.
pub fn print_line(mut reply: Vec<u8>) -> Result<(), u8> {
    if reply.last() != Some(&b'\n') {
        reply.push(b'\n');
    }
    common::print(reply)
}
