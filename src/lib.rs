//! Blocking RPC over RabbitMQ, with no async runtime.
//!
//! A *server* consumes *requests* from a *request queue*. Each of its *workers* executes one
//! request at a time, and publishes a *reply* to the queue that the request names in `reply_to`.
//! The reply carries the *correlation id* of the request. A *client* has its own reply queue. A
//! call publishes a request and waits until a reply with its correlation id arrives there. The
//! protocol is that of
//! [RabbitMQ's tutorial six](https://www.rabbitmq.com/tutorials/tutorial-six-python). A program
//! that follows the tutorial, in any language, can therefore be the client or the server.
//!
//! The bodies of requests and replies are bytes. [`RpcServer`] calls a closure for each request:
//!
//! ```no_run
//! use rabbitmq_rpc::{Brokers, Failure, Request, RpcServer, ServerOptions, Status};
//!
//! let brokers = Brokers::parse("amqp://guest:guest@localhost")?;
//! let server = RpcServer::connect(brokers, "upper_case", ServerOptions::default())?;
//! server.serve(|request: &Request| match std::str::from_utf8(request.body()) {
//!     Ok(text) => Ok(text.to_uppercase()),
//!     Err(_) => Err(Failure::new(Status::InvalidArgument, "the request is not UTF-8")),
//! })?;
//! # Ok::<(), rabbitmq_rpc::Error>(())
//! ```
//!
//! [`RpcClient`] calls the server. Any number of threads can share one client:
//!
//! ```no_run
//! use rabbitmq_rpc::{Brokers, ClientOptions, RpcClient};
//!
//! let brokers = Brokers::parse("amqp://guest:guest@localhost")?;
//! let client = RpcClient::connect(brokers, "upper_case", ClientOptions::default())?;
//! assert_eq!(client.call("hello")?, b"HELLO");
//! # Ok::<(), rabbitmq_rpc::Error>(())
//! ```
//!
//! A service of several methods passes a table of them to the server: [`Methods`]. With the feature
//! `json`, handlers and calls take and return a program's own types ([`guide::services`]).
//!
//! [`FibonacciRpcClient`] and [`fibonacci::answer`] implement the tutorial's service on top of
//! these. The repository contains complete programs in `scripts/examples`: a service with JSON
//! bodies, one for NestJS, a nested call, a worker pool that drains on SIGTERM, and a web front.
//!
//! # Time
//!
//! Every call has one deadline, 30 s by default. The deadline covers the whole call: connecting,
//! waiting for an in-flight slot or for a broker that is blocked by an alarm, publishing, and the
//! reply. The broker drops a request that is still in the queue at its deadline. If no reply has
//! come a quarter of a second before that, the call asks the broker about the queue, so that its
//! error can say why. It waits for the answer for up to some 200 ms after its deadline.
//!
//! # Errors
//!
//! The text of each [`Error`] is one sentence that says what to do.
//!
//! | error | what it means | may have been executed | what to do |
//! |---|---|---|---|
//! | [`Error::Config`] | a URL or an option is invalid | no | change the named part |
//! | [`Error::Unreachable`] | no broker was usable until the deadline | no | try again later |
//! | [`Error::Refused`] | login, virtual host or permission refused | no | grant it |
//! | [`Error::QueueRefused`] | the broker refused the queue | no | change its name or options |
//! | [`Error::Unroutable`] | the queue does not exist | no | start a server |
//! | [`Error::Blocked`] | a memory or disk alarm until the deadline | if sent | free the resource |
//! | [`Error::TimedOut`] | no reply, or no in-flight slot, in time | if sent | retry if safe |
//! | [`Error::ServerSilent`] | no sign of life came in time | yes | retry if safe |
//! | [`Error::ConnectionLost`] | connection lost after sending | yes | retry if safe |
//! | [`Error::Remote`] | the server returned a [`Failure`] | unless no handler saw it | read its status |
//! | [`Error::BadReply`] | the reply cannot be decoded | yes | check the server |
//! | [`Error::Closed`] | this program closed the client | yes | – |
//!
//! [`Error::may_have_executed`] returns what the third column says.
//!
//! # What is tried again, and what is not
//!
//! - A request that has not been sent, or that the broker ignored because it stood behind one that
//!   the broker refused: until its deadline, through other connections if necessary.
//! - A request whose connection was lost: only if it is idempotent ([`ClientOptions::idempotent`],
//!   [`CallBuilder::idempotent`]).
//! - A request that may be lost although its connection works: only if it is idempotent, and
//!   either the connection is abandoned because no replies come, or its server sends no sign of
//!   life ([`ClientOptions::keep_alive`]).
//! - An idempotent request whose queue does not exist any more, although the client has had a reply
//!   through it or the request is sent again: every 200 ms until shortly before its deadline,
//!   because a server declares the queue again.
//! - A call that timed out, was refused or failed: never.
//! - A lost connection: a client reconnects with its next call, a server at once. After each failed
//!   attempt they wait longer. The delay is random, so that programs do not all reconnect at the
//!   same moment.
//! - The first connection: only if [`Brokers::wait`] is set, and until its end.
//! - Credentials that a broker refused: with the next call, and not on the next broker.
//!
//! A handler gets each request at least once, unless the request expires or the broker loses it.
//! The broker can lose requests because they are not persistent. If a server is lost before the
//! broker has the acknowledgement, or if an idempotent call is sent again, a handler gets the
//! request twice, with the same `message_id` ([`Request::message_id`], [`Request::redelivered`]).
//!
//! # Threads
//!
//! A thread that waits for a reply or a request reads the socket itself. Waiting threads take turns
//! to read. Each connection has three threads of its own: a reserve thread, which reads while no
//! other thread waits, and two of amiquip's, for its I/O and its heartbeats. A connected client
//! needs no other threads. While a suspect connection is replaced, it has both connections.
//! [`RpcServer::serve`] starts one thread for each worker, and supervises the workers on the thread
//! that calls it. For each request in progress whose requester wants signs of life, one more thread
//! sends them. Connecting takes one more thread. For a client, that thread then waits until the
//! broker has declared the reply queue. For replies by direct reply-to to RabbitMQ before 3.10.12
//! and 3.11.4, a worker has a second connection, which it closes when it is idle and has not used
//! it for 10 s. An idle server that knows several brokers looks at another one now and then, on a
//! thread and a connection for that alone. To answer requests that exceed
//! [`ServerOptions::max_waiting`], `serve` starts a second server, with a connection, a supervising
//! thread and one worker.
//!
//! No thread spins, and an idle program polls nothing: an idle client wakes up for heartbeats only,
//! and an idle server also asks the broker about its queue: every 4 s, or 2 s after it was busy, or
//! every second in the first 8 s. These poll:
//!
//! - the reserve thread, every 10 ms, while callers and workers take turns to read
//! - whoever opens a channel while all numbers are taken and one is being closed, every 10 ms
//! - the thread that reconnects a client to a cluster, every 50 ms for up to 3 s
//! - the caller of an idempotent call, every 200 ms if its queue does not exist any more, and every
//!   500 ms if it was sent again
//! - a worker that gets a request which another worker still executes, every 100 ms
//! - a server that stops, every 500 ms
//!
//! No lock is held, and nobody has the turn to read, while a line is logged: a logger may itself
//! make calls. Lines about a connection are logged by a thread that waits for it.
//!
//! # Logging
//!
//! The crate logs through the `log` crate: new connections at `info`, lost connections and other
//! problems at `warn` or `error`, and each request with its id, trace id, sizes and time at
//! `debug`. It never logs bodies or passwords. But amiquip's module
//! `amiquip::io_loop::handshake_state` logs the login, including the password, at `debug`. Exclude
//! that module from your log.
//!
//! # Limits
//!
//! The crate runs on Unix. A reply goes to one requester; there are no streams. Looking up a host
//! name takes as long as the system's resolver does. For the connections of clients and servers it
//! happens in a separate thread, so no call waits for it after its deadline. A worker that opens a
//! connection for direct replies waits for it. amiquip 0.4.2, which does the handshake and the
//! heartbeats, is no longer developed. This crate's interface contains none of its types, so it can
//! be replaced.
//!
//! # Layout
//!
//! A module imports only modules below it. `client` and `server` do not import each other.
//!
//! ```text
//!  fibonacci               the tutorial's service: the only module that decodes numbers
//!  service                 methods by name, JSON
//!  client      server      calls and their attempts; workers and their threads
//!  wire        broker      requests and replies as messages; connections and reconnection
//!  frames                  AMQP: decodes and encodes messages and methods
//!  error  deadline  lock  observation
//!
//!  caller or worker                            amiquip's I/O thread (channel 0:
//!    │ wire, frames::encode                      │     login, heartbeats)
//!    ▼                                           ▼
//!  broker::channel ───────────▶ broker::transport ───────────▶ socket ──▶ RabbitMQ
//!                                                                            │
//!  the thread with the read turn (broker::turn): a waiting caller or         │
//!  worker, or the reserve ◀── frames::decoder ◀── socket ◀───────────────────┘
//!    │ broker::data_plane
//!    ├─▶ channel 0: broker::control, wakes amiquip
//!    ├─▶ answers:   broker::slots,   wakes the thread that asked
//!    ├─▶ requests:  server::inbox,   wakes the worker
//!    └─▶ replies:   client::dispatcher, wakes the caller
//! ```
//!
//! A call passes through these files: [`RpcClient::call`] → `client/call.rs` (the call and its
//! deadline) → `client/sessions.rs` and `broker/reconnector.rs` (choose the session) →
//! `client/attempt.rs` and `client/publishing.rs` (publish) → `wire.rs` → `frames/encode.rs` →
//! `broker/channel.rs` → `broker/transport.rs` (the socket) → the broker → `broker/turn.rs`
//! (chooses the reading thread) → `broker/data_plane.rs` → `frames/decoder.rs` → `server/inbox.rs`
//! → `server/worker.rs` → the handler. The reply returns through the same files to
//! `client/dispatcher.rs` and the caller, in the caller's own thread.
//!
//! The files of `broker`, from the lowest: `url`, `status`, `ended` (why a connection ended),
//! `notes` (lines to log once no lock is held), `try_order`, `self_pipe`, `turn`, `socket`,
//! `transport`, `tls`, `slots` (what a channel receives), `control`, `data_plane`, `refusal` (what
//! the broker's refusals mean), `channel`, `login`, `control_stream`, `connection`, `brokers`,
//! `reconnector`.
//!
//! The files of `server`, from the lowest: `counters`, `options`, `log_limit`, `finished` (finished
//! requests, found again), `keep_alive`, `queue`, `exchange`, `direct` (a connection for direct
//! replies), `idle_checks` (when an idle server checks its queue), `session`, `inbox` (what has
//! arrived for one worker), `outcomes` (what was begun and finished, and which replies the broker
//! may not have), `state` (what the threads share), `status`, `elsewhere` (a look at another
//! broker), `own_methods`, `consumer` (a worker's channel, and what belongs to it), `worker` (of it
//! `execute`: runs the handler; `reply_sender`; `cancelled`: why the broker cancelled a consumer;
//! `stall`), `pool`, `overload`.
//!
//! The files of `client`, from the lowest: `counters`, `status`, `options`, `request` (what is
//! sent, and how it can end), `local`, `in_flight` (the places, handed over in order),
//! `write_order` (which request was refused), `looks` (questions about queues), `suspicion`
//! (whether requests may be lost), `pending`, `dispatcher`, `publishing`, `session`,
//! `extra_channels` (opens a session with as many channels as the user may have), `attempt`,
//! `sessions`, `call`, `call_builder`.

mod broker;
mod client;
mod deadline;
mod error;
pub mod fibonacci;
mod frames;
pub mod guide;
mod lock;
mod observation;
mod server;
mod service;
mod wire;

pub use broker::{Brokers, TlsFiles};
pub use client::{
    CallBuilder, ClientCounters, ClientOptions, ClientStatus, PendingReply, QueueStatus, RpcClient,
};
pub use error::{Error, Failure, Result, Status};
pub use fibonacci::{FibonacciRpcClient, PendingNumber};
pub use frames::HeaderValue;
pub use observation::Observation;
pub use server::{
    QueueType, RpcServer, Served, ServerCounters, ServerOptions, ServerStatus, Stopper, Worker,
};
pub use service::{Handler, Methods};
#[cfg(feature = "json")]
pub use service::{RemoteFunction, json};
pub use wire::{Reply, Request};

/// The README's Rust, compiled as tests. It uses JSON.
#[cfg(all(doctest, feature = "json"))]
#[doc = include_str!("../README.md")]
struct Readme;
