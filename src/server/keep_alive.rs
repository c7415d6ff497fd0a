//! Sends signs of life, and what a handler tells of its progress, to a requester that wants them
//! while the handler works on its request.
//!
//! A thread beside the handler sends them, as messages to the requester's reply queue, on the
//! worker's channel, on which the worker writes nothing meanwhile. If the broker returns one, the
//! requester is gone.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select};

use crate::broker::{Channel, WriteError};
use crate::deadline::Deadline;
use crate::lock::lock;
use crate::wire::{self, ReplyAddress, Request};

/// The last text about the progress that was not sent yet.
type Progress = Arc<Mutex<Option<String>>>;

/// Does the work on a request. Meanwhile sends a sign of life at once and then once per interval,
/// and what the handler tells of its progress, if the requester wants either and its reply address
/// allows it. Sends none after the work.
pub(super) fn during<T>(
    request: &Request,
    address: &ReplyAddress<'_>,
    channel: &Channel,
    app_id: &str,
    work: impl FnOnce() -> T,
) -> T {
    let (queue, interval) = (address.reply_to, request.keep_alive);
    let Some(id) = address.correlation_id else { return work() };
    if wire::is_direct(queue) || interval.is_none() && !request.wants_progress {
        return work();
    }
    let send = |text: Option<&str>, until| {
        let sign = wire::encode_sign_of_life(channel.route(queue, true), id, app_id, text);
        channel.write(sign.into(), until)
    };
    let progress = Progress::default();
    let (wake, woken) = bounded(1);
    if request.wants_progress {
        let (progress, wake) = (Arc::clone(&progress), wake.clone());
        let _ = request.on_progress.set(Box::new(move |text| {
            *lock(&progress) = Some(text.to_string());
            let _ = wake.try_send(());
        }));
    }
    let (end, ended) = bounded(0);
    thread::scope(|scope| {
        let sending = || send_signs(interval, &progress, &woken, &ended, send);
        let thread = thread::Builder::new().name("rpc-keep-alive".into());
        if let Err(error) = thread.spawn_scoped(scope, sending) {
            log::error!("there is no thread to give signs of life in: {error}");
        }
        let worked = work();
        drop(end);
        worked
    })
}

/// Sends signs of life and the progress until the work has ended.
fn send_signs(
    interval: Option<Duration>,
    progress: &Progress,
    woken: &Receiver<()>,
    ended: &Receiver<()>,
    send: impl Fn(Option<&str>, Instant) -> Result<(), WriteError>,
) {
    /// The least time between two messages about the progress.
    const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
    let mut next_sign = Deadline::after(interval.map_or(Duration::MAX, |_| Duration::ZERO)).at;
    let mut next_progress = Instant::now();
    loop {
        let now = Instant::now();
        if next_sign <= now {
            next_sign = now + interval.unwrap_or_default();
            // This does not block. If the sign cannot be written now, the next one follows after
            // the interval.
            let _ = send(None, now);
        }
        let text = lock(progress).take_if(|_| next_progress <= now);
        if let Some(text) = text {
            next_progress = now + PROGRESS_INTERVAL;
            if send(Some(&text), now) == Err(WriteError::TimedOut { begun: false }) {
                lock(progress).get_or_insert(text);
            }
        }
        let next = match *lock(progress) {
            Some(_) => next_sign.min(next_progress),
            None => next_sign,
        };
        select! {
            recv(woken) -> _ => {}
            recv(ended) -> _ => break,
            default(next.saturating_duration_since(Instant::now())) => {}
        }
    }
    // The reply follows.
    let last = lock(progress).take();
    if let Some(text) = last {
        let _ = send(Some(&text), Instant::now() + PROGRESS_INTERVAL);
    }
}
