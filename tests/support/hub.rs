//! A hub on loopback that serves a model, or other files, over HTTP or TLS, and misbehaves by script: one fault a request, in order,
//! and none when the script is done. It remembers what it was asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

const HEAD_BYTES_MAX: usize = 64 << 10;
const CHUNK_BYTES: usize = 16 << 10;
pub const REPO: &str = "org/tiny";
pub const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
pub const FILE: &str = "tiny.gguf";

#[derive(Debug, Clone)]
pub enum Fault {
    None,
    /// Only a status.
    Status(u16),
    /// A status and lines of headers.
    StatusWith(u16, String),
    /// Another file of the same length.
    OtherTag,
    /// The whole without saying how long it is, as it ends with the connection.
    NoLength,
    /// Closes the connection after so many bytes of the body.
    CutAt(usize),
    /// Sends so many bytes of the body, then nothing.
    StallAt(usize),
    /// One byte of the body is another.
    WrongByte,
    /// The whole file, whatever part was asked for.
    IgnoreRange,
    /// A part that begins one byte late.
    LatePart,
    /// Accepts, reads, never says a word.
    NeverAnswer,
    /// More bytes than the file has, without a length.
    Endless,
    /// Another file: longer, and says so.
    OtherSize,
    /// Says that it is compressed.
    Gzip,
    RedirectTo(String),
    /// So long for every 16 KiB.
    Slow(Duration),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

struct State {
    /// By the end of their path.
    files: Vec<(String, Vec<u8>)>,
    script: Mutex<VecDeque<Fault>>,
    asked: watch::Sender<Vec<Asked>>,
    body_bytes_sent: Mutex<u64>,
}

pub struct TestHub {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl TestHub {
    pub async fn start(bytes: Vec<u8>, script: impl IntoIterator<Item = Fault>) -> TestHub {
        TestHub::serve("127.0.0.1:0", None, bytes, script).await
    }

    pub async fn serve(
        listen: &str,
        tls: Option<TlsAcceptor>,
        bytes: Vec<u8>,
        script: impl IntoIterator<Item = Fault>,
    ) -> TestHub {
        let files = vec![(format!("/{REPO}/resolve/{REVISION}/{FILE}"), bytes)];
        TestHub::serve_files(listen, tls, files, script).await
    }

    pub async fn serve_files(
        listen: &str,
        tls: Option<TlsAcceptor>,
        files: Vec<(String, Vec<u8>)>,
        script: impl IntoIterator<Item = Fault>,
    ) -> TestHub {
        let listener = TcpListener::bind(listen.parse::<SocketAddr>().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            files,
            script: Mutex::new(script.into_iter().collect()),
            asked: watch::Sender::default(),
            body_bytes_sent: Mutex::default(),
        });
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = state.clone();
        let server = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    // A client that leaves is no failure of the hub.
                    let _ = match tls {
                        None => answer(stream, &state).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => answer(stream, &state).await,
                            Err(error) => Err(error),
                        },
                    };
                });
            }
        });
        TestHub { address, scheme, state, server }
    }

    /// What HF_ENDPOINT should say.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.borrow().clone()
    }

    /// Waits until somebody has asked for something.
    pub async fn first_asked(&self) {
        self.state.asked.subscribe().wait_for(|all| !all.is_empty()).await.unwrap();
    }

    /// Of bodies, over all requests.
    pub fn bytes_sent(&self) -> u64 {
        *self.state.body_bytes_sent.lock().unwrap()
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: &State) -> std::io::Result<()> {
    let Some(asked) = read_head(&mut stream).await? else { return Ok(()) };
    let fault = state.script.lock().unwrap().pop_front().unwrap_or(Fault::None);
    state.asked.send_modify(|all| all.push(asked.clone()));
    let path = asked.path.split('?').next().unwrap_or_default();
    let found = state.files.iter().find(|(end, _)| path.ends_with(end.as_str()));
    let bytes = match (found, &fault) {
        (Some((_, bytes)), _) => bytes.as_slice(),
        (None, Fault::RedirectTo(_) | Fault::Status(_) | Fault::StatusWith(..)) => &[],
        (None, _) => return status(&mut stream, 404, "").await,
    };
    match fault {
        Fault::Status(code) => return status(&mut stream, code, "").await,
        Fault::StatusWith(code, headers) => return status(&mut stream, code, &headers).await,
        Fault::RedirectTo(to) => return status(&mut stream, 302, &format!("location: {to}\r\n")).await,
        Fault::NeverAnswer => {
            // Until the client has had enough.
            stream.read_u8().await?;
            return Ok(());
        }
        _ => {}
    }
    let whole = bytes.len();
    let from = match (&fault, asked.header("range")) {
        (Fault::IgnoreRange | Fault::NoLength, _) | (_, None) => 0,
        (_, Some(range)) => {
            range.trim_start_matches("bytes=").split('-').next().unwrap().parse::<usize>().unwrap()
        }
    };
    if from >= whole && from > 0 {
        return status(&mut stream, 416, &format!("content-range: bytes */{whole}\r\n")).await;
    }
    let from = from + usize::from(matches!(fault, Fault::LatePart));
    let mut body = bytes[from..].to_vec();
    let mut head = match from {
        0 => "HTTP/1.1 200 OK\r\n".to_owned(),
        _ => format!("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {from}-{}/{whole}\r\n", whole - 1),
    };
    match fault {
        Fault::WrongByte => *body.last_mut().unwrap() ^= 1,
        Fault::OtherSize | Fault::Endless => body.extend([0; 1000]),
        Fault::Gzip => head.push_str("content-encoding: gzip\r\n"),
        _ => {}
    }
    if !matches!(fault, Fault::Endless | Fault::NoLength) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    let tag = if matches!(fault, Fault::OtherTag) { "other" } else { "tiny" };
    head.push_str(&format!("etag: \"{tag}\"\r\nx-repo-commit: {REVISION}\r\nconnection: close\r\n\r\n"));
    stream.write_all(head.as_bytes()).await?;
    if asked.method == "HEAD" {
        return stream.flush().await;
    }
    let end = match fault {
        Fault::CutAt(end) | Fault::StallAt(end) => end.min(body.len()),
        _ => body.len(),
    };
    let mut pace = match fault {
        Fault::Slow(pause) => Some(tokio::time::interval(pause)),
        _ => None,
    };
    for chunk in body[..end].chunks(CHUNK_BYTES) {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        stream.write_all(chunk).await?;
        *state.body_bytes_sent.lock().unwrap() += chunk.len() as u64;
    }
    stream.flush().await?;
    if matches!(fault, Fault::StallAt(_)) {
        stream.read_u8().await?;
    }
    // So that a cut is seen as the end of the data, not as a reset that discards it.
    stream.shutdown().await
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Option<Asked>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(head.len() < HEAD_BYTES_MAX, "a request's head is too long");
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) if head.is_empty() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned()));
    Ok(Some(Asked { method, path, headers: headers.collect() }))
}

async fn status(stream: &mut (impl AsyncWrite + Unpin), code: u16, headers: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {code} Told\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.shutdown().await
}
