//! Sends signs of life, and what a handler tells of its progress, to requesters that want them
//! while a handler works on their request.
//!
//! One thread sends them for all workers of a server, and exists only while there is such a
//! request. A sign of life is a message to the requester's reply queue. It is sent on the worker's
//! channel, on which the worker writes nothing meanwhile. If the broker returns a sign, the
//! requester is gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::{Channel, WriteError};
use crate::deadline::Deadline;
use crate::frames::{Message, Properties};
use crate::lock::lock;
use crate::wire::{self, ReplyAddress, Request};

/// The least time between two messages about the progress of one request.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct KeepAlive {
    app_id: String,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    active: Vec<Active>,
    has_thread: bool,
}

/// A request that a handler works on.
struct Active {
    request: Arc<Request>,
    next_sign: Instant,
    interval: Duration,
    /// The last text about the progress, until it is sent.
    progress: Option<String>,
    next_progress: Instant,
    channel: Arc<Channel>,
    /// The encoded sign of life.
    sign: Vec<u8>,
}

/// Dropping this ends the signs of life of one request. None is sent after that.
pub(crate) struct SignsOfLife<'a> {
    keep_alive: &'a KeepAlive,
    request: &'a Arc<Request>,
}

impl KeepAlive {
    pub(super) fn new(app_id: &str) -> Arc<KeepAlive> {
        let (state, changed) = Default::default();
        Arc::new(KeepAlive { app_id: app_id.to_string(), state, changed })
    }

    /// Sends a sign of life now and then once per interval, and what the handler tells of its
    /// progress, if the requester wants either and its reply address allows it.
    pub(crate) fn begin<'a>(
        self: &'a Arc<KeepAlive>,
        request: &'a Arc<Request>,
        address: &ReplyAddress<'_>,
        channel: &Arc<Channel>,
    ) -> Option<SignsOfLife<'a>> {
        let (interval, correlation_id) = (request.keep_alive, address.correlation_id?);
        let queue = address.reply_to;
        if wire::is_direct(queue) || interval.is_none() && !request.wants_progress {
            return None;
        }
        let route = channel.route(queue, true);
        let mut state = lock(&self.state);
        state.active.push(Active {
            request: Arc::clone(request),
            next_sign: Deadline::after(interval.map_or(Duration::MAX, |_| Duration::ZERO)).at,
            interval: interval.unwrap_or_default(),
            progress: None,
            next_progress: Instant::now(),
            channel: Arc::clone(channel),
            sign: wire::encode_sign_of_life(route, correlation_id, &self.app_id, None),
        });
        if !state.has_thread {
            let this = Arc::clone(self);
            let send = move || this.send_signs();
            match thread::Builder::new().name("rpc-keep-alive".into()).spawn(send) {
                Ok(_) => state.has_thread = true,
                Err(error) => log::error!("there is no thread to give signs of life in: {error}"),
            }
        }
        drop(state);
        self.changed.notify_one();
        if request.wants_progress {
            let (this, it) = (Arc::clone(self), Arc::downgrade(request));
            let _ = request.on_progress.set(Box::new(move |text| this.note_progress(&it, text)));
        }
        Some(SignsOfLife { keep_alive: self, request })
    }

    /// Has the thread send a text. None is sent once the handler has returned.
    fn note_progress(&self, request: &Weak<Request>, text: &str) {
        let mut state = lock(&self.state);
        let is_it = |active: &&mut Active| Arc::as_ptr(&active.request) == request.as_ptr();
        if let Some(active) = state.active.iter_mut().find(is_it) {
            active.progress = Some(text.to_string());
        }
        drop(state);
        self.changed.notify_one();
    }

    fn send_signs(&self) {
        let mut state = lock(&self.state);
        while let Some(next) = state.active.iter().map(Active::next).min() {
            let now = Instant::now();
            if next > now {
                let waited = self.changed.wait_timeout(state, next - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            for active in &mut state.active {
                if active.next_sign <= now {
                    active.next_sign = now + active.interval;
                    // This does not block. If the sign cannot be written now, the next one follows
                    // after the interval.
                    let _ = active.channel.write(active.sign.clone().into(), now);
                }
                if active.next_progress <= now {
                    active.next_progress = now + PROGRESS_INTERVAL;
                    active.send_progress(&self.app_id, now);
                }
            }
        }
        state.has_thread = false;
    }

    /// Notes that the broker returned a sign of life for this reply queue, so its requester is
    /// gone.
    pub(crate) fn sign_returned(&self, reply_to: &str, sign: &Message) {
        let correlation_id = sign.properties().correlation_id;
        for Active { request, .. } in &lock(&self.state).active {
            let wanted = request.properties();
            if wanted.reply_to == Some(reply_to) && wanted.correlation_id == correlation_id {
                request.is_abandoned.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Active {
    /// When to send something next.
    fn next(&self) -> Instant {
        let progress = self.progress.as_ref().map(|_| self.next_progress);
        progress.map_or(self.next_sign, |next| next.min(self.next_sign))
    }

    /// Sends the text about the progress, if there is one. It is kept if it cannot be written until
    /// then.
    fn send_progress(&mut self, app_id: &str, until: Instant) {
        let Properties { reply_to: Some(queue), correlation_id: Some(id), .. } =
            self.request.properties()
        else {
            return;
        };
        let Some(text) = &self.progress else { return };
        let route = self.channel.route(queue, true);
        let sign = wire::encode_sign_of_life(route, id, app_id, Some(text));
        if self.channel.write(sign.into(), until) != Err(WriteError::TimedOut { begun: false }) {
            self.progress = None;
        }
    }
}

impl Drop for SignsOfLife<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.keep_alive.state);
        let is_it = |active: &Active| Arc::ptr_eq(&active.request, self.request);
        let index = state.active.iter().position(is_it);
        let active = index.map(|index| state.active.swap_remove(index));
        drop(state);
        self.keep_alive.changed.notify_one();
        // The reply follows, usually on the same channel.
        if let Some(mut active) = active {
            active.send_progress(&self.keep_alive.app_id, Instant::now() + PROGRESS_INTERVAL);
        }
    }
}
