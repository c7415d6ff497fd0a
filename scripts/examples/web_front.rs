//! A web front whose threads call an RPC server through one client.
//!
//! With the broker's URL in `$AMQP_URL`, start the service and the front, and ask:
//!
//! ```console
//! $ cargo run --bin rpc_server &
//! $ cargo run --example web_front -- 127.0.0.1:8080 &
//! $ curl http://127.0.0.1:8080/fib/10
//! 55
//! ```

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rabbitmq_rpc::{Brokers, ClientOptions, Failure, RpcClient, Status};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("AMQP_URL").unwrap_or("amqp://guest:guest@localhost".into());
    let timeout = Duration::from_secs(5);
    let options = ClientOptions { timeout, idempotent: true, ..Default::default() };
    let client = RpcClient::connect(Brokers::parse(&url)?, "rpc_queue", options)?;
    let listener = TcpListener::bind(std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into()))?;
    println!("http://{}", listener.local_addr()?);
    let serve = |stream: TcpStream| drop(answer(&stream, &client)); // An error means that the caller has disconnected.
    let accept = || listener.incoming().flatten().for_each(serve);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(accept);
        }
    });
    Ok(())
}

fn answer(mut stream: &TcpStream, client: &RpcClient) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.take(16 * 1024)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // Closing a connection that still has unread bytes can lose the answer.
    lines.map_while(Result::ok).take_while(|header| !header.is_empty()).for_each(drop);
    let path = request.strip_prefix("GET /fib/").and_then(|rest| rest.split(' ').next());
    let (status, body) = match path.map(|n| client.call(n).map_err(Failure::from)) {
        None => ("404 Not Found", String::from("ask for /fib/N")),
        Some(Ok(number)) => ("200 OK", String::from_utf8_lossy(&number).into()),
        Some(Err(failure)) => (http_status(&failure), failure.status.name().into()),
    };
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}\n")
}

fn http_status(failure: &Failure) -> &'static str {
    match failure.status {
        Status::InvalidArgument | Status::OutOfRange => "400 Bad Request",
        Status::Unavailable => "503 Service Unavailable",
        Status::DeadlineExceeded => "504 Gateway Timeout",
        _ => "502 Bad Gateway",
    }
}
