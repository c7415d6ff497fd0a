//! A client whose user may open few channels.

use rabbitmq_rpc::RpcClient;

use crate::broker::{Broker, queue_name};
use crate::embedded::connect;
use crate::patience::await_value;

/// A client of a new user who may have `most` channels. Returns when the broker counts all that the
/// client has opened. It counts a channel a moment after it has opened it, and so may open one too
/// many: then another client connects.
pub fn connect_with_few_channels(broker: &Broker, queue: &str, most: usize) -> RpcClient {
    let user = queue_name("few-channels");
    broker.ctl(&["add_user", &user, "secret"]);
    broker.ctl(&["set_permissions", &user, ".*", ".*", ".*"]);
    broker.ctl(&["set_user_limits", &user, &format!(r#"{{"max-channels": {most}}}"#)]);
    let opened = || {
        let users = broker.ctl(&["list_channels", "user"]);
        users.lines().filter(|other| other.trim() == user).count()
    };
    let count =
        format!("rabbit_channel_tracking:count_tracked_items_in({{user, <<\"{user}\">>}}).");
    let counted = || broker.ctl(&["eval", &count]).trim().parse::<usize>().unwrap();
    let url = broker.url().replace("guest:guest", &format!("{user}:secret"));
    let connected = || {
        let client = connect(&url, queue);
        let (has, _) = await_value(|| (opened(), counted()), |(opened, counted)| opened == counted);
        (has <= most).then_some(client)
    };
    (0..8).find_map(|_| connected()).expect("the broker counts in time now and then")
}
