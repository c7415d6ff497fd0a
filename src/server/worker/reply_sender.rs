//! Sends one finished reply so that no other request pays for it if the broker refuses it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::execute::{RequestName, execute};
use crate::broker::{CallError, Channel, DataPlane, Limit, Session};
use crate::deadline::Deadline;
use crate::error::{Error, Failure, Result, Status};
use crate::frames::{Close, Event, Frames, Method, Version, ack};
use crate::lock::lock;
use crate::observation::Observation;
use crate::server::consumer::Consumer;
use crate::server::finished::{Known, Outcome, size};
use crate::server::state::ServerState;
use crate::wire::{self, ReplyAddress, Request};

/// Sends the reply to one request, and then its acknowledgement.
pub(super) struct ReplySender<'a> {
    consumer: &'a Consumer<'a>,
    request: &'a Request,
    address: ReplyAddress<'a>,
    route: Route,
}

/// How the broker treats a reply address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// A queue, or a direct reply-to address on a broker that says when nobody listens there: the
    /// reply is mandatory.
    Mandatory,
    /// Not mandatory: a broker before 4.2 also returns a direct reply that it has delivered.
    Silent,
    /// Through a connection of its own, which the broker may close.
    OwnConnection,
}

/// How far a reply has come.
enum Sent {
    /// It was written before the acknowledgement, on the same channel.
    Written,
    /// The broker has taken it.
    Taken,
}

/// Why the broker does not have a reply.
enum NotSent {
    /// It refused this message, and will refuse it again.
    Refused(Close),
    /// It failed on the address.
    Undeliverable,
    /// No fault of the message is known. `by_broker` means that the broker closed the connection
    /// after it had got the message.
    Lost { error: Error, by_broker: bool },
}

