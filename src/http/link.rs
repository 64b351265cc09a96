//! The link: one HTTP/2 connection between hive and queen, dialled by the hive and then turned round, so that the hive
//! serves on it and the queen asks. A node behind NAT needs no open port, and a closed link is the failure signal.
//!
//! HTTP/2's defaults are made for browsers and wrong for this; every limit is set here by name. Flow control in
//! particular: a stream's window bounds what one slow reader may hold up (256 KiB), the connection's window is as large
//! as the protocol allows, so that unread streams can never starve the others. The reset limits guard a server against
//! strangers; on a link both ends are ours, and a fleet's clients may well leave by the thousand.

mod caller;
mod gathered;

pub use caller::{Caller, Streamed, call};

use crate::http::server::Service;
use crate::http::{Peer, Request, auth::Guard, client, reply};
use crate::shutdown::Shutdown;
use crate::wire::version::Peer as Build;
use crate::wire::{Failure, PROTOCOL, PROTOCOL_OLDEST, VERSION};
use gathered::Gathered;
use http::header::{CONNECTION, UPGRADE};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

pub const STREAMS_MAX: u32 = 4_096;
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
pub const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;
pub const FRAME_BYTES_MAX: u32 = 64 << 10;
/// The longest head that a queen lets in, and what HTTP/2 counts besides.
pub const HEADER_LIST_BYTES_MAX: u32 = 80 << 10;
pub const SEND_BUFFER_BYTES_MAX: usize = 1 << 20;
pub const PENDING_RESETS_MAX: usize = STREAMS_MAX as usize;
pub const LOCAL_RESETS_MAX: usize = 1 << 20;
/// A silent network is found within these two together (B6).
pub const PING_EVERY: Duration = Duration::from_secs(2);
pub const PING_ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long the queen may take to turn the link round.
pub const UPGRADE_MAX: Duration = Duration::from_secs(10);

