//! An AMQP 0-9-1 client that writes any bytes: no client library lets a test publish a broken
//! content header.
//!
//! The layout is that of the
//! [specification](https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf), 2.3 and 4.2.

mod properties;

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::patience::PATIENCE;
pub use properties::{Properties, entry, long, short};

/// One connection with one channel, on which the broker confirms each message.
pub struct Raw {
    tcp: TcpStream,
    received: Vec<u8>,
    /// Replies that arrived during a wait for something else.
    replies: VecDeque<Reply>,
    frame_max: usize,
}

#[derive(Debug)]
pub struct Reply {
    /// Its content header, in which a test can look for a property.
    pub header: Vec<u8>,
    pub body: Vec<u8>,
}

/// What the broker did with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Confirmed,
    /// No queue is bound for the message.
    Returned,
    /// The broker closed the channel or the connection, with this code.
    Refused(u16),
    /// The broker ended the connection without a close method.
    HungUp,
}

/// The `reply_to` that the broker replaces by an address without a queue.
pub const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const NO_TABLE: [u8; 4] = [0; 4];
const FRAME_END: u8 = 0xce;
const FRAME_MAX: usize = 131_072;

impl Raw {
    pub fn connect(port: u16) -> Raw {
        Raw::connect_with_frame_max(port, FRAME_MAX)
    }

    /// Connects with a limit of frames that the broker must allow.
    pub fn connect_with_frame_max(port: u16, frame_max: usize) -> Raw {
        let tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut raw = Raw { tcp, received: Vec::new(), replies: VecDeque::new(), frame_max };
        raw.tcp.write_all(b"AMQP\0\0\x09\x01").unwrap();
        raw.expect(10, 10);
        let start_ok =
            [&NO_TABLE[..], &short(b"PLAIN"), &long(b"\0guest\0guest"), &short(b"en_US")];
        raw.method(0, 10, 11, &start_ok.concat());
        raw.expect(10, 30);
        let frame_max = (frame_max as u32).to_be_bytes();
        raw.method(0, 10, 31, &[&[7, 255][..], &frame_max, &[0, 0]].concat());
        raw.method(0, 10, 40, &[&short(b"/")[..], &short(b""), &[0]].concat());
        raw.expect(10, 41);
        raw.ask(20, 10, &short(b"")); // channel.open
        raw.ask(85, 10, &[0]); // confirm.select
        raw
    }

    /// Declares an exclusive queue, consumes from it and returns its name.
    pub fn reply_queue(&mut self) -> String {
        const EXCLUSIVE: u8 = 4;
        let declare = [&[0, 0][..], &short(b""), &[EXCLUSIVE], &NO_TABLE];
        let declared = self.ask(50, 10, &declare.concat());
        let name = &declared[1..=usize::from(declared[0])];
        self.consume(name);
        String::from_utf8(name.to_vec()).unwrap()
    }

    /// Consumes replies from this queue, or from the pseudo-queue of direct reply-to.
    pub fn consume(&mut self, queue: &[u8]) {
        const NO_ACK: u8 = 2;
        let consume = [&[0, 0][..], &short(queue), &short(b""), &[NO_ACK], &NO_TABLE];
        self.ask(60, 20, &consume.concat());
    }

    /// Declares a fanout exchange that is bound to the queue and deleted with its last binding.
    pub fn fanout_to(&mut self, queue: &str) -> String {
        const AUTO_DELETE: u8 = 4;
        let exchange = format!("to {queue}");
        let name = short(exchange.as_bytes());
        let declare = [&[0, 0][..], &name, &short(b"fanout"), &[AUTO_DELETE], &NO_TABLE];
        self.ask(40, 10, &declare.concat());
        let bind = [&[0, 0][..], &short(queue.as_bytes()), &name, &short(b""), &[0], &NO_TABLE];
        self.ask(50, 20, &bind.concat());
        exchange
    }

    /// Sends a request whose reply [`Raw::reply`] returns. When this returns, the request is in the
    /// queue.
    pub fn request(&mut self, queue: &str, body: &[u8]) {
        self.request_with(queue, Properties::default(), body);
    }

    /// The same, with these properties before the `reply_to`.
    pub fn request_with(&mut self, queue: &str, properties: Properties, body: &[u8]) {
        let properties = properties.reply_to(self.reply_queue().as_bytes());
        assert_eq!(self.publish("", queue.as_bytes(), &properties, body), Verdict::Confirmed);
    }

