//! Refusals that pass: a program that has worked goes on trying, and a first start waits for what
//! comes late.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use rabbitmq_rpc::{Error, ServerOptions, TlsFiles};

use crate::broker::{Broker, queue_name};
use crate::certificates::Certificates;
use crate::embedded::{Serving, connect};
use crate::failing::{Attempt, PASSWORD};
use crate::patience::{AT_ONCE, PATIENCE, SECOND, await_value};
use crate::process::Process;
use crate::programs::{RPC_CLIENT, RPC_SERVER, stop};
use crate::proxy::{Mode, Proxy};

/// A user of the shared broker for one test, in a virtual host of its own.
struct Account {
    name: String,
}

impl Account {
    fn none(test: &str) -> Account {
        Account { name: queue_name(test) }
    }

    fn add(&self) {
        self.ctl(&["add_vhost", &self.name]);
        self.add_user();
    }

    fn add_user(&self) {
        self.ctl(&["add_user", &self.name, PASSWORD]);
        self.permit();
    }

    fn permit(&self) {
        self.ctl(&["set_permissions", "-p", &self.name, &self.name, ".*", ".*", ".*"]);
    }

    fn ctl(&self, args: &[&str]) {
        Broker::shared().ctl(args);
    }

    fn url(&self, port: u16) -> String {
        let encoded = PASSWORD.replace('&', "%26");
        format!("amqp://{0}:{encoded}@127.0.0.1:{port}/{0}", self.name)
    }
}

/// Words of the server's log, what makes the broker refuse it, and what ends that.
type Refusal<'a> = (&'a str, &'a dyn Fn(), &'a dyn Fn());

#[test]
fn server_that_has_served_goes_on_whatever_the_broker_refuses_meanwhile() {
    let (broker, account) = (Broker::shared(), Account::none("passing"));
    account.add();
    let name = account.name.as_str();
    let proxy = Proxy::to(broker.port(0));
    let mut server = Attempt::new(&account.url(proxy.port()), name).start_server();
    let refused: [Refusal<'_>; 3] = [
        ("refused the login", &|| account.ctl(&["change_password", name, "another"]), &|| {
            account.ctl(&["change_password", name, PASSWORD])
        }),
        ("refused the login", &|| account.ctl(&["delete_user", name]), &|| account.add_user()),
        ("the virtual host", &|| account.ctl(&["clear_permissions", "-p", name, name]), &|| {
            account.permit()
        }),
    ];
    for (words, take, give) in refused {
        take();
        proxy.cut();
        let line = server.wait_for_line(words, PATIENCE);
        assert!(line.contains("trying again in"), "{line}");
        give();
        server.wait_for_line("taking requests", PATIENCE);
        let client = connect(&account.url(broker.port(0)), name);
        assert_eq!(client.call_timeout("7", PATIENCE), Ok(b"13".to_vec()), "after: {line}");
    }
    stop(&mut server);
}

#[test]
fn client_reports_a_refusal_at_once_and_calls_again_when_it_has_passed() {
    let (broker, account) = (Broker::shared(), Account::none("passing"));
    account.add();
    let name = account.name.as_str();
    let mut server = Attempt::new(&account.url(broker.port(0)), name).start_server();
    let proxy = Proxy::to(broker.port(0));
    let client = connect(&account.url(proxy.port()), name);
    assert_eq!(client.call("7"), Ok(b"13".to_vec()));
    account.ctl(&["change_password", name, "another"]);
    proxy.cut();
    let is_refused = |result: &Result<_, _>| matches!(result, Err(Error::Refused(_)));
    let _ = await_value(|| client.call("7"), is_refused);
    for _ in 0..10 {
        let began = Instant::now();
        let error = client.call_timeout("7", PATIENCE).expect_err("the password is wrong");
        assert!(matches!(error, Error::Refused(_)), "{error:?}");
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    }
    account.ctl(&["change_password", name, PASSWORD]);
    assert_eq!(await_value(|| client.call("7"), Result::is_ok), Ok(b"13".to_vec()));
    stop(&mut server);
}

#[test]
fn wait_covers_a_user_a_virtual_host_and_a_permission_that_come_late() {
    let (broker, account) = (Broker::shared(), Account::none("late"));
    let (name, url) = (account.name.as_str(), account.url(broker.port(0)));
    let args = ["--url", &url, "--queue", name, "--wait", "120"];
    let mut server = Process::spawn(RPC_SERVER, &args);
    let mut client = Process::spawn(RPC_CLIENT, &[&args[..], &["--timeout", "120", "7"]].concat());
    for (words, add) in [
        ("refused the login", &["add_user", name, PASSWORD][..]),
        ("not found", &["add_vhost", name]),
        ("set_permissions", &["set_permissions", "-p", name, name, "^$", ".*", "^$"]),
    ] {
        server.wait_for_line(words, PATIENCE);
        client.wait_for_line(words, PATIENCE);
        broker.ctl(add);
    }
    // Permissions that are enough for the server and not for the client.
    server.wait_for_line("lacks the permission", PATIENCE);
    broker.ctl(&["set_permissions", "-p", name, name, "^late", ".*", "^late"]);
    server.wait_for_line("Awaiting RPC requests", PATIENCE);
    client.wait_for_line("declare a reply queue", PATIENCE);
    broker.ctl(&["set_permissions", "-p", name, name, ".*", ".*", ".*"]);
    client.wait_for_stdout(|numbers| numbers == "13\n", PATIENCE);
    stop(&mut server);
}

