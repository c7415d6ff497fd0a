//! Faults in which the broker refuses something: a message, a login, a consumer.

use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Connection, ConsumerOptions, QueueDeclareOptions};

use super::ledger::Ledger;
use super::processes::{END_TIMEOUT, terminate};
use super::roles::TOO_LARGE;
use super::schedule::Right;
use super::totals::NOT_RECOVERED;
use super::{RECOVERY_TIMEOUT, Service};
use crate::broker::Broker;
use crate::certificates::Certificates;
use crate::process::Process;
use crate::programs::{RPC_CLIENT, RPC_SERVER};
use crate::queue;
use crate::raw::{DIRECT_REPLY_TO, Properties, Raw, entry, long};

/// The user of all clients and servers.
const USER: &str = "soak";
const PASSWORD: &str = "secret";
const EXCLUSIVE_QUEUE: &str = "soak-exclusive";

pub struct Refusals {
    ledger: Arc<Ledger>,
    certificates: Certificates,
    exclusive: Option<Exclusive>,
    requests: usize,
}

/// A server and the program that keeps it from its queue.
struct Exclusive {
    server: Process,
    other: Connection,
}

impl Refusals {
    pub fn new(ledger: Arc<Ledger>, certificates: Certificates) -> Refusals {
        Refusals { ledger, certificates, exclusive: None, requests: 0 }
    }

    pub fn login() -> String {
        format!("{USER}:{PASSWORD}")
    }

    pub fn add_user(&self, broker: &Broker) {
        broker.ctl(&["add_user", USER, PASSWORD]);
        self.permit(broker);
    }

    fn permit(&self, broker: &Broker) {
        broker.ctl(&["set_permissions", USER, ".*", ".*", ".*"]);
    }

    /// The broker looks at a right when a connection or a channel begins, so all are ended.
    pub fn withdraw(&self, broker: &Broker, right: Right) {
        let limit = |what: &str| broker.ctl(&["set_vhost_limits", &format!(r#"{{"{what}": 0}}"#)]);
        match right {
            Right::Permissions => broker.ctl(&["clear_permissions", USER]),
            Right::Password => broker.ctl(&["change_password", USER, "another"]),
            Right::User => broker.ctl(&["delete_user", USER]),
            Right::Connections => limit("max-connections"),
            Right::Queues => limit("max-queues"),
        };
        close_connections(broker);
    }

    pub fn restore(&self, broker: &Broker, right: Right) {
        match right {
            Right::Permissions => self.permit(broker),
            Right::Password => drop(broker.ctl(&["change_password", USER, PASSWORD])),
            Right::User => self.add_user(broker),
            Right::Connections | Right::Queues => drop(broker.ctl(&["clear_vhost_limits"])),
        }
    }

    /// Each gets some reply.
    pub fn send_hostile_requests(&mut self, broker: &Broker) {
        let mut raw = Raw::connect(broker.port(0));
        raw.consume(DIRECT_REPLY_TO.as_bytes());
        // The broker makes the reply address longer, and the header no longer fits into a frame.
        let direct = |length| {
            Properties::default()
                .headers(&entry(b"long", b'S', &long(&vec![b'7'; length])))
                .reply_to(DIRECT_REPLY_TO.as_bytes())
        };
        let length = 131_072 - (8 + 12 + 2 + direct(0).bytes.len());
        self.request(&mut raw, Service::Fibonacci, &direct(length), "7");
        let reply_queue = raw.reply_queue();
        let properties = Properties::default().reply_to(reply_queue.as_bytes());
        for body in
            [format!("reply {TOO_LARGE}"), format!("failure {TOO_LARGE}"), "header 1".into()]
        {
            self.request(&mut raw, Service::Named, &properties, &body);
        }
    }

    /// A channel keeps the timeout and the interval at which it looks for it.
    pub fn exceed_consumer_timeout(&mut self, broker: &Broker) {
        let set = |timeout: u32, interval: u32| {
            let set = format!(
                "[rpc:call(Node, application, set_env, [rabbit, Key, Value]) || \
                 Node <- rabbit_nodes:all_running(), \
                 {{Key, Value}} <- [{{consumer_timeout, {timeout}}}, \
                 {{channel_tick_interval, {interval}}}]]."
            );
            broker.ctl(&["eval", &set]);
            close_connections(broker);
        };
        set(2_000, 500);
        let mut raw = Raw::connect(broker.port(0));
        let reply_queue = raw.reply_queue();
        let properties = Properties::default().reply_to(reply_queue.as_bytes());
        self.request(&mut raw, Service::Named, &properties, "sleep 5000");
        drop(raw);
        set(1_800_000, 60_000);
    }

    fn request(&mut self, raw: &mut Raw, service: Service, properties: &Properties, body: &str) {
        self.requests += 1;
        let id = format!("{}-{}", process::id(), self.requests);
        self.ledger.started(&id, Service::Hostile, Service::Hostile.timeout());
        let began = Instant::now();
        raw.publish("", service.queue().as_bytes(), properties, body.as_bytes());
        raw.reply();
        self.ledger.ended(&id, began.elapsed(), "right server");
    }

    /// Starts a server, and deletes its queue and consumes from another before the server does.
    pub fn consume_exclusively(&mut self, broker: &Broker, urls: &str) {
        let args = ["--url", urls, "--queue", EXCLUSIVE_QUEUE];
        let mut server = Process::spawn(RPC_SERVER, &args);
        server.wait_for_line("Awaiting RPC requests", RECOVERY_TIMEOUT);
        let mut other = queue::connect(&broker.url_of(0));
        let channel = other.open_channel(None).unwrap();
        channel.queue_delete(EXCLUSIVE_QUEUE, Default::default()).unwrap();
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(EXCLUSIVE_QUEUE, options).unwrap();
        let options = ConsumerOptions { exclusive: true, ..Default::default() };
        // Their ends would cancel it.
        std::mem::forget(channel.basic_consume(EXCLUSIVE_QUEUE, options).unwrap());
        std::mem::forget(channel);
        self.exclusive = Some(Exclusive { server, other });
    }

    /// The server then serves again.
    pub fn stop_consuming(&mut self, broker: &Broker, urls: &str) {
        let Exclusive { mut server, other } = self.exclusive.take().expect("it consumes");
        other.close().unwrap();
        let args = ["--url", urls, "--queue", EXCLUSIVE_QUEUE, "--timeout", "60", "7"];
        let mut client = Process::spawn(RPC_CLIENT, &args);
        let status = client.ends_within(RECOVERY_TIMEOUT);
        if client.stdout() != "13\n" {
            let what = format!("exclusive consumer: {status:?}, {}", client.stderr());
            self.ledger.record_violation(NOT_RECOVERED, what);
        }
        terminate(&mut server, &self.ledger, END_TIMEOUT);
        queue::delete(&broker.url_of(0), EXCLUSIVE_QUEUE);
    }

    /// For a moment, in which a server connects, the two files do not fit together.
    pub fn renew_certificates(&self, broker: &Broker) {
        self.certificates.renew("client", || {
            close_connections(broker);
            thread::sleep(Duration::from_secs(2));
        });
    }
}

fn close_connections(broker: &Broker) {
    broker.ctl(&["close_all_connections", "fault of the soak"]);
}