/// The Upgrade token, and the headers of the handshake.
pub const UPGRADE_TO: &str = "rbee-link";
pub const HIVE_HEADER: &str = "rbee-hive";
pub const NODE_HEADER: &str = "rbee-node";
/// On the queen's answer: how long workers may be idle, in milliseconds, if she was told.
pub const IDLE_TTL_HEADER: &str = "rbee-idle-ttl";
pub use crate::wire::version::{PROTOCOL_HEADER, VERSION_HEADER};

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("dialling the queen")]
    Dial(#[from] client::ClientError),
    #[error("the queen refused the link: {0}")]
    Refused(#[source] Failure),
    #[error(transparent)]
    Join(#[from] crate::keys::JoinError),
    #[error("turning the link round")]
    Upgrade(#[source] hyper::Error),
    #[error("the queen did not turn the link round within {} s", UPGRADE_MAX.as_secs())]
    Timeout,
    #[error("the link broke")]
    Broken(#[source] hyper::Error),
    #[error("the link was lost")]
    Lost(#[source] h2::Error),
    #[error("the hive did not answer a ping within {} s", PING_ANSWER_MAX.as_secs())]
    Silent,
}

/// What a dialling hive says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub hive: String,
    /// The machine behind the name: kept in the hive's state, so that a restarted hive is known for itself.
    pub node: String,
    pub protocol: u32,
    pub version: String,
}

impl Hello {
    pub fn ours(hive: &str, node: &str) -> Self {
        Hello {
            hive: hive.to_owned(),
            node: node.to_owned(),
            protocol: PROTOCOL,
            version: VERSION.to_owned(),
        }
    }

    /// Reads the handshake's headers and holds the protocol against ours (B4).
    pub fn read(request: &Request) -> Result<Self, Failure> {
        let header = |name: &str| {
            super::auth::once(request, name)?;
            request
                .header(name)
                .map(str::to_owned)
                .ok_or_else(|| Failure::invalid(format!("a link needs the header `{name}`")))
        };
        if !request.header("upgrade").is_some_and(|to| to.eq_ignore_ascii_case(UPGRADE_TO)) {
            return Err(Failure::invalid(format!("a link needs `upgrade: {UPGRADE_TO}`")));
        }
        let protocol = header(PROTOCOL_HEADER)?
            .parse()
            .map_err(|_| Failure::invalid(format!("`{PROTOCOL_HEADER}` is not a number")))?;
        let hello = Hello {
            hive: header(HIVE_HEADER)?,
            node: header(NODE_HEADER)?,
            protocol,
            version: header(VERSION_HEADER)?,
        };
        // A hive that is ahead of this queen hears it from her, and dials again in her words if it knows them.
        if !(PROTOCOL_OLDEST..=PROTOCOL).contains(&protocol) {
            let who = format!("the hive {}", hello.hive);
            let peer = Build { who, version: hello.version, protocol };
            let update = match peer.is_too_old() {
                true => format!("update the hive: `rbee hive update {}`", hello.hive),
                false => "update the queen: copy that hive's rbee over hers, then `rbee queen stop; rbee queen start`".into(),
            };
            return Err(peer.mismatch("this queen", &update));
        }
        Ok(hello)
    }
}

/// A link that has been turned round, and what the queen said with it.
#[derive(Debug)]
pub struct Welcome {
    pub io: hyper::upgrade::Upgraded,
    pub idle_ttl: Option<Duration>,
}

/// Dials a queen and gives the connection once it has been turned round.
pub async fn dial(queen: &client::Target, hello: &Hello) -> Result<Welcome, LinkError> {
    let mut request = client::get("/v1/link")?;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, http::HeaderValue::from_static(UPGRADE_TO));
    for (name, value) in [
        (HIVE_HEADER, hello.hive.clone()),
        (NODE_HEADER, hello.node.clone()),
        (PROTOCOL_HEADER, hello.protocol.to_string()),
        (VERSION_HEADER, hello.version.clone()),
    ] {
        let value = http::HeaderValue::from_str(&value)
            .map_err(|_| LinkError::Refused(Failure::invalid(format!("`{value}` cannot name a hive"))))?;
        headers.insert(name, value);
    }
    let turned = async {
        let answer = client::send(queen, request).await?;
        if answer.status() != http::StatusCode::SWITCHING_PROTOCOLS {
            let failure = match client::whole(answer).await {
                Err(failure) => failure,
                Ok(_) => Failure::invalid("it answered, but not as a queen does"),
            };
            return Err(LinkError::Refused(failure));
        }
        let idle_ttl =
            answer.headers().get(IDLE_TTL_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        let io = hyper::upgrade::on(answer).await.map_err(LinkError::Upgrade)?;
        Ok(Welcome { io, idle_ttl: idle_ttl.map(Duration::from_millis) })
    };
    tokio::time::timeout(UPGRADE_MAX, turned).await.map_err(|_| LinkError::Timeout)?
}

/// The queen's answer to a dialling hive.
pub fn accepted(idle_ttl: Option<Duration>) -> crate::http::Response {
    let mut response = crate::http::Response::new(reply::empty());
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, http::HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, http::HeaderValue::from_static(UPGRADE_TO));
    if let Some(idle_ttl) = idle_ttl {
        response.headers_mut().insert(IDLE_TTL_HEADER, (idle_ttl.as_millis() as u64).into());
    }
    response
}

/// The hive's end: answers what the queen asks until the link closes or the shutdown has drained.
pub async fn serve<S: Service>(
    io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    service: S,
    shutdown: Shutdown,
) -> Result<(), LinkError> {
    let guard = std::sync::Arc::new(Guard::default());
    let answering = service_fn(move |request: http::Request<Incoming>| {
        let (service, guard) = (service.clone(), guard.clone());
        async move {
            Ok::<_, Infallible>(crate::http::server::answer(request, Peer::Link, &service, &guard).await)
        }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER_MAX)
        .serve_connection(Gathered::new(io), answering);
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(LinkError::Broken),
            () = shutdown.stopped() => return Ok(()),
            () = shutdown.drained(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// A link's transport inside one process, for `rbee serve`.
pub const PIPE_BYTES: usize = 256 << 10;

pub fn pipe() -> (
    TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
    TokioIo<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>,
) {
    let (hive, queen) = tokio::io::duplex(PIPE_BYTES);
    (TokioIo::new(hive), TokioIo::new(queen))
}
