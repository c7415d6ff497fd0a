//! Tests properties and headers with random values.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::append_text;
use super::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn properties_survive_encoding(
        texts in vec(option::of(".{0,40}"), 9),
        header in ("[a-z]{1,20}", ".{0,40}"),
        timestamp in option::of(any::<u64>()),
    ) {
        let text = |index: usize| texts[index].as_deref();
        let mut headers = Vec::new();
        append_text(&mut headers, &header.0, &header.1);
        let properties = Properties {
            content_type: text(0),
            content_encoding: text(8),
            headers: &headers,
            correlation_id: text(1).map(str::as_bytes),
            reply_to: text(2),
            expiration: text(3),
            message_id: text(4),
            timestamp,
            type_: text(5),
            user_id: text(6),
            app_id: text(7),
        };
        let encoded = properties.encode();
        prop_assert_eq!(Properties::decode(&encoded), properties);
        prop_assert_eq!(find_header(&headers, &header.0), Some(&*header.1));
        prop_assert_eq!(find_header(&headers, "UPPER"), None);
    }

    #[test]
    fn text_among_odd_headers_is_found(
        before in vec(entry(), 0..5),
        after in vec(any::<u8>(), 0..20),
        value in ".{0,40}",
    ) {
        let mut table = before.concat();
        append_text(&mut table, "RPC-STATUS", &value);
        table.extend(after);
        prop_assert_eq!(find_header(&table, "RPC-STATUS"), Some(&*value));
    }
}

/// An entry of a headers table, of any type.
fn entry() -> impl Strategy<Value = Vec<u8>> {
    let long = |value: Vec<u8>| [&(value.len() as u32).to_be_bytes()[..], &value].concat();
    let value = prop_oneof![
        (prop::sample::select(&b"SxAF"[..]), vec(any::<u8>(), 0..20))
            .prop_map(move |(kind, value)| [vec![kind], long(value)].concat()),
        prop::sample::select(
            &[("V", 0), ("tbB", 1), ("suU", 2), ("Iif", 4), ("D", 5), ("lLdT", 8)][..]
        )
        .prop_flat_map(|(kinds, length)| {
            (prop::sample::select(kinds.as_bytes()), vec(any::<u8>(), length))
        })
        .prop_map(|(kind, value)| [vec![kind], value].concat()),
    ];
    ("[a-z]{0,20}", value)
        .prop_map(|(name, value)| [&[name.len() as u8], name.as_bytes(), &value].concat())
}
