//! A broker's address, parsed from a URL by
//! [RabbitMQ's URI specification](https://www.rabbitmq.com/docs/uri-spec) and its
//! [query parameters](https://www.rabbitmq.com/docs/uri-query-parameters).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::error::{Error, Result};

/// Where one broker is, and as whom to speak to it.
#[derive(Clone, PartialEq, Eq)]
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
        let (scheme, rest) = url.split_once("://").ok_or_else(|| {
            config("the URL has no scheme: it begins with amqp:// or amqps://".into())
        })?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "amqp" => false,
            "amqps" => true,
            _ => return Err(config("the scheme is neither amqp nor amqps".into())),
        };
        // From here on no part is shown that could be a piece of a password.
        if rest.split_once(['/', '?']).is_some_and(|(_, behind)| behind.contains('@')) {
            return Err(config("/, ? and @ in a user or password are %2f, %3f and %40".into()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = match rest.split_once('/') {
            Some((authority, vhost)) => (authority, decode(vhost, "virtual host")?),
            None => (rest, "/".into()),
        };
        if rest.matches('/').count() > 1 {
            return Err(config("a slash in the virtual host is written %2f".into()));
        }
        let (login, address) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, password),
            None if authority.contains('@') => (login, "guest"),
            None => ("guest", "guest"),
        };
        let (host, port) = split_address(address)?;
        let mut endpoint = Endpoint {
            tls,
            host: if host.is_empty() { "localhost".into() } else { decode(host, "host")? },
            port: match port {
                Some(port) => number(port, "port")?,
                None if tls => 5671,
                None => 5672,
            },
            user: decode(user, "user")?,
            password: decode(password, "password")?,
            vhost,
            external: false,
            heartbeat: None,
            connection_timeout: None,
            channel_max: 0,
        };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            endpoint.set(parameter)?;
        }
        Ok(endpoint)
    }
}

impl Endpoint {
    /// This broker cannot be reached, or is not fit for work, for that reason.
    pub(crate) fn unreachable(&self, reason: impl fmt::Display) -> Error {
        Error::Unreachable { brokers: self.to_string(), reason: reason.to_string() }
    }

    fn set(&mut self, parameter: &str) -> Result<()> {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match name {
            "heartbeat" => self.heartbeat = Some(number(value, name)?),
            "connection_timeout" => {
                self.connection_timeout = Some(Duration::from_millis(number(value, name)?));
            }
            "channel_max" => self.channel_max = number(value, name)?,
            "auth_mechanism" => {
                self.external = match value.to_ascii_lowercase().as_str() {
                    "external" => true,
                    "plain" => false,
                    _ => {
                        return Err(config(format!(
                            "auth_mechanism is plain or external, not {value:?}"
                        )));
                    }
                }
            }
            _ => {
                return Err(config(format!(
                    "the parameter {name:?} is not known here; there are heartbeat (seconds), \
                     connection_timeout (milliseconds), channel_max and auth_mechanism"
                )));
            }
        }
        Ok(())
    }
}

/// Takes `host:port` apart; the host may be an IPv6 literal in brackets.
fn split_address(address: &str) -> Result<(&str, Option<&str>)> {
    let (host, port) = match address.strip_prefix('[') {
        Some(literal) => literal
            .split_once(']')
            .ok_or_else(|| config("the IPv6 address lacks its closing bracket".into()))?,
        None => address.split_at(address.find(':').unwrap_or(address.len())),
    };
    match port.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if port.is_empty() => Ok((host, None)),
        None => Err(config(format!("behind the IPv6 address stands {port:?}, not a port"))),
    }
}

fn decode(text: &str, part: &str) -> Result<String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| config(format!("the {part} is not UTF-8")))?;
    Ok(Cow::into_owned(decoded))
}

fn number<N: FromStr>(text: &str, part: &str) -> Result<N> {
    text.parse().map_err(|_| config(format!("the {part} is not a number, or one out of range")))
}

/// The URL itself is left out of the text: there may be a password in it.
fn config(reason: String) -> Error {
    Error::Config(format!(
        "the broker's URL cannot be understood: {reason} (amqp://user:password@host:port/vhost)"
    ))
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
    fn the_specifications_examples() {
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
    fn parameters() {
        let url = "amqps://h?heartbeat=7&connection_timeout=1500&channel_max=9\
                   &auth_mechanism=EXTERNAL";
        let found: Endpoint = url.parse().unwrap();
        assert_eq!(found.heartbeat, Some(7));
        assert_eq!(found.connection_timeout, Some(Duration::from_millis(1500)));
        assert_eq!(found.channel_max, 9);
        assert!(found.external);
    }

    #[test]
    fn what_is_wrong_is_named_and_the_password_is_not() {
        for (url, named) in [
            ("host:5672", "no scheme"),
            ("http://u:secret@host", "scheme"),
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
        ] {
            let text = url.parse::<Endpoint>().expect_err(url).to_string();
            assert!(text.contains(named), "{url}: {text}");
            assert!(!text.contains("ret@") && !text.contains("secret"), "{url}: {text}");
        }
        let shown: Endpoint = "amqp://u:secret@host/v".parse().unwrap();
        assert_eq!(format!("{shown:?} {shown}"), "amqp://u:***@host:5672/v host:5672");
    }
}
