//! `amqps://`: verification, client certificates, and the error for each way in which it fails.

use std::net::TcpListener;
use std::sync::OnceLock;
use std::time::Duration;

use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient, TlsFiles};

use crate::broker::{Broker, queue_name};
use crate::certificates::{CLIENT, Certificates};
use crate::failing::{Attempt, ENCODED};
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_CLIENT, stop};
use crate::proxy::{Mode, Proxy};
use crate::scratch;

/// A node that asks for client certificates, and a user who logs in by one.
struct Tls {
    certificates: Certificates,
    broker: Broker,
}

fn tls() -> &'static Tls {
    static TLS: OnceLock<Tls> = OnceLock::new();
    TLS.get_or_init(|| {
        let certificates = Certificates::make("certificates");
        let broker = Broker::with_tls(certificates.directory());
        broker.ctl(&["add_user", CLIENT, "not used"]);
        broker.ctl(&["set_permissions", CLIENT, ".*", ".*", ".*"]);
        Tls { certificates, broker }
    })
}

impl Tls {
    fn url(&self, login: &str, host: &str) -> String {
        format!("amqps://{login}{host}:{}", self.broker.tls_port(0))
    }

    fn files(&self) -> TlsFiles {
        self.certificates.files("ca", Some("client"))
    }

    fn fails(&self, url: &str, files: TlsFiles, code: i32, words: &[&str]) {
        let attempt = Attempt { tls: files, ..Attempt::new(url, &queue_name("tls")) };
        attempt.fails_for_all(code, words);
    }

    /// Starts another TLS listener with this server certificate and more options. Returns its port.
    fn listener(&self, server: &str, more: &str) -> u16 {
        // Another program may take the port in between, which is unlikely.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let file = |name: &str| self.certificates.path(name).display().to_string();
        let options = format!(
            r#"[{{cacertfile, "{}"}}, {{certfile, "{}"}}, {{keyfile, "{}"}},
                {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}{more}]"#,
            file("ca.pem"),
            file(&format!("{server}.pem")),
            file(&format!("{server}-key.pem")),
        );
        let start = format!("rabbit_networking:start_ssl_listener({port}, {options}, 2).");
        self.broker.ctl(&["eval", &start.replace('\n', " ")]);
        port
    }
}

#[test]
fn calls_succeed_over_tls() {
    let url = tls().url("", "localhost");
    let attempt = Attempt { tls: tls().files(), ..Attempt::new(&url, &queue_name("tls")) };
    let mut server = attempt.start_server();
    assert_eq!(attempt.call(), Ok(b"13".to_vec()));
    let mut client = attempt.start(RPC_CLIENT, &["7", "186"]);
    assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    assert_eq!(client.stdout(), "13\n332825110087067562321196029789634457848\n");

    // More than one TLS record in each direction.
    let brokers = attempt.brokers();
    let client = RpcClient::connect(brokers, &attempt.queue, ClientOptions::default()).unwrap();
    let error = client.call(vec![b'9'; 1 << 20]).unwrap_err().to_string();
    assert!(error.contains("(1048576 bytes)"), "{error}");

    stop(&mut server);
}

/// Tools write the name of a certificate, in any encoding, above the key.
#[test]
fn text_in_a_key_file_need_not_be_utf_8() {
    let url = tls().url("", "localhost");
    let mut attempt = Attempt { tls: tls().files(), ..Attempt::new(&url, &queue_name("tls")) };
    let key = std::fs::read(attempt.tls.key.as_ref().unwrap()).unwrap();
    let named = scratch::directory("tls").join("named-key.pem");
    std::fs::write(&named, [b"friendlyName: J\xfcrgen\n", &key[..]].concat()).unwrap();
    attempt.tls.key = Some(named);
    stop(&mut attempt.start_server());
}

/// OpenSSL keeps errors in a queue for each thread.
#[test]
fn error_that_other_code_leaves_in_openssls_queue_does_not_end_the_connection() {
    let leave_error = || {
        let error = openssl::x509::X509::from_pem(b"no certificate").expect_err("it is none");
        error.put();
    };
    let url = tls().url("", "localhost");
    let attempt = Attempt { tls: tls().files(), ..Attempt::new(&url, &queue_name("tls")) };
    let mut server = attempt.start_server();
    leave_error();
    let brokers = attempt.brokers();
    let client = RpcClient::connect(brokers, &attempt.queue, ClientOptions::default()).unwrap();
    for _ in 0..40 {
        leave_error();
        assert_eq!(client.call("7"), Ok(b"13".to_vec()));
    }
    assert_eq!(client.counters().reconnects, 0);
    stop(&mut server);
}

