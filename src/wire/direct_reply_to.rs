//! Recognizes addresses of [direct reply-to](https://www.rabbitmq.com/docs/direct-reply-to).
//!
//! A requester can write anything behind the prefix of such an address, and RabbitMQ before 4.1
//! closes the connection that publishes to some addresses that it did not make itself, with
//! INTERNAL_ERROR.

const PREFIX: &str = "amq.rabbitmq.reply-to.";

/// Whether the name is in the name space of direct reply-to.
pub(crate) fn is_direct(reply_to: &str) -> bool {
    reply_to.starts_with(PREFIX)
}

/// Whether the broker may have made this address of direct reply-to: a process and a key, both in
/// Base64, with a dot between them.
pub(super) fn is_well_formed(reply_to: &str) -> bool {
    let parts = reply_to.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(process, key)| {
        decode_base64(key).is_some_and(|key| !key.is_empty())
            && decode_base64(process).is_some_and(|term| is_process(&term))
    })
}

/// Whether this is a process in [Erlang's external term
/// format](https://www.erlang.org/doc/apps/erts/erl_ext_dist.html), as all RabbitMQ since 3.9 write
/// it (`to_binary` in `pid_recomposition.erl`): the name of the node is `reply@` and a number, and
/// three numbers of four bytes follow, the first of which is the process's own.
fn is_process(term: &[u8]) -> bool {
    const VERSION: u8 = 131;
    const NEW_PID_EXT: u8 = 88;
    const ATOM_UTF8_EXT: u8 = 118;
    /// A higher number is no process of a node: RabbitMQ fails on it.
    const MAX_ID: u32 = (1 << 28) - 1;
    let [VERSION, NEW_PID_EXT, ATOM_UTF8_EXT, high, low, ref rest @ ..] = *term else {
        return false;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let Some((node, numbers)) = rest.split_at_checked(length).filter(|it| it.1.len() == 12) else {
        return false;
    };
    let hash = node.strip_prefix(b"reply@").unwrap_or_default();
    let is_node = !hash.is_empty() && hash.len() < 20 && hash.iter().all(u8::is_ascii_digit);
    is_node && numbers.first_chunk().is_some_and(|id| u32::from_be_bytes(*id) <= MAX_ID)
}

/// `None` if the text is not Base64 with padding.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RabbitMQ 3.10.8.
    const REAL: &str = "g1h2AA5yZXBseUAxMjM0NTY3OAAAA3UAAAAAZ0Vx+Q==.AAECAwQFBgcICQoLDA0ODw==";

    #[test]
    fn only_addresses_that_the_broker_makes_are_well_formed() {
        let address = |rest: &str| format!("{PREFIX}{rest}");
        assert!(is_direct(&address(REAL)) && is_well_formed(&address(REAL)));
        let (process, key) = REAL.split_once('.').unwrap();
        let encoded = decode_base64(process).unwrap();
        assert!(is_process(&encoded));
        for length in 0..encoded.len() {
            assert!(!is_process(&encoded[..length]), "{length} bytes");
        }
        let mut large = encoded.clone();
        large[encoded.len() - 12] = 0x10;
        assert!(!is_process(&large), "no node has a process with such a high number");
        assert_eq!(decode_base64("QQ==").as_deref(), Some(&b"A"[..]));
        assert_eq!(decode_base64("QUI=").as_deref(), Some(&b"AB"[..]));
        assert_eq!(decode_base64("QUJD+/8=").as_deref(), Some(&b"ABC\xfb\xff"[..]));
        for rest in [
            "",
            ".",
            "a.b",
            "QUJD.QUJD",
            process,
            &format!("{process}."),
            &format!(".{key}"),
            &format!("{process}.{key}.{key}"),
            &format!("{process}.\u{e9}"),
            &format!("{}.{key}", &process[1..]),
        ] {
            assert!(!is_well_formed(&address(rest)), "{rest}");
        }
        assert!(!is_direct("amq.rabbitmq.reply-to") && !is_direct("amq.gen-7"));
    }
}
