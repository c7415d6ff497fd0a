//! Channels on which one request at a time is in flight.
//!
//! The broker closes a channel when it refuses a message. A request that the broker may refuse,
//! because of its exchange or its `user_id`, leaves by a channel of its own: a refusal then
//! concerns this request for certain, and no other.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use uuid::Uuid;

use crate::broker::{CallError, Channel, Connection, DataPlane};
use crate::frames::Event;
use crate::lock::lock;

/// The channels on which nothing is in flight at present.
#[derive(Default)]
pub(super) struct OwnChannels(Mutex<Vec<OwnChannel>>);

/// Dropping it closes the channel.
pub(super) struct OwnChannel {
    pub(super) channel: Arc<Channel>,
    request: Arc<Mutex<Uuid>>,
}

impl OwnChannels {
    /// A channel for the request with this correlation id. `on_event` gets the id with each event.
    /// Blocks only while the connection has no free channel number, and not beyond `until`.
    pub(super) fn take(
        &self,
        connection: &Connection,
        id: Uuid,
        until: Instant,
        on_event: impl Fn(Uuid, &DataPlane, Event) + Send + Sync + 'static,
    ) -> Result<OwnChannel, CallError> {
        if let Some(own) = lock(&self.0).pop() {
            *lock(&own.request) = id;
            return Ok(own);
        }
        let request = Arc::new(Mutex::new(id));
        let present = Arc::clone(&request);
        let on_event = move |plane: &DataPlane, event| {
            let id = *lock(&present);
            on_event(id, plane, event);
        };
        let channel = Arc::new(connection.begin_channel(until, on_event)?);
        Ok(OwnChannel { channel, request })
    }

    /// Keeps a channel for the next request. The broker has accepted the request that was in flight
    /// on it, or returned it.
    pub(super) fn give_back(&self, own: OwnChannel) {
        const MAX_IDLE: usize = 64;
        let mut idle = lock(&self.0);
        if own.channel.is_open() && idle.len() < MAX_IDLE {
            idle.push(own);
        }
    }
}
