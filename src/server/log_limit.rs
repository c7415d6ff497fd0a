//! Keeps strangers from filling the log with lines about useless requests.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::lock::lock;

/// Allows some lines in each interval, and counts the others.
pub(crate) struct LogLimit {
    lines: u32,
    interval: Duration,
    state: Mutex<State>,
}

struct State {
    began: Instant,
    lines: u32,
    omitted: u64,
}

impl LogLimit {
    pub(super) fn new(lines: u32, interval: Duration) -> LogLimit {
        let state = State { began: Instant::now(), lines: 0, omitted: 0 };
        LogLimit { lines, interval, state: Mutex::new(state) }
    }

    /// Writes the line, if one may be written now.
    pub(super) fn log(&self, level: log::Level, line: fmt::Arguments<'_>) {
        if let Some(omitted) = self.allow() {
            log::log!(level, "{line}{omitted}");
        }
    }

    /// What to add to a line that is written now: how many were omitted before it. `None` if it may
    /// not be written.
    pub(super) fn allow(&self) -> Option<String> {
        let mut state = lock(&self.state);
        if state.began.elapsed() >= self.interval {
            (state.began, state.lines) = (Instant::now(), 0);
        }
        if state.lines == self.lines {
            state.omitted += 1;
            return None;
        }
        state.lines += 1;
        Some(match std::mem::take(&mut state.omitted) {
            0 => String::new(),
            omitted => format!(" ({omitted} such lines were omitted before)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted() {
        let limit = LogLimit::new(2, Duration::from_secs(3600));
        assert_eq!([(); 4].map(|()| limit.allow()), [Some("".into()), Some("".into()), None, None]);
        lock(&limit.state).began -= Duration::from_secs(3600);
        assert_eq!(limit.allow(), Some(" (2 such lines were omitted before)".into()));
    }
}