    /// Publishes a message and waits for the broker's verdict.
    pub fn publish(
        &mut self,
        exchange: &str,
        routing_key: &[u8],
        properties: &Properties,
        body: &[u8],
    ) -> Verdict {
        const MANDATORY: u8 = 1;
        let publish = [&[0, 0][..], &short(exchange.as_bytes()), &short(routing_key), &[MANDATORY]];
        let mut header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes()].concat();
        header.extend(properties.flags.to_be_bytes());
        header.extend(&properties.bytes);
        let sent = self
            .try_method(1, 60, 40, &publish.concat())
            .and_then(|()| self.frame(HEADER, 1, &header))
            .and_then(|()| {
                body.chunks(self.frame_max - 8).try_for_each(|part| self.frame(BODY, 1, part))
            });
        // A broker that refuses a message may close the connection before the message is written.
        // What the broker sent before can still be read.
        let _ = sent;
        let mut returned = false;
        loop {
            let Some(method) = self.next_method() else { return Verdict::HungUp };
            match (method[1], method[3]) {
                (60, 80) if returned => return Verdict::Returned,
                (60, 80) => return Verdict::Confirmed,
                (60, 50) => returned = true,
                (20, 40) | (10, 50) => {
                    return Verdict::Refused(u16::from_be_bytes([method[4], method[5]]));
                }
                other => panic!("the broker sent method {other:?}"),
            }
        }
    }

    /// The next reply.
    pub fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return reply;
            }
            self.take_method_or_reply().expect("the broker hung up");
        }
    }

    /// Calls a method of channel 1 and returns the arguments of its -ok.
    fn ask(&mut self, class: u8, method: u8, arguments: &[u8]) -> Vec<u8> {
        self.method(1, class, method, arguments);
        self.expect(class, method + 1)
    }

    fn expect(&mut self, class: u8, method: u8) -> Vec<u8> {
        let payload = self.next_method().expect("the broker hung up");
        assert_eq!((payload[1], payload[3]), (class, method), "{}", payload.escape_ascii());
        payload[4..].to_vec()
    }

    fn method(&mut self, channel: u8, class: u8, method: u8, arguments: &[u8]) {
        self.try_method(channel, class, method, arguments).unwrap();
    }

    fn try_method(&mut self, channel: u8, class: u8, method: u8, args: &[u8]) -> io::Result<()> {
        self.frame(METHOD, channel, &[&[0, class, 0, method], args].concat())
    }

    fn frame(&mut self, kind: u8, channel: u8, payload: &[u8]) -> io::Result<()> {
        let size = (payload.len() as u32).to_be_bytes();
        self.tcp.write_all(&[&[kind, 0, channel][..], &size, payload, &[FRAME_END]].concat())
    }

    /// The payload of the next method frame, or none at the connection's end. Replies that arrive
    /// before it are kept for [`Raw::reply`].
    fn next_method(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(method) = self.take_method_or_reply()? {
                return Some(method);
            }
        }
    }

    fn take_method_or_reply(&mut self) -> Option<Option<Vec<u8>>> {
        const RETURN: [u8; 4] = [0, 60, 0, 50];
        const DELIVER: [u8; 4] = [0, 60, 0, 60];
        let (kind, method) = self.next_frame()?;
        assert_eq!(kind, METHOD);
        if !method.starts_with(&RETURN) && !method.starts_with(&DELIVER) {
            return Some(Some(method));
        }
        let header = self.next_frame()?.1;
        let size = u64::from_be_bytes(header[4..12].try_into().unwrap()) as usize;
        let mut body = Vec::new();
        while body.len() < size {
            body.extend(self.next_frame()?.1);
        }
        if method.starts_with(&RETURN) {
            return Some(Some(method));
        }
        self.replies.push_back(Reply { header, body });
        Some(None)
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(size) = self.received.get(3..7) {
                let size = u32::from_be_bytes(size.try_into().unwrap()) as usize;
                if self.received.len() >= size + 8 {
                    let frame: Vec<u8> = self.received.drain(..size + 8).collect();
                    return Some((frame[0], frame[7..size + 7].to_vec()));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            self.tcp.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let mut bytes = [0; 16 << 10];
            match self.tcp.read(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => self.received.extend(&bytes[..length]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("the broker sent nothing for {PATIENCE:?}: {error}"),
            }
        }
    }
}
