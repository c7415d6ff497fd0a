//! A password in a file, which is read again for each connection.

use rabbitmq_rpc::{Brokers, ClientOptions, Error, RpcClient};

use crate::broker::{Broker, queue_name};
use crate::embedded::connect_fibonacci;
use crate::patience::PATIENCE;
use crate::process::Process;
use crate::programs::{RPC_CLIENT, rpc_server_at, stop};
use crate::scratch;

/// The operator changes the password at the broker first, so the server is refused for a while.
#[test]
fn programs_go_on_after_their_password_was_rotated() {
    let broker = Broker::fragile();
    broker.ctl(&["add_user", "carol", "first secret"]);
    broker.ctl(&["set_permissions", "carol", ".*", ".*", ".*"]);
    let url = broker.url().replace("guest:guest", "carol");
    let file = scratch::directory("password-file").join("password");
    std::fs::write(&file, "first secret\n").unwrap();
    let queue = queue_name("rotated");
    let path = file.to_str().unwrap();
    let mut server = rpc_server_at(&url, &queue, &["--password-file", path]);

    broker.ctl(&["change_password", "carol", "second secret"]);
    broker.ctl(&["close_all_connections", "new passwords"]);
    server.wait_for_line("refused the login", PATIENCE);
    std::fs::write(&file, "second secret").unwrap();
    assert_eq!(connect_fibonacci(&broker.url(), &queue).call(7), Ok(13));
    let args = ["--url", &url, "--queue", &queue, "--password-file", path, "8"];
    let mut client = Process::spawn(RPC_CLIENT, &args);
    assert!(client.wait(PATIENCE).success(), "{}", client.stderr());
    stop(&mut server);
    assert!(!server.stderr().contains("secret"), "{}", server.stderr());
}

#[test]
fn password_file_that_cannot_be_used_is_named() {
    let mut brokers = Brokers::parse("amqp://carol:secret@127.0.0.1:1").unwrap();
    let empty = scratch::directory("password-file").join("empty-password");
    std::fs::write(&empty, "\n").unwrap();
    let latin_1 = scratch::directory("password-file").join("latin-1-password");
    std::fs::write(&latin_1, b"J\xfcrgen\n").unwrap();
    for (file, named) in [
        ("/no/such/file".into(), "No such file"),
        (empty, "is empty"),
        (latin_1, "is not UTF-8"),
        ("/dev/zero".into(), "larger than a megabyte"),
    ] {
        brokers.password_file = Some(file);
        let connected = RpcClient::connect(brokers.clone(), "q", ClientOptions::default());
        let error = connected.unwrap_err();
        assert!(matches!(&error, Error::Config(text) if text.contains(named)), "{error:?}");
    }
    assert!(!format!("{brokers:?}").contains("secret"));
}
