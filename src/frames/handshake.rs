//! Puts right in passing what amiquip's handshake gets wrong.

use std::borrow::Cow;

use super::encode::method;
use super::fields::{Fields, append_long, append_short, append_text};
use super::incoming::Notice;
use super::layout::*;

/// Replaces the client properties in amiquip's `connection.start-ok`, and returns all other frames
/// as they are. amiquip does not announce `authentication_failure_close`. Without it, RabbitMQ ends
/// the connection of a refused login after 3 s and does not say why
/// ([Authentication failure notifications](https://www.rabbitmq.com/docs/auth-notification)).
pub(crate) fn with_client_properties(
    frame: &[u8],
    information: impl FnOnce() -> String,
) -> Cow<'_, [u8]> {
    let behind_properties = || {
        let mut fields = Fields(frame);
        let _prefix = fields.take(PREFIX)?;
        fields.take(4).filter(|id| *id == CONNECTION_START_OK)?;
        let _properties = fields.long()?;
        fields.0.split_last().map(|(_end, rest)| rest)
    };
    let Some(rest) = behind_properties() else { return Cow::Borrowed(frame) };
    let replaced = method(0, CONNECTION_START_OK, |out| {
        append_long(out, |table| append_client_properties(table, &information()));
        out.extend_from_slice(rest);
    });
    Cow::Owned(replaced)
}

fn append_client_properties(table: &mut Vec<u8>, information: &str) {
    append_text(table, "product", env!("CARGO_PKG_NAME"));
    append_text(table, "version", env!("CARGO_PKG_VERSION"));
    append_text(table, "platform", "Rust");
    append_text(table, "information", information);
    append_short(table, "capabilities");
    table.push(b'F');
    append_long(table, |table| {
        for name in ["authentication_failure_close", "connection.blocked", "consumer_cancel_notify"]
        {
            append_short(table, name);
            table.extend_from_slice(b"t\x01");
        }
    });
}

/// Changes a frame of the broker for amiquip. `notice` is what the frame says.
///
/// Removes the broker's properties from `connection.start`. amiquip's decoder recurses into nested
/// tables, so deep nesting overflows its stack and ends the process. On channel 0, only
/// `connection.start` contains a table.
///
/// Removes the heartbeat 0, which suggests none, from `connection.tune`. amiquip takes the minimum
/// of the broker's heartbeat and its own, and would then not notice that a broker is frozen.
pub(super) fn for_amiquip<'a>(frame: &'a mut [u8], notice: &Notice) -> &'a [u8] {
    /// The table follows the method's id and the protocol's version, and begins with its length.
    const TABLE_AT: usize = PREFIX + 4 + 2;
    /// The heartbeat follows the method's id and the limits of channels and frames.
    const HEARTBEAT_AT: usize = PREFIX + 4 + 2 + 4;
    match notice {
        Notice::Start { .. } => {
            let table = Fields(&frame[TABLE_AT..]).long().map_or(0, <[u8]>::len);
            frame.copy_within(TABLE_AT + 4 + table.., TABLE_AT + 4);
            frame[TABLE_AT..TABLE_AT + 4].fill(0);
            let length = frame.len() - table;
            frame[3..PREFIX].copy_from_slice(&((length - OVERHEAD) as u32).to_be_bytes());
            &frame[..length]
        }
        Notice::Tune { heartbeat: 0, .. } => {
            frame[HEARTBEAT_AT..HEARTBEAT_AT + 2].copy_from_slice(&u16::MAX.to_be_bytes());
            frame
        }
        _ => frame,
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::parse_frame;

    use super::*;

    #[test]
    fn login_announces_what_this_crate_understands_and_keeps_the_credentials() {
        let start_ok = method(0, CONNECTION_START_OK, |out| {
            append_long(out, |table| append_text(table, "product", "amiquip"));
            out.extend_from_slice(b"\x05PLAIN\0\0\0\x04\0u\0p\x05en_US");
        });
        let replaced = with_client_properties(&start_ok, || "a program".into());
        let (rest, decoded) = parse_frame(&replaced).expect("it is a frame");
        assert!(rest.is_empty());
        let decoded = format!("{decoded:?}");
        for part in ["PLAIN", "\\0u\\0p", "a program", "authentication_failure_close"] {
            assert!(decoded.contains(part), "{part}: {decoded}");
        }
        assert!(!decoded.contains("amiquip"), "{decoded}");
        for other in [&b"AMQP\0\0\x09\x01"[..], &start_ok[..9], b""] {
            assert_eq!(*with_client_properties(other, String::new), *other);
        }
    }

    fn pass(frame: &mut [u8]) -> &[u8] {
        let notice = Notice::decode(&frame[PREFIX..frame.len() - 1]).expect("it is valid");
        for_amiquip(frame, &notice)
    }

    #[test]
    fn heartbeat_zero_of_the_broker_does_not_reach_amiquip() {
        for (suggested, passed) in [(0, u16::MAX), (1, 1), (60, 60)] {
            let mut tune = method(0, CONNECTION_TUNE, |out| {
                out.extend_from_slice(&[0, 0, 0, 2, 0, 0]);
                out.extend_from_slice(&u16::to_be_bytes(suggested));
            });
            let (end, heartbeat) = (tune.len() - 1, passed.to_be_bytes());
            assert_eq!(pass(&mut tune)[end - 2..end], heartbeat, "{suggested}");
        }
    }

    #[test]
    fn deep_nesting_of_the_brokers_properties_does_not_reach_amiquip() {
        let mut properties = Vec::new();
        for _ in 0..8_000 {
            let length = (properties.len() as u32).to_be_bytes();
            properties = [b"\x01tF", &length[..], &properties].concat();
        }
        properties.truncate(60_000);
        let table = [&(properties.len() as u32).to_be_bytes()[..], &properties].concat();
        let start = [&[0, 9][..], &table, b"\0\0\0\x05PLAIN\0\0\0\x05en_US"].concat();
        let mut start = method(0, CONNECTION_START, |out| out.extend_from_slice(&start));
        let (rest, decoded) = parse_frame(pass(&mut start)).expect("amiquip decodes it");
        assert!(rest.is_empty());
        let decoded = format!("{decoded:?}");
        assert!(decoded.contains("PLAIN") && decoded.contains("en_US"), "{decoded}");
    }
}
