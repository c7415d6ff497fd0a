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
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use rabbitmq_rpc::{Error, Stopper};

/// How often to ask the server.
const INTERVAL: Duration = Duration::from_millis(100);
/// How often to tell what is new, unless it is the readiness.
const TEXT_INTERVAL: Duration = Duration::from_secs(1);

pub struct Readiness {
    /// Exists while every worker takes requests. `None` if nobody wants it, or any more.
    file: Mutex<Option<PathBuf>>,
    manager: Option<Manager>,
    ended: Once,
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
    pub fn new(file: Option<PathBuf>) -> Result<Arc<Readiness>, Error> {
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
        Ok(Arc::new(Readiness { file: Mutex::new(file), manager, ended: Once::new() }))
    }

    /// Starts to tell how the server is, if somebody wants to know.
    pub fn watch(self: &Arc<Self>, stopper: Stopper) -> Result<(), Error> {
        if self.manager.is_none() && lock(&self.file).is_none() {
            return Ok(());
        }
        let this = Arc::clone(self);
        let tell = move || this.tell_about(&stopper);
        let spawned = thread::Builder::new().name("readiness".into()).spawn(tell);
        let failed = |error| Error::Config(format!("no thread to tell the readiness: {error}"));
        spawned.map(drop).map_err(failed)
    }

    /// Takes the readiness away for good.
    pub fn end(&self) {
        self.ended.call_once(|| {
            let mut file = lock(&self.file);
            file.take().iter().for_each(|file| remove_or_log(file));
            drop(file);
            self.tell("STOPPING=1");
        });
    }

    fn tell_about(&self, stopper: &Stopper) -> ! {
        let (mut was_ready, mut has_been_ready, mut shown) = (false, false, String::new());
        let [mut next_text, mut next_sign] = [Instant::now(); 2];
        let watchdog = self.manager.as_ref().and_then(|manager| manager.watchdog);
        loop {
            let (status, now) = (stopper.status(), Instant::now());
            let (is_ready, text) = (status.is_ready(), status.to_string());
            if is_ready != was_ready || text != shown && next_text <= now {
                self.show(is_ready, &text);
                let first = if is_ready && !has_been_ready { "READY=1\n" } else { "" };
                self.tell(&format!("{first}STATUS={text}"));
                next_text = now + TEXT_INTERVAL;
                (was_ready, has_been_ready, shown) = (is_ready, has_been_ready || is_ready, text);
            }
            if let Some(interval) = watchdog.filter(|_| next_sign <= now) {
                self.tell("WATCHDOG=1");
                next_sign = now + interval;
            }
            let next_sign = next_sign.saturating_duration_since(now);
            thread::sleep(watchdog.map_or(INTERVAL, |_| INTERVAL.min(next_sign)));
        }
    }

    fn show(&self, is_ready: bool, text: &str) {
        // The lock is held until the file is there, so that `end` removes it.
        let file = lock(&self.file);
        match &*file {
            Some(file) if is_ready => {
                if let Err(error) = write(file, &format!("{text}\n")) {
                    log::error!("cannot write the ready file {}: {error}", file.display());
                }
            }
            Some(file) => remove_or_log(file),
            None => {}
        }
    }

    fn tell(&self, text: &str) {
        static SAID: Once = Once::new();
        let Some(Manager { socket, address, .. }) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(text.as_bytes(), address) {
            SAID.call_once(|| log::warn!("the service manager cannot be told: {error}"));
        }
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

fn lock(file: &Mutex<Option<PathBuf>>) -> MutexGuard<'_, Option<PathBuf>> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
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

fn remove_or_log(file: &Path) {
    if let Err(error) = remove(file) {
        log::error!("cannot remove the ready file {}: {error}", file.display());
    }
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
