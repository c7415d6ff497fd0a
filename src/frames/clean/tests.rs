//! Frames at random, judged by the decoder that amiquip hands them to.
//!
//! `PROPTEST_CASES=1000000 cargo test --release frames::` tries a million of each kind.

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, parse_frame};
use amq_protocol::protocol::{AMQPClass, basic};
use amq_protocol::types::AMQPValue;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::{BODY, END};
use super::*;

const REPLY_TO: usize = 6;
const CORRELATION_ID: usize = 5;
const HEADERS: usize = 2;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_taken(bytes in vec(any::<u8>(), 0..600)) {
        clean(&bytes);
        clean(&frame(HEADER, &bytes));
        clean(&frame(METHOD, &bytes));
        clean(&frame(METHOD, &[&DELIVER[..], &bytes].concat()));
    }

    #[test]
    fn it_does_not_matter_where_a_read_ends(
        payloads in vec((1u8..5, vec(any::<u8>(), 0..80)), 1..6),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let stream: Vec<u8> =
            payloads.iter().flat_map(|(kind, payload)| frame(*kind, payload)).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort();
        let mut cleaner = Cleaner::default();
        let mut cleaned = Vec::new();
        let mut begin = 0;
        for end in cuts.into_iter().chain([stream.len()]) {
            cleaner.push(&stream[begin..end], &mut cleaned);
            begin = end;
        }
        prop_assert_eq!(cleaned, clean(&stream));
    }

    #[test]
    fn whatever_a_content_header_holds_it_can_be_decoded(header in damaged_header()) {
        let cleaned = clean(&frame(HEADER, &header));
        decode_header(&cleaned);
        prop_assert_eq!(clean(&cleaned), cleaned, "what is clean stays as it is");
    }

    #[test]
    fn the_reply_address_survives_what_stands_around_it(
        mut properties in properties(),
        reply_to in ".{0,40}",
        correlation_id in ".{0,40}",
    ) {
        properties[REPLY_TO] = Some(short(reply_to.as_bytes()));
        properties[CORRELATION_ID] = Some(short(correlation_id.as_bytes()));
        let cleaned = clean(&frame(HEADER, &header(&properties)));
        let decoded = decode_header(&cleaned).properties;
        prop_assert_eq!(decoded.reply_to(), &Some(reply_to));
        prop_assert_eq!(decoded.correlation_id(), &Some(correlation_id));
    }

    #[test]
    fn text_among_the_headers_survives(
        before in vec(entry(), 0..5),
        after in vec(any::<u8>(), 0..20),
        value in ".{0,40}",
    ) {
        let entry = [&short(b"rpc-status")[..], b"S", &long(value.as_bytes())].concat();
        let table = [before.concat(), entry, after].concat();
        let mut properties = vec![None; PROPERTIES.len()];
        properties[HEADERS] = Some(long(&table));
        let cleaned = clean(&frame(HEADER, &header(&properties)));
        let decoded = decode_header(&cleaned).properties;
        // Junk behind it can hold the same key only if it is a whole entry, which it is not.
        let found = decoded.headers().as_ref().and_then(|headers| headers.get("rpc-status"));
        prop_assert_eq!(found, Some(&AMQPValue::LongString(value)));
    }

    #[test]
    fn a_delivery_can_be_decoded_whatever_way_it_took(
        consumer_tag in "[a-z]{0,40}",
        delivery_tag in any::<u64>(),
        exchange in vec(any::<u8>(), 0..255),
        routing_key in vec(any::<u8>(), 0..255),
    ) {
        let payload = [
            &DELIVER[..],
            &short(consumer_tag.as_bytes()),
            &delivery_tag.to_be_bytes(),
            &[1],
            &short(&exchange),
            &short(&routing_key),
        ]
        .concat();
        let cleaned = clean(&frame(METHOD, &payload));
        let (rest, decoded) = parse_frame(&cleaned).expect("it can be decoded");
        prop_assert!(rest.is_empty());
        let AMQPFrame::Method(7, AMQPClass::Basic(basic::AMQPMethod::Deliver(deliver))) = decoded
        else {
            panic!("{decoded:?} is no delivery");
        };
        prop_assert_eq!(deliver.consumer_tag, consumer_tag);
        prop_assert_eq!(deliver.delivery_tag, delivery_tag);
        prop_assert!(deliver.redelivered);
        if let Ok(routing_key) = String::from_utf8(routing_key) {
            prop_assert_eq!(deliver.routing_key, routing_key);
        }
    }
}