/// A partly written record must be finished before anything else is written, even after its writer
/// has given up.
#[test]
fn messages_stay_whole_when_connection_stalls() {
    let direct = tls().url("", "localhost");
    let attempt = Attempt { tls: tls().files(), ..Attempt::new(&direct, &queue_name("tls")) };
    let _server = attempt.start_server();
    let proxy = Proxy::to(tls().broker.tls_port(0));
    let url = proxy.url().replace("amqp://guest:guest@127.0.0.1", "amqps://localhost");
    // A busy machine may take longer than two heartbeats to fill the buffers.
    let url = url + "?heartbeat=0";
    let brokers = Attempt { url, ..attempt.clone() }.brokers();
    let options = ClientOptions { max_in_flight: 1 << 20, ..Default::default() };
    let client = RpcClient::connect(brokers, &attempt.queue, options).unwrap();
    for length in [100, 1_000, 5_000, 9_000] {
        proxy.set(Mode::Stall);
        let mut stalls = 0;
        while stalls < 3 {
            // Sending succeeds until the sockets' buffers are full.
            let stalled = client.send_timeout(vec![b'7'; length], Duration::from_millis(100));
            stalls += usize::from(stalled.is_err());
        }
        proxy.set(Mode::Forward);
        let reply = client.call_timeout("7", PATIENCE);
        assert_eq!(reply.unwrap(), b"13", "after messages of {length} bytes");
    }
    assert_eq!(client.counters().reconnects, 0, "the connection was lost: {:?}", client.counters());
}

#[test]
fn system_certificate_authorities_are_trusted_by_default() {
    // OpenSSL reads the system's certificates from the file in SSL_CERT_FILE, if that is set.
    let url = tls().url("", "localhost");
    let TlsFiles { cert, key, .. } = tls().files();
    let client = |trusted| {
        let mut command = std::process::Command::new(RPC_CLIENT);
        command.args(["--url", &url, "--queue", "no such queue", "7"]);
        command.arg("--tls-cert").arg(cert.as_ref().unwrap());
        command.arg("--tls-key").arg(key.as_ref().unwrap());
        command.env("SSL_CERT_FILE", tls().certificates.path(trusted));
        let mut client = Process::from(&mut command);
        let code = client.wait(PATIENCE).code();
        (code, client.stderr().to_string())
    };
    let (code, stderr) = client("ca.pem");
    assert!(stderr.contains("there is no queue or exchange"), "{stderr}");
    assert_eq!(code, Some(69));
    let (_, stderr) = client("other-ca.pem");
    assert!(stderr.contains("not signed by an authority trusted here"), "{stderr}");
}

#[test]
fn client_logs_in_by_certificate() {
    let url = tls().url("", "localhost") + "?auth_mechanism=external";
    let attempt = Attempt { tls: tls().files(), ..Attempt::new(&url, &queue_name("tls")) };
    let _server = attempt.start_server();
    assert_eq!(attempt.call(), Ok(b"13".to_vec()));
    let users = tls().broker.ctl(&["list_connections", "user", "auth_mechanism", "ssl"]);
    assert!(users.contains(&format!("{CLIENT}\tEXTERNAL\ttrue")), "{users}");

    // The broker compares the name in a request with that in the certificate.
    for (login, expected) in [(format!("{CLIENT}@"), Ok(b"13".to_vec())), (String::new(), Err(()))]
    {
        let url = tls().url(&login, "localhost") + "?auth_mechanism=external";
        let brokers = Attempt { url, ..attempt.clone() }.brokers();
        let identified = ClientOptions { identify: true, ..Default::default() };
        let client = RpcClient::connect(brokers, &attempt.queue, identified).unwrap();
        let called = client.call("7").map_err(|error| {
            assert!(matches!(&error, Error::Config(text) if text.contains("'guest'")), "{error:?}");
        });
        assert_eq!(called, expected);
    }

    // Another certificate of the same authority, whose name is not a user.
    let files = tls().certificates.files("ca", Some("server"));
    tls().fails(&url, files, 77, &["refused the client certificate as a login"]);
}

#[test]
fn broker_certificate_of_unknown_authority_is_rejected() {
    let files = tls().certificates.files("other-ca", Some("client"));
    let url = tls().url(&format!("guest:{ENCODED}@"), "localhost");
    tls().fails(&url, files, 69, &["not signed by an authority trusted here", "CA file"]);
}

