//! The processes: servers and clients of the soak, how they are started, ended, and judged when
//! they end.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::{DIED, HUNG, Ledger};
use super::{PATIENCE, Service, roles};
use crate::process::Process;

/// Longer than a call's deadline and the second that closing may take, and longer than a server
/// waits for its requests in progress.
const END_TIMEOUT: Duration = Duration::from_secs(40);

/// Half of the processes come through the network that swallows packets; the first two of either
/// kind live from beginning to end.
pub struct Fleet {
    ledger: Arc<Ledger>,
    direct: Vec<String>,
    proxied: Vec<String>,
    servers: Vec<Process>,
    clients: Vec<Process>,
}

impl Fleet {
    pub const SERVERS: usize = 4;
    pub const CLIENTS: usize = 3;
    /// The first that faults may end.
    pub const MORTAL: usize = 2;

    /// With every node's URL, straight and through its proxy.
    pub fn launch(ledger: Arc<Ledger>, direct: Vec<String>, proxied: Vec<String>) -> Fleet {
        let (servers, clients) = (Vec::new(), Vec::new());
        let mut fleet = Fleet { ledger, direct, proxied, servers, clients };
        for place in 0..Fleet::SERVERS {
            let server = fleet.start_server(place);
            fleet.servers.push(server);
        }
        for place in 0..Fleet::CLIENTS {
            let client = fleet.start_client(place);
            fleet.clients.push(client);
        }
        fleet
    }

    pub fn kill_server(&mut self, place: usize) {
        self.servers[place].kill();
        self.servers[place] = self.start_server(place);
    }

    /// Returns once another has taken its place.
    pub fn terminate_server(&mut self, place: usize) {
        terminate(&mut self.servers[place], &self.ledger, END_TIMEOUT);
        self.servers[place] = self.start_server(place);
    }

    pub fn kill_client(&mut self) {
        let client = &mut self.clients[Fleet::MORTAL];
        client.kill();
        // Its last words may still be on their way.
        client.ends_within(END_TIMEOUT);
        self.ledger.close(client.pid(), true);
        self.clients[Fleet::MORTAL] = self.start_client(Fleet::MORTAL);
    }

    pub fn terminate_client(&mut self) {
        let client = &mut self.clients[Fleet::MORTAL];
        terminate(client, &self.ledger, END_TIMEOUT);
        self.ledger.close(client.pid(), false);
        self.clients[Fleet::MORTAL] = self.start_client(Fleet::MORTAL);
    }

    /// Looks for processes that have ended unasked, and puts others in their places.
    pub fn muster(&mut self) {
        for place in 0..Fleet::SERVERS {
            if !self.servers[place].runs() {
                report_death(&mut self.servers[place], &self.ledger);
                self.servers[place] = self.start_server(place);
            }
        }
        for place in 0..Fleet::CLIENTS {
            if !self.clients[place].runs() {
                report_death(&mut self.clients[place], &self.ledger);
                self.ledger.close(self.clients[place].pid(), false);
                self.clients[place] = self.start_client(place);
            }
        }
    }

    pub fn end_clients(&mut self) {
        for client in &mut self.clients {
            terminate(client, &self.ledger, END_TIMEOUT);
            self.ledger.close(client.pid(), false);
        }
    }

    pub fn end_servers(&mut self) {
        for server in &mut self.servers {
            terminate(server, &self.ledger, END_TIMEOUT);
        }
    }

    pub fn clients(&self) -> Vec<u32> {
        self.clients.iter().map(Process::pid).collect()
    }

    /// The processes that live from beginning to end, with what to call them.
    pub fn steady(&self) -> Vec<(String, u32)> {
        let servers = (0..Fleet::MORTAL).map(|place| {
            let name = if is_named(place) { "server with a name" } else { "rpc_server" };
            (name.to_owned(), self.servers[place].pid())
        });
        let clients = (0..Fleet::MORTAL).map(|place| {
            let name = if is_proxied_client(place) { "client by proxy" } else { "client" };
            (name.to_owned(), self.clients[place].pid())
        });
        servers.chain(clients).collect()
    }

    /// Either service has one server that goes straight to its node, and one that does not.
    fn start_server(&self, place: usize) -> Process {
        let urls = self.urls(place, place == 1 || place == 2);
        let name = format!("server {place}");
        let until = Instant::now() + PATIENCE;
        loop {
            let (mut server, ready) = if is_named(place) {
                (self.spawn_role("soak::roles::server", &urls, &name), "soak ready")
            } else {
                let queue = Service::Fibonacci.queue();
                let args = ["--url", &urls, "--queue", queue, "--queue-type", "quorum"];
                let args = [&args[..], &["--workers", "2", "--prefetch", "4"]].concat();
                let mut command = Command::new(env!("CARGO_BIN_EXE_rpc_server"));
                (self.spawn(command.args(args), &name), "Awaiting RPC requests")
            };
            if server.find_line(ready, PATIENCE).is_ok() {
                return server;
            }
            // A cluster that is still healing may have nobody to connect to.
            assert!(Instant::now() < until, "no server comes up: {}", server.stderr());
        }
    }

    fn start_client(&self, place: usize) -> Process {
        let urls = self.urls(place, is_proxied_client(place));
        self.spawn_role("soak::roles::client", &urls, &format!("client {place}"))
    }

    fn spawn_role(&self, role: &str, urls: &str, name: &str) -> Process {
        let mut command = Command::new(env::current_exe().unwrap());
        self.spawn(command.args(["--exact", role, "--nocapture"]).env(roles::URLS, urls), name)
    }

    fn spawn(&self, command: &mut Command, name: &str) -> Process {
        let (ledger, name) = (Arc::clone(&self.ledger), name.to_owned());
        Process::watched(command, move |line| ledger.take(&name, line))
    }

    /// All nodes, each process with another first.
    pub fn urls(&self, place: usize, proxied: bool) -> String {
        let mut urls = if proxied { self.proxied.clone() } else { self.direct.clone() };
        let nodes = urls.len();
        urls.rotate_left(place % nodes);
        urls.join(",")
    }
}

fn is_named(place: usize) -> bool {
    place % 2 == 1
}

fn is_proxied_client(place: usize) -> bool {
    place > 0
}

/// Ends it in good order, and notes if that fails or takes longer than `limit`.
pub fn terminate(process: &mut Process, ledger: &Ledger, limit: Duration) {
    if !process.runs() {
        return report_death(process, ledger);
    }
    process.signal("TERM");
    match process.ends_within(limit) {
        Some(status) if status.success() => {}
        Some(status) => report(process, ledger, DIED, &format!("ended with {status}")),
        None => {
            process.kill();
            report(process, ledger, HUNG, &format!("ran {limit:?} after SIGTERM"));
        }
    }
}

fn report_death(process: &mut Process, ledger: &Ledger) {
    let status = process.ends_within(END_TIMEOUT);
    report(process, ledger, DIED, &format!("ended unasked: {status:?}"));
}

fn report(process: &mut Process, ledger: &Ledger, heading: &'static str, what: &str) {
    let pid = process.pid();
    let said: Vec<&str> = process.stderr().lines().rev().take(20).collect();
    let said: Vec<&str> = said.into_iter().rev().collect();
    ledger.offend(heading, format!("process {} {what}; its last words:\n{}", pid, said.join("\n")));
}
