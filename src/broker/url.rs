//! A broker's address, parsed from a URL by
//! [RabbitMQ's URI specification](https://www.rabbitmq.com/docs/uri-spec) and its
//! [query parameters](https://www.rabbitmq.com/docs/uri-query-parameters).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// The address of one broker, and the credentials and parameters to connect with.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// A name or an IP address. An IPv6 address has no brackets here.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
    /// Log in by the TLS client certificate instead of user and password.
    pub(crate) external: bool,
    pub(crate) heartbeat: Option<u16>,
    pub(crate) connection_timeout: Option<Duration>,
    pub(crate) channel_max: u16,
}

impl FromStr for Endpoint {
    type Err = Error;

    /// The error's text does not contain the URL, because it may contain a password.
    fn from_str(url: &str) -> Result<Endpoint> {
        parse(url).map_err(|reason| {
            Error::Config(format!(
                "the broker's URL is invalid: {reason} (amqp://user:password@host:port/vhost)"
            ))
        })
    }
}

/// Parses a URL. The error is the reason why it is invalid.
fn parse(url: &str) -> Result<Endpoint, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
        "amqp" => (false, 5672),
        "amqps" => (true, 5671),
        _ => return Err("it does not begin with amqp:// or amqps://".into()),
    };
    // From here on, an error shows no part of the URL: if a password is not percent-encoded, any
    // part may belong to it.
    let hint = match rest.split_once(['/', '?']) {
        Some((_, behind)) if behind.contains('@') => {
            "; write /, ? and @ in a user or password as %2f, %3f and %40"
        }
        _ => "",
    };
    parse_parts(tls, default_port, rest).map_err(|reason| reason + hint)
}

fn parse_parts(tls: bool, default_port: u16, rest: &str) -> Result<Endpoint, String> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, vhost) = rest.split_once('/').unwrap_or((rest, "%2f"));
    if vhost.contains('/') {
        return Err("write a slash in the virtual host as %2f".into());
    }
    let (login, address) = authority.rsplit_once('@').unwrap_or(("guest", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, "guest"));
    let (host, port) = match address.strip_prefix('[') {
        Some(ipv6) => ipv6.split_once(']').ok_or("the IPv6 address lacks its closing bracket")?,
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    let port = match port.strip_prefix(':') {
        Some("") => default_port,
        Some(port) => number(port, "port")?,
        None if port.is_empty() => default_port,
        None => return Err("the IPv6 address is followed by something else than a port".into()),
    };
    let mut endpoint = Endpoint {
        tls,
        host: decode(if host.is_empty() { "localhost" } else { host }, "host")?,
        port,
        user: decode(user, "user")?,
        password: decode(password, "password")?,
        vhost: decode(vhost, "virtual host")?,
        ..Default::default()
    };
    check(&endpoint)?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match (name, value.to_ascii_lowercase().as_str()) {
            ("heartbeat", _) => endpoint.heartbeat = Some(number(value, name)?),
            ("connection_timeout", _) => {
                endpoint.connection_timeout = Some(Duration::from_millis(number(value, name)?));
            }
            ("channel_max", _) => endpoint.channel_max = number(value, name)?,
            ("auth_mechanism", "external") => endpoint.external = true,
            ("auth_mechanism", "plain") => endpoint.external = false,
            ("auth_mechanism", _) => return Err("auth_mechanism is plain or external".into()),
            _ => {
                let name = if query.contains('@') { "" } else { name };
                return Err(format!(
                    "the parameter {name:?} is unknown; the known ones are heartbeat (seconds), \
                     connection_timeout (milliseconds), channel_max and auth_mechanism"
                ));
            }
        }
    }
    Ok(endpoint)
}

/// Refuses what a login cannot contain.
fn check(endpoint: &Endpoint) -> Result<(), String> {
    const LONGEST: usize = 255;
    // A SASL PLAIN response separates user and password by a zero byte (RFC 4616).
    if endpoint.user.contains('\0') || endpoint.password.contains('\0') {
        return Err("a user or password contains no zero byte".into());
    }
    if endpoint.vhost.len() > LONGEST {
        return Err(format!("a virtual host's name has at most {LONGEST} bytes"));
    }
    if endpoint.host.contains(',') {
        return Err("several URLs are separated by commas, each with its amqp://".into());
    }
    Ok(())
}

fn decode(text: &str, part: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    decoded.map(Cow::into_owned).map_err(|_| format!("the {part} is not UTF-8"))
}

fn number<N: FromStr>(text: &str, part: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("the {part} is not a number, or it is out of range"))
}

impl Endpoint {
    /// The error that this broker cannot be reached, or cannot be used, for this reason.
    pub(crate) fn unreachable(&self, reason: impl fmt::Display) -> Error {
        Error::Unreachable { brokers: self.to_string(), reason: reason.to_string() }
    }
}

