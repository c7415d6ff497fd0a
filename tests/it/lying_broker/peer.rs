//! A peer that does the handshake of a broker, and then sends random frames at any time, or answers
//! as a broker that declares no queue, as one that says why not, or as one that refuses a request
//! while it reads slowly.

mod lies;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::random::Random;

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;

/// Listens on a free port until the test's process ends.
pub struct Peer {
    pub port: u16,
    /// Number of random frames sent.
    pub sent: Arc<AtomicU64>,
    /// Gets a message when a connection has ended.
    pub ends: Receiver<()>,
}

impl Peer {
    /// Sends random frames. The seed determines which, as long as its clients always send the same.
    pub fn lying(seed: u64) -> Peer {
        Peer::start(seed, true, None)
    }

    /// Answers all but the declaration of a queue.
    pub fn declaring_no_queue() -> Peer {
        Peer::start(0, false, None)
    }

    /// Finds no queue, and closes each connection that declares one with code 541 and this text.
    pub fn refusing_queues(text: &'static str) -> Peer {
        Peer::start(0, false, Some(text))
    }

    /// Refuses a request of 2,000 bytes as too large once `may_refuse` gets a message, and reads
    /// nothing else until then. Returns the small requests that it receives.
    pub fn refusing(may_refuse: Receiver<()>) -> (u16, Receiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (received, requests) = unbounded();
        thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            let (sent, ids) = (Arc::default(), Vec::new());
            let random = Random::new(1);
            let refusal = None;
            let talk = Conversation { tcp, random, lies: true, refusal, sent, calm: 1, ids };
            // An error means that the client has closed the connection.
            drop(talk.refuse(&may_refuse, &received));
        });
        (port, requests)
    }

    fn start(seed: u64, lies: bool, refusal: Option<&'static str>) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&sent);
        let (ended, ends) = unbounded();
        thread::spawn(move || {
            for (number, tcp) in (0..).zip(listener.incoming().flatten()) {
                let mut random = Random::new(seed.rotate_left(32) ^ number);
                let (sent, ids, ended) = (Arc::clone(&counted), Vec::new(), ended.clone());
                thread::spawn(move || {
                    let calm = random.pick(&[1, 10, 500]);
                    // An error means that the client has closed the connection.
                    drop(Conversation { tcp, random, lies, refusal, sent, calm, ids }.run());
                    // Sending fails if the test is over.
                    let _ = ended.send(());
                });
            }
        });
        Peer { port, sent, ends }
    }
}

struct Conversation {
    tcp: TcpStream,
    random: Random,
    lies: bool,
    /// Why no queue can be declared.
    refusal: Option<&'static str>,
    sent: Arc<AtomicU64>,
    /// By which factor frames that end the connection are rarer, so that more of the others reach
    /// a working session.
    calm: usize,
    /// The properties of the requests received so far.
    ids: Vec<Vec<u8>>,
}

impl Conversation {
    fn run(mut self) -> io::Result<()> {
        // One connection in eight gets random frames from the beginning.
        let starts_at_once = self.random.below(8) == 0 && self.lies;
        self.start()?;
        let mut is_set_up = false;
        loop {
            let (kind, channel, payload) = self.read_frame()?;
            if kind == HEADER {
                self.ids.push(payload[12.min(payload.len())..].to_vec());
            }
            if kind == METHOD {
                self.answer(channel, &payload)?;
                // basic.publish or basic.consume
                is_set_up |= self.lies && payload[1] == 60 && [20, 40].contains(&payload[3]);
            }
            if is_set_up || starts_at_once {
                for _ in 0..self.random.below(40) {
                    self.send_random()?;
                }
            }
        }
    }

