//! Refusals by the broker: the error says what to do, the exit code is 77, and no text has the
//! password.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Instant;

use rabbitmq_rpc::{Brokers, Error, Request, RpcServer, ServerOptions, fibonacci};

use crate::broker::{Broker, queue_name};
use crate::embedded::{Serving, connect};
use crate::failing::{Attempt, ENCODED, PASSWORD};
use crate::manual_server::ManualServer;
use crate::patience::{PATIENCE, SECOND};
use crate::programs::{RPC_CLIENT, stop};
use crate::raw::Raw;

/// Users and their permissions in `/`: configure, write, read. The first two users have exactly the
/// permissions that client and server need.
const USERS: [(&str, Option<[&str; 3]>); 9] = [
    ("caller", Some(["^amq\\.gen-", "^(amq\\.default|served-.*)$", "^amq\\.gen-"])),
    ("cannot-look", Some(["^amq\\.gen-", "^amq\\.default$", "^amq\\.gen-"])),
    ("answerer", Some(["^served-", "^amq\\.default$", "^served-"])),
    ("outsider", None),
    ("cannot-configure", Some(["^$", ".*", ".*"])),
    ("cannot-write", Some([".*", "^$", ".*"])),
    ("cannot-read", Some([".*", ".*", "^$"])),
    ("answerer-of-a-queue", Some(["^$", "^amq\\.default$", "^served-"])),
    ("dead-letterer", Some(["^served-", "^(amq\\.default|dead-letters)$", "^served-"])),
];

/// The shared broker with [`USERS`].
fn broker() -> &'static Broker {
    static USERS_ADDED: OnceLock<()> = OnceLock::new();
    let broker = Broker::shared();
    USERS_ADDED.get_or_init(|| {
        let users = USERS.map(|(name, _)| {
            format!(r#"{{"name": "{name}", "password": "{PASSWORD}", "tags": ""}}"#)
        });
        let permissions = USERS.iter().filter_map(|(user, permissions)| {
            let [configure, write, read] = permissions.as_ref()?.map(|p| p.replace('\\', r"\\"));
            Some(format!(
                r#"{{"user": "{user}", "vhost": "/", "configure": "{configure}",
                     "write": "{write}", "read": "{read}"}}"#
            ))
        });
        let (users, permissions) = (users.join(","), permissions.collect::<Vec<_>>().join(","));
        let definitions = format!(r#"{{"users": [{users}], "permissions": [{permissions}]}}"#);
        let file = format!("users-{}.json", std::process::id());
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(file);
        std::fs::write(&file, definitions).unwrap();
        broker.ctl(&["import_definitions", &file.to_string_lossy()]);
        std::fs::remove_file(&file).unwrap();
    });
    broker
}

fn url(user: &str, vhost: &str) -> String {
    format!("amqp://{user}:{ENCODED}@127.0.0.1:{}/{vhost}", broker().port(0))
}

#[test]
fn wrong_password_is_reported() {
    let attempt = Attempt::new(&url("guest", "%2f"), &queue_name("refused"));
    attempt.fails_for_all(77, &["refused the login of user \"guest\"", "password", "127.0.0.1:"]);
}

/// Without a capability that the client announces, RabbitMQ hangs up after 3 s.
#[test]
fn wrong_password_is_reported_at_once() {
    let attempt = Attempt::new(&url("guest", "%2f"), &queue_name("refused"));
    let mut took: Vec<_> = [(); 3]
        .map(|()| {
            let began = Instant::now();
            let error = attempt.call().expect_err("the password is wrong");
            assert!(matches!(error, Error::Refused(_)), "{error:?}");
            began.elapsed()
        })
        .into();
    took.sort();
    assert!(took[0] < 2 * SECOND, "{took:?}");
}