/// `host:port`, the only parts that logs and errors show.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "amqps" } else { "amqp" };
        write!(f, "{scheme}://{}:***@{self}/{}", self.user, self.vhost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the specification's appendix A: user, password, host, port, virtual host,
    /// with this crate's defaults where the specification has none.
    #[test]
    fn parses_examples_of_the_specification() {
        let plain = [
            ("amqp://user:pass@host:10000/vhost", "user", "pass", "host", 10000, "vhost"),
            (
                "amqp://user%61:%61pass@ho%61st:10000/v%2fhost",
                "usera",
                "apass",
                "hoast",
                10000,
                "v/host",
            ),
            ("amqp://", "guest", "guest", "localhost", 5672, "/"),
            ("amqp://:@/", "", "", "localhost", 5672, ""),
            ("amqp://user@", "user", "guest", "localhost", 5672, "/"),
            ("amqp://user:pass@", "user", "pass", "localhost", 5672, "/"),
            ("amqp://host", "guest", "guest", "host", 5672, "/"),
            ("amqp://:10000", "guest", "guest", "localhost", 10000, "/"),
            ("amqp:///vhost", "guest", "guest", "localhost", 5672, "vhost"),
            ("amqp://host/", "guest", "guest", "host", 5672, ""),
            ("amqp://host/%2f", "guest", "guest", "host", 5672, "/"),
            ("amqp://host:/%2f", "guest", "guest", "host", 5672, "/"),
            ("amqps://u:p@[::1]:", "u", "p", "::1", 5671, "/"),
            ("amqp://u:p@host/v@w", "u", "p", "host", 5672, "v@w"),
            ("amqp://u:p@w@host/v", "u", "p@w", "host", 5672, "v"),
            ("amqp://u:p,q@host/v,w", "u", "p,q", "host", 5672, "v,w"),
            ("amqp://[u]x:p,q@host", "[u]x", "p,q", "host", 5672, "/"),
            ("amqp://[::1]", "guest", "guest", "::1", 5672, "/"),
            ("amqps://[::1]:77/a", "guest", "guest", "::1", 77, "a"),
            ("AMQPS://host", "guest", "guest", "host", 5671, "/"),
        ];
        for (url, user, password, host, port, vhost) in plain {
            let found: Endpoint = url.parse().expect(url);
            let found = (&*found.user, &*found.password, &*found.host, found.port, &*found.vhost);
            assert_eq!(found, (user, password, host, port, vhost), "{url}");
        }
    }

    #[test]
    fn parses_parameters() {
        let url = "amqps://h?heartbeat=7&connection_timeout=1500&channel_max=9\
                   &auth_mechanism=EXTERNAL";
        let found: Endpoint = url.parse().unwrap();
        assert_eq!(found.heartbeat, Some(7));
        assert_eq!(found.connection_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(found.channel_max, 9);
        assert!(found.external);
    }

    #[test]
    fn errors_name_the_invalid_part_and_hide_the_password() {
        for (url, named) in [
            ("host:5672", "begin with"),
            ("http://u:secret@host", "begin with"),
            ("amqp://u:sec/ret@host", "%2f"),
            ("amqp://u:sec?ret@host", "%3f"),
            ("amqp://u:secret@host:66000", "port"),
            ("amqp://u:secret@host:x", "port"),
            ("amqp://u:secret@[::1", "bracket"),
            ("amqp://u:secret@[::1]x", "IPv6"),
            ("amqp://u:secret@host/a/b", "%2f"),
            ("amqp://u:secret%ff@host", "password"),
            ("amqp://u:secret@host/%ff", "virtual host"),
            ("amqp://u:secret@host?heartbeat=x", "heartbeat"),
            ("amqp://u:secret@host?heartbeat=-1", "heartbeat"),
            ("amqp://u:secret@host?connection_timeout=1s", "connection_timeout"),
            ("amqp://u:secret@host?auth_mechanism=none", "auth_mechanism"),
            ("amqp://u:secret@host?verify=verify_none", "\"verify\""),
            ("amqp://u:1?secret@host", "%3f"),
            ("amqp://[u]x:secret,tail", "IPv6"),
            ("amqp://u:p%00secret@host", "zero byte"),
            ("amqp://u:secret@one,two", "each with its amqp://"),
        ] {
            let text = url.parse::<Endpoint>().expect_err(url).to_string();
            assert!(text.contains(named), "{url}: {text}");
            assert!(!text.contains("ret@") && !text.contains("secret"), "{url}: {text}");
        }
        let long = |length| format!("amqp://u:secret@host/{}", "v".repeat(length));
        assert!(long(255).parse::<Endpoint>().is_ok());
        let text = long(256).parse::<Endpoint>().expect_err("it is too long").to_string();
        assert!(text.contains("at most 255 bytes"), "{text}");
        let shown: Endpoint = "amqp://u:secret@host/v".parse().unwrap();
        assert_eq!(format!("{shown:?} {shown}"), "amqp://u:***@host:5672/v host:5672");
    }
}