    fn refuse(mut self, may_refuse: &Receiver<()>, received: &Sender<Vec<u8>>) -> io::Result<()> {
        const TOO_LARGE: &[u8] =
            b"PRECONDITION_FAILED - message size 2000 is larger than configured max size 1000";
        self.start()?;
        let mut closing = None;
        loop {
            let (kind, channel, payload) = self.read_frame()?;
            match kind {
                METHOD => {
                    // channel.close-ok: the next channel may have the same number.
                    closing = closing.filter(|_| payload[..4] != [0, 20, 0, 41]);
                    self.answer(channel, &payload)?;
                }
                // A broker ignores what comes on a channel that it has closed.
                BODY if closing == Some(channel) => {}
                BODY if payload.len() == 2000 => {
                    let _ = may_refuse.recv();
                    let close = [&[1, 150][..], &short(TOO_LARGE), &[0, 60, 0, 40]].concat();
                    self.method(channel, 20, 40, &close)?;
                    closing = Some(channel);
                    // The client reads this before its socket is writable again.
                    thread::sleep(Duration::from_millis(500));
                }
                BODY => drop(received.send(payload)),
                _ => {}
            }
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
        self.tcp.set_nodelay(true)?;
        self.tcp.read_exact(&mut [0; 8])?;
        let start = [&[0, 9][..], &[0; 4], &long(b"PLAIN"), &long(b"en_US")].concat();
        self.method(0, 10, 10, &start)
    }

    /// Its type, its channel and its payload.
    fn read_frame(&mut self) -> io::Result<(u8, u16, Vec<u8>)> {
        let mut prefix = [0; 7];
        self.tcp.read_exact(&mut prefix)?;
        let size = u32::from_be_bytes([prefix[3], prefix[4], prefix[5], prefix[6]]);
        let mut payload = vec![0; size as usize + 1];
        self.tcp.read_exact(&mut payload)?;
        payload.pop();
        Ok((prefix[0], u16::from_be_bytes([prefix[1], prefix[2]]), payload))
    }

    /// Answers as a broker does.
    fn answer(&mut self, channel: u16, method: &[u8]) -> io::Result<()> {
        let frame_max = 131_072_u32.to_be_bytes();
        let heartbeat = [0, self.lies.into()];
        match (method[1], method[3]) {
            (10, 11) => self.method(0, 10, 30, &[&[7, 255][..], &frame_max, &heartbeat].concat()),
            (10, 40) => self.method(0, 10, 41, &[0]),
            (10, 50) => self.method(0, 10, 51, &[]),
            (20, 10) => self.method(channel, 20, 11, &[0; 4]),
            (20, 40) => self.method(channel, 20, 41, &[]),
            (50, 10) if self.lies => {
                let declared = [&short(b"amq.gen-peer")[..], &[0; 4], &[0, 0, 0, 1]].concat();
                self.method(channel, 50, 11, &declared)
            }
            (50, 10) if self.refusal.is_some() => {
                let is_passive = method[7 + usize::from(method[6])] & 1 == 1;
                let reason = self.refusal.expect("it refuses").as_bytes();
                match is_passive {
                    true => self.close(channel, 20, 404, b"NOT_FOUND - no queue 'q' in vhost '/'"),
                    false => self.close(0, 10, 541, reason),
                }
            }
            (60, 10) => self.method(channel, 60, 11, &[]),
            (60, 20) => self.method(channel, 60, 21, &short(b"tag")),
            (60, 30) => self.method(channel, 60, 31, &short(b"tag")),
            _ => Ok(()),
        }
    }

    /// Closes the connection (class 10) or a channel (class 20) because of a queue's declaration.
    fn close(&mut self, channel: u16, class: u16, code: u16, text: &[u8]) -> io::Result<()> {
        let close = [&code.to_be_bytes()[..], &short(text), &[0, 50, 0, 10]].concat();
        self.method(channel, class, if class == 10 { 50 } else { 40 }, &close)
    }

    fn method(
        &mut self,
        channel: u16,
        class: u16,
        method: u16,
        arguments: &[u8],
    ) -> io::Result<()> {
        let id = [class.to_be_bytes(), method.to_be_bytes()].concat();
        self.frame(METHOD, channel, &[&id, arguments].concat())
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![kind];
        frame.extend(channel.to_be_bytes());
        frame.extend((payload.len() as u32).to_be_bytes());
        frame.extend(payload);
        frame.push(FRAME_END);
        self.tcp.write_all(&frame)
    }
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8][..], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}
