//! A network that can be made to swallow packets: a TCP proxy that stops forwarding, and closes
//! nothing unless told to.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Forwards from a port of its own until [`Proxy::swallow`]. From then on connections stay open,
/// further ones are taken, and nothing comes out at the other end until [`Proxy::resume`].
pub struct Proxy {
    port: u16,
    gate: Arc<Gate>,
}

#[derive(Default)]
struct Gate {
    shut: Mutex<bool>,
    after_logins: AtomicBool,
    /// Both ends of every connection so far.
    connections: Mutex<Vec<TcpStream>>,
    opened: Condvar,
}

impl Proxy {
    /// A proxy to that port of this machine. Its threads end with the connections they serve.
    pub fn to(port: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy =
            Proxy { port: listener.local_addr().unwrap().port(), gate: Arc::<Gate>::default() };
        let gate = Arc::clone(&proxy.gate);
        thread::spawn(move || {
            for inside in listener.incoming().map_while(Result::ok) {
                let gate = Arc::clone(&gate);
                thread::spawn(move || serve(inside, port, &gate));
            }
        });
        proxy
    }

    pub fn url(&self, parameters: &str) -> String {
        format!("amqp://127.0.0.1:{}{parameters}", self.port)
    }

    pub fn swallow(&self) {
        *self.gate.shut.lock().unwrap() = true;
    }

    /// Lets every login through from now on, and then nothing.
    pub fn swallow_after_logins(&self) {
        self.gate.after_logins.store(true, Ordering::Relaxed);
    }

    /// Ends all connections, as a firewall does that lost its state.
    pub fn hang_up(&self) {
        for end in self.gate.connections.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub fn resume(&self) {
        *self.gate.shut.lock().unwrap() = false;
        self.gate.opened.notify_all();
    }
}

impl Gate {
    fn pass(&self) {
        drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
    }
}

fn serve(inside: TcpStream, port: u16, gate: &Arc<Gate>) {
    gate.pass();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let Ok(outside) = TcpStream::connect(address) else { return };
    let (from, to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
    let ends = [from.try_clone().unwrap(), to.try_clone().unwrap()];
    gate.connections.lock().unwrap().extend(ends);
    let there = Arc::clone(gate);
    thread::spawn(move || pump(from, to, &there));
    pump(outside, inside, gate);
}

/// The broker's last word of a login: class 10, method 41.
const OPEN_OK: &[u8] = &[0, 10, 0, 41];

fn pump(mut from: TcpStream, mut to: TcpStream, gate: &Gate) {
    let _ = to.set_nodelay(true);
    let (mut bytes, mut swallowing) = ([0; 4096], false);
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        gate.pass();
        if swallowing {
            continue;
        }
        swallowing = gate.after_logins.load(Ordering::Relaxed)
            && bytes[..length].windows(OPEN_OK.len()).any(|window| window == OPEN_OK);
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    // Who hangs up is swallowed like the rest.
    gate.pass();
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
