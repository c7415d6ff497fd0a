//! Looking at a queue, and making one, as another program would.

use std::time::{Duration, Instant};

use amiquip::{Connection, FieldTable, QueueDeclareOptions};

/// A connection of another program's.
pub fn connect(url: &str) -> Connection {
    Connection::insecure_open(url).unwrap()
}

pub fn declare(url: &str, queue: &str, durable: bool, arguments: FieldTable) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    let options = QueueDeclareOptions { durable, arguments, ..Default::default() };
    channel.queue_declare(queue, options).unwrap();
    connection.close().unwrap();
}

/// Waits until no request is left that nobody has taken, of those that the broker confirmed.
pub fn wait_until_taken(url: &str, queue: &str) {
    let mut connection = connect(url);
    let channel = connection.open_channel(None).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let looked = channel.queue_declare_passive(queue).unwrap();
        let (ready, consumers) =
            (looked.declared_message_count(), looked.declared_consumer_count());
        if ready == Some(0) && consumers > Some(0) {
            break;
        }
        assert!(Instant::now() < deadline, "{ready:?} requests wait for {consumers:?} consumers");
        // The broker tells nobody when a queue runs empty.
        std::thread::sleep(Duration::from_millis(10));
    }
    connection.close().unwrap();
}