#[test]
fn everything_else_passes_as_it_came() {
    let heartbeat = frame(8, b"");
    let body = frame(BODY, b"\xff\xfe");
    let method = frame(METHOD, &[0, 60, 0, 11]);
    let stream = [heartbeat, body, method].concat();
    assert_eq!(clean(&stream), stream);
}

const DELIVER: [u8; 4] = [0, 60, 0, 60];

fn clean(stream: &[u8]) -> Vec<u8> {
    let mut cleaned = Vec::new();
    Cleaner::default().push(stream, &mut cleaned);
    cleaned
}

fn decode_header(frame: &[u8]) -> AMQPContentHeader {
    match parse_frame(frame) {
        Ok(([], AMQPFrame::Header(7, 60, header))) => *header,
        other => panic!("{} decodes to {other:?}", frame.escape_ascii()),
    }
}

/// A content header of which anything may be wrong behind the flags, which the broker writes.
fn damaged_header() -> impl Strategy<Value = Vec<u8>> {
    let damage = (vec((any::<Index>(), any::<u8>()), 0..4), option::of(any::<Index>()));
    (properties(), any::<u16>(), any::<bool>(), damage).prop_map(
        |(properties, flags, keep_flags, (flips, cut))| {
            let mut header = header(&properties);
            if !keep_flags {
                header[12..14].copy_from_slice(&flags.to_be_bytes());
            }
            let behind = header.len() - 14;
            for (at, byte) in flips.into_iter().filter(|_| behind > 0) {
                header[14 + at.index(behind)] = byte;
            }
            if let Some(cut) = cut {
                header.truncate(14 + cut.index(behind + 1));
            }
            header
        },
    )
}

/// Each property as it stands on the wire, laid out rightly, whatever its text.
fn properties() -> impl Strategy<Value = Vec<Option<Vec<u8>>>> {
    let each: Vec<_> = PROPERTIES.into_iter().map(|layout| option::of(property(layout))).collect();
    each
}

fn property(layout: Layout) -> BoxedStrategy<Vec<u8>> {
    match layout {
        Layout::ShortString => text_or_not().prop_map(|text| short(&text)).boxed(),
        Layout::Table => table().prop_map(|table| long(&table)).boxed(),
        Layout::Octet => vec(any::<u8>(), 1).boxed(),
        Layout::Timestamp => vec(any::<u8>(), 8).boxed(),
    }
}

fn text_or_not() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![".{0,30}".prop_map(String::into_bytes), vec(any::<u8>(), 0..30)]
}

fn table() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(entry(), 0..6).prop_map(|entries| entries.concat()), vec(any::<u8>(), 0..60)]
}

/// An entry of any type whose end can be found.
fn entry() -> impl Strategy<Value = Vec<u8>> {
    let value =
        prop_oneof![
            text_or_not().prop_map(|text| [b"S", &long(&text)[..]].concat()),
            (prop::sample::select(&b"xAF"[..]), vec(any::<u8>(), 0..40))
                .prop_map(|(kind, bytes)| [&[kind], &long(&bytes)[..]].concat()),
            fixed("V", 0),
            fixed("tbB", 1),
            fixed("suU", 2),
            fixed("Iif", 4),
            fixed("D", 5),
            fixed("lLdT", 8),
        ];
    (text_or_not(), value).prop_map(|(key, value)| [short(&key), value].concat())
}

fn fixed(kinds: &'static str, length: usize) -> BoxedStrategy<Vec<u8>> {
    (prop::sample::select(kinds.as_bytes()), vec(any::<u8>(), length))
        .prop_map(|(kind, bytes)| [&[kind], &bytes[..]].concat())
        .boxed()
}

fn header(properties: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut flags = 0u16;
    for (index, _) in properties.iter().enumerate().filter(|(_, property)| property.is_some()) {
        flags |= 1 << (15 - index);
    }
    let mut header = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    header.extend(flags.to_be_bytes());
    header.extend(properties.iter().flatten().flatten());
    header
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind, 0, 7], &size[..], payload, &[END]].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("short")], text].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}
