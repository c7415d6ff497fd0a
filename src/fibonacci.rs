//! The Fibonacci service of RabbitMQ's tutorial six, built on the generic client and server.

use std::time::Duration;

use crate::broker::Brokers;
use crate::client::{CallBuilder, ClientOptions, PendingReply, RpcClient};
use crate::error::{Error, Failure, Result, Status};
use crate::wire::Request;

/// A client of the Fibonacci service of
/// [tutorial six](https://www.rabbitmq.com/tutorials/tutorial-six-python). The server may be
/// written in any language.
///
/// Computing a number twice does no harm, so a call that is lost with its connection is sent
/// again until its deadline.
///
/// ```no_run
/// use rabbitmq_rpc::FibonacciRpcClient;
///
/// let fibonacci = FibonacciRpcClient::connect("amqp://localhost")?;
/// assert_eq!(fibonacci.call(7)?, 13);
/// # Ok::<(), rabbitmq_rpc::Error>(())
/// ```
#[derive(Debug)]
pub struct FibonacciRpcClient(RpcClient);

impl FibonacciRpcClient {
    /// The request queue of tutorial six.
    pub const QUEUE: &str = "rpc_queue";

    /// Connects to one of these brokers (URLs separated by commas) to call the queue `rpc_queue`.
    /// The timeout of each call is 30 s. Blocks as [`RpcClient::connect`] does.
    ///
    /// # Errors
    /// The errors of [`Brokers::parse`] and [`RpcClient::connect`].
    pub fn connect(urls: &str) -> Result<Self> {
        Self::with_options(Brokers::parse(urls)?, Self::QUEUE, Self::options())
    }

    /// Like [`FibonacciRpcClient::connect`], for any queue and any options. Base the options on
    /// [`FibonacciRpcClient::options`].
    ///
    /// # Errors
    /// The errors of [`RpcClient::connect`].
    pub fn with_options(brokers: Brokers, queue: &str, options: ClientOptions) -> Result<Self> {
        RpcClient::connect(brokers, queue, options).map(Self)
    }

    /// The default options, except that requests are `text/plain` and idempotent.
    pub fn options() -> ClientOptions {
        let content_type = "text/plain".into();
        ClientOptions { idempotent: true, content_type, ..Default::default() }
    }

    /// Asks the server for the `n`-th Fibonacci number. Blocks until the reply arrives, at most
    /// for the client's timeout.
    ///
    /// # Errors
    /// The errors of [`RpcClient::call`], and [`Error::BadReply`] if the reply is not a number.
    pub fn call(&self, n: u64) -> Result<u128> {
        self.send(n)?.wait()
    }

    /// Sends the request and returns without waiting for the reply, as [`RpcClient::send`] does.
    ///
    /// # Errors
    /// The errors of [`RpcClient::send`].
    pub fn send(&self, n: u64) -> Result<PendingNumber> {
        self.request(n).send()
    }

    /// Like [`FibonacciRpcClient::send`], with this timeout in place of the client's.
    ///
    /// # Errors
    /// The errors of [`RpcClient::send`].
    pub fn send_timeout(&self, n: u64, timeout: Duration) -> Result<PendingNumber> {
        self.request(n).timeout(timeout).send()
    }

    fn request(&self, n: u64) -> CallBuilder<'_, u128> {
        self.0.request(n.to_string()).decoded_by(|reply| decode_number(reply.body()))
    }

    /// The generic client that sends the requests.
    pub fn client(&self) -> &RpcClient {
        &self.0
    }
}

/// A Fibonacci number whose reply has not been read yet. Dropping it abandons the call.
pub type PendingNumber = PendingReply<u128>;

/// Answers requests of the Fibonacci service. Pass it to
/// [`RpcServer::serve`](crate::RpcServer::serve) as the handler.
///
/// ```
/// use rabbitmq_rpc::{Request, Status, fibonacci};
///
/// let answer = |body: &str| fibonacci::answer(&Request::new(body));
/// assert_eq!(answer("7"), Ok("13".to_string()));
/// assert_eq!(answer("187").unwrap_err().status, Status::OutOfRange);
/// assert_eq!(answer("seven").unwrap_err().status, Status::InvalidArgument);
/// ```
///
/// # Errors
/// `INVALID_ARGUMENT` if the request is not a number, `OUT_OF_RANGE` if it is above [`MAX_N`].
pub fn answer(request: &Request) -> Result<String, Failure> {
    Ok(fib(decode_request(request.body())?).to_string())
}

