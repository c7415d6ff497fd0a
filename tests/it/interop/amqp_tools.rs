//! amqp-tools, from a shell: requests and replies, but no server.
//!
//! amqp-publish can name a reply queue and no correlation id, so a shell that wants to tell its
//! replies apart has one reply queue for each request.

use super::*;
use crate::embedded::connect;
use crate::patience::await_value;

fn amqp(tool: &str, args: &[&str]) -> Process {
    Process::spawn(format!("amqp-{tool}"), &[&["--url", &Broker::shared().url()], args].concat())
}

/// What the tool prints, once it has ended well.
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
    // These tools show a body and no properties: of an error reply there is the sentence alone.
    publish("187");
    assert_eq!(consume(&["cat"]), "fib(187) does not fit into 128 bits; n goes from 0 to 186");

    // A reply waits for whoever comes to fetch it.
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

/// With amqp-consume no server can be made for our client. It gives its command the body on
/// standard input and nothing else, and without the reply queue and the correlation id there is
/// no answer. (Nor has amqp-publish an option for a correlation id.)
#[test]
fn amqp_consume_takes_request_but_cannot_answer() {
    let queue = queue_name("tools-server");
    printed("declare-queue", &["--durable", "--queue", &queue]);
    let client = connect(&Broker::shared().url(), &queue);
    let mut call = client.send("the body").unwrap();

    let mut consume = Command::new("amqp-consume");
    consume.env_clear().env("PATH", std::env::var_os("PATH").expect("programs are found by it"));
    consume.args(["--url", &Broker::shared().url(), "--queue", &queue, "--count", "1", "--"]);
    consume.args(["sh", "-c", "cat; echo; echo \"$# arguments\"; env", "sh"]);
    let mut consume = Process::from(&mut consume);
    assert!(consume.wait(PATIENCE).success(), "{}", consume.stderr());
    let shells_own = ["PATH=", "PWD=", "OLDPWD=", "SHLVL=", "_="];
    let told = consume.stdout().lines();
    let told = told.filter(|line| !shells_own.iter().any(|own| line.starts_with(own)));
    assert_eq!(told.collect::<Vec<_>>(), ["the body", "0 arguments"]);

    // The request was acknowledged nevertheless; only its deadline ends the call.
    assert_kept_and_empty(&queue);
    assert_eq!(call.try_wait(), Ok(None));
}
