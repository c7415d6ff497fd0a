//! Lines for the log that are formed under a lock, or with the turn to read, and logged after it: a
//! logger may itself make a call, which needs both.

use std::fmt;

use crossbeam_channel::{Receiver, Sender, unbounded};
use log::Level;

/// The lines that are to be logged, in their order. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Notes {
    add: Sender<(Level, String)>,
    lines: Receiver<(Level, String)>,
}

impl Notes {
    /// Does not block.
    pub(super) fn add(&self, level: Level, text: fmt::Arguments<'_>) {
        if level <= log::max_level() {
            // This cannot fail: `self` keeps the other end.
            let _ = self.add.send((level, text.to_string()));
        }
    }

    pub(super) fn exist(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Logs the lines. The caller holds no lock.
    pub(super) fn log(&self) {
        for (level, text) in self.lines.try_iter() {
            log::log!(target: "rabbitmq_rpc::broker", level, "{text}");
        }
    }
}

impl Default for Notes {
    fn default() -> Notes {
        let (add, lines) = unbounded();
        Notes { add, lines }
    }
}
