//! Tells probes and the service manager how the server is.
//!
//! One thread asks the server ten times a second, which costs a few short locks. An event would
//! have to pass through each place where a worker begins or ends, and the watchdog needs a timer
//! anyhow. That the server answers the question is the sign of life for the watchdog.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use rabbitmq_rpc::{Error, Stopper};

/// How often to ask the server.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often to tell what is new, unless it is the readiness, and to try again what has failed.
const TEXT_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end waits: a disk may hang.
const END_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Readiness {
    /// Exists while every worker takes requests.
    file: Option<PathBuf>,
    manager: Option<Manager>,
}

/// The thread that tells. Dropping `ends` ends it, and `ended` is disconnected once it has ended.
pub struct Watch {
    ends: Sender<()>,
    ended: Receiver<()>,
}

/// The service manager that has started this program
/// ([sd_notify](https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html)).
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// How often to send it a sign of life.
    watchdog: Option<Duration>,
}

impl Readiness {
    /// Removes the file of an earlier server that was killed.
    ///
    /// # Errors
    /// [`Error::Config`] if the file cannot be written or the service manager cannot be told.
    pub fn new(file: Option<PathBuf>) -> Result<Readiness, Error> {
        if let Some(file) = &file {
            let try_out = || {
                if file.file_name().is_none() {
                    return Err(no_regular_file(file));
                }
                remove(file)?;
                create(&new_name(file), "")?;
                remove(&new_name(file))
            };
            try_out().map_err(|error| {
                Error::Config(format!("the ready file {} cannot be used: {error}", file.display()))
            })?;
        }
        let manager = env::var_os("NOTIFY_SOCKET").map(Manager::new).transpose()?;
        Ok(Readiness { file, manager })
    }

    /// Starts to tell how the server is, if somebody wants to know.
    pub fn watch(self, stopper: Stopper) -> Result<Watch, Error> {
        let (ends, end) = mpsc::channel();
        let (has_ended, ended) = mpsc::channel();
        if self.manager.is_some() || self.file.is_some() {
            let tell = move || {
                self.tell_about(&stopper, &end);
                drop(has_ended);
            };
            thread::Builder::new().name("readiness".into()).spawn(tell).map_err(|error| {
                Error::Config(format!("no thread to tell the readiness: {error}"))
            })?;
        }
        Ok(Watch { ends, ended })
    }

    fn tell_about(&self, stopper: &Stopper, end: &Receiver<()>) {
        let (mut was_ready, mut shown) = (false, None);
        let [mut next_text, mut next_sign] = [Instant::now(); 2];
        let watchdog = self.manager.as_ref().and_then(|manager| manager.watchdog);
        loop {
            let (status, now) = (stopper.status(), Instant::now());
            let (is_ready, text) = (status.is_ready(), status.to_string());
            if is_ready != was_ready || shown.as_ref() != Some(&text) && next_text <= now {
                // Repeated, because the manager may have missed it. What it knows already it
                // ignores.
                let (state, line) = match (is_ready, status.is_stopping) {
                    (true, _) => ("READY=1\n", Some(format!("{text}\n"))),
                    (false, true) => ("STOPPING=1\n", None),
                    (false, false) => ("", None),
                };
                let is_known = self.update(line.as_deref(), &format!("{state}STATUS={text}"));
                shown = is_known.then_some(text);
                next_text = now + TEXT_INTERVAL;
                was_ready = is_ready;
            }
            if let Some(interval) = watchdog.filter(|_| next_sign <= now) {
                next_sign = now + if self.tell("WATCHDOG=1") { interval } else { INTERVAL };
            }
            let next_sign = next_sign.saturating_duration_since(now);
            let pause = watchdog.map_or(INTERVAL, |_| INTERVAL.min(next_sign));
            if end.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                break;
            }
        }
        self.update(None, "STOPPING=1");
    }

    /// Writes the file, or removes it if there is no line to write, and tells the manager. Returns
    /// whether both succeeded.
    fn update(&self, line: Option<&str>, message: &str) -> bool {
        let is_changed = self.file.as_ref().is_none_or(|file| {
            let (verb, changed) = match line {
                Some(line) => ("write", write(file, line)),
                None => ("remove", remove(file)),
            };
            let failed =
                |error: &_| log::error!("cannot {verb} the ready file {}: {error}", file.display());
            changed.inspect_err(failed).is_ok()
        });
        self.tell(message) && is_changed
    }

    /// Whether the manager was told, if there is one. Logs the first failure.
    fn tell(&self, message: &str) -> bool {
        static SAID: Once = Once::new();
        let Some(Manager { socket, address, .. }) = &self.manager else { return true };
        let failed = |error: &io::Error| {
            SAID.call_once(|| log::warn!("the service manager cannot be told: {error}"));
        };
        socket.send_to_addr(message.as_bytes(), address).inspect_err(failed).is_ok()
    }
}

impl Watch {
    /// Takes the readiness away for good.
    pub fn end(self) {
        let Watch { ends, ended } = self;
        drop(ends);
        let _ = ended.recv_timeout(END_TIMEOUT);
    }
}

impl Manager {
    fn new(name: OsString) -> Result<Manager, Error> {
        let address = match name.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(&name),
            #[cfg(target_os = "linux")]
            [b'@', name @ ..] => {
                <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
            }
            _ => Err(io::Error::other("it is neither a path nor begins with @")),
        };
        let failed = |error| Error::Config(format!("$NOTIFY_SOCKET cannot be used: {error}"));
        let (address, socket) =
            (address.map_err(failed)?, UnixDatagram::unbound().map_err(failed)?);
        // The thread must not wait for a manager that does not read.
        socket.set_nonblocking(true).map_err(failed)?;
        Ok(Manager { socket, address, watchdog: watchdog()? })
    }
}

/// Half the time after which the service manager restarts this program without a sign of life.
fn watchdog() -> Result<Option<Duration>, Error> {
    let is_ours = env::var("WATCHDOG_PID").map_or(true, |pid| pid == process::id().to_string());
    let Some(text) = env::var_os("WATCHDOG_USEC").filter(|_| is_ours) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(microseconds @ 1..) => Ok(Some(Duration::from_micros(microseconds) / 2)),
        _ => Err(Error::Config(format!("$WATCHDOG_USEC is no number of microseconds: {text:?}"))),
    }
}

/// Replaces the file, so that nobody reads half of it.
fn write(file: &Path, text: &str) -> io::Result<()> {
    create(&new_name(file), text)?;
    fs::rename(new_name(file), file)
}

fn new_name(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_os_string();
    name.push(".new");
    name.into()
}

/// Follows no symbolic link, and does not wait for the reader of a pipe.
fn create(file: &Path, text: &str) -> io::Result<()> {
    remove(file)?;
    File::options().write(true).create_new(true).open(file)?.write_all(text.as_bytes())
}

/// Removes the file, if there is one. What else has this name is not this program's to remove.
fn remove(file: &Path) -> io::Result<()> {
    let removed = fs::symlink_metadata(file).and_then(|it| match it.is_file() {
        true => fs::remove_file(file),
        false => Err(no_regular_file(file)),
    });
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn no_regular_file(file: &Path) -> io::Error {
    io::Error::other(format!("{file:?} is no regular file"))
}
