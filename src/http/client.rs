//! A small client: one connection a request, over TCP, TLS or a socket file. Streams live as long as their connection;
//! where requests come by the hundred, `pool` keeps connections.

use crate::http::{Body, public, reply, resolve, tls};
use crate::keys::LocalKey;
use crate::wire::Failure;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// How long a connection may take to come about, over all of a name's addresses.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Read from a connection at once; it begins small and grows with what comes.
const READ_BUFFER_BYTES_MAX: usize = 256 << 10;
/// The longest answer read as a whole.
pub const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A server: where it is, and the key it asks for.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    place: Place,
    key: Option<String>,
    /// The state directory of daemons of our own, where the key of their moment is found.
    local: Option<PathBuf>,
    reach: Reach,
}

/// Where a name may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Anywhere,
    Public,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("`{0}` is not an address: give http://HOST:PORT, https://HOST or unix:PATH")]
    BadTarget(String),
    #[error("finding the address of {0}")]
    Resolve(String, #[source] resolve::ResolveError),
    #[error("{0} is of a private network, where nothing that a stranger names is fetched from")]
    Private(String),
    #[error("connecting to {0}")]
    Connect(String, #[source] std::io::Error),
    #[error("connecting to {0} took longer than {max} s", max = CONNECT_MAX.as_secs())]
    ConnectTimeout(String),
    #[error("setting up TLS")]
    Tls(#[source] tls::TlsError),
    #[error("asking {0}")]
    Exchange(String, #[source] hyper::Error),
}

impl Target {
    /// Reads `http://HOST[:PORT]`, `https://HOST[:PORT]`, `HOST:PORT` or `unix:PATH`.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadTarget(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Target::unix(path));
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) if text.contains("://") => return Err(bad()),
            (None, None) => (false, text),
        };
        // One parser for host and port, the same that hyper uses, so that no two readings of a URL disagree.
        let authority: http::uri::Authority = rest.trim_end_matches('/').parse().map_err(|_| bad())?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(bad());
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Target { place: Place::Tcp { host, port, tls }, key: None, local: None, reach: Reach::Anywhere })
    }

    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Target { place: Place::Unix(path.into()), key: None, local: None, reach: Reach::Anywhere }
    }

    pub fn is_unix(&self) -> bool {
        matches!(self.place, Place::Unix(_))
    }

    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.key = key.map(str::to_owned);
        self
    }

    /// Connects to addresses of the public network only. The name is looked up once, and what was looked at is what is
    /// connected to.
    pub fn public_only(mut self) -> Self {
        self.reach = Reach::Public;
        self
    }

    /// Where it is, if it is not a socket's file.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        match &self.place {
            Place::Tcp { host, port, .. } => Some((host, *port)),
            Place::Unix(_) => None,
        }
    }

    /// Without a key, one that is a daemon of this state directory's is shown the key of its moment, looked up whenever it is asked:
    /// it may have begun another life in between.
    pub fn with_local(mut self, state: PathBuf) -> Self {
        self.local = Some(state);
        self
    }

    fn shown(&self) -> Option<String> {
        let local = || LocalKey::find(self.local.as_deref()?, self);
        self.key.clone().or_else(local)
    }

    fn host_header(&self) -> String {
        match &self.place {
            Place::Tcp { .. } => {
                let whole = self.to_string();
                whole.split_once("://").map_or(whole.clone(), |(_, authority)| authority.to_owned())
            }
            Place::Unix(_) => "localhost".into(),
        }
    }
}

/// Sends one request, whose URI is a path. Dropping the answer's body ends the connection, and with it the server's work.
pub async fn send(
    target: &Target,
    request: http::Request<Body>,
) -> Result<http::Response<Incoming>, ClientError> {
    Connection::open(target).await?.send(request).await
}

/// A connection that can be asked again when an answer was read to its end. It lasts while it or an answer's body is held.
#[derive(Debug)]
pub struct Connection {
    target: Target,
    /// What every request says: to whom it goes, and the key it shows.
    host: HeaderValue,
    key: Option<HeaderValue>,
    sender: hyper::client::conn::http1::SendRequest<Body>,
}

impl Connection {
    pub async fn open(target: &Target) -> Result<Self, ClientError> {
        let host = HeaderValue::from_str(&target.host_header())
            .map_err(|_| ClientError::BadTarget(target.to_string()))?;
        let key = target.shown().and_then(|key| HeaderValue::from_str(&format!("Bearer {key}")).ok());
        let key = key.map(|mut key| {
            key.set_sensitive(true);
            key
        });
        let sender = match connect(target).await? {
            Stream::Tcp(stream) => handshake(target, stream).await,
            Stream::Tls(stream) => handshake(target, *stream).await,
            Stream::Unix(stream) => handshake(target, stream).await,
        };
        Ok(Connection { target: target.clone(), host, key, sender: sender? })
    }

