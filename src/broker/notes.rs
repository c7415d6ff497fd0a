//! Lines for the log that are formed under a lock, or with the turn to read, and logged after it: a
//! logger may itself make a call, which needs both.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, mem};

use log::Level;

use crate::lock::lock;

#[derive(Debug, Default)]
pub(super) struct Notes(Vec<(Level, String)>);

impl Notes {
    pub(super) fn add(&mut self, level: Level, text: fmt::Arguments<'_>) {
        if level <= log::max_level() {
            self.0.push((level, text.to_string()));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Logs the lines. The caller holds no lock.
    pub(super) fn log(self) {
        for (level, text) in self.0 {
            log::log!(target: "rabbitmq_rpc::broker", level, "{text}");
        }
    }
}

/// Lines that several threads form and log.
#[derive(Debug, Default)]
pub(super) struct SharedNotes {
    notes: Mutex<Notes>,
    exist: AtomicBool,
}

impl SharedNotes {
    pub(super) fn add(&self, level: Level, text: fmt::Arguments<'_>) {
        let mut notes = lock(&self.notes);
        notes.add(level, text);
        self.exist.store(!notes.is_empty(), Ordering::Relaxed);
    }

    pub(super) fn exist(&self) -> bool {
        self.exist.load(Ordering::Relaxed)
    }

    /// Logs the lines. The caller holds no lock.
    pub(super) fn log(&self) {
        let mut notes = lock(&self.notes);
        let taken = mem::take(&mut *notes);
        self.exist.store(false, Ordering::Relaxed);
        drop(notes);
        taken.log();
    }
}
