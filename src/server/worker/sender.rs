//! Sends one finished reply so that no other request pays for it if the broker refuses it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::execute::{RequestName, execute};
use crate::broker::{Channel, DataPlane, Limit, Session};
use crate::deadline::Deadline;
use crate::error::{Failure, Result, Status};
use crate::frames::{Close, Event, Frames, Method, ack};
use crate::lock::lock;
use crate::observation::Observation;
use crate::server::finished::{Outcome, size};
use crate::server::inbox::Inbox;
use crate::server::outcomes::Ledger;
use crate::server::replies::{DirectConnection, NotSent, Route};
use crate::server::state::{ServerSession, ServerState};
use crate::wire::{ReplyAddress, Request};

/// Sends the reply to one request, and then its acknowledgement.
pub(super) struct Sender<'a> {
    state: &'a Arc<ServerState>,
    session: &'a ServerSession,
    /// The worker's channel.
    channel: &'a Channel,
    inbox: &'a Inbox,
    request: &'a Request,
    address: ReplyAddress<'a>,
    route: Route,
    direct: Option<Arc<DirectConnection>>,
}

/// How far a reply has got.
pub(super) enum Sent {
    /// It was written before the acknowledgement, on the same channel.
    Written,
    /// The broker has taken it.
    Taken,
}

impl<'a> Sender<'a> {
    /// If the address needs a connection of its own, makes it, so that a handler does not run
    /// before there is a way to its requester.
    pub(super) fn new(
        state: &'a Arc<ServerState>,
        session: &'a ServerSession,
        channel: &'a Channel,
        inbox: &'a Inbox,
        request: &'a Request,
        address: ReplyAddress<'a>,
    ) -> Sender<'a> {
        let route = Route::new(address.reply_to, session.connection.version());
        let direct = None;
        let mut sender = Sender { state, session, channel, inbox, request, address, route, direct };
        sender.direct = sender.direct_connection();
        sender
    }

    /// Sends the reply and acknowledges the request. A reply that `is_suspect` or large goes alone.
    /// A reply that the broker refuses is replaced by the failure `INTERNAL`.
    pub(super) fn send(
        &mut self,
        tag: u64,
        outcome: &mut Outcome,
        is_suspect: bool,
    ) -> Result<Sent, NotSent> {
        let Sender { session, channel, inbox, .. } = *self;
        let rendered = self.rendered(outcome);
        let shown = rendered.as_ref().unwrap_or(outcome);
        let is_large = size(shown) >= session.large.load(Ordering::Relaxed);
        let ack = ack(channel.number, tag);
        if !is_suspect && !is_large && !inbox.is_withdrawn() && self.direct.is_none() {
            let replies = &self.state.replies;
            let frames = replies.encode(channel, self.is_mandatory(), &self.address, shown);
            match self.write(frames.followed_by(&ack)) {
                Ok(()) => return Ok(Sent::Written),
                Err(error) if session.ended().is_some() => {
                    return Err(NotSent::Lost { error, by_broker: false });
                }
                // The channel has ended meanwhile.
                Err(_) => {}
            }
        }
        match self.send_alone(shown) {
            Err(NotSent::Refused(close)) => {
                let size = size(shown);
                session.large.fetch_min(size, Ordering::Relaxed);
                *outcome = Err(refused(size, &close));
                let rendered = self.rendered(outcome);
                self.send_alone(rendered.as_ref().unwrap_or(outcome))?;
            }
            sent => sent?,
        }
        // If the channel has ended, the request comes back. It is then acknowledged.
        let _ = self.write(ack.into());
        Ok(Sent::Taken)
    }

    /// The reply to a request that failed, if the server has a form of its own for failures.
    fn rendered(&self, outcome: &Outcome) -> Option<Outcome> {
        let render = self.state.options.render_failure?;
        let failure = outcome.as_ref().err()?;
        let frame_max = self.session.connection.frame_max();
        execute(|request| Ok(render(request, failure)), self.request, frame_max).ok().map(Ok)
    }

    /// Counts an answered request, and shows it to the log and the hook.
    pub(super) fn report(&self, began: Instant, outcome: &Outcome) {
        let ServerState { counters, queue, observer, .. } = &**self.state;
        let request = self.request;
        let status = match outcome {
            Ok(_) => {
                lock(counters).served += 1;
                "OK"
            }
            Err(failure) => {
                lock(counters).failed += 1;
                failure.status.name()
            }
        };
        let (name, method) = (RequestName(&self.address, request), request.method());
        let (time, bytes_in, bytes_out) = (began.elapsed(), request.body().len(), size(outcome));
        log::debug!("{name}: {status}, {bytes_in} bytes in, {bytes_out} out, {time:.1?}");
        observer.observe(|| Observation { queue, method, status, time, bytes_in, bytes_out });
    }

    /// Writes frames on the worker's channel. Blocks while the broker does not read. If the broker
    /// is silent for two heartbeats, the connection is lost.
    pub(super) fn write(&self, frames: Frames<'_>) -> Result<()> {
        let never = Deadline::after(Duration::MAX);
        self.channel.write(frames, never.at).map_err(|_| {
            let reason = self.session.ended().or_else(|| self.inbox.ended());
            let endpoint = &self.session.connection.endpoint;
            reason.unwrap_or_else(|| endpoint.unreachable("the connection is gone"))
        })
    }

    fn send_alone(&mut self, outcome: &Outcome) -> Result<(), NotSent> {
        let ServerState { replies, options, .. } = &**self.state;
        let direct = self.direct.take().filter(|direct| direct.works());
        if let Some(direct) = direct.or_else(|| self.direct_connection()) {
            let sent = replies.send_verified(&direct.channel, 0, false, &self.address, outcome);
            return match sent {
                // The connection has this one purpose.
                Err(NotSent::Lost { by_broker: true, .. }) => Err(NotSent::Undeliverable),
                sent => sent,
            };
        }
        let state = Arc::clone(self.state);
        let on_event = move |plane: &DataPlane, event: Event| state.on_return(plane, &event);
        let (mandatory, address) = (self.is_mandatory(), &self.address);
        replies.send_alone(self.channel, options.prefetch, on_event, mandatory, address, outcome)
    }

    fn is_mandatory(&self) -> bool {
        self.route == Route::Mandatory
    }

    /// A connection for the reply, if the address needs one and one can be had. Else the reply goes
    /// through the worker's connection: only if the requester's node is down, this ends that
    /// connection.
    fn direct_connection(&self) -> Option<Arc<DirectConnection>> {
        if self.route != Route::OwnConnection {
            return None;
        }
        let taken = self.state.replies.direct.take(&self.session.connection.endpoint);
        taken.inspect_err(|error| self.state.no_direct_connection(error)).ok()
    }
}

