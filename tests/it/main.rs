//! Tests against a real RabbitMQ, which `scripts/broker.sh` starts.
//!
//! If no broker starts, they fail; none is skipped.
//!
//! # How a test is written
//!
//! ```ignore
//! #[test]
//! fn server_answers_requests_in_progress_before_it_stops() {
//!     let queue = queue_name("stop");                             // a name that no other test uses
//!     let mut server = rpc_server(&queue, &[]);                   // a process, ready to be called
//!     let client = connect(&Broker::shared().url(), &queue);      // a client in this process
//!     assert_eq!(client.call("7").unwrap(), b"13");
//!     server.signal("TERM");
//!     server.wait_for_line("stopping", PATIENCE);                 // an event, with a deadline
//!     assert!(server.wait(PATIENCE).success(), "{}", server.stderr());
//! }
//! ```
//!
//! | what a test needs | where it is |
//! |---|---|
//! | a broker that works | [`broker::Broker::shared`], and a queue name from [`broker::queue_name`] |
//! | a fixed queue name | [`broker::Broker::virtual_host`] |
//! | a broker to kill, freeze or fill | [`broker::Broker::fragile`], one test at a time |
//! | a broker with other settings, or a cluster | [`broker::Broker::with`], [`broker::Broker::cluster`] |
//! | a network that fails | [`proxy::Proxy`], between the broker and its clients |
//! | this crate's programs | [`programs`]; any other program: [`process::Process`] |
//! | this crate's client and server in the tests' process | [`embedded`], and with few channels [`few_channels`] |
//! | a server that replies when the test says so, or never | [`manual_server::ManualServer`] |
//! | a queue as another program sees it | [`queue`], by amiquip |
//! | requests that no client library sends | [`raw::Raw`] |
//! | files | [`scratch::directory`] |
//! | random choices that can be repeated | [`random::Random`], with [`settings::seed`] |
//! | memory, threads and descriptors | [`usage::Usage`] |
//!
//! A test waits for an event: a line of a program ([`process::Process::wait_for_line`]), a reply,
//! or a message on a channel. For a state that sends no event, [`patience::await_value`] looks
//! again and again. A test sleeps only where time is a part of what happens (a handler that takes
//! long, a peer that pauses), or where nothing at all reports what it waits for; a comment says
//! which. Each wait ends after [`patience::PATIENCE`]: the test then fails and shows what the
//! programs printed. A duration is asserted only in tests whose subject is the time itself.
//!
//! A process, a server or a broker ends when the test drops it, also when the test fails. A helper
//! that only one file needs stays in that file; one that two files need is in the modules above.

mod basics; // a call from end to end, in this crate's programs and in its types
mod broker; // a private RabbitMQ that tests kill, freeze and reconfigure
mod call_options; // the options of a single call
mod certificates; // certificates made by the openssl command
mod client; // the client: deadlines, errors, many callers, faults, leaks
mod cluster; // three nodes that fail in turn
mod command; // any command as a service
mod connecting; // a server that is stopped before it has connected
mod deleted_queue; // a server whose queue is deleted, with and without a notice
mod direct_replies; // replies by direct reply-to over slow networks
mod draining; // a server that stops: what it returns to the queue, and what it waits for
mod elsewhere; // an idle server that looks at another broker
mod embedded; // this crate's client and server, in this process
mod examples; // the examples, run by `cargo run --example`
mod exchange; // services behind an exchange of their own
mod failing; // an attempt that fails for client and server, with the password in no text
mod few_channels; // a client whose user may open few channels
mod foreign_failures; // failures in a form of the service's own
mod hashed; // many queues behind one consistent-hash exchange
mod headers; // content headers of any size, and properties of any type
mod heartbeats; // a silent broker, by the heartbeat that both sides agree on
mod hostile; // requests that no client library sends
mod house; // the order of the library's files, and the width of its docs
mod interop; // clients and servers on other AMQP libraries
#[cfg(feature = "json")]
mod json; // requests and replies that are JSON
mod keep_alive; // keep-alives during long calls
mod kept_replies; // finished replies whose channel or connection ends before the broker has them
mod load; // rpc_bench: the load it makes and its report
mod logged; // errors that the tests' own process logs
mod logging_by_calls; // a client whose logger itself makes calls
mod lying_broker; // a peer in place of a broker, which sends random frames or declares no queue
mod manual_server; // a server whose replies the test sends itself
mod methods; // services of several methods
mod nested; // calls from inside a handler, and programs with several queues
mod network; // a network that delivers nothing
mod operator; // how clients and servers name themselves to an operator
mod overload; // a limit on waiting requests
mod oversized; // requests and replies larger than the broker takes
mod own_methods; // what a server answers itself
mod partition; // a node that is cut off from the other two
mod passing; // refusals that pass, and what comes late at a first start
mod password_file; // a password that changes
mod patience; // how tests wait
mod process; // a program that a test runs
mod programs; // this crate's programs
mod progress; // how far a handler is, told to a caller that wants to know
mod proxy; // a TCP proxy that stops forwarding or closes connections
mod queue; // a request queue as another program sees it
mod queue_kinds; // request queues that exist, and that the server declares
mod queue_refusals; // request queues that a server cannot use
mod random; // random choices that a seed repeats
mod raw; // an AMQP client that writes any bytes
mod readiness; // what rpc_server tells probes and the service manager
mod readme; // the README's shell blocks, run in a shell
mod refusals; // logins, virtual hosts and permissions that a broker refuses
mod requests; // what a handler sees of a request, and what it can reply
mod scratch; // directories for the files of one run
mod server; // workers, handlers, stopping
mod server_faults; // a server that loses its broker or its connection
mod server_killed; // servers that end while they work on a request
mod settings; // environment variables that make a test longer
mod shell; // rpc_client as a caller of any service: bodies, lines, headers
mod soak; // minutes of faults under load, in an order given by a seed
mod status; // how a server and a client say that they are
mod streams; // standard streams that nobody reads, arguments that are not text
mod tls; // amqps://, and each way in which it fails
mod usage; // memory, threads and descriptors of a process
