//! The server loop of every role: accept within limits, guard, call the service, answer failures in the one shape, and
//! end in order: refuse new connections, let the ones at work finish, cut what is left when told to stop.

use crate::http::auth::{Guard, Holder};
use crate::http::{Peer, Request, Response, reply, request};
use crate::shutdown::Shutdown;
use crate::wire::version::{PROTOCOL_HEADER, VERSION_HEADER};
use crate::wire::{Failure, PROTOCOL, VERSION};
use http::header::{HeaderName, HeaderValue};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Connections open at once; more wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 8_192;
/// How long a client may take to send a request's head.
pub const HEAD_READ_MAX: Duration = Duration::from_secs(10);
/// The longest request head, and how many headers one may have.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
pub const HEADERS_MAX: usize = 100;
/// What is read of a head at all: somewhat more, so that a client who sends too much is told so in the one shape. Beyond this
/// it gets a bare 431.
const HEAD_BYTES_READ_MAX: usize = 2 * HEAD_BYTES_MAX;
const HEADERS_READ_MAX: usize = 256;
/// The longest request id taken over from a client.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
const PROTOCOL_NAME: HeaderName = HeaderName::from_static(PROTOCOL_HEADER);
const VERSION_NAME: HeaderName = HeaderName::from_static(VERSION_HEADER);
/// The pause after an accept that failed for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What a role does with a request. A failure becomes the error body.
pub trait Service: Clone + Send + Sync + 'static {
    fn call(&self, request: Request) -> impl Future<Output = Result<Response, Failure>> + Send;
}

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves until the shutdown drains, then until the connections at work have finished or it stops.
pub async fn serve<S: Service>(listener: Listener, service: S, guard: Arc<Guard>, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            () = shutdown.drained() => return,
            accepted = accept(&listener, &places) => accepted,
        };
        let (stream, peer, place) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (service, guard, ending) = (service.clone(), guard.clone(), shutdown.clone());
        shutdown.spawn(async move {
            match stream {
                Stream::Tcp(stream) => connection(stream, peer, service, guard, ending).await,
                Stream::Unix(stream) => connection(stream, peer, service, guard, ending).await,
            }
            drop(place);
        });
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

async fn accept(
    listener: &Listener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(Stream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
    match listener {
        Listener::Tcp(listener) => {
            let (stream, remote) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let local = stream.local_addr()?;
            Ok((Stream::Tcp(stream), Peer::Tcp { local, remote }, place))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok((Stream::Unix(stream), Peer::Unix, place))
        }
    }
}

async fn connection<S: Service>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    service: S,
    guard: Arc<Guard>,
    shutdown: Shutdown,
) {
    let answering = service_fn(move |request| {
        let (service, guard) = (service.clone(), guard.clone());
        async move { Ok::<_, Infallible>(answer(request, peer, &service, &guard).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_buf_size(HEAD_BYTES_READ_MAX)
        .max_headers(HEADERS_READ_MAX)
        .serve_connection(TokioIo::new(stream), answering)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = shutdown.stopped() => return,
            () = shutdown.drained(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// One request through guard and service, whatever connection it came on.
pub async fn answer<S: Service>(
    inner: http::Request<Incoming>,
    peer: Peer,
    service: &S,
    guard: &Guard,
) -> Response {
    let id = request_id(inner.headers().get(request::ID_HEADER));
    let mut request = Request { inner, id: id.clone(), peer, holder: Holder::Nobody };
    let span = tracing::debug_span!("request", id, method = %request.method(), path = request.path());
    let too_large = head_too_large(&request);
    let is_too_large = too_large.is_some();
    let outcome = match too_large.map_or_else(|| guard.check(&request), Err) {
        Ok(holder) => {
            request.holder = holder;
            tracing::Instrument::instrument(service.call(request), span).await
        }
        Err(failure) => Err(failure),
    };
    let mut response = outcome.unwrap_or_else(|failure| {
        tracing::debug!(code = ?failure.code, message = failure.message, id, "request refused");
        reply::failure(&failure, &id)
    });
    if is_too_large {
        *response.status_mut() = http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    }
    // Over a link a queen answers in her own name: she says all of this herself.
    if peer == Peer::Link {
        return response;
    }
    if let Some(value) = request::id_value(&id) {
        response.headers_mut().insert(request::ID_HEADER, value);
    }
    // B4: whoever asks can tell whether the two understand each other.
    response.headers_mut().insert(PROTOCOL_NAME, HeaderValue::from(PROTOCOL));
    response.headers_mut().insert(VERSION_NAME, HeaderValue::from_static(VERSION));
    response
}

/// Why a head is too large, if it is. What comes over a link or a socket of ours was let in by a queen or a hive, who add some.
fn head_too_large(request: &Request) -> Option<Failure> {
    if !matches!(request.peer, Peer::Tcp { .. }) {
        return None;
    }
    let headers = request.headers();
    let target = request.inner.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>() + target;
    let count = headers.len();
    (count > HEADERS_MAX || bytes > HEAD_BYTES_MAX).then(|| {
        Failure::invalid(format!(
            "the request has {count} headers, {bytes} bytes with its path; at most {HEADERS_MAX} and {HEAD_BYTES_MAX} are taken"
        ))
    })
}

/// The client's own id where it is harmless, else a fresh one.
fn request_id(given: Option<&HeaderValue>) -> String {
    given
        .and_then(|value| value.to_str().ok())
        .filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX)
        .filter(|id| id.bytes().all(|b| b.is_ascii_graphic()))
        .map_or_else(|| crate::wire::id::fresh().to_string(), str::to_owned)
}
