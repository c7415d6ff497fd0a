//! Sends signs of life to requesters that want them while a handler works on their request.
//!
//! One thread sends them for all workers of a server, and exists only while there is such a
//! request. A sign of life is a message to the requester's reply queue. It is sent on the worker's
//! channel, on which the worker writes nothing meanwhile. If the broker returns a sign, the
//! requester is gone.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::broker::Channel;
use crate::frames::Message;
use crate::lock::lock;
use crate::wire::{self, ReplyAddress, Request};

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

    /// Sends a sign of life now and then once per interval, if the requester wants any and its
    /// reply address allows it.
    pub(crate) fn begin<'a>(
        self: &'a Arc<KeepAlive>,
        request: &'a Arc<Request>,
        address: &ReplyAddress<'_>,
        channel: &Arc<Channel>,
    ) -> Option<SignsOfLife<'a>> {
        let (interval, correlation_id) = (request.keep_alive?, address.correlation_id?);
        let queue = address.reply_to;
        if wire::is_direct(queue) {
            return None;
        }
        let route = channel.route(queue, true);
        let mut state = lock(&self.state);
        state.active.push(Active {
            request: Arc::clone(request),
            next_sign: Instant::now(),
            interval,
            channel: Arc::clone(channel),
            sign: wire::encode_sign_of_life(route, correlation_id, &self.app_id),
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
        Some(SignsOfLife { keep_alive: self, request })
    }

    fn send_signs(&self) {
        let mut state = lock(&self.state);
        while let Some(next) = state.active.iter().map(|active| active.next_sign).min() {
            let now = Instant::now();
            if next > now {
                let waited = self.changed.wait_timeout(state, next - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            for active in state.active.iter_mut().filter(|active| active.next_sign <= now) {
                active.next_sign = now + active.interval;
                // This does not block. If the sign cannot be written now, the next one follows
                // after the interval.
                let _ = active.channel.write(active.sign.clone().into(), now);
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

impl Drop for SignsOfLife<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.keep_alive.state);
        state.active.retain(|active| !Arc::ptr_eq(&active.request, self.request));
        drop(state);
        self.keep_alive.changed.notify_one();
    }
}
