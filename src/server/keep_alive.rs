//! Sends signs of life, and what a handler tells of its progress, to a requester that wants them
//! while the handler works on its request.
//!
//! A thread beside the handler sends them, as messages to the requester's reply queue, on the
//! worker's channel, on which the worker writes nothing meanwhile. If the broker returns one, the
//! requester is gone.

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{Channel, WriteError};
use crate::deadline::Deadline;
use crate::lock::lock;
use crate::wire::{self, ReplyAddress, Request};

/// The least time between two messages about the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// What a worker, its handler and the thread beside it share.
struct Signs {
    channel: Arc<Channel>,
    reply_to: String,
    correlation_id: Vec<u8>,
    app_id: String,
    /// Held while something is sent and while that is chosen, before `state`. A handler that tells
    /// of its progress does not wait for it.
    sending: Mutex<()>,
    state: Mutex<State>,
    /// Notified when the state changes.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The last text about the progress, until it is sent.
    progress: Option<String>,
    /// Whether the handler has returned.
    is_over: bool,
}

/// Does the work on a request. Meanwhile sends a sign of life now and then once per interval, and
/// what the handler tells of its progress, if the requester wants either and its reply address
/// allows it. Sends none after the work.
pub(super) fn with_signs_of_life<T>(
    request: &Request,
    address: &ReplyAddress<'_>,
    channel: &Arc<Channel>,
    app_id: &str,
    work: impl FnOnce() -> T,
) -> T {
    let (reply_to, interval) = (address.reply_to, request.keep_alive);
    let Some(correlation_id) = address.correlation_id else { return work() };
    if wire::is_direct(reply_to) || interval.is_none() && !request.wants_progress {
        return work();
    }
    let signs = Arc::new(Signs {
        channel: Arc::clone(channel),
        reply_to: reply_to.to_string(),
        correlation_id: correlation_id.to_vec(),
        app_id: app_id.to_string(),
        sending: Mutex::default(),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    if request.wants_progress {
        let signs = Arc::clone(&signs);
        let _ = request.on_progress.set(Box::new(move |text| {
            lock(&signs.state).progress = Some(text.to_string());
            signs.changed.notify_one();
        }));
    }
    let beside = Arc::clone(&signs);
    let thread = thread::Builder::new().name("rpc-keep-alive".into());
    if let Err(error) = thread.spawn(move || beside.send_until_over(interval)) {
        log::error!("there is no thread to give signs of life in: {error}");
    }
    let ending = EndsSigns(&signs);
    let worked = work();
    // The reply follows.
    let _sending = lock(&signs.sending);
    drop(ending);
    let last = lock(&signs.state).progress.take();
    if let Some(text) = last {
        let _ = signs.send(Some(&text), Instant::now() + PROGRESS_INTERVAL);
    }
    worked
}

/// Ends the thread beside the handler, also if the work panics.
struct EndsSigns<'a>(&'a Signs);

impl Drop for EndsSigns<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).is_over = true;
        self.0.changed.notify_one();
    }
}

impl Signs {
    fn send_until_over(&self, interval: Option<Duration>) {
        let mut next_sign = Deadline::after(interval.map_or(Duration::MAX, |_| Duration::ZERO)).at;
        let mut next_progress = Instant::now();
        loop {
            let sending = lock(&self.sending);
            let mut state = lock(&self.state);
            if state.is_over {
                return;
            }
            let now = Instant::now();
            let text = state.progress.take_if(|_| next_progress <= now);
            drop(state);
            // Sending does not block. If a sign cannot be written now, the next one follows after
            // the interval.
            if next_sign <= now {
                next_sign = now + interval.unwrap_or_default();
                let _ = self.send(None, now);
            }
            if let Some(text) = text {
                next_progress = now + PROGRESS_INTERVAL;
                if self.send(Some(&text), now) == Err(WriteError::TimedOut { begun: false }) {
                    lock(&self.state).progress.get_or_insert(text);
                }
            }
            drop(sending);
            let state = lock(&self.state);
            if state.is_over {
                return;
            }
            let next = match state.progress {
                Some(_) => next_sign.min(next_progress),
                None => next_sign,
            };
            let left = next.saturating_duration_since(Instant::now());
            drop(self.changed.wait_timeout(state, left));
        }
    }

    fn send(&self, text: Option<&str>, until: Instant) -> Result<(), WriteError> {
        let route = self.channel.route(&self.reply_to, true);
        let sign = wire::encode_sign_of_life(route, &self.correlation_id, &self.app_id, text);
        self.channel.write(sign.into(), until)
    }
}
