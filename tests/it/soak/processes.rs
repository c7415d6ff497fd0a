//! Starts, stops and replaces the client and server processes of the soak, and records processes
//! that hang or fail as violations.

use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rabbitmq_rpc::TlsFiles;

use super::ledger::Ledger;
use super::totals::{DIED, HUNG};
use super::{RECOVERY_TIMEOUT, Service, roles};
use crate::process::Process;
use crate::programs::RPC_SERVER;

/// Longer than a call's deadline plus one second for closing, and longer than a server waits for
/// its requests in progress.
pub const END_TIMEOUT: Duration = Duration::from_secs(40);

/// The server that connects with TLS.
const TLS_SERVER: usize = 2;

/// Some of the processes connect through the proxies, which can stall. No fault ends the first
/// [`Processes::LONG_LIVED`] clients and servers.
pub struct Processes {
    ledger: Arc<Ledger>,
    addresses: Addresses,
    servers: Vec<Process>,
    clients: Vec<Process>,
}

/// Every node's URL: direct, through its proxy, and with TLS through another proxy.
pub struct Addresses {
    pub direct: Vec<String>,
    pub proxied: Vec<String>,
    pub tls: Vec<String>,
    pub files: TlsFiles,
}

impl Processes {
    pub const SERVERS: usize = 4;
    pub const CLIENTS: usize = 3;
    /// Number of servers, and of clients, that no fault ends. Faults end those that follow.
    pub const LONG_LIVED: usize = 2;

    pub fn start(ledger: Arc<Ledger>, addresses: Addresses) -> Processes {
        let (servers, clients) = (Vec::new(), Vec::new());
        let mut processes = Processes { ledger, addresses, servers, clients };
        for number in 0..Processes::SERVERS {
            let server = processes.start_server(number);
            processes.servers.push(server);
        }
        for number in 0..Processes::CLIENTS {
            let client = processes.start_client(number);
            processes.clients.push(client);
        }
        processes
    }

    /// Returns once its replacement is ready.
    pub fn kill_server(&mut self, number: usize) {
        self.servers[number].kill();
        self.servers[number] = self.start_server(number);
    }

    /// Returns once its replacement is ready.
    pub fn terminate_server(&mut self, number: usize) {
        terminate(&mut self.servers[number], &self.ledger, END_TIMEOUT);
        self.servers[number] = self.start_server(number);
    }

    pub fn kill_client(&mut self) {
        let client = &mut self.clients[Processes::LONG_LIVED];
        client.kill();
        // The last lines of its output may not have been read yet.
        client.ends_within(END_TIMEOUT);
        self.ledger.close(client.pid(), true);
        self.clients[Processes::LONG_LIVED] = self.start_client(Processes::LONG_LIVED);
    }

    pub fn terminate_client(&mut self) {
        let client = &mut self.clients[Processes::LONG_LIVED];
        terminate(client, &self.ledger, END_TIMEOUT);
        self.ledger.close(client.pid(), false);
        self.clients[Processes::LONG_LIVED] = self.start_client(Processes::LONG_LIVED);
    }

    /// Has every client send requests that the broker refuses.
    pub fn send_refused_requests(&self) {
        self.clients.iter().for_each(|client| client.signal("USR1"));
    }

    /// Records each process that has ended by itself as a violation, and replaces it.
    pub fn replace_ended(&mut self) {
        for number in 0..Processes::SERVERS {
            if !self.servers[number].runs() {
                record_death(&mut self.servers[number], &self.ledger);
                self.servers[number] = self.start_server(number);
            }
        }
        for number in 0..Processes::CLIENTS {
            if !self.clients[number].runs() {
                record_death(&mut self.clients[number], &self.ledger);
                self.ledger.close(self.clients[number].pid(), false);
                self.clients[number] = self.start_client(number);
            }
        }
    }

    pub fn stop_clients(&mut self) {
        for client in &mut self.clients {
            terminate(client, &self.ledger, END_TIMEOUT);
            self.ledger.close(client.pid(), false);
        }
    }

    pub fn stop_servers(&mut self) {
        for server in &mut self.servers {
            terminate(server, &self.ledger, END_TIMEOUT);
        }
    }

    /// The process ids of the clients.
    pub fn clients(&self) -> Vec<u32> {
        self.clients.iter().map(Process::pid).collect()
    }

