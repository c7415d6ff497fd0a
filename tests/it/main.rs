//! Tests against a real RabbitMQ, which `scripts/broker.sh` starts.
//!
//! A missing broker fails them; nothing is skipped.
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
//! | a broker that works | [`broker::Broker::shared`], with a name by [`broker::queue_name`] |
//! | a queue name that is fixed | [`broker::Broker::virtual_host`] |
//! | a broker to kill, freeze or fill | [`broker::Broker::fragile`], one test at a time |
//! | a broker with other settings, or a cluster | [`broker::Broker::with`], [`broker::Broker::cluster`] |
//! | a network that fails | [`proxy::Proxy`], between the broker and whoever connects to it |
//! | this crate's programs | [`programs`]; any other program: [`process::Process`] |
//! | this crate's client and server | [`embedded`], in the tests' process |
//! | a server that replies when the test says so, or never | [`manual_server::ManualServer`] |
//! | a look at a queue from outside | [`queue`], by amiquip |
//! | requests that no client library sends | [`raw::Raw`] |
//! | files | [`scratch::directory`] |
//! | random choices that can be repeated | [`random::Random`], with [`settings::seed`] |
//! | memory, threads and descriptors | [`usage::Usage`] |
//!
//! A test waits for an event: a line of a program ([`process::Process::wait_for_line`]), a reply,
//! or a message on a channel. Where nothing tells of the event, [`patience::await_value`] looks
//! again and again. No test sleeps in the hope that something has happened by then. Each wait ends
//! after [`patience::PATIENCE`]: a wait that is over fails the test, and shows what the programs
//! printed. A duration is asserted only where the time itself is what the test is about.
//!
//! A process, a server or a broker ends when the test drops it, also when the test fails. A helper
//! that one file needs stays in that file; one that two need moves to the modules above.

mod basics; // a call from end to end, in this crate's programs and in its types
mod broker; // a private RabbitMQ, and what can be done to it
mod call_options; // what a caller can say with one call
mod certificates; // certificates by the openssl command
mod client; // the client: deadlines, errors, many callers, faults, leaks
mod cluster; // three nodes, of which one after the other goes
mod embedded; // this crate's client and server, in this process
mod examples; // the examples, run by `cargo run --example`
mod failing; // what fails, for client and server, and the password in none of it
mod hostile; // requests that no client library would send
mod interop; // programs on other AMQP clients, on either side
mod keep_alive; // long calls that show life
mod load; // rpc_bench: the load it makes, and what it says of it
mod logged; // what the tests' own process logs
mod lying_broker; // a peer that sends any frames, in place of a broker
mod manual_server; // a server whose replies the test sends itself
mod nested; // calls from inside a handler, and programs with several queues
mod network; // a network that swallows packets
mod operator; // what an operator sees of clients and servers
mod overload; // a limit of waiting requests
mod oversized; // requests and replies larger than the broker takes
mod partition; // a node that is cut off from the other two
mod patience; // how long tests wait, and how
mod process; // a program under test
mod programs; // this crate's programs, run
mod proxy; // a TCP proxy that stops forwarding, or hangs up, when told to
mod queue; // a request queue as another program sees it
mod queue_kinds; // the request queue: used, declared or refused
mod random; // random choices that a seed repeats
mod raw; // an AMQP client that writes what it is told, byte for byte
mod readme; // the README's shell blocks, typed into a shell
mod refusals; // logins, virtual hosts and permissions that a broker refuses
mod requests; // what a handler knows of its request
mod scratch; // directories for the files of one run
mod server; // a server at work: workers, handlers, stopping
mod server_faults; // a server whose broker, queue or fellows are taken away
mod server_killed; // servers that end in the midst of a request
mod settings; // environment variables that make a test longer
mod soak; // minutes of faults under load, in an order that a seed decides
mod tls; // amqps://, and each way it can go wrong
mod usage; // what a process takes of the machine