impl<'a> ReplySender<'a> {
    pub(super) fn new(
        consumer: &'a Consumer<'a>,
        request: &'a Request,
        address: ReplyAddress<'a>,
    ) -> ReplySender<'a> {
        let route = Route::new(address.reply_to, consumer.session.connection.version());
        ReplySender { consumer, request, address, route }
    }

    /// Sends the reply to a request that began then, or rejects a request that cannot be answered.
    /// `lost_connections` is how many connections ended when the reply was sent before. Returns
    /// what is known if the request comes back.
    pub(super) fn reply(
        &self,
        began: Instant,
        mut outcome: Outcome,
        lost_connections: Option<u32>,
    ) -> (Known, Result<()>) {
        /// How many connections one reply may cost.
        const MOST_LOST_CONNECTIONS: u32 = 2;
        let lost = lost_connections.unwrap_or(0);
        let reject = |why: &str| (Known::Settled, self.consumer.reject(self.request, why));
        if lost >= MOST_LOST_CONNECTIONS {
            return reject("the broker closes the connection on which its reply is sent");
        }
        let sent = self.send(&mut outcome, lost_connections.is_some());
        if sent.is_ok() {
            self.report(began, &outcome);
        }
        let keep = |outcome, lost_connections| Known::Finished { outcome, lost_connections };
        match sent {
            Ok(Sent::Taken) => {
                self.consumer.state.outcomes.note_replied();
                (Known::Settled, Ok(()))
            }
            Ok(Sent::Written) => (keep(outcome, lost), Ok(())),
            Err(NotSent::Lost { error, by_broker }) => {
                (keep(outcome, lost + u32::from(by_broker)), Err(error))
            }
            Err(NotSent::Refused(close)) => {
                reject(&format!("the broker refuses even a short reply: {close}"))
            }
            Err(NotSent::Undeliverable) => reject("the broker fails on its reply_to"),
        }
    }

    /// Sends the reply and acknowledges the request. A reply that `is_suspect` or large goes alone.
    /// A reply that the broker refuses is replaced by the failure `INTERNAL`.
    fn send(&self, outcome: &mut Outcome, is_suspect: bool) -> Result<Sent, NotSent> {
        let Consumer { session, channel, inbox, .. } = self.consumer;
        let rendered = self.rendered(outcome);
        let shown = rendered.as_ref().unwrap_or(outcome);
        let is_large = size(shown) >= session.large.load(Ordering::Relaxed);
        let ack = ack(channel.number, self.request.delivery.tag);
        let is_lone = is_suspect || is_large || self.route == Route::OwnConnection;
        if !is_lone && !inbox.is_withdrawn() {
            match self.consumer.write(self.encode(channel, shown).followed_by(&ack)) {
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
        let _ = self.consumer.settle(ack);
        Ok(Sent::Taken)
    }

    /// The reply to a request that failed, if the server has a form of its own for failures.
    fn rendered(&self, outcome: &Outcome) -> Option<Outcome> {
        let render = self.consumer.state.options.render_failure?;
        let failure = outcome.as_ref().err()?;
        let frame_max = self.consumer.session.connection.frame_max();
        execute(|request| Ok(render(request, failure)), self.request, frame_max).ok().map(Ok)
    }

    /// Sends a reply on a channel of its own, so that a refusal costs no other request anything,
    /// and waits until the broker has taken it: for as long as the connection works. If the
    /// connection has no further channel, uses the worker's.
    fn send_alone(&self, outcome: &Outcome) -> Result<(), NotSent> {
        // Without a second connection, the reply goes through the worker's: only if the requester's
        // node is down, this ends that connection.
        if self.route == Route::OwnConnection
            && let Some(direct) = &*self.consumer.connect_direct()
        {
            return match self.send_verified(&direct.channel, outcome) {
                // The connection has this one purpose.
                Err(NotSent::Lost { by_broker: true, .. }) => Err(NotSent::Undeliverable),
                sent => sent,
            };
        }
        let (own, state) = (&self.consumer.channel, Arc::clone(self.consumer.state));
        let on_event = move |plane: &DataPlane, event: Event| state.on_return(plane, &event);
        match own.data_plane.open_channel(never(), Arc::default(), on_event) {
            Ok(channel) => self.send_verified(&channel, outcome),
            Err(CallError::NoChannel(_)) => self.send_verified(own, outcome),
            Err(error) => Err(lost(own, error, false)),
        }
    }

    /// Sends a reply and waits until the broker has taken it. The broker handles the frames of a
    /// channel in order, so its answer to the next method says that it has.
    fn send_verified(&self, channel: &Channel, outcome: &Outcome) -> Result<(), NotSent> {
        // If writing fails, the answer says why.
        let _ = channel.write(self.encode(channel, outcome), Deadline::after(Duration::MAX).at);
        match channel.call(Method::Prefetch(self.consumer.state.options.prefetch), never()) {
            Ok(_) => Ok(()),
            Err(CallError::Closed(close))
                if close.is_message_fault() && channel.data_plane.ended().is_none() =>
            {
                Err(NotSent::Refused(close))
            }
            Err(error) => Err(lost(channel, error, true)),
        }
    }

    fn encode<'o>(&self, channel: &Channel, outcome: &'o Outcome) -> Frames<'o> {
        let ReplyAddress { reply_to, correlation_id } = self.address;
        let route = channel.route(reply_to, self.route == Route::Mandatory);
        wire::encode_reply(route, correlation_id, &self.consumer.state.app_id, outcome)
    }

    /// Counts an answered request, and shows it to the log and the hook.
    fn report(&self, began: Instant, outcome: &Outcome) {
        let ServerState { counters, queue, observer, .. } = &**self.consumer.state;
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
}

impl Route {
    /// How a broker of this version treats the address. A version that is not known counts as old.
    fn new(reply_to: &str, version: Option<Version>) -> Route {
        let version = version.unwrap_or_default();
        // Before, a reply to a node that is down closed the connection.
        let is_fixed = version >= (3, 11, 4) || ((3, 10, 12)..(3, 11, 0)).contains(&version);
        match wire::is_direct(reply_to) {
            true if version >= (4, 2, 0) => Route::Mandatory,
            true if is_fixed => Route::Silent,
            true => Route::OwnConnection,
            false => Route::Mandatory,
        }
    }
}

fn lost(channel: &Channel, error: CallError, had_message: bool) -> NotSent {
    /// An operator closed the connection, or stops the broker.
    const CONNECTION_FORCED: u16 = 320;
    let is_forced = matches!(&error, CallError::Closed(close) if close.code == CONNECTION_FORCED);
    let is_closed = matches!(error, CallError::Closed(_)) && channel.data_plane.ended().is_some();
    let error = channel.data_plane.explain(error, "answer requests");
    NotSent::Lost { error, by_broker: had_message && is_closed && !is_forced }
}

fn never() -> Limit {
    Limit::Until(Deadline::after(Duration::MAX).at)
}

/// The broker says in its text what the limit is.
fn refused(size: usize, close: &Close) -> Failure {
    log::error!("the broker refused a reply of {size} bytes: {close}");
    let text = format!("the broker refused the reply of {size} bytes: {}", close.text);
    Failure::new(Status::Internal, text)
}
