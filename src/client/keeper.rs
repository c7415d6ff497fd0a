//! The thread that keeps one connection of a client, from its first moment to its last.
//!
//! amiquip lets a consumer borrow its channel, and a channel be used by one thread at a time. So
//! one thread has both on its stack, with the connection, and waits there for orders and for the
//! broker's notices. It is also the only one to wait for the broker's answers, for which amiquip
//! knows no time limit.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{
    Channel, ConnectionBlockedNotification, Consumer, ConsumerOptions, QueueDeclareOptions, Return,
};
use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::pending::PendingCalls;
use super::session::{CLOSING, Order, PROBE, Session};
use super::{Config, lock};
use crate::broker::{Link, reason};
use crate::deadline::Deadline;
use crate::error::Result;
use crate::wire::{self, Way};

/// Connects in a thread of its own, beginning with the broker at `first`; reports the broker to
/// begin with the next time and what came of it, and keeps the session for as long as it lasts.
/// `again` says that there was a session before.
pub(crate) fn start(
    config: Arc<Config>,
    first: usize,
    again: bool,
    deadline: Deadline,
    report: impl FnOnce(usize, Result<Arc<Session>>) + Send + 'static,
) -> io::Result<()> {
    let keep = move || {
        let mut link = match config.brokers.connect(first, deadline) {
            Ok(link) => link,
            Err(no_link) => return report(first, Err(no_link.into())),
        };
        // A broker that takes the login but not what comes then is the last to be tried again.
        let (this, next) = (link.index, link.index + 1);
        if again && config.brokers.are_several() {
            await_consumers(&mut link, &config);
        }
        let fuse = link.line.fuse(config.brokers.connect_timeout);
        let consuming = match link.connection.open_channel(None) {
            Ok(channel) => channel,
            Err(error) => {
                return report(next, Err(link.endpoint.explain(&error, "open a channel")));
            }
        };
        match Keeper::set_up(config, link, &consuming) {
            Ok(keeper) => {
                drop(fuse);
                report(this, Ok(Arc::clone(&keeper.session)));
                keeper.run();
            }
            Err(error) => report(next, Err(error)),
        }
    };
    thread::Builder::new().name("rpc-keeper".into()).spawn(keep).map(drop)
}

/// Waits until the request queue tells of consumers; without any it goes on after a while.
///
/// When a node of a cluster is lost, its quorum queues are without a leader for a while, and tell
/// of no consumers. The first message that a channel publishes to such a queue waits for a leader
/// that may never answer, for up to 65 s, with all behind it (RabbitMQ's `rabbit_fifo_client.erl`).
/// Clients that reconnected and published at once were seen to lose every request of that
/// session. The broker has no event for a leader's coming, hence the asking.
fn await_consumers(link: &mut Link, config: &Config) {
    const LONGEST: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(50);
    let _fuse = link.line.fuse(LONGEST + config.brokers.connect_timeout);
    let Ok(channel) = link.connection.open_channel(None) else { return };
    let longest = Deadline::after(LONGEST);
    while let Ok(queue) = channel.queue_declare_passive(config.queue.as_str())
        && queue.declared_consumer_count() == Some(0)
        && !longest.has_passed()
    {
        thread::sleep(STEP);
    }
}

struct Keeper<'a> {
    session: Arc<Session>,
    link: Link,
    /// Its end of the deliveries has to live as long as the connection: amiquip takes the whole
    /// connection down when it has a message for a consumer that is gone.
    _consumer: Consumer<'a>,
    /// The channel that requests go out on. They are written past amiquip, which has it for
    /// what the broker sends on it: requests that nobody can get, and its end.
    publisher: Channel,
    returns: Receiver<Return>,
    orders: Receiver<Order>,
    notices: Receiver<ConnectionBlockedNotification>,
    _over: Sender<()>,
}

