//! Connects for the two amiquip programs: as amiquip's examples do, or the same with
//! `TCP_NODELAY` set.

use std::net::TcpStream;

use amiquip::{Auth, Connection, ConnectionOptions, ConnectionTuning};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

pub fn open(url: &str, nodelay: bool) -> Result<Connection> {
    if !nodelay {
        return Ok(Connection::insecure_open(url)?);
    }
    let (address, options) =
        parse(url).ok_or("the URL is not amqp://user:password@host:port/vhost")?;
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let stream = mio::net::TcpStream::from_stream(stream)?;
    Ok(Connection::insecure_open_stream(stream, options, ConnectionTuning::default())?)
}

/// Parses the parts of a URL that a benchmark needs.
fn parse(url: &str) -> Option<(&str, ConnectionOptions<Auth>)> {
    let (credentials, place) = url.strip_prefix("amqp://")?.split_once('@')?;
    let (username, password) = credentials.split_once(':')?;
    let (address, vhost) = place.split_once('/')?;
    let auth = Auth::Plain { username: username.into(), password: password.into() };
    let vhost = vhost.replace("%2f", "/").replace("%2F", "/");
    Some((address, ConnectionOptions::default().auth(auth).virtual_host(vhost)))
}
