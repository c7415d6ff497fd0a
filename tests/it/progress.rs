//! How far a handler is, told to a caller that wants to know.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{AmqpProperties, AmqpValue};
use crossbeam_channel::{bounded, unbounded};
use rabbitmq_rpc::{Reply, Request, ServerOptions};

use crate::broker::{Broker, queue_name, url};
use crate::embedded::{Serving, connect};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, poll};
use crate::process::Process;
use crate::programs::RPC_CLIENT;
use crate::raw::{Properties, Raw, entry, long};

/// What a call was told, and a hook that notes it.
fn told() -> (Arc<Mutex<Vec<String>>>, impl Fn(&str) + Send + Sync + 'static) {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = Arc::clone(&told);
    (told, move |text: &str| notes.lock().unwrap().push(text.into()))
}

#[test]
fn caller_is_told_the_progress_at_most_ten_times_a_second_and_the_last_text_always() {
    let queue = queue_name("progress");
    let serving = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        for percent in 0..=100 {
            request.progress(format!("{percent:3} %"));
            thread::sleep(Duration::from_millis(5));
        }
        Ok("done")
    });
    let client = connect(&url(), &queue);
    let mut told_often = 0;
    for _ in 0..5 {
        let (told, note) = told();
        let caller = thread::current().id();
        let began = Instant::now();
        let request = client.request("7").on_progress(move |text| {
            assert_eq!(thread::current().id(), caller, "on the thread that waits");
            note(text);
        });
        assert_eq!(request.call().unwrap(), b"done");
        let took = began.elapsed();
        let told = told.lock().unwrap();
        let most = took.as_millis() as usize / 100 + 2;
        assert!(told.len() <= most, "in {took:?}: {told:?}");
        told_often += usize::from(told.len() >= 3);
        assert_eq!(told.last().unwrap(), "100 %", "{told:?}");
        assert!(told.is_sorted(), "{told:?}");
    }
    // A caller that is stopped for a while is told the latest text alone.
    assert!(told_often >= 3, "{told_often} of 5 callers were told what came meanwhile");
    assert_eq!((client.counters().replies, client.counters().late), (5, 0));
    assert_eq!(serving.stop().returned, 0);
}

#[test]
fn text_that_comes_too_early_is_told_while_the_handler_goes_on() {
    let queue = queue_name("early");
    let (release, released) = bounded(1);
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), move |request| {
        request.progress("begun");
        request.progress("left out");
        request.progress("é".repeat(1000));
        released.recv_timeout(PATIENCE).unwrap();
        Ok("done")
    });
    let (told, note) = told();
    let client = connect(&url(), &queue);
    let mut call = client.request("7").on_progress(note).send().unwrap();
    let waited = poll(
        PATIENCE,
        || {
            assert_eq!(call.try_wait(), Ok(None));
            told.lock().unwrap().clone()
        },
        |told| told.last().is_some_and(|last| last.starts_with('é')),
    );
    let told = waited.unwrap();
    assert_eq!(told.last().unwrap(), &"é".repeat(512), "of a long text, its beginning");
    release.send(()).unwrap();
    assert_eq!(call.wait().unwrap(), b"done");
}

#[test]
fn requester_that_does_not_ask_is_told_nothing() {
    let queue = queue_name("not-told");
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        request.progress("begun");
        // Longer than a server waits before it tells a further text.
        thread::sleep(Duration::from_millis(150));
        request.progress("done");
        Ok("13")
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    raw.request(&queue, b"7");
    assert_eq!(raw.reply().body, b"13", "the reply is the first message");
    assert_eq!(connect(&url(), &queue).call("7").unwrap(), b"13");
}

