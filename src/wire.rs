//! The wire contract: requests and replies to AMQP properties and back. Pure.
//!
//! It is RabbitMQ's tutorial six with additions that a program which does not know them can
//! leave unread. Whatever is absent, foreign or undecodable is normal weather here.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use uuid::Uuid;

use crate::error::{Error, Failure, Result, Status};

/// The `type` of a reply that carries a [`Failure`].
const ERROR: &str = "error";
/// The header of such a reply that holds the status's name.
const STATUS: &str = "rpc-status";
/// AMQP's `delivery_mode` of a message that a broker need not keep through a restart: neither
/// a request nor its reply outlives its caller.
const TRANSIENT: u8 = 1;

/// What a client says of one request.
pub(crate) struct RequestHead<'a> {
    pub(crate) reply_to: &'a str,
    pub(crate) correlation_id: Uuid,
    /// Stays the same when a request is sent again under a new correlation id.
    pub(crate) message_id: Uuid,
    pub(crate) content_type: &'a str,
    pub(crate) app_id: &'a str,
    /// How long the caller is going to wait: the broker drops the request after that, so that
    /// nobody works on what nobody waits for.
    pub(crate) remaining: Duration,
}

impl RequestHead<'_> {
    pub(crate) fn properties(&self) -> AmqpProperties {
        let properties = AmqpProperties::default()
            .with_reply_to(self.reply_to.to_string())
            .with_correlation_id(self.correlation_id.to_string())
            .with_message_id(self.message_id.to_string())
            .with_content_type(self.content_type.to_string())
            .with_delivery_mode(TRANSIENT)
            .with_app_id(self.app_id.to_string())
            .with_timestamp(seconds_since_1970());
        match expiration(self.remaining) {
            Some(expiration) => properties.with_expiration(expiration),
            None => properties,
        }
    }
}

/// The broker takes milliseconds up to 2³²−1; a longer wait goes without
/// ([Time-to-live](https://www.rabbitmq.com/docs/ttl)).
fn expiration(remaining: Duration) -> Option<String> {
    let milliseconds = u32::try_from(remaining.as_millis()).ok()?;
    Some(milliseconds.max(1).to_string())
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Where the reply to a request goes, and under which id; a requester that gave no id gets none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplyAddress {
    pub(crate) reply_to: String,
    pub(crate) correlation_id: Option<String>,
}

/// Reads the reply address of a request that was taken from `queue`; in words why there is none
/// to be had.
pub(crate) fn reply_address(
    properties: &AmqpProperties,
    queue: &str,
) -> Result<ReplyAddress, &'static str> {
    match properties.reply_to() {
        None => Err("it has no reply_to that could be read"),
        Some(reply_to) if reply_to.is_empty() => Err("its reply_to is empty"),
        Some(reply_to) if reply_to == queue => Err("its reply_to is the request queue itself"),
        Some(reply_to) => Ok(ReplyAddress {
            reply_to: reply_to.clone(),
            correlation_id: properties.correlation_id().clone(),
        }),
    }
}

/// The properties and the body of a reply.
pub(crate) fn encode_reply(
    correlation_id: Option<String>,
    app_id: &str,
    outcome: Result<Vec<u8>, Failure>,
) -> (AmqpProperties, Vec<u8>) {
    let mut properties =
        AmqpProperties::default().with_delivery_mode(TRANSIENT).with_app_id(app_id.to_string());
    if let Some(id) = correlation_id {
        properties = properties.with_correlation_id(id);
    }
    match outcome {
        Ok(body) => (properties, body),
        Err(Failure { status, message }) => {
            let mut headers = FieldTable::new();
            headers.insert(STATUS.to_string(), AmqpValue::LongString(status.name().to_string()));
            let properties = properties
                .with_type_(ERROR.to_string())
                .with_content_type("text/plain".to_string())
                .with_headers(headers);
            (properties, message.into_bytes())
        }
    }
}

/// The call that a reply belongs to; `None` for an id that is none of ours.
pub(crate) fn correlation_id(properties: &AmqpProperties) -> Option<Uuid> {
    Uuid::try_parse(properties.correlation_id().as_ref()?).ok()
}

/// What a reply says.
pub(crate) fn decode_reply(properties: &AmqpProperties, body: Vec<u8>) -> Result<Vec<u8>> {
    if properties.type_().as_deref() != Some(ERROR) {
        return Ok(body);
    }
    let status = match properties.headers().as_ref().and_then(|headers| headers.get(STATUS)) {
        Some(AmqpValue::LongString(name)) => Status::from_name(name),
        _ => Status::Unknown,
    };
    let message = String::from_utf8_lossy(&body).into_owned();
    Err(Error::Remote(Failure { status, message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_where_the_reply_goes() {
        let head = RequestHead {
            reply_to: "amq.gen-7",
            correlation_id: Uuid::from_u128(7),
            message_id: Uuid::from_u128(8),
            content_type: "text/plain",
            app_id: "test",
            remaining: Duration::from_micros(1500),
        };
        let properties = head.properties();
        let address = reply_address(&properties, "rpc_queue").unwrap();
        assert_eq!(address.reply_to, "amq.gen-7");
        assert_eq!(address.correlation_id, Some(Uuid::from_u128(7).to_string()));
        assert_eq!(properties.expiration().as_deref(), Some("1"));
        assert_eq!(properties.delivery_mode(), &Some(1));

        let patient = RequestHead { remaining: Duration::MAX, ..head };
        assert_eq!(patient.properties().expiration(), &None);
    }

    #[test]
    fn a_request_without_a_usable_reply_to_is_told_apart() {
        let none = AmqpProperties::default();
        assert!(reply_address(&none, "q").unwrap_err().contains("no reply_to"));
        let empty = none.clone().with_reply_to(String::new());
        assert!(reply_address(&empty, "q").unwrap_err().contains("empty"));
        let loops = none.with_reply_to("q".into());
        assert!(reply_address(&loops, "q").unwrap_err().contains("itself"));
    }

    #[test]
    fn a_result_goes_bare_and_a_failure_with_its_status() {
        let id = Some(Uuid::from_u128(7).to_string());
        let (properties, body) = encode_reply(id.clone(), "test", Ok(b"13".to_vec()));
        assert_eq!(properties.type_(), &None);
        assert_eq!(properties.headers(), &None);
        assert_eq!(correlation_id(&properties), Some(Uuid::from_u128(7)));
        assert_eq!(decode_reply(&properties, body), Ok(b"13".to_vec()));

        let failure = Failure::new(Status::OutOfRange, "too large");
        let (properties, body) = encode_reply(id, "test", Err(failure.clone()));
        assert_eq!(decode_reply(&properties, body), Err(Error::Remote(failure)));
    }

    #[test]
    fn a_foreign_error_reply_is_of_unknown_status() {
        let properties = AmqpProperties::default().with_type_("error".into());
        let error = decode_reply(&properties, b"\xff!".to_vec()).unwrap_err();
        let expected = Failure::new(Status::Unknown, "\u{fffd}!");
        assert_eq!(error, Error::Remote(expected));
        assert_eq!(correlation_id(&properties.with_correlation_id("7".into())), None);
    }
}