impl<'a> Keeper<'a> {
    fn set_up(config: Arc<Config>, mut link: Link, consuming: &'a Channel) -> Result<Keeper<'a>> {
        let endpoint = link.endpoint.clone();
        let failed = |doing: &'static str| {
            let endpoint = &endpoint;
            move |error| endpoint.explain(&error, doing)
        };

        let notices = link.connection.listen_for_connection_blocked();
        let notices = notices.map_err(failed("listen for resource alarms"))?;
        let publisher = link.connection.open_channel(None);
        let publisher = publisher.map_err(failed("open a channel"))?;
        let returns = publisher.listen_for_returns();
        let returns = returns.map_err(failed("listen for returned requests"))?;

        // amiquip's I/O thread learns of listeners in its own time, and drops what comes before
        // that, while requests go out past it. So the reply queue is declared behind them, on the
        // same channel: once that is answered, they listen.
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let queue = publisher.queue_declare("", exclusive);
        let reply_queue = queue.map_err(failed("declare a reply queue"))?.name().to_string();
        let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
        let consumer = consuming.basic_consume(reply_queue.as_str(), no_ack);
        let consumer = consumer.map_err(failed("read from its reply queue"))?;

        let way = Way {
            channel: publisher.channel_id(),
            queue: &reply_queue,
            mandatory: false,
            frame_max: link.line.frame_max(),
        };
        let probe =
            wire::encode_reply(way, Some(&PROBE.to_string()), &config.app_id, &Ok(Vec::new()));
        let soon = Deadline::after(config.brokers.connect_timeout);
        let gone = |_| link.endpoint.unreachable("the connection ended while it was set up");
        link.line.write(&probe, soon.at).map_err(gone)?;

        let turn = bounded(1);
        turn.0.try_send(()).expect("there is room for the only turn");
        let (orders_in, orders) = bounded(1);
        let (over, over_out) = bounded(0);
        let session = Session {
            endpoint: link.endpoint.clone(),
            line: link.line.clone(),
            began: Instant::now(),
            reply_queue,
            publisher: publisher.channel_id(),
            pending: PendingCalls::new(config.options.max_in_flight),
            deliveries: consumer.receiver().clone(),
            turn,
            offended: AtomicBool::new(false),
            proved: AtomicBool::new(false),
            blocked: Mutex::new(None),
            unblocked: Condvar::new(),
            orders: orders_in,
            over: over_out,
            config,
        };
        let session = Arc::new(session);
        Ok(Keeper {
            session,
            link,
            _consumer: consumer,
            publisher,
            returns,
            orders,
            notices,
            _over: over,
        })
    }

    fn run(mut self) {
        log::info!("ready to call {:?} through {}", self.session.config.queue, self.link.endpoint);
        while !self.session.pending.are_through() {
            select! {
                recv(self.orders) -> order => match order {
                    Ok(Order::Inspect(answer)) => self.inspect(&answer),
                    Ok(Order::Close) | Err(_) => break,
                },
                recv(self.returns) -> returned => match returned {
                    Ok(returned) => self.session.route_return(&returned),
                    Err(_) => {
                        self.explain_the_publishers_end();
                        break;
                    }
                },
                recv(self.notices) -> notice => match notice {
                    Ok(notice) => self.take_notice(notice),
                    // amiquip's I/O thread is gone, and the connection with it.
                    Err(_) => break,
                },
            }
        }
        self.end();
    }

    fn take_notice(&self, notice: ConnectionBlockedNotification) {
        let reason = match notice {
            ConnectionBlockedNotification::Blocked(reason) => Some(reason),
            ConnectionBlockedNotification::Unblocked => None,
        };
        *lock(&self.session.blocked) = reason;
        self.session.wake_the_blocked();
    }

    /// The broker closed the publishing channel; whatever is tried on it tells why.
    fn explain_the_publishers_end(&self) {
        let Session { endpoint, pending, proved, .. } = &*self.session;
        match self.publisher.listen_for_returns() {
            // The broker handles a channel's messages in order: as it refused the first one, it
            // took none of those behind it.
            Err(error @ amiquip::Error::ServerClosedChannel { code: 403, .. })
                if !proved.load(Ordering::Relaxed) =>
            {
                pending.end(endpoint.explain(&error, "write to the default exchange"));
            }
            Err(error @ amiquip::Error::ServerClosedChannel { .. }) => {
                self.session.offended.store(true, Ordering::Relaxed);
                self.session.hand_out_what_came();
                self.session.end(reason(&error));
            }
            // The connection is gone, or going: closing it tells why.
            Ok(_) | Err(_) => {}
        }
    }

    /// A broker that does not answer for as long as connecting may take is left.
    fn inspect(&mut self, answer: &Sender<(u32, u32)>) {
        let _fuse = self.link.line.fuse(self.session.config.brokers.connect_timeout);
        let asked = self.link.connection.open_channel(None).and_then(|channel| {
            let queue = channel.queue_declare_passive(self.session.config.queue.as_str())?;
            Ok((queue.declared_consumer_count(), queue.declared_message_count()))
        });
        match asked {
            Ok((consumers, messages)) => {
                // Whoever asked may have stopped waiting.
                let _ = answer.send((consumers.unwrap_or(0), messages.unwrap_or(0)));
            }
            Err(error) => log::debug!("asking about the request queue: {}", reason(&error)),
        }
    }

    /// Closes the connection, and gives the calls that are left the reason.
    fn end(self) {
        let Keeper { session, link, _consumer, publisher: _publisher, .. } = self;
        let fuse = link.line.fuse(CLOSING);
        let ended = link.connection.close();
        drop(fuse);
        session.hand_out_what_came();
        session.end(ended.err().map_or("it was closed".into(), |error| reason(&error)));
        session.wake_the_blocked();
        if let Some(error) = session.pending.ended() {
            log::info!("no longer connected to {}: {error}", session.endpoint);
        }
    }
}