/// Like [`answer`], but by double recursion, as in tutorial six: a slow handler for tests. Each
/// increment of `n` multiplies the time by 1.6. n = 40 takes about half a second, n = 60 hours.
///
/// # Errors
/// The errors of [`answer`].
pub fn answer_slowly(request: &Request) -> Result<String, Failure> {
    Ok(fib_by_double_recursion(decode_request(request.body())?).to_string())
}

/// The largest `n` whose Fibonacci number fits into 128 bits.
pub const MAX_N: u64 = 186;

/// The `n`-th Fibonacci number, for `n` up to [`MAX_N`].
pub fn fib(n: u64) -> u128 {
    // `next` is one number ahead of the result, so it may overflow when the result does not.
    let (mut this, mut next) = (0u128, 1u128);
    for _ in 0..n {
        (this, next) = (next, this.wrapping_add(next));
    }
    this
}

fn fib_by_double_recursion(n: u64) -> u128 {
    match n {
        0 | 1 => n.into(),
        _ => fib_by_double_recursion(n - 1) + fib_by_double_recursion(n - 2),
    }
}

fn decode_request(request: &[u8]) -> Result<u64, Failure> {
    let n = parse_decimal(request).ok_or_else(|| {
        let message = format!("the request is {}, not a decimal number", quote(request));
        Failure::new(Status::InvalidArgument, message)
    })?;
    if n > MAX_N.into() {
        let message = format!("fib({n}) does not fit into 128 bits; n goes from 0 to {MAX_N}");
        return Err(Failure::new(Status::OutOfRange, message));
    }
    Ok(n as u64)
}

fn decode_number(reply: &[u8]) -> Result<u128> {
    let not_a_number = || Error::BadReply(format!("the reply is {}, not a number", quote(reply)));
    parse_decimal(reply).ok_or_else(not_a_number)
}

/// Parses digits. White space around them is allowed: clients in other languages send it.
fn parse_decimal(text: &[u8]) -> Option<u128> {
    let digits = std::str::from_utf8(text).ok()?.trim_ascii();
    // `parse` would accept a plus sign.
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

/// The beginning of a body, for an error's text.
fn quote(body: &[u8]) -> String {
    const ENOUGH: usize = 32;
    let beginning = body[..body.len().min(ENOUGH)].escape_ascii();
    match body.len() {
        0 => "empty".into(),
        1..=ENOUGH => format!("\"{beginning}\""),
        length => format!("\"{beginning}…\" ({length} bytes)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (n, expected) in [
            (0, 0),
            (1, 1),
            (2, 1),
            (7, 13),
            (93, 12_200_160_415_121_876_738),
            (MAX_N, 332_825_110_087_067_562_321_196_029_789_634_457_848),
        ] {
            assert_eq!(fib(n), expected, "fib({n})");
        }
        assert!(fib(MAX_N).checked_add(fib(MAX_N - 1)).is_none(), "MAX_N could be larger");
        assert!((0..20).all(|n| fib(n) == fib_by_double_recursion(n)));
    }

    #[test]
    fn requests() {
        assert_eq!(decode_request(b" 186\n"), Ok(186));
        for (request, status) in [
            (&b"187"[..], Status::OutOfRange),
            (b"340282366920938463463374607431768211455", Status::OutOfRange),
            (b"", Status::InvalidArgument),
            (b"hello", Status::InvalidArgument),
            (b"-1", Status::InvalidArgument),
            (b"+7", Status::InvalidArgument),
            (b"1.5", Status::InvalidArgument),
            (b"\xff\xfe", Status::InvalidArgument),
            (&[b'9'; 1_000_000], Status::InvalidArgument),
        ] {
            let failure = decode_request(request).unwrap_err();
            assert_eq!(failure.status, status, "{failure}");
            assert!(failure.message.len() < 200, "{failure}");
        }
    }

    #[test]
    fn a_reply_that_is_no_number_is_shown() {
        assert_eq!(decode_number(b"13"), Ok(13));
        let text = decode_number(b"thirteen\0").unwrap_err().to_string();
        assert!(text.contains("\"thirteen\\x00\""), "{text}");
    }
}
