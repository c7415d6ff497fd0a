//! A way to the broker that a test can close.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use rabbitmq_rpc::{Error, RpcClient};

use super::HandServer;

/// Forwards TCP connections to a port of this machine, for as long as it is told to.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Connections are taken and stay open, and not a byte passes.
    Swallow,
    /// Whoever connects is hung up on.
    Refuse,
}

struct Shared {
    state: Mutex<State>,
}

struct State {
    mode: Mode,
    over: bool,
    /// How many connections were made so far.
    tries: usize,
    /// Both ends of those that may still be open.
    streams: Vec<TcpStream>,
}

impl Proxy {
    pub fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { mode: Mode::Forward, over: false, tries: 0, streams: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state) });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for inner in listener.incoming() {
                if !accepting.take(inner.unwrap(), to) {
                    return;
                }
            }
        });
        Proxy { port, shared }
    }

    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    pub fn set(&self, mode: Mode) {
        self.shared.state.lock().unwrap().mode = mode;
    }

    /// Ends every connection there is, and returns once `client` has noticed. Whoever calls
    /// before that may still lose the call with the connection.
    pub fn cut_under(&self, client: &RpcClient, server: &HandServer) {
        let call = client.send("lost").unwrap();
        server.next();
        self.cut();
        let error = call.wait().unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        assert!(error.may_have_executed());
    }

    /// Ends every connection there is.
    pub fn cut(&self) {
        for stream in self.shared.state.lock().unwrap().streams.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn tries(&self) -> usize {
        self.shared.state.lock().unwrap().tries
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut();
        self.shared.state.lock().unwrap().over = true;
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    /// False once nobody needs the proxy any more.
    fn take(self: &Arc<Shared>, inner: TcpStream, to: u16) -> bool {
        let mut state = self.state.lock().unwrap();
        state.tries += 1;
        if state.over || state.mode == Mode::Refuse {
            return !state.over;
        }
        if state.mode == Mode::Swallow {
            state.streams.push(inner);
            return true;
        }
        let outer = TcpStream::connect((Ipv4Addr::LOCALHOST, to)).unwrap();
        for (from, into) in [(&inner, &outer), (&outer, &inner)] {
            from.set_nodelay(true).unwrap();
            let (from, into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
            let shared = Arc::clone(self);
            thread::spawn(move || shared.forward(from, into));
        }
        state.streams.extend([inner, outer]);
        true
    }

    fn forward(&self, mut from: TcpStream, mut into: TcpStream) {
        let mut buffer = [0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let swallow = self.state.lock().unwrap().mode == Mode::Swallow;
            if !swallow && into.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = into.shutdown(Shutdown::Both);
    }
}
