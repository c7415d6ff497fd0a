//! A private RabbitMQ for the tests, controlled through `scripts/broker.sh`.
//!
//! Most tests share one node, [`Broker::shared`], and use queues of their own by [`queue_name`].
//! Tests that kill, freeze or reconfigure a node take turns with [`Broker::fragile`]. All nodes end
//! with this process, also when it is killed: the script stops when its standard input closes.

mod script;

use std::net::TcpStream;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use script::Script;

use crate::patience::await_value;

/// One private node or cluster. Nodes are numbered from 0. A failure panics with a message that
/// says what to do.
pub struct Broker {
    script: Mutex<Script>,
}

impl Broker {
    /// The node that the tests of this binary share. The first test that needs it starts it.
    pub fn shared() -> &'static Broker {
        static SHARED: OnceLock<Broker> = OnceLock::new();
        SHARED.get_or_init(Broker::start)
    }

    /// The node for tests that kill or freeze it or raise an alarm, and then restore it. One test
    /// at a time has it. A test that fails may leave it in any state, so the next test gets a new
    /// one.
    pub fn fragile() -> MutexGuard<'static, Broker> {
        static FRAGILE: OnceLock<Mutex<Broker>> = OnceLock::new();
        let fragile = FRAGILE.get_or_init(|| Mutex::new(Broker::start()));
        fragile.lock().unwrap_or_else(|poisoned| {
            fragile.clear_poison();
            let mut broker = poisoned.into_inner();
            *broker = Broker::start();
            broker
        })
    }

    /// A node for one test alone.
    pub fn start() -> Broker {
        Broker::with(&[])
    }

    /// A cluster of `nodes`, of which a minority pauses.
    pub fn cluster(nodes: usize) -> Broker {
        Broker::with(&["--nodes", &nodes.to_string()])
    }

    /// A broker with these arguments of `scripts/broker.sh`, such as `--config FILE`.
    pub fn with(args: &[&str]) -> Broker {
        Broker { script: Mutex::new(Script::run(args)) }
    }

    /// A node that also listens for TLS, with the files in this directory.
    pub fn with_tls(directory: &Path) -> Broker {
        let broker = Broker::with(&["--tls", directory.to_str().expect("the path is text")]);
        // It may begin to listen there a moment later than for plain connections.
        let listens = || TcpStream::connect(("127.0.0.1", broker.tls_port(0))).is_ok();
        await_value(listens, |listens| *listens);
        broker
    }

    /// Every node's URL, comma-separated.
    pub fn url(&self) -> String {
        self.script().fact("url")
    }

    pub fn url_of(&self, node: usize) -> String {
        let port = self.port(node);
        format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
    }

    pub fn port(&self, node: usize) -> u16 {
        number(self.script().fact(&format!("port.{node}")))
    }

    /// The URL of a new virtual host, in which every queue name is free.
    pub fn virtual_host(&self, test: &str) -> String {
        let name = queue_name(test);
        self.ctl(&["add_vhost", &name]);
        self.ctl(&["set_permissions", "-p", &name, "guest", ".*", ".*", ".*"]);
        self.url().replace("%2f", &name)
    }

    /// RabbitMQ's version. What a test expects depends on this where brokers differ.
    pub fn version(&self) -> (u32, u32, u32) {
        let text = self.script().fact("version");
        let mut numbers = text.split(['.', '-']).map(|part| number(part.to_owned()));
        let mut next = || numbers.next().expect("three numbers");
        (next(), next(), next())
    }

    /// Where the node listens for TLS, if it does.
    pub fn tls_port(&self, node: usize) -> u16 {
        number(self.script().fact(&format!("tls_port.{node}")))
    }

    /// The node's Erlang name.
    pub fn node(&self, node: usize) -> String {
        self.script().fact(&format!("node.{node}"))
    }

    /// Ends the node by SIGKILL, and returns when it has ended.
    pub fn kill(&self, node: usize) {
        self.command(&format!("kill {node}"));
    }

    /// Ends the node by SIGTERM, and returns when it has ended.
    pub fn stop(&self, node: usize) {
        self.command(&format!("stop {node}"));
    }

    /// Starts a node that was killed or stopped, with the same ports and data, and returns
    /// when it accepts connections.
    pub fn start_node(&self, node: usize) {
        self.command(&format!("start {node}"));
    }

    /// Stops the node by SIGSTOP: its connections stay open and it answers nothing.
    pub fn freeze(&self, node: usize) {
        self.command(&format!("freeze {node}"));
    }

    pub fn thaw(&self, node: usize) {
        self.command(&format!("thaw {node}"));
    }

    /// Cuts the node off from the other nodes of its cluster, until [`Broker::reconnect`]. Clients
    /// on both sides keep their connections.
    ///
    /// This needs no privileges: a node with a wrong cookie for another node refuses connections
    /// from it, and is refused by it.
    pub fn isolate(&self, node: usize) {
        self.for_each_other(node, &["erlang:set_cookie(N, wrong)", "erlang:disconnect_node(N)"]);
    }

    /// Sets what the nodes do when they lose the connection to each other:
    /// [`cluster_partition_handling`](https://www.rabbitmq.com/docs/partitions).
    pub fn set_partition_handling(&self, handling: &str) {
        let set = format!("application:set_env(rabbit, cluster_partition_handling, {handling}).");
        (0..self.nodes()).for_each(|node| drop(self.ctl_on(node, &["eval", &set])));
    }

    /// Connects a node that was cut off to the others again. It has rejoined the cluster when
    /// [`Broker::running_nodes`] counts it.
    pub fn reconnect(&self, node: usize) {
        let reset = "erlang:set_cookie(N, erlang:get_cookie())";
        self.for_each_other(node, &[reset, "net_kernel:connect_node(N)"]);
    }

    /// Evaluates each expression on the node, with `N` bound to each other node's name in turn.
    fn for_each_other(&self, node: usize, expressions: &[&str]) {
        let others = (0..self.nodes()).filter(|other| *other != node);
        let names: Vec<String> = others.map(|other| format!("'{}'", self.node(other))).collect();
        let names = names.join(", ");
        let each = expressions.iter().map(|expression| format!("[{expression} || N <- [{names}]]"));
        self.ctl_on(node, &["eval", &format!("{}.", each.collect::<Vec<_>>().join(", "))]);
    }

    fn nodes(&self) -> usize {
        self.url().split(',').count()
    }

    /// The number of running nodes in the cluster, as this node sees it. A node that pauses or
    /// restarts sees none.
    pub fn running_nodes(&self, node: usize) -> usize {
        let count = "try rabbit_nodes:running_count() catch _:_ -> 0 end.";
        number(self.ctl_on(node, &["eval", count]).trim().to_owned())
    }

    /// Whether RabbitMQ runs in this node: a node in a minority pauses.
    pub fn is_running(&self, node: usize) -> bool {
        self.ctl_on(node, &["eval", "rabbit:is_running()."]).trim() == "true"
    }

    /// What `rabbitmqctl ARGS` prints about node 0.
    pub fn ctl(&self, args: &[&str]) -> String {
        self.ctl_on(0, args)
    }

    /// What `rabbitmqctl ARGS` prints about this node.
    pub fn ctl_on(&self, node: usize, args: &[&str]) -> String {
        let quoted: Vec<String> =
            args.iter().map(|arg| format!("'{}'", arg.replace('\'', r#"'"'"'"#))).collect();
        // The lock is held until the output is read, which the next command overwrites.
        let mut script = self.script();
        let answer = script.command(&format!("ctl {node} {}", quoted.join(" ")));
        let output = std::fs::read_to_string(script.fact("dir") + "/ctl.out");
        drop(script);
        let output = output.unwrap_or_else(|error| error.to_string());
        answer.unwrap_or_else(|reason| panic!("rabbitmqctl {args:?} failed: {reason}"));
        output
    }

    /// Makes the node raise a memory alarm: the cluster then blocks connections that publish.
    pub fn raise_memory_alarm(&self, node: usize) {
        self.ctl_on(node, &["set_vm_memory_high_watermark", "absolute", "1"]);
        // Once it lists the alarm, it has told its connections.
        let alarms = || self.ctl_on(node, &["eval", "rabbit_alarm:get_alarms()."]);
        await_value(alarms, |alarms| alarms.contains("memory"));
    }

    pub fn clear_memory_alarm(&self, node: usize) {
        self.ctl_on(node, &["set_vm_memory_high_watermark", "0.4"]);
    }

    /// Has node 0 refuse messages of more than `bytes`, from the next channel on.
    pub fn limit_messages(&self, bytes: u32) {
        // RabbitMQ 4 looks for it in another place than RabbitMQ 3.
        self.ctl(&[
            "eval",
            &format!(
                "application:set_env(rabbit, max_message_size, {bytes}), \
                 persistent_term:put(max_message_size, {bytes})."
            ),
        ]);
    }

    /// What the node has logged so far.
    pub fn log(&self, node: usize) -> String {
        let directory = self.script().fact("dir");
        let path = format!("{directory}/log/{}.log", self.node(node));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn command(&self, command: &str) {
        let done = self.script().command(command);
        done.unwrap_or_else(|reason| panic!("broker.sh could not `{command}`: {reason}"));
    }

    /// The other tests can still use the broker after a test panicked during a command.
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The URL of [`Broker::shared`].
pub fn url() -> String {
    Broker::shared().url()
}

/// A queue name that no other test and no other run uses.
pub fn queue_name(test: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{test}-{}-{number}", std::process::id())
}

fn number<N: FromStr>(fact: String) -> N {
    let parsed = fact.parse().ok();
    parsed.expect("a number from the broker")
}