/// After the first one, the server sends no other sign of life.
#[test]
fn progress_is_a_sign_of_life() {
    let queue = queue_name("progress-alive");
    let server = ManualServer::start(&url(), &queue);
    let (told, note) = told();
    let client = connect(&url(), &queue);
    let request = client.request("7").keep_alive(Duration::from_secs(3)).on_progress(note);
    let mut call = request.send().unwrap();
    let request = server.next();
    let headers = request.properties.headers().as_ref().unwrap();
    assert_eq!(headers.get("rpc-progress"), Some(&AmqpValue::LongString("true".into())));
    let alive = AmqpProperties::default().with_type_("keep-alive".into());
    server.reply_with(&request, alive, b"");
    for text in ["first", "second", "third"] {
        let progress = AmqpProperties::default().with_type_("progress".into());
        server.reply_with(&request, progress, text.as_bytes());
        assert_eq!(call.wait_timeout(Duration::from_secs(4)), Ok(None), "three intervals are 9 s");
    }
    server.reply(&request, b"13");
    assert_eq!(call.wait().unwrap(), b"13");
    assert_eq!(*told.lock().unwrap(), ["first", "second", "third"]);
}

/// Another server may use this type for its replies.
#[test]
fn message_of_that_type_is_the_reply_to_a_call_that_did_not_ask() {
    let queue = queue_name("progress-reply");
    let server = ManualServer::start(&url(), &queue);
    let client = connect(&url(), &queue);
    let call = client.send("7").unwrap();
    let reply = AmqpProperties::default().with_type_("progress".into());
    server.reply_with(&server.next(), reply, b"13");
    assert_eq!(call.wait().unwrap(), b"13");
}

#[test]
fn progress_finds_out_that_the_requester_is_gone() {
    let queue = queue_name("progress-abandoned");
    let (begun, has_begun) = unbounded();
    let (seen, was_seen) = bounded(1);
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), move |request| {
        begun.send(()).unwrap();
        let look = || {
            request.progress("still here");
            request.is_abandoned()
        };
        seen.send(poll(PATIENCE / 2, look, |is_abandoned| *is_abandoned).is_ok()).unwrap();
        Ok("too late")
    });
    let mut raw = Raw::connect(Broker::shared().port(0));
    let asks = entry(b"rpc-progress", b'S', &long(b"true"));
    raw.request_with(&queue, Properties::default().headers(&asks).correlation_id(b"7"), b"7");
    has_begun.recv_timeout(PATIENCE).unwrap();
    drop(raw);
    assert!(was_seen.recv_timeout(PATIENCE).unwrap());
}

#[test]
fn reply_cannot_pass_for_progress() {
    let queue = queue_name("no-progress");
    let handler = |request: &Request| {
        let kind = String::from_utf8_lossy(request.body()).into_owned();
        Ok(Reply::from("7").with_type(kind))
    };
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), handler);
    let client = connect(&url(), &queue);
    let failed = |kind: &str| client.call(kind).unwrap_err().kind();
    let kinds: BTreeSet<_> = ["progress", "keep-alive"].map(failed).into();
    assert_eq!(kinds, ["INTERNAL"].into());
    assert_eq!(client.call("result").unwrap(), b"7");
}

/// `script` gives the program a terminal.
#[test]
fn program_shows_the_progress_on_a_terminal() {
    let queue = queue_name("shown");
    let _serving = Serving::requests(&url(), &queue, ServerOptions::default(), |request| {
        request.progress("40 %\x1b[2J");
        Ok("done")
    });
    let args = ["--url", &url(), "--queue", &queue, "--body", "7"].join(" ");
    let on_terminal = format!("{RPC_CLIENT} {args}");
    let mut shown = Process::spawn("script", &["-qec", &on_terminal, "/dev/null"]);
    assert!(shown.wait(PATIENCE).success(), "{}", shown.stderr());
    let text = shown.stdout().to_string();
    assert!(text.contains("rpc_client: 40 % [2J\r\n") && text.contains("done"), "{text:?}");
    let mut piped = Process::from(Command::new(RPC_CLIENT).args(args.split(' ')));
    assert!(piped.wait(PATIENCE).success() && piped.stderr().is_empty());
}
