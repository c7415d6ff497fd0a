//! The thread that has one connection of a client, from its first moment to its last.
//!
//! amiquip lets a consumer borrow its channel, and a channel be used by one thread at a time. So
//! one thread has both on its stack, with the connection. It is also the only one to wait for the
//! broker's answers to synchronous calls, which amiquip does without a time limit.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, thread};

use amiquip::{Channel, ConsumerOptions, QueueDeclareOptions};
use crossbeam_channel::{Receiver, bounded, unbounded};

use super::dispatcher::{Channels, Dispatcher, PROBE};
use super::session::{Order, Session};
use super::{Config, QueueStatus};
use crate::broker::{Connection, closed_channel};
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::wire::{self, Reply, Route};

/// Connects in a thread of its own, beginning with the broker at `first`; reports the broker to
/// begin with the next time and what came of it, and keeps the session until it ends. `again` says
/// that there was a session before.
pub(crate) fn start(
    config: Arc<Config>,
    first: usize,
    again: bool,
    deadline: Deadline,
    report: impl FnOnce(usize, Result<Arc<Session>>) + Send + 'static,
) -> io::Result<()> {
    let run = move || {
        let mut connection = match config.brokers.connect(first, deadline) {
            Ok(connection) => connection,
            Err(failed) => return report(first, Err(failed.into())),
        };
        if again && config.brokers.are_several() {
            await_consumers(&mut connection, &config);
        }
        run_session(config, connection, report);
    };
    thread::Builder::new().name("rpc-session".into()).spawn(run).map(drop)
}

/// Waits until the request queue tells of consumers; without any it goes on after a while.
///
/// When a node of a cluster is lost, its quorum queues are without a leader for a while, and tell
/// of no consumers. The first message that a channel publishes to such a queue waits for a leader
/// that may never answer, for up to 65 s, with all behind it (RabbitMQ's `rabbit_fifo_client.erl`).
/// Clients that reconnected and published at once were seen to lose every request of that
/// session. The broker has no event for a leader's coming, hence the asking.
fn await_consumers(connection: &mut Connection, config: &Config) {
    const LONGEST: Duration = Duration::from_secs(3);
    const STEP: Duration = Duration::from_millis(50);
    let data_plane = Arc::clone(&connection.data_plane);
    let _limit = data_plane.time_limit(config.brokers.connect_timeout.saturating_add(LONGEST));
    let Ok(channel) = connection.open_channel() else { return };
    let longest = Deadline::after(LONGEST);
    while let Ok(queue) = channel.queue_declare_passive(config.queue.as_str())
        && queue.declared_consumer_count() == Some(0)
        && !longest.has_passed()
    {
        thread::sleep(STEP);
    }
}

fn run_session(
    config: Arc<Config>,
    mut connection: Connection,
    report: impl FnOnce(usize, Result<Arc<Session>>),
) {
    let (orders_in, orders) = unbounded();
    let (over_in, over) = bounded(0);
    let (data_plane, endpoint) = (Arc::clone(&connection.data_plane), connection.endpoint.clone());
    let dispatcher = Arc::new(Dispatcher::new(Arc::clone(&config), endpoint.clone(), orders_in));
    let handler = Arc::clone(&dispatcher);
    data_plane.set_handler(Box::new(move |data_plane, event| handler.dispatch(data_plane, event)));

    // A broker that takes the login but not what comes then is the last to be tried again.
    let (this, next) = (connection.index, connection.index + 1);
    let limit = data_plane.time_limit(config.brokers.connect_timeout);
    let opened = connection.open_channel().and_then(|publishing| {
        let consuming = connection.open_channel()?;
        Ok((publishing, consuming))
    });
    let (publishing, consuming) = match opened {
        Ok(channels) => channels,
        Err(error) => return report(next, Err(connection.explain(&error, "open a channel"))),
    };
    let channels =
        Channels { publishing: publishing.channel_id(), consuming: consuming.channel_id() };
    let first = dispatcher.channels.set(channels);
    debug_assert!(first.is_ok(), "a session sets its channels once");

    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let reply_queue = match consuming.queue_declare("", exclusive) {
        Ok(queue) => queue.name().to_string(),
        Err(error) => {
            return report(next, Err(connection.explain(&error, "declare a reply queue")));
        }
    };
    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    // amiquip ends the connection when it has a message for a consumer that was dropped.
    let _consumer = match consuming.basic_consume(reply_queue.as_str(), no_ack) {
        Ok(consumer) => consumer,
        Err(error) => {
            return report(next, Err(connection.explain(&error, "read from its reply queue")));
        }
    };
    if let Err(error) = send_probe(&connection, &config, &publishing, &reply_queue) {
        return report(next, Err(error));
    }
    drop(limit);

    report(
        this,
        Ok(Arc::new(Session {
            data_plane: Arc::clone(&data_plane),
            dispatcher: Arc::clone(&dispatcher),
            channels,
            reply_queue,
            began: Instant::now(),
            inspected: Mutex::default(),
            over,
            config: Arc::clone(&config),
        })),
    );
    log::info!("ready to call {:?} through {endpoint}", config.queue);
    serve_orders(&config, &mut connection, &orders);
    let reason = connection.close();
    log::info!(
        "no longer connected to {endpoint}: {}",
        dispatcher.pending.ended().map_or(reason, |error| error.to_string())
    );
    drop(over_in);
}

/// See [`PROBE`].
fn send_probe(
    connection: &Connection,
    config: &Config,
    publishing: &Channel,
    reply_queue: &str,
) -> Result<()> {
    let Connection { data_plane, endpoint, .. } = connection;
    let route = Route {
        channel: publishing.channel_id(),
        queue: reply_queue,
        mandatory: false,
        frame_max: data_plane.frame_max(),
    };
    let (id, empty) = (PROBE.to_string(), Ok(Reply::default()));
    let probe = wire::encode_reply(route, Some(&id), &config.app_id, &empty);
    let soon = Deadline::after(config.brokers.connect_timeout);
    data_plane
        .write(route.channel, probe, soon.at)
        .map_err(|_| endpoint.unreachable("the connection ended while it was set up"))
}

fn serve_orders(config: &Config, connection: &mut Connection, orders: &Receiver<Order>) {
    while let Ok(Order::Inspect { queue, answer }) = orders.recv() {
        // The caller may have stopped waiting.
        let _ = answer.send(inspect(config, connection, &queue));
    }
}

/// Asks the broker about a queue. One that does not answer for as long as connecting may take is
/// left, unless it is blocked by an alarm.
fn inspect(config: &Config, connection: &mut Connection, queue: &str) -> Result<QueueStatus> {
    let data_plane = Arc::clone(&connection.data_plane);
    let _limit = data_plane.time_limit_unless_blocked(config.brokers.connect_timeout);
    let asked = connection.open_channel().and_then(|channel| {
        let found = channel.queue_declare_passive(queue)?;
        Ok(QueueStatus {
            consumers: found.declared_consumer_count().unwrap_or(0),
            messages: found.declared_message_count().unwrap_or(0),
        })
    });
    asked.map_err(|error| match closed_channel(&error) {
        Some(close) if close.code == 404 => Error::Unroutable { queue: queue.to_string() },
        _ => connection.explain(&error, "ask about the request queue"),
    })
}