#[test]
fn last_refusal_is_reported_at_the_end_of_the_wait() {
    let url = Account::none("never").url(Broker::shared().port(0));
    for program in [RPC_SERVER, RPC_CLIENT] {
        let began = Instant::now();
        let more: &[&str] = if program == RPC_CLIENT { &["7"] } else { &[] };
        let args = [&["--url", &url, "--wait", "1"], more].concat();
        let mut process = Process::spawn(program, &args);
        assert_eq!(process.wait(PATIENCE).code(), Some(77), "{}", process.stderr());
        assert!(began.elapsed() > SECOND, "{:?}", began.elapsed());
        assert!(process.stderr().contains("refused the login"), "{}", process.stderr());
    }
}

#[test]
fn server_goes_on_while_its_certificate_is_replaced() {
    let certificates = Certificates::make("renewed-certificates");
    let broker = Broker::with_tls(certificates.directory());
    let proxy = Proxy::to(broker.tls_port(0));
    let url = format!("amqps://localhost:{}", proxy.port());
    let [cert, key] = ["renewed.pem", "renewed-key.pem"].map(|file| certificates.path(file));
    let copy = |certificate: &str, key_of: &str| {
        fs::copy(certificates.path(&format!("{certificate}.pem")), &cert).unwrap();
        fs::copy(certificates.path(&format!("{key_of}-key.pem")), &key).unwrap();
    };
    copy("client", "client");
    let ca = Some(certificates.path("ca.pem"));
    let tls = TlsFiles { ca, cert: Some(cert.clone()), key: Some(key.clone()) };
    let attempt = Attempt { tls, ..Attempt::new(&url, "renewed") };
    let mut server = attempt.start_server();
    let between: [(&str, &dyn Fn()); 3] = [
        ("key values mismatch", &|| copy("client", "server")),
        ("renewed.pem", &|| fs::remove_file(&cert).unwrap()),
        ("renewed-key.pem", &|| fs::write(&key, "half of a ke").unwrap()),
    ];
    for (words, replace) in between {
        replace();
        // A program that starts just now ends at once.
        attempt.fails_for_all(64, &[words]);
        proxy.cut();
        let line = server.wait_for_line(words, PATIENCE);
        assert!(line.contains("trying again in"), "{line}");
        copy("client", "client");
        server.wait_for_line("taking requests", PATIENCE);
        assert_eq!(attempt.call(), Ok(b"13".to_vec()));
    }
    stop(&mut server);
}

/// A server that has replied goes on when its replies are refused, even if nothing was delivered
/// between the two. A reply that was not sent is kept, whatever is delivered meanwhile.
#[test]
fn handler_runs_once_while_the_broker_refuses_its_replies() {
    let (broker, account) = (Broker::shared(), Account::none("unwritable"));
    account.add();
    let name = account.name.as_str();
    account.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
    let proxy = Proxy::to(broker.port(0));
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let options = ServerOptions::default();
    let serving = Serving::start(&account.url(proxy.port()), name, options, move |body| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(body.to_vec())
    });
    let client = connect(&format!("amqp://127.0.0.1:{}/{name}", broker.port(0)), name);
    assert_eq!(client.call("7").unwrap(), b"7");

    proxy.set(Mode::Refuse);
    proxy.cut();
    account.ctl(&["set_permissions", "-p", name, name, ".*", "^$", ".*"]);
    proxy.set(Mode::Forward);
    let call = client.send_timeout("8", PATIENCE).unwrap();
    await_value(|| serving.server.counters().redelivered, |redelivered| *redelivered >= 2);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    account.permit();
    assert_eq!(call.wait().unwrap(), b"8");
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    serving.stop();
}

/// A permission or an OAuth token has ended. That concerns all requests, and another login may help.
#[test]
fn client_logs_in_again_when_it_may_not_publish() {
    let (broker, account) = (Broker::shared(), Account::none("may-not-publish"));
    account.add();
    let name = account.name.as_str();
    account.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
    let _serving = Serving::echo(&format!("amqp://127.0.0.1:{}/{name}", broker.port(0)), name);
    let client = connect(&account.url(broker.port(0)), name);
    assert_eq!(client.call("7").unwrap(), b"7");
    account.ctl(&["set_permissions", "-p", name, name, ".*", "^$", ".*"]);
    // A channel remembers what is permitted until it has been idle for a second.
    let call_later = || {
        thread::sleep(3 * SECOND / 2);
        client.call("8")
    };
    let error = await_value(call_later, Result::is_err).unwrap_err();
    assert!(matches!(error, Error::Refused(_)), "{error:?}");
    account.permit();
    assert_eq!(await_value(|| client.call("9"), Result::is_ok).unwrap(), b"9");
    assert!(client.counters().reconnects >= 1);
}

/// Another login may have the permission that this one lacks: some brokers let a connection live on
/// whose token has expired.
#[test]
fn server_that_may_not_consume_logs_in_again() {
    let (broker, account) = (Broker::shared(), Account::none("unreadable"));
    account.add();
    let name = account.name.as_str();
    account.ctl(&["set_permissions", "-p", name, "guest", ".*", ".*", ".*"]);
    let proxy = Proxy::to(broker.port(0));
    let options = ServerOptions::default();
    let serving =
        Serving::start(&account.url(proxy.port()), name, options, |body| Ok(body.to_vec()));
    let logins = proxy.logins();
    proxy.set(Mode::Refuse);
    proxy.cut();
    account.ctl(&["set_permissions", "-p", name, name, ".*", ".*", "^$"]);
    proxy.set(Mode::Forward);
    await_value(|| proxy.logins(), |now| *now >= logins + 3);
    account.permit();
    let client = connect(&format!("amqp://127.0.0.1:{}/{name}", broker.port(0)), name);
    assert_eq!(client.call_timeout("7", PATIENCE).unwrap(), b"7");
    serving.stop();
}
