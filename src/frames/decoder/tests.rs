//! Tests the decoder, mostly with random frames.
//!
//! `PROPTEST_CASES=1000000 cargo test --release frames::` runs each property a million times.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::incoming::*;
use super::super::layout::*;
use super::super::{Properties, Route, append_text, find_header, publish};
use super::*;

const CHANNEL: u16 = 7;
const ROUTE: Route<'_> =
    Route { channel: CHANNEL, exchange: "", routing_key: "q", mandatory: true, frame_max: 4096 };
const METHODS: [MethodId; 8] = [
    BASIC_DELIVER,
    BASIC_RETURN,
    QUEUE_DECLARE_OK,
    CHANNEL_CLOSE,
    CONNECTION_START,
    CONNECTION_TUNE,
    CONNECTION_CLOSE,
    CONNECTION_BLOCKED,
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn takes_any_bytes(bytes in vec(any::<u8>(), 0..600)) {
        decode_all(&bytes, &[]).ok();
        for channel in [0, CHANNEL] {
            for kind in [METHOD, HEADER, BODY, HEARTBEAT] {
                decode_all(&frame_on(channel, kind, &bytes), &[]).ok();
            }
            for id in METHODS {
                let method = frame_on(channel, METHOD, &[&id, &bytes[..]].concat());
                decode_all(&[method, frame(HEADER, &bytes)].concat(), &[]).ok();
            }
        }
    }

    #[test]
    fn result_does_not_depend_on_where_reads_end(
        bodies in vec(vec(any::<u8>(), 0..80), 1..6),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let stream: Vec<u8> = bodies
            .iter()
            .flat_map(|body| [delivery(&Properties::default(), body), heartbeat()].concat())
            .collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.sort();
        let whole = decode_all(&stream, &[]).unwrap();
        prop_assert_eq!(decode_all(&stream, &cuts).unwrap(), whole.clone());
        prop_assert_eq!(whole.messages.len(), bodies.len());
        for (message, body) in whole.messages.iter().zip(&bodies) {
            prop_assert_eq!(&message.body, body);
        }
        prop_assert_eq!(whole.control, heartbeat().repeat(bodies.len()));
    }

    #[test]
    fn damaged_properties_are_absent_and_the_message_arrives(
        flags in any::<u16>(),
        properties in vec(any::<u8>(), 0..200),
    ) {
        let header = [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &flags.to_be_bytes(), &properties].concat();
        let stream = [deliver(), frame(HEADER, &header), frame(BODY, b"7")].concat();
        let messages = decode_all(&stream, &[]).unwrap().messages;
        let _ = messages[0].properties();
        prop_assert_eq!(&messages[0].body, b"7");
    }
}

#[test]
fn each_breach_of_the_protocol_is_named() {
    let header =
        |size: u64| frame(HEADER, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat());
    let mut cut_off = heartbeat();
    cut_off.pop();
    cut_off.push(0);
    let large = [&[METHOD, 0, 7][..], &200_000u32.to_be_bytes(), b"x"].concat();
    let endless = [&[HEADER, 0, 7][..], &u32::MAX.to_be_bytes(), b"x"].concat();
    for (stream, named) in [
        ([deliver(), header(1 << 63)].concat(), "announced a message of 9223372036854775808 bytes"),
        ([deliver(), header(1), frame(BODY, b"22")].concat(), "longer than its header said"),
        ([deliver(), frame(BODY, b"2")].concat(), "wrong order"),
        ([deliver(), header(1), header(1)].concat(), "wrong order"),
        ([deliver(), frame(HEADER, b"\0\x3c")].concat(), "cut short"),
        ([deliver(), large].concat(), "a frame of 200008 bytes; the limit is 131072"),
        ([deliver(), endless].concat(), "a frame of 4294967303 bytes; the limit is 536870912"),
        ([deliver(), cut_off].concat(), "does not end where it should"),
        ([deliver(), frame(5, b"")].concat(), "a frame of type 5"),
        (frame(METHOD, b"\0\x32\0\x0a"), "out of place ([0, 50, 0, 10])"),
        (frame(METHOD, b"\0"), "cut short"),
        ([deliver(), frame(HEARTBEAT, b"")].concat(), "a frame of type 8 on channel 7"),
        ([deliver(), frame_on(0, HEADER, b"")].concat(), "a frame of type 2 on channel 0"),
        (b"HTTP/1.1 400 Bad Request".to_vec(), "does not speak AMQP"),
        (b"\x15\x03\x03\0\x02".to_vec(), "amqps://"),
    ] {
        let error = decode_all(&stream, &[]).expect_err(named);
        assert!(error.contains(named), "{error}");
    }
}