#[test]
fn names_do_not_change_what_a_refusal_is() {
    let (limit, broker) = ("connection limit (0) is reached", broker());
    let encoded = limit.replace(' ', "%20");
    let login = Attempt::new(&url(&encoded, "%2f"), &queue_name("refused"));
    login.fails_for_all(77, &["refused the login of user", limit]);
    let vhost = Attempt::new(&url("outsider", &encoded), &queue_name("refused"));
    vhost.fails_for_all(77, &["the virtual host", "not found"]);
    broker.ctl(&["add_vhost", limit]);
    vhost.fails_for_all(77, &["the virtual host", "set_permissions"]);
    // A limit passes, so it is an attempt that failed.
    broker.ctl(&["set_permissions", "-p", limit, "outsider", ".*", ".*", ".*"]);
    broker.ctl(&["set_vhost_limits", "-p", limit, r#"{"max-connections": 0}"#]);
    vhost.fails_for_all(69, &["as many connections as it may have", "is reached"]);
    broker.ctl(&["delete_vhost", limit]);
}

#[test]
fn unknown_user_is_reported() {
    Attempt::new(&url("no-such-user", "%2f"), &queue_name("refused"))
        .fails_for_all(77, &["refused the login of user \"no-such-user\""]);
}

#[test]
fn unknown_virtual_host_is_reported() {
    Attempt::new(&url("caller", "nowhere"), &queue_name("refused"))
        .fails_for_all(77, &["\"caller\"", "the virtual host \"nowhere\"", "not found"]);
}

#[test]
fn forbidden_virtual_host_is_reported() {
    Attempt::new(&url("outsider", "%2f"), &queue_name("refused"))
        .fails_for_all(77, &["\"outsider\"", "the virtual host \"/\"", "refused"]);
}

#[test]
fn unsupported_login_mechanism_is_reported() {
    let url = url("caller", "%2f") + "?auth_mechanism=external";
    Attempt::new(&url, &queue_name("refused"))
        .fails_for_all(77, &["takes no login by EXTERNAL", "PLAIN"]);
}

#[test]
fn refused_login_is_not_tried_on_next_broker() {
    // The second broker would accept the user guest with its default password.
    let good = format!("amqp://127.0.0.1:{}", broker().port(0));
    let urls = format!("{},{good}", url("guest", "%2f"));
    Attempt::new(&urls, &queue_name("refused"))
        .fails_for_all(77, &["refused the login of user \"guest\""]);
}

#[test]
fn error_names_permission_that_client_lacks() {
    for (user, words) in [
        ("cannot-configure", ["declare a reply queue", "queue 'amq.gen-"]),
        ("cannot-read", ["read from its reply queue", "queue 'amq.gen-"]),
        ("cannot-write", ["publish requests", "exchange 'amq.default'"]),
    ] {
        let user_and_host = format!("user {user:?} lacks the permission in virtual host \"/\"");
        Attempt::new(&url(user, "%2f"), &queue_name("refused"))
            .fails_for_the_client(77, &[&user_and_host, words[0], words[1]]);
    }
}

#[test]
fn error_names_permission_that_server_lacks() {
    let queue = queue_name("served");
    let in_queue = format!("queue '{queue}'");
    // The queue does not exist.
    Attempt::new(&url("cannot-configure", "%2f"), &queue).fails_for_the_server(
        77,
        &["user \"cannot-configure\"", "\"/\"", "declare the request queue", &in_queue],
    );
    Attempt::new(&url("cannot-read", "%2f"), &queue).fails_for_the_server(
        77,
        &["user \"cannot-read\"", "\"/\"", "read from the request queue", &in_queue],
    );

    // A missing write permission shows only when the server replies.
    let words = ["user \"cannot-write\"", "\"/\"", "answer requests", "exchange 'amq.default'"];
    let attempt = Attempt::new(&url("cannot-write", "%2f"), &queue);
    // The request stays in the queue when a server fails on it. The requester has disconnected.
    Raw::connect(broker().port(0)).request(&queue, b"7");
    attempt.fails_for_the_server(77, &words);
}

/// With three channels, a request to an exchange shares its channel with all others.
#[test]
fn refusal_of_an_exchange_ends_no_other_call_even_on_one_channel() {
    let (broker, queue) = (broker(), queue_name("served"));
    let server = ManualServer::start(&broker.url(), &queue);
    let client = connect(&format!("{}?channel_max=3", url("caller", "%2f")), &queue);
    let slow = client.send("slow").unwrap();
    let slow_request = server.next();
    for _ in 0..3 {
        let call = client.send("7").unwrap();
        server.reply(&server.next(), b"7");
        assert_eq!(call.wait().unwrap(), b"7");
        let refused = client.request("8").exchange("amq.direct").call().unwrap_err();
        assert!(matches!(refused, Error::Refused(_)), "{refused:?}");
        assert!(!refused.may_have_executed());
    }
    server.reply(&slow_request, b"8");
    assert_eq!(slow.wait().unwrap(), b"8");
    assert_eq!(client.counters().reconnects, 0);
}

/// A large reply goes alone, so that its refusal leaves the worker's channel open. The request comes
/// back on it.
#[test]
fn request_whose_reply_is_refused_alone_is_in_the_queue_again() {
    let queue = queue_name("lone");
    let brokers = Brokers::parse(&url("cannot-write", "%2f")).unwrap();
    let server = RpcServer::connect(brokers, &queue, ServerOptions::default()).unwrap();
    Raw::connect(broker().port(0)).request(&queue, b"7");
    let large = |_: &Request| Ok(vec![b'x'; 1 << 20]);
    let served = server.with_worker(|worker| {
        assert!(matches!(worker.serve_one(large, PATIENCE), Err(Error::Refused(_))));
        worker.serve_one(large, PATIENCE)
    });
    assert!(matches!(served, Err(Error::Refused(_))), "{served:?}");
    assert_eq!(server.counters().redelivered, 1);
}

#[test]
fn documented_permissions_are_enough() {
    let queue = queue_name("served");
    let mut server = Attempt::new(&url("answerer", "%2f"), &queue).start_server();
    let caller = Attempt::new(&url("caller", "%2f"), &queue);
    assert_eq!(caller.call(), Ok(b"13".to_vec()));

    let mut check = caller.start(RPC_CLIENT, &["--check"]);
    assert_eq!(check.wait(PATIENCE).code(), Some(0));

    // If the queue exists, the server needs no configure permission.
    let mut second = Attempt::new(&url("answerer-of-a-queue", "%2f"), &queue).start_server();

    [&mut server, &mut second].into_iter().for_each(stop);
}

/// Whoever has no permission on a queue may write to it through the default exchange, but since
/// RabbitMQ 4.2.6 not ask about it.
#[test]
fn refused_question_about_a_queue_is_no_evidence_of_loss() {
    let (broker, queue) = (broker(), queue_name("served"));
    let runs = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&runs);
    let _server = Serving::start(&broker.url(), &queue, ServerOptions::default(), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        thread::sleep(3 * SECOND / 2);
        Ok(Vec::new())
    });
    let client = connect(&url("cannot-look", "%2f"), &queue);
    let call = || client.request("7").idempotent(true).keep_alive(SECOND / 2).send().unwrap();
    thread::scope(|scope| {
        let waiting = [(); 4].map(|()| call()).map(|call| scope.spawn(|| call.wait().unwrap()));
        waiting.into_iter().for_each(|call| drop(call.join().unwrap()));
    });
    assert_eq!(runs.load(Ordering::Relaxed), 4);
    assert_eq!(client.counters().reconnects, 0);
    let refusal = format!("queue '{queue}' in vhost '/' refused");
    let logged = broker.log(0).matches(&refusal).count();
    if broker.version() < (4, 2, 6) {
        assert_eq!((logged, client.queue().unwrap().consumers), (0, 1));
        return;
    }
    assert!(logged <= 1, "{logged} errors in the broker's log");
    let error = client.queue().unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("any permission on the queue is enough"), "{text}");
}

#[test]
fn dead_letter_exchange_needs_write_permission() {
    let options =
        ServerOptions { dead_letter_exchange: Some("dead-letters".into()), ..Default::default() };
    let queue = queue_name("served");
    let connect = |user| {
        let brokers = Attempt::new(&url(user, "%2f"), &queue).brokers();
        RpcServer::connect(brokers, &queue, options.clone())
    };
    let error =
        connect("answerer").expect_err("the user may not write to the exchange").to_string();
    assert!(error.contains("exchange 'dead-letters'"), "{error}");
    let server = connect("dead-letterer").unwrap();
    server.stopper().stop();
    server.serve(fibonacci::answer).unwrap();
}
