//! Sends a server bad requests one by one, each followed by a good one.

use rabbitmq_rpc::FibonacciRpcClient;

use crate::broker::{Broker, queue_name};
use crate::embedded::connect_fibonacci;
use crate::patience::{PATIENCE, await_value};
use crate::process::Process;
use crate::programs::{rpc_server_that_logs, stop};
use crate::raw::{Properties, Raw, Reply, Verdict};

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// A reply with this body, and the request's correlation id.
    Reply(&'static str),
    /// A reply without a correlation id, since the request had none that can be read.
    ReplyWithoutId,
    /// An error reply.
    Failure,
    /// The server logs one line, and removes the request from the queue.
    Rejected,
    /// The broker returns the reply to the server.
    ReturnedReply,
    /// The broker drops the reply silently.
    LostReply,
    /// RabbitMQ refuses the request with this code, and the server does not see it.
    RefusedByBroker(u16),
}
use Outcome::*;

/// A server, and counts of what happened to the requests sent to it.
pub struct Corpus {
    pub queue: String,
    server: Process,
    client: FibonacciRpcClient,
    counts: [u64; 4],
}

const ANSWERED: usize = 0;
const FAILED: usize = 1;
const REJECTED: usize = 2;
const RETURNED: usize = 3;

impl Corpus {
    pub fn start(name: &str) -> Corpus {
        let queue = queue_name(name);
        let server = rpc_server_that_logs(&queue, &[]);
        let client = connect_fibonacci(&Broker::shared().url(), &queue);
        Corpus { queue, server, client, counts: [0; 4] }
    }

    /// Sends a request with properties made from the requester's reply queue, and checks the outcome
    /// of this request and of a good one after it.
    pub fn send(
        &mut self,
        name: &str,
        outcome: Outcome,
        properties: impl FnOnce(&[u8]) -> Properties,
    ) {
        self.send_body(name, outcome, b"7", properties);
    }

    pub fn send_body(
        &mut self,
        name: &str,
        outcome: Outcome,
        body: &[u8],
        properties: impl FnOnce(&[u8]) -> Properties,
    ) {
        let mut raw = Raw::connect(Broker::shared().port(0));
        let reply_queue = raw.reply_queue();
        let properties = properties(reply_queue.as_bytes());
        let verdict = raw.publish("", self.queue.as_bytes(), &properties, body);
        self.check(name, outcome, verdict, &mut raw);
    }

    pub fn check(&mut self, name: &str, outcome: Outcome, verdict: Verdict, raw: &mut Raw) {
        let expected = match outcome {
            RefusedByBroker(code) => Verdict::Refused(code),
            _ => Verdict::Confirmed,
        };
        assert_eq!(verdict, expected, "{name}");
        let has_id = |reply: &Reply| contains(&reply.header, b"\x02id");
        match outcome {
            Reply(text) => {
                let reply = raw.reply();
                assert_eq!(reply.body.escape_ascii().to_string(), text, "{name}");
                assert!(has_id(&reply), "{name}: {}", reply.header.escape_ascii());
                self.counts[ANSWERED] += 1;
            }
            ReplyWithoutId => {
                let reply = raw.reply();
                assert_eq!(reply.body, b"13", "{name}");
                assert!(!has_id(&reply), "{name}: {}", reply.header.escape_ascii());
                self.counts[ANSWERED] += 1;
            }
            Failure => {
                let reply = raw.reply();
                assert!(contains(&reply.header, b"\x05error"), "{name}: {reply:?}");
                self.counts[FAILED] += 1;
            }
            Rejected => {
                self.server.wait_for_line("rejected a request", PATIENCE);
                self.counts[REJECTED] += 1;
            }
            ReturnedReply => {
                self.server.wait_for_line("requester is gone", PATIENCE);
                self.counts[RETURNED] += 1;
                self.counts[ANSWERED] += 1;
            }
            LostReply => self.counts[ANSWERED] += 1,
            RefusedByBroker(_) => return,
        }
        assert_eq!(self.client.call(7).as_ref(), Ok(&13), "the request after {name}");
        self.counts[ANSWERED] += 1;
    }

    /// Checks that no message is left, that the server kept its connection, and that its counters
    /// are right.
    pub fn finish(mut self) {
        // The last acknowledgement comes after the last reply.
        let queues = ["list_queues", "name", "messages", "messages_unacknowledged"];
        let is_empty = format!("{}\t0\t0\n", self.queue);
        await_value(|| Broker::shared().ctl(&queues), |queues| queues.contains(&is_empty));
        stop(&mut self.server);
        let log = self.server.stderr();
        let count = |text| log.lines().filter(|line| line.contains(text)).count() as u64;
        assert_eq!(count("taking requests from"), 1, "{log}");
        assert_eq!(count("trying again"), 0, "{log}");
        assert_eq!(count("is redelivered"), 0, "{log}");
        assert_eq!(count("rejected a request"), self.counts[REJECTED], "{log}");
        let [served, failed, rejected, returned] = self.counts;
        let counters = format!(
            "served: {served}, failed: {failed}, rejected: {rejected}, redelivered: 0, returned: \
             {returned}, in_progress: 0"
        );
        assert!(log.contains(&counters), "no {counters} in {log}");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