    /// Names and process ids of the processes that no fault ends.
    pub fn long_lived(&self) -> Vec<(String, u32)> {
        let servers = (0..Processes::LONG_LIVED).map(|number| {
            let name = if is_named(number) { "server with a name" } else { "rpc_server" };
            (name.to_owned(), self.servers[number].pid())
        });
        let clients = (0..Processes::LONG_LIVED).map(|number| {
            let name = if is_proxied_client(number) { "client by proxy" } else { "client" };
            (name.to_owned(), self.clients[number].pid())
        });
        servers.chain(clients).collect()
    }

    /// Each service has one server that connects directly and one that connects by proxy; one of
    /// the latter has TLS.
    fn start_server(&self, number: usize) -> Process {
        let urls = match number {
            TLS_SERVER => rotated(&self.addresses.tls, number),
            _ => self.urls(number, number == 1),
        };
        let name = format!("server {number}");
        let deadline = Instant::now() + RECOVERY_TIMEOUT;
        loop {
            let (mut server, ready) = if is_named(number) {
                (self.spawn_role("soak::roles::server", &urls, &name), "soak ready")
            } else {
                let queue = Service::Fibonacci.queue();
                let args = ["--url", &urls, "--queue", queue, "--queue-type", "quorum"];
                let args = [&args[..], &["--workers", "2", "--prefetch", "4"]].concat();
                let mut command = Command::new(RPC_SERVER);
                if number == TLS_SERVER {
                    let TlsFiles { ca, cert, key } = &self.addresses.files;
                    for (option, file) in
                        [("--tls-ca", ca), ("--tls-cert", cert), ("--tls-key", key)]
                    {
                        command.arg(option).args(file);
                    }
                }
                (self.spawn(command.args(args), &name), "Awaiting RPC requests")
            };
            if server.find_line(ready, RECOVERY_TIMEOUT).is_ok() {
                return server;
            }
            // While the cluster recovers, no node may accept connections.
            assert!(Instant::now() < deadline, "no server starts: {}", server.stderr());
        }
    }

    fn start_client(&self, number: usize) -> Process {
        let urls = self.urls(number, is_proxied_client(number));
        self.spawn_role("soak::roles::client", &urls, &format!("client {number}"))
    }

    fn spawn_role(&self, role: &str, urls: &str, name: &str) -> Process {
        let mut command = Command::new(env::current_exe().unwrap());
        self.spawn(command.args(["--exact", role, "--nocapture"]).env(roles::URLS, urls), name)
    }

    fn spawn(&self, command: &mut Command, name: &str) -> Process {
        let (ledger, name) = (Arc::clone(&self.ledger), name.to_owned());
        Process::watched(command, move |line| ledger.read_line(&name, line))
    }

    /// The URLs of all nodes. The process's number decides which node comes first.
    pub fn urls(&self, number: usize, proxied: bool) -> String {
        rotated(if proxied { &self.addresses.proxied } else { &self.addresses.direct }, number)
    }
}

fn rotated(urls: &[String], number: usize) -> String {
    let mut urls = urls.to_vec();
    let nodes = urls.len();
    urls.rotate_left(number % nodes);
    urls.join(",")
}

fn is_named(server: usize) -> bool {
    server % 2 == 1
}

fn is_proxied_client(client: usize) -> bool {
    client > 0
}

/// Sends SIGTERM. A process that then fails, or runs for longer than `limit`, is a violation.
pub fn terminate(process: &mut Process, ledger: &Ledger, limit: Duration) {
    if !process.runs() {
        return record_death(process, ledger);
    }
    process.signal("TERM");
    match process.ends_within(limit) {
        Some(status) if status.success() => {}
        // Another fault may keep the broker from saying it.
        Some(status)
            if status.code() == Some(75)
                && process.stderr().contains("has not said that it has the last replies") => {}
        Some(status) => record_violation(process, ledger, DIED, &format!("ended with {status}")),
        None => {
            process.kill();
            record_violation(process, ledger, HUNG, &format!("ran {limit:?} after SIGTERM"));
        }
    }
}

fn record_death(process: &mut Process, ledger: &Ledger) {
    let status = process.ends_within(END_TIMEOUT);
    record_violation(process, ledger, DIED, &format!("ended by itself: {status:?}"));
}

fn record_violation(process: &mut Process, ledger: &Ledger, heading: &'static str, what: &str) {
    let pid = process.pid();
    let lines: Vec<&str> = process.stderr().lines().rev().take(20).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    let lines = lines.join("\n");
    ledger.record_violation(
        heading,
        format!("process {pid} {what}; its last lines on standard error:\n{lines}"),
    );
}
