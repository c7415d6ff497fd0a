//! amqp-tools, from a shell: they make a client, but no server.
//!
//! amqp-publish can set a reply queue but no correlation id, so a shell needs one reply queue for
//! each request to tell its replies apart.

use super::*;
use crate::embedded::connect;
use crate::patience::await_value;

fn amqp(tool: &str, args: &[&str]) -> Process {
    Process::spawn(format!("amqp-{tool}"), &[&["--url", &Broker::shared().url()], args].concat())
}

/// Runs the tool, checks that it succeeds, and returns what it prints.
fn printed(tool: &str, args: &[&str]) -> String {
    let mut process = amqp(tool, args);
    let status = process.wait(PATIENCE);
    assert!(status.success(), "amqp-{tool} {args:?}: {status}: {}", process.stderr());
    process.stdout().to_string()
}

#[test]
fn shell_calls_our_server_through_durable_reply_queue() {
    let queue = queue_name("tools-client");
    let replies = queue_name("tools-replies");
    let _server = rpc_server(&queue, &[]);
    printed("declare-queue", &["--durable", "--queue", &replies]);
    let publish = |body| {
        printed("publish", &["--routing-key", &queue, "--reply-to", &replies, "--body", body]);
    };
    let consume = |command: &[&str]| {
        printed("consume", &[&["--queue", &replies, "--count", "1", "--"], command].concat())
    };
    publish("186");
    assert_eq!(consume(&["cat"]), "332825110087067562321196029789634457848");
    // These tools print a body and no properties, so of an error reply only the message.
    publish("187");
    assert_eq!(consume(&["cat"]), "fib(187) does not fit into 128 bits; n goes from 0 to 186");

    // A reply stays in the queue until amqp-get takes it.
    publish("7");
    const EMPTY: Option<i32> = Some(2);
    let get = || {
        let mut get = amqp("get", &["--queue", &replies]);
        (get.wait(PATIENCE).code(), get.stdout().to_string())
    };
    let fetched = await_value(get, |(code, _)| *code != EMPTY);
    assert_eq!(fetched, (Some(0), "13".to_string()));
    assert_kept_and_empty(&replies);
}

/// amqp-consume cannot be a server. It gives its command only the body, on standard input, and an
/// answer needs the reply queue and the correlation id. amqp-publish has no option for a
/// correlation id either.
#[test]
fn amqp_consume_takes_request_but_cannot_answer() {
    let queue = queue_name("tools-server");
    printed("declare-queue", &["--durable", "--queue", &queue]);
    let client = connect(&Broker::shared().url(), &queue);
    let mut call = client.send("the body").unwrap();

    let mut consume = Command::new("amqp-consume");
    consume.env_clear().env("PATH", std::env::var_os("PATH").expect("PATH is set"));
    consume.args(["--url", &Broker::shared().url(), "--queue", &queue, "--count", "1", "--"]);
    consume.args(["sh", "-c", "cat; echo; echo \"$# arguments\"; env", "sh"]);
    let mut consume = Process::from(&mut consume);
    assert!(consume.wait(PATIENCE).success(), "{}", consume.stderr());
    let set_by_shell = ["PATH=", "PWD=", "OLDPWD=", "SHLVL=", "_="];
    let given = consume.stdout().lines();
    let given = given.filter(|line| !set_by_shell.iter().any(|name| line.starts_with(name)));
    assert_eq!(given.collect::<Vec<_>>(), ["the body", "0 arguments"]);

    // amqp-consume acknowledged the request all the same, so only the deadline ends the call.
    assert_kept_and_empty(&queue);
    assert_eq!(call.try_wait(), Ok(None));
}
