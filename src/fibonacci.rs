//! The Fibonacci service of RabbitMQ's tutorial six, on top of the generic core.

use std::time::Duration;

use crate::broker::Brokers;
use crate::client::{ClientOptions, PendingReply, RpcClient};
use crate::error::{Error, Failure, Result, Status};
use crate::wire::Request;

/// A client of the Fibonacci service of
/// [tutorial six](https://www.rabbitmq.com/tutorials/tutorial-six-python), with a server in
/// any language.
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
pub struct FibonacciRpcClient {
    client: RpcClient,
}

impl FibonacciRpcClient {
    /// The queue of tutorial six.
    pub const QUEUE: &str = "rpc_queue";

    /// Connects to the brokers of that URL list, for the queue `rpc_queue`, with 30 s for each
    /// call. Blocks as [`RpcClient::connect`] does.
    ///
    /// # Errors
    /// As [`Brokers::parse`] and [`RpcClient::connect`].
    pub fn connect(urls: &str) -> Result<FibonacciRpcClient> {
        let brokers = Brokers::parse(urls)?;
        let (queue, options) = (FibonacciRpcClient::QUEUE, FibonacciRpcClient::options());
        FibonacciRpcClient::with_options(brokers, queue, options)
    }

    /// As [`FibonacciRpcClient::connect`], for any queue and with options made from
    /// [`FibonacciRpcClient::options`].
    ///
    /// # Errors
    /// As [`RpcClient::connect`].
    pub fn with_options(
        brokers: Brokers,
        queue: &str,
        options: ClientOptions,
    ) -> Result<FibonacciRpcClient> {
        Ok(FibonacciRpcClient { client: RpcClient::connect(brokers, queue, options)? })
    }

    /// The defaults, but for requests that are text and may be executed twice.
    pub fn options() -> ClientOptions {
        let content_type = "text/plain".into();
        ClientOptions { idempotent: true, content_type, ..Default::default() }
    }

    /// The `n`-th Fibonacci number, as the server computes it. Blocks until its reply comes, and
    /// no longer than the client's timeout.
    ///
    /// # Errors
    /// As [`RpcClient::call`]; [`Error::BadReply`] if the reply is no number.
    pub fn call(&self, n: u64) -> Result<u128> {
        self.send(n)?.wait()
    }

    /// Sends the request and returns at once, as [`RpcClient::send`] does.
    ///
    /// # Errors
    /// As [`RpcClient::send`].
    pub fn send(&self, n: u64) -> Result<PendingNumber> {
        Ok(PendingNumber { reply: self.client.send(n.to_string())? })
    }

    /// As [`FibonacciRpcClient::send`], with a timeout of its own.
    ///
    /// # Errors
    /// As [`RpcClient::send`].
    pub fn send_timeout(&self, n: u64, timeout: Duration) -> Result<PendingNumber> {
        Ok(PendingNumber { reply: self.client.send_timeout(n.to_string(), timeout)? })
    }

    /// The generic client beneath.
    pub fn client(&self) -> &RpcClient {
        &self.client
    }
}

/// A Fibonacci number whose reply is still to come; dropping it gives the call up.
#[derive(Debug)]
#[must_use = "dropping it gives the call up"]
pub struct PendingNumber {
    reply: PendingReply,
}

impl PendingNumber {
    /// Waits for the number until the call's deadline.
    ///
    /// # Errors
    /// As [`FibonacciRpcClient::call`].
    pub fn wait(self) -> Result<u128> {
        decode_number(&self.reply.wait()?)
    }

    /// Waits for the number for at most `timeout`, and no longer than until the call's deadline.
    /// `None` if it has not come by then. After a number or an error the call is over.
    ///
    /// # Errors
    /// As [`FibonacciRpcClient::call`].
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<u128>> {
        self.reply.wait_timeout(timeout)?.map(|body| decode_number(&body)).transpose()
    }

    /// The number if its reply has come already. Does not block but for some 200 ms at the call's
    /// deadline. After a number or an error the call is over.
    ///
    /// # Errors
    /// As [`FibonacciRpcClient::call`].
    pub fn try_wait(&mut self) -> Result<Option<u128>> {
        self.reply.try_wait()?.map(|body| decode_number(&body)).transpose()
    }
}

/// Answers requests of the Fibonacci service: the handler to give to
/// [`RpcServer::serve`](crate::RpcServer::serve).
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
/// `INVALID_ARGUMENT` for what is no number, `OUT_OF_RANGE` for one above [`MAX_N`].
pub fn answer(request: &Request) -> Result<String, Failure> {
    Ok(fib(decode_request(request.body())?).to_string())
}

/// As [`answer`], by double recursion as tutorial six has it: a slow job on purpose. Each step of
/// `n` takes 1.6 times as long as the one before; n = 40 takes about half a second, n = 60 hours.
///
/// # Errors
/// As [`answer`].
pub fn answer_slowly(request: &Request) -> Result<String, Failure> {
    Ok(fib_by_double_recursion(decode_request(request.body())?).to_string())
}

/// The largest `n` whose Fibonacci number fits into 128 bits.
pub const MAX_N: u64 = 186;

/// The `n`-th Fibonacci number, for `n` up to [`MAX_N`].
pub fn fib(n: u64) -> u128 {
    // The pair runs one number ahead of the result, and that one may no longer fit.
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
    match parse_decimal(request) {
        None => Err(Failure::new(
            Status::InvalidArgument,
            format!("the request is {}, not a decimal number", shown(request)),
        )),
        Some(n) => u64::try_from(n).ok().filter(|n| *n <= MAX_N).ok_or_else(|| {
            Failure::new(
                Status::OutOfRange,
                format!("fib({n}) does not fit into 128 bits; n goes from 0 to {MAX_N}"),
            )
        }),
    }
}

fn decode_number(reply: &[u8]) -> Result<u128> {
    parse_decimal(reply)
        .ok_or_else(|| Error::BadReply(format!("the reply is {}, not a number", shown(reply))))
}

/// Digits, with white space around them as other languages' clients leave it.
fn parse_decimal(text: &[u8]) -> Option<u128> {
    let digits = text.trim_ascii();
    let digits = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The beginning of what came, for an error's text.
fn shown(bytes: &[u8]) -> String {
    const ENOUGH: usize = 32;
    let beginning = bytes[..bytes.len().min(ENOUGH)].escape_ascii();
    match bytes.len() {
        0 => "empty".into(),
        length if length <= ENOUGH => format!("\"{beginning}\""),
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