    /// Whether the server still listens, as far as that can be known without asking.
    pub fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Asks once. The answer before has to be read to its end.
    pub async fn send(
        &mut self,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, ClientError> {
        self.address(&mut request);
        let asking = |e| ClientError::Exchange(self.target.to_string(), e);
        self.sender.ready().await.map_err(asking)?;
        self.sender.send_request(request).await.map_err(asking)
    }

    /// The same over a connection that the server may have closed meanwhile: what it did not take comes back.
    pub async fn try_send(
        &mut self,
        mut request: http::Request<Body>,
    ) -> Result<Result<http::Response<Incoming>, http::Request<Body>>, ClientError> {
        self.address(&mut request);
        if self.sender.ready().await.is_err() {
            return Ok(Err(request));
        }
        match self.sender.try_send_request(request).await {
            Ok(answer) => Ok(Ok(answer)),
            Err(mut error) => match error.take_message() {
                Some(unsent) => Ok(Err(unsent)),
                None => Err(ClientError::Exchange(self.target.to_string(), error.into_error())),
            },
        }
    }

    fn address(&self, request: &mut http::Request<Body>) {
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        if let Some(key) = &self.key {
            headers.insert(AUTHORIZATION, key.clone());
        }
    }
}

/// An open connection, for what is not one request and its answer.
pub enum Stream {
    Tcp(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    Unix(UnixStream),
}

pub async fn connect(target: &Target) -> Result<Stream, ClientError> {
    tokio::time::timeout(CONNECT_MAX, open(target))
        .await
        .map_err(|_| ClientError::ConnectTimeout(target.to_string()))?
}

async fn open(target: &Target) -> Result<Stream, ClientError> {
    let (host, port, tls) = match &target.place {
        Place::Unix(path) => {
            let stream = UnixStream::connect(path).await;
            return stream.map(Stream::Unix).map_err(|e| ClientError::Connect(target.to_string(), e));
        }
        Place::Tcp { host, port, tls } => (host, *port, *tls),
    };
    let mut addresses =
        resolve::lookup(host, port).await.map_err(|e| ClientError::Resolve(host.clone(), e))?;
    if target.reach == Reach::Public {
        addresses.retain(|address| public::is_public(address.ip()));
        if addresses.is_empty() {
            return Err(ClientError::Private(target.to_string()));
        }
    }
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Err(error) => last = error,
            Ok(stream) => {
                let connecting = |e| ClientError::Connect(target.to_string(), e);
                stream.set_nodelay(true).map_err(connecting)?;
                if !tls {
                    return Ok(Stream::Tcp(stream));
                }
                let name = rustls::pki_types::ServerName::try_from(host.clone())
                    .map_err(|_| ClientError::BadTarget(target.to_string()))?;
                let connector = tls::connector().map_err(ClientError::Tls)?;
                let stream = connector.connect(name, stream).await.map_err(connecting)?;
                return Ok(Stream::Tls(Box::new(stream)));
            }
        }
    }
    Err(ClientError::Connect(target.to_string(), last))
}

async fn handshake(
    target: &Target,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<hyper::client::conn::http1::SendRequest<Body>, ClientError> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| ClientError::Exchange(target.to_string(), e))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a server ended early");
        }
    });
    Ok(sender)
}

/// A request with no body.
pub fn get(path: &str) -> Result<http::Request<Body>, ClientError> {
    request("GET", path, reply::empty())
}

pub fn request(method: &str, path: &str, body: Body) -> Result<http::Request<Body>, ClientError> {
    http::Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .map_err(|_| ClientError::BadTarget(path.to_owned()))
}

/// A request that carries JSON.
pub fn post<T: Serialize + ?Sized>(path: &str, value: &T) -> Result<http::Request<Body>, ClientError> {
    with_json("POST", path, value)
}

pub fn with_json<T: Serialize + ?Sized>(
    method: &str,
    path: &str,
    value: &T,
) -> Result<http::Request<Body>, ClientError> {
    let bytes = serde_json::to_vec(value).expect("what we send always has string keys and finite numbers");
    let mut request = request(method, path, reply::full(bytes))?;
    request.headers_mut().insert(CONTENT_TYPE, reply::JSON);
    Ok(request)
}

/// Why asking for JSON gave none: no answer, or an answer that was a failure.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Refused(#[from] Failure),
}

/// Sends a request and reads its answer whole, as JSON.
pub async fn ask<T: DeserializeOwned>(target: &Target, request: http::Request<Body>) -> Result<T, AskError> {
    let bytes = whole(send(target, request).await?).await?;
    Ok(crate::http::request::parse(&bytes)?)
}

/// An answer's body, or the failure it tells of.
pub async fn whole<B>(answer: http::Response<B>) -> Result<Bytes, Failure>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<reply::BoxError>,
{
    let status = answer.status();
    let bytes = crate::http::request::read(answer.into_body(), ANSWER_BYTES_MAX).await?;
    if status.is_success() { Ok(bytes) } else { Err(Failure::from_body(status.as_u16(), &bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_read_and_print() {
        for (text, printed) in [
            ("http://127.0.0.1:7833", "http://127.0.0.1:7833"),
            ("127.0.0.2:7835", "http://127.0.0.2:7835"),
            ("https://hub.example/", "https://hub.example:443"),
            ("http://[::1]:80", "http://[::1]:80"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(Target::parse(text).unwrap().to_string(), printed);
        }
        for bad in ["ftp://x", "http://a@b", "", "http://", "http://a b", "http://x\\y:80"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
