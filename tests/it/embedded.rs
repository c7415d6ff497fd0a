//! This crate's client and server, in the tests' own process.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::bounded;
use rabbitmq_rpc::{
    Brokers, ClientOptions, Error, Failure, FibonacciRpcClient, Reply, Request, RpcClient,
    RpcServer, ServerCounters, ServerOptions, Stopper,
};

use crate::patience::PATIENCE;

/// A `traceparent` header: the example of the W3C recommendation.
pub const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// The brokers of these URLs. On a busy machine, connecting may take longer than it may by default:
/// the first connection is tried again.
fn brokers(url: &str) -> Brokers {
    let mut brokers = Brokers::parse(url).unwrap();
    brokers.wait = PATIENCE;
    brokers
}

/// A client whose calls wait for as long as a test does.
pub fn connect(url: &str, queue: &str) -> RpcClient {
    connect_with(url, queue, ClientOptions { timeout: PATIENCE, ..Default::default() })
}

pub fn connect_with(url: &str, queue: &str, options: ClientOptions) -> RpcClient {
    RpcClient::connect(brokers(url), queue, options).unwrap()
}

/// The same as [`connect`], whose calls are sent again when they are lost with their connection.
pub fn connect_idempotent(url: &str, queue: &str) -> RpcClient {
    let options = ClientOptions { timeout: PATIENCE, idempotent: true, ..Default::default() };
    connect_with(url, queue, options)
}

pub fn connect_fibonacci(url: &str, queue: &str) -> FibonacciRpcClient {
    let options = ClientOptions { timeout: PATIENCE, ..FibonacciRpcClient::options() };
    FibonacciRpcClient::with_options(brokers(url), queue, options).unwrap()
}

/// A server in a thread of its own. It stops when this is stopped or dropped.
pub struct Serving {
    pub server: Arc<RpcServer>,
    pub stopper: Stopper,
    thread: Option<JoinHandle<Result<(), Error>>>,
}

impl Serving {
    /// Starts a server whose handler needs only the body. Returns when it takes requests.
    pub fn start<H>(url: &str, queue: &str, options: ServerOptions, handler: H) -> Serving
    where
        H: Fn(&[u8]) -> Result<Vec<u8>, Failure> + Send + Sync + 'static,
    {
        Serving::requests(url, queue, options, move |request| handler(request.body()))
    }

    /// Starts a server. Returns when it takes requests.
    pub fn requests<H, R>(url: &str, queue: &str, options: ServerOptions, handler: H) -> Serving
    where
        H: Fn(&Request) -> Result<R, Failure> + Send + Sync + 'static,
        R: Into<Reply> + 'static,
    {
        let (ready, is_ready) = bounded(1);
        let server = RpcServer::connect(brokers(url), queue, options).unwrap();
        let server = Arc::new(server.on_ready(move || ready.send(()).unwrap()));
        let serving = Arc::clone(&server);
        let thread = thread::spawn(move || serving.serve(handler));
        is_ready.recv_timeout(PATIENCE).expect("the server gets ready");
        Serving { stopper: server.stopper(), server, thread: Some(thread) }
    }

    /// Starts a server that replies with the request's body.
    pub fn echo(url: &str, queue: &str) -> Serving {
        let options = ServerOptions { prefetch: 64, ..Default::default() };
        Serving::start(url, queue, options, |request| Ok(request.to_vec()))
    }

    /// Stops the server, checks that it ends without an error, and returns its counters.
    pub fn stop(mut self) -> ServerCounters {
        self.end();
        self.server.counters()
    }

    fn end(&mut self) {
        self.stopper.stop();
        let served = self.thread.take().map(JoinHandle::join);
        let served = served.map(|joined| joined.expect("the server does not panic"));
        assert!(thread::panicking() || matches!(served, None | Some(Ok(()))), "{served:?}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}
