//! Random frames, most of which no broker sends.

use std::io::{self, Write};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use super::{BODY, Conversation, HEADER, HEARTBEAT, METHOD, long, short};

/// Class and method of all that a broker may send, and of some that it may not.
const METHODS: [(u16, u16); 30] = [
    (10, 10),
    (10, 20),
    (10, 30),
    (10, 41),
    (10, 50),
    (10, 51),
    (10, 60),
    (10, 61),
    (20, 11),
    (20, 20),
    (20, 21),
    (20, 40),
    (20, 41),
    (40, 11),
    (50, 11),
    (50, 21),
    (50, 31),
    (60, 11),
    (60, 21),
    (60, 30),
    (60, 31),
    (60, 40),
    (60, 50),
    (60, 60),
    (60, 71),
    (60, 72),
    (60, 80),
    (60, 120),
    (85, 11),
    (90, 11),
];

impl Conversation {
    pub fn send_random(&mut self) -> io::Result<()> {
        self.sent.fetch_add(1, Ordering::Relaxed);
        // What comes on a channel that is not open ends the connection.
        let channel = match self.random.below(24 * self.calm) {
            0 => self.random.pick(&[0, 3, 4, 77, 65535]),
            _ => self.random.pick(&[1, 1, 1, 2, 2]),
        };
        match self.random.below(48 * self.calm) {
            0 => {
                let noise = self.random.bytes(64);
                self.tcp.write_all(&noise)
            }
            1 => {
                let (kind, payload) = (self.random.next() as u8, self.random.bytes(64));
                self.frame(kind, channel, &payload)
            }
            2 => {
                // The start of a frame, and then the end of the connection.
                self.tcp.write_all(&[METHOD, 0, 1, 0, 0])?;
                thread::sleep(Duration::from_millis(self.random.next() % 300));
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            3 => self.frame(METHOD, 0, &[&[0, 10, 0, 10, 0, 9][..], &nested_table(5000)].concat()),
            4..=9 => {
                let (class, method) = self.random.pick(&METHODS);
                let arguments = self.random.bytes(40);
                self.method(channel, class, method, &arguments)
            }
            10..=12 => self.method(0, 10, 60, &short(b"low on memory")),
            13..=16 => self.method(0, 10, 61, &[]),
            17 => self.method(channel, 20, 40, &[&[1, 150][..], &short(b"GONE"), &[0; 4]].concat()),
            18 => self.method(0, 10, 50, &[&[2, 29][..], &short(b"ERROR"), &[0; 4]].concat()),
            19 => self.method(channel, 60, 30, &[&short(b"tag")[..], &[1]].concat()),
            20..=22 => self.frame(HEARTBEAT, 0, &[]),
            23 => self.frame(HEADER, channel, &[0, 60]),
            24 => {
                let body = self.random.bytes(100);
                self.frame(BODY, channel, &body)
            }
            25..=30 => {
                let returned =
                    [&[1, 56][..], &short(b"NO_ROUTE"), &short(b""), &short(b"q")].concat();
                self.method(channel, 60, 50, &returned)?;
                self.content(channel)
            }
            _ => {
                let tag = self.random.next() % 9;
                let redelivered = self.random.below(2) as u8;
                let delivery = [
                    &short(b"tag")[..],
                    &tag.to_be_bytes(),
                    &[redelivered],
                    &short(b""),
                    &short(b"q"),
                ];
                self.method(channel, 60, 60, &delivery.concat())?;
                self.content(channel)
            }
        }
    }

    /// A content header and a body. Either may be wrong.
    fn content(&mut self, channel: u16) -> io::Result<()> {
        let body = match self.random.below(4) {
            0 => self.random.bytes(300),
            _ => b"13".to_vec(),
        };
        let announced = match self.random.below(16 * self.calm) {
            0 => 1 << 63,
            1 => 1 << 28,
            2 => body.len() as u64 + self.random.next() % 3,
            _ => body.len() as u64,
        };
        let properties = match self.random.below(6) {
            0 => self.random.bytes(60),
            1 => [&[0x20, 0][..], &nested_table(3000)].concat(),
            2 => vec![0, 0],
            // The properties of a received request: valid for a reply and for a request.
            _ if !self.ids.is_empty() => self.ids[self.random.below(self.ids.len())].clone(),
            _ => [&[0x06, 0][..], &short(b"1"), &short(b"nowhere")].concat(),
        };
        let header = [&[0, 60, 0, 0][..], &announced.to_be_bytes(), &properties].concat();
        self.frame(HEADER, channel, &header)?;
        self.frame(BODY, channel, &body)
    }
}

/// Tables that nest each other `depth` levels deep.
fn nested_table(depth: usize) -> Vec<u8> {
    (0..depth).fold(long(b""), |inner, _| long(&[&short(b"t")[..], b"F", &inner].concat()))
}