#[test]
fn content_that_belongs_to_no_message_is_passed_over() {
    let given_up = [deliver(), frame(METHOD, &BASIC_QOS_OK)].concat();
    let stream =
        [given_up, frame(HEADER, b""), frame(BODY, b"x"), delivery(&Properties::default(), b"7")];
    let decoded = decode_all(&stream.concat(), &[]).unwrap();
    assert_eq!(decoded.messages.len(), 1);
}

#[test]
fn content_header_may_be_larger_than_other_frames() {
    let mut headers = Vec::new();
    append_text(&mut headers, "large", &"7".repeat(3 << 20));
    let large = Properties { headers: &headers, ..Default::default() };
    let mut decoder = Decoder::default();
    for bytes in delivery(&large, b"7").chunks(60_000) {
        assert_eq!(decoder.next(), Ok(None));
        feed(&mut decoder, bytes);
        assert!(decoder.buffer.len() < 4 * decoder.end + (128 << 10), "memory for what has come");
    }
    let Ok(Some(Incoming::Event { event: Event::Delivery(delivery), .. })) = decoder.next() else {
        panic!("the message is complete");
    };
    assert_eq!(find_header(delivery.message.properties().headers, "large").unwrap().len(), 3 << 20);
    assert_eq!(decoder.next(), Ok(None));
    assert!(decoder.buffer.is_empty(), "{} bytes are kept", decoder.buffer.len());
}

#[test]
fn announced_memory_is_not_taken() {
    let size = MESSAGE_MAX as u64;
    let header = frame(HEADER, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat());
    let mut decoder = Decoder::default();
    feed(&mut decoder, &[deliver(), header, frame(BODY, b"7")].concat());
    assert_eq!(decoder.next(), Ok(None));
    let message = decoder.unfinished[0].event.message().unwrap();
    assert!(message.body.capacity() < 100);
}

#[test]
fn memory_of_a_large_body_is_used_for_the_next() {
    let mut decoder = Decoder::default();
    let mut receive = |size, recycled: Option<Vec<u8>>| {
        recycled.into_iter().for_each(|body| decoder.recycle(body));
        for bytes in delivery(&Properties::default(), &vec![7; size]).chunks(4096) {
            feed(&mut decoder, bytes);
            if let Some(Incoming::Event { mut event, .. }) = decoder.next().unwrap() {
                return std::mem::take(&mut event.message().unwrap().body);
            }
        }
        panic!("the message is complete");
    };
    let first = receive(100_000, None);
    let memory = first.as_ptr();
    let second = receive(90_000, Some(first));
    assert_eq!((second.as_ptr(), second.len()), (memory, 90_000));
    let small = receive(1_000, Some(second));
    assert_ne!(small.as_ptr(), memory, "a small body does not keep a large memory");
    let third = receive(100_000, None);
    assert_eq!(third.as_ptr(), memory);
}