/// The broker says in its text what the limit is.
fn refused(size: usize, close: &Close) -> Failure {
    log::error!("the broker refused a reply of {size} bytes: {close}");
    let text = format!("the broker refused the reply of {size} bytes: {}", close.text);
    Failure::new(Status::Internal, text)
}

/// Waits until the broker has taken the replies that were written on this channel, but not beyond
/// `until`. Returns the number of those of which that is not known.
pub(super) fn confirm(
    state: &ServerState,
    channel: &Channel,
    ledger: &Ledger,
    until: Instant,
) -> usize {
    let unproved = ledger.unproved();
    if unproved == 0 {
        return 0;
    }
    match channel.call(Method::Prefetch(state.options.prefetch), Limit::Until(until)) {
        Ok(_) => {
            state.outcomes.all_proved(ledger);
            0
        }
        Err(_) => unproved,
    }
}

/// Acknowledges or rejects a request. Blocks while the broker does not read.
pub(super) fn settle(channel: &Channel, settlement: Vec<u8>) -> Result<()> {
    let written = channel.write(settlement.into(), Deadline::after(Duration::MAX).at);
    written.map_err(|_| channel.data_plane.endpoint.unreachable("the connection is gone"))
}

/// The failure of a request that has cost several workers their channels.
pub(super) fn too_slow() -> Failure {
    Failure::new(
        Status::Internal,
        "the request takes longer than the broker waits for an acknowledgement: raise its \
         consumer_timeout, or make the request smaller",
    )
}