#[test]
fn broker_certificate_for_another_host_is_rejected() {
    let url = tls().url(&format!("guest:{ENCODED}@"), "127.0.0.1");
    let words = ["the broker's certificate is not for the host name 127.0.0.1"];
    tls().fails(&url, tls().files(), 69, &words);
}

#[test]
fn expired_broker_certificate_is_rejected() {
    let port = tls().listener("expired-server", "");
    let url = format!("amqps://guest:{ENCODED}@localhost:{port}");
    tls().fails(&url, tls().files(), 69, &["the broker's certificate has expired"]);
}

#[test]
fn missing_client_certificate_is_reported() {
    let url = tls().url(&format!("guest:{ENCODED}@"), "localhost");
    let files = tls().certificates.files("ca", None);
    tls().fails(&url, files.clone(), 69, &["the broker asks for a client certificate"]);

    // The broker's alert arrives after our handshake is complete, and races with what we send.
    for _ in 0..20 {
        let brokers = Attempt { tls: files.clone(), ..Attempt::new(&url, "q") }.brokers();
        let failed = RpcClient::connect(brokers, "q", ClientOptions::default());
        let text = failed.expect_err("there is no client certificate").to_string();
        assert!(text.contains("the broker asks for a client certificate"), "{text}");
    }

    let port = tls().listener("server", ", {versions, ['tlsv1.2']}");
    let url = format!("amqps://guest:{ENCODED}@localhost:{port}");
    tls().fails(&url, files, 69, &["if it asks for a client certificate, give one"]);
}

#[test]
fn rejected_client_certificate_is_reported() {
    let url = tls().url(&format!("guest:{ENCODED}@"), "localhost");
    let expired = tls().certificates.files("ca", Some("expired-client"));
    tls().fails(&url, expired, 69, &["the client certificate has expired"]);
    let foreign = tls().certificates.files("ca", Some("foreign-client"));
    tls().fails(&url, foreign, 69, &["does not accept the client certificate"]);
}

#[test]
fn tls_on_plain_port_is_reported() {
    let url = format!("amqps://guest:{ENCODED}@localhost:{}", tls().broker.port(0));
    tls().fails(&url, tls().files(), 69, &["this port does not speak TLS; use amqp://"]);
}

#[test]
fn plain_amqp_on_tls_port_is_reported() {
    let url = format!("amqp://guest:{ENCODED}@localhost:{}", tls().broker.tls_port(0));
    tls().fails(&url, TlsFiles::default(), 69, &["this port speaks TLS; use amqps://"]);
}

#[test]
fn peer_that_does_not_speak_amqp_is_reported() {
    // The Erlang port mapper closes a connection on which it gets an unknown message.
    let url = format!("amqp://guest:{ENCODED}@localhost:{}", tls().broker.port(0) - 1);
    tls().fails(&url, TlsFiles::default(), 69, &["it hung up during the login"]);
    let url = url.replace("amqp://", "amqps://");
    tls().fails(&url, tls().files(), 69, &["it hung up during the TLS handshake"]);
}

#[test]
fn unusable_files_are_reported_before_connecting() {
    // Nothing listens on port 1; the files are checked before a connection is tried.
    let url = format!("amqps://guest:{ENCODED}@localhost:1");
    let good = tls().files();
    let ca = tls().certificates.path("ca.pem");
    let encrypted = tls().certificates.encrypted("client-key");
    for (files, words) in [
        (TlsFiles { ca: Some("/no/such.pem".into()), ..good.clone() }, "cannot use /no/such.pem"),
        (
            TlsFiles { ca: good.key.clone(), ..good.clone() },
            "as the certificates of authorities: no certificate",
        ),
        (TlsFiles { key: Some("/no/key.pem".into()), ..good.clone() }, "cannot read /no/key.pem"),
        (TlsFiles { key: Some("/dev/zero".into()), ..good.clone() }, "larger than a megabyte"),
        (TlsFiles { key: Some(encrypted), ..good.clone() }, "as the client certificate's key"),
        (TlsFiles { key: Some(ca.clone()), ..good.clone() }, "as the client certificate's key"),
        (TlsFiles { cert: Some(ca), ..good.clone() }, "key values mismatch"),
        (TlsFiles { key: None, ..good }, "needs its key"),
    ] {
        tls().fails(&url, files, 64, &[words]);
    }
    let nothing = Brokers::parse("amqps://localhost:1").unwrap();
    let error = RpcClient::connect(nothing, "q", ClientOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
}