#[test]
fn methods_are_read_on_their_channels_only() {
    let text = |code: u16, text: &str| {
        [&code.to_be_bytes()[..], &[text.len() as u8], text.as_bytes(), &BASIC_PUBLISH].concat()
    };
    let close = Close { code: 406, text: "PRECONDITION_FAILED".into(), method: BASIC_PUBLISH };
    assert!(close.refuses_message());
    let arguments = text(406, "PRECONDITION_FAILED");
    let queue = DeclaredQueue { name: "q".into(), messages: 7, consumers: 1 };
    let tune = |frame_max| Notice::Tune { channel_max: 2047, frame_max, heartbeat: 60 };
    let control = |notice: Notice| (0, Some(notice), None);
    let on_channel = |event: Event| (CHANNEL, None, Some(event));
    for (id, arguments, (channel, notice, event)) in [
        (CHANNEL_CLOSE, &arguments[..], on_channel(Event::Closed(close.clone()))),
        (BASIC_CANCEL, b"\x01t\0", on_channel(Event::Cancelled)),
        (BASIC_QOS_OK, b"", on_channel(Event::Answer(Answer::Done))),
        (
            QUEUE_DECLARE_OK,
            b"\x01q\0\0\0\x07\0\0\0\x01",
            on_channel(Event::Answer(Answer::Queue(queue))),
        ),
        (CONNECTION_CLOSE, &arguments, control(Notice::Closed(close))),
        (CONNECTION_CLOSE_OK, b"", control(Notice::CloseConfirmed)),
        (CONNECTION_TUNE, b"\x07\xff\0\x01\0\0\0\x3c", control(tune(65_536))),
        (CONNECTION_TUNE, b"\x07\xff\0\0\0\0\0\x3c", control(tune(0))),
        (CONNECTION_BLOCKED, b"\x04disk", control(Notice::Blocked("disk".into()))),
        (CONNECTION_UNBLOCKED, b"", control(Notice::Unblocked)),
    ] {
        let method = [&id, arguments].concat();
        let right = frame_on(channel, METHOD, &method);
        let mut decoder = Decoder::default();
        feed(&mut decoder, &right);
        let expected = match (notice, event) {
            (Some(notice), _) => Incoming::Control { frame: &right, notice },
            (None, event) => Incoming::Event { channel, event: event.unwrap() },
        };
        assert_eq!(decoder.next(), Ok(Some(expected)));
        let wrong = frame_on(CHANNEL - channel, METHOD, &method);
        assert!(decode_all(&wrong, &[]).is_err(), "{id:?} on a channel that has none such");
    }
}

/// The decoded content of a stream.
#[derive(Debug, Default, Clone, PartialEq)]
struct Decoded {
    messages: Vec<Message>,
    control: Vec<u8>,
}

fn decode_all(stream: &[u8], cuts: &[usize]) -> Result<Decoded, String> {
    let mut decoder = Decoder::default();
    let mut decoded = Decoded::default();
    let mut begin = 0;
    for end in cuts.iter().copied().chain([stream.len()]) {
        feed(&mut decoder, &stream[begin..end]);
        begin = end;
        while let Some(incoming) = decoder.next()? {
            match incoming {
                Incoming::Control { frame, .. } => decoded.control.extend_from_slice(frame),
                Incoming::Event { mut event, .. } => {
                    decoded.messages.extend(event.message().cloned());
                }
            }
        }
    }
    Ok(decoded)
}

fn feed(decoder: &mut Decoder, bytes: &[u8]) {
    decoder.unfilled()[..bytes.len()].copy_from_slice(bytes);
    decoder.filled(bytes.len());
}

fn heartbeat() -> Vec<u8> {
    frame_on(0, HEARTBEAT, b"")
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    frame_on(CHANNEL, kind, payload)
}

fn frame_on(channel: u16, kind: u8, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind], &channel.to_be_bytes()[..], &size, payload, &[END]].concat()
}

fn deliver() -> Vec<u8> {
    frame(METHOD, &[&BASIC_DELIVER[..], b"\x01t\0\0\0\0\0\0\0\x07\x01\0\x01q"].concat())
}

/// The frames of a delivery. All of them but the first are the same as those of a publish.
fn delivery(properties: &Properties<'_>, body: &[u8]) -> Vec<u8> {
    let published = publish(ROUTE, properties, body).rest(0);
    let method = OVERHEAD + u32::from_be_bytes(published[3..7].try_into().unwrap()) as usize;
    [&deliver(), &published[method..]].concat()
}
