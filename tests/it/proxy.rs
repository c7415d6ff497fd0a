//! A network that fails: a TCP proxy to a port of this machine that stops forwarding, closes
//! connections or refuses them, as the test says.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Forwards from a port of its own. Dropping it ends every connection.
pub struct Proxy {
    port: u16,
    gate: Arc<Gate>,
}

/// What the proxy does with its connections, present and future.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Accepts connections and keeps them open, but forwards nothing, not even the end of a
    /// connection, until the mode is [`Mode::Forward`] again.
    Stall,
    /// Stalls what the broker sends after the login.
    LoginsOnly,
    /// Accepts connections and closes them at once.
    Refuse,
}

impl Proxy {
    pub fn to(broker: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State {
            mode: Mode::Forward,
            delay: Duration::ZERO,
            is_dropped: false,
            tries: 0,
            logins: 0,
            held_back: 0,
            ends: Vec::new(),
        };
        let gate = Arc::new(Gate { state: Mutex::new(state), changed: Condvar::new() });
        let proxy = Proxy { port, gate: Arc::clone(&gate) };
        thread::spawn(move || {
            for inside in listener.incoming() {
                if !gate.take(inside.unwrap(), broker) {
                    return;
                }
            }
        });
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The broker's URL, through the proxy.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    pub fn set(&self, mode: Mode) {
        self.gate.state().mode = mode;
        self.gate.changed.notify_all();
    }

    /// Makes the broker as far away as this, in each direction.
    pub fn set_delay(&self, delay: Duration) {
        self.gate.state().delay = delay;
    }

    /// Closes every present connection, in any mode.
    pub fn cut(&self) {
        self.gate.state().cut();
    }

    /// Closes every present connection, of which nothing more passes, and refuses others.
    pub fn go_down(&self) {
        let mut state = self.gate.state();
        state.mode = Mode::Refuse;
        state.cut();
        drop(state);
        self.gate.changed.notify_all();
    }

    /// Number of connections so far, with the refused ones.
    pub fn tries(&self) -> usize {
        self.gate.state().tries
    }

    /// Number of logins so far.
    pub fn logins(&self) -> usize {
        self.gate.state().logins
    }

    /// Number of times that bytes arrived and the mode did not let them pass.
    pub fn held_back(&self) -> usize {
        self.gate.state().held_back
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.gate.state().is_dropped = true;
        self.gate.changed.notify_all();
        self.cut();
        // Wakes the accepting thread.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    /// How long each byte takes at least, and twice as long at most.
    delay: Duration,
    is_dropped: bool,
    tries: usize,
    logins: usize,
    held_back: usize,
    /// Both ends of the connections that may still be open.
    ends: Vec<TcpStream>,
}

impl State {
    fn holds_back(&self, logged_in: bool) -> bool {
        match self.mode {
            Mode::Stall => !self.is_dropped,
            Mode::LoginsOnly => !self.is_dropped && logged_in,
            Mode::Forward | Mode::Refuse => false,
        }
    }

    fn cut(&mut self) {
        for end in self.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Gate {
    /// Takes one connection. Returns false when the proxy has been dropped.
    fn take(self: &Arc<Gate>, inside: TcpStream, broker: u16) -> bool {
        let mut state = self.state();
        state.tries += 1;
        if !state.is_dropped && state.mode != Mode::Refuse {
            state.ends.push(inside.try_clone().unwrap());
            let gate = Arc::clone(self);
            thread::spawn(move || gate.serve(inside, broker));
        }
        !state.is_dropped
    }

    fn serve(self: Arc<Gate>, inside: TcpStream, broker: u16) {
        self.pass(false);
        // The broker may be down.
        let Ok(outside) = TcpStream::connect((Ipv4Addr::LOCALHOST, broker)) else { return };
        self.state().ends.push(outside.try_clone().unwrap());
        let (from, to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
        let there = Arc::clone(&self);
        thread::spawn(move || there.forward(from, to));
        self.forward(outside, inside);
    }

    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        /// connection.open-ok, the broker's last frame of a login: class 10, method 41.
        const OPEN_OK: &[u8] = &[0, 10, 0, 41];
        to.set_nodelay(true).unwrap();
        let (mut bytes, mut logged_in) = ([0; 16 << 10], false);
        while let Ok(length @ 1..) = from.read(&mut bytes) {
            thread::sleep(self.state().delay);
            self.pass_bytes(logged_in);
            if to.write_all(&bytes[..length]).is_err() {
                break;
            }
            if !logged_in && bytes[..length].windows(OPEN_OK.len()).any(|window| window == OPEN_OK)
            {
                logged_in = true;
                self.state().logins += 1;
            }
        }
        self.pass(logged_in);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// Waits while the mode lets nothing pass.
    fn pass(&self, logged_in: bool) {
        drop(self.changed.wait_while(self.state(), |state| state.holds_back(logged_in)).unwrap());
    }

    /// The same for bytes that have arrived.
    fn pass_bytes(&self, logged_in: bool) {
        let mut state = self.state();
        state.held_back += usize::from(state.holds_back(logged_in));
        drop(state);
        self.pass(logged_in);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}
