//! One connection: requests are read, answered and spoilt as the script has it.

use super::content::Pieces;
use super::fault::{Fault, Request, Site};
use super::site::{Answer, File, Told};
use super::{Asked, Span, State};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::time::{Instant, Interval};

const HEAD_BYTES_MAX: usize = 64 << 10;
/// What a slow answer sends at once.
const SLOW_BYTES: usize = 16 << 10;
/// What too much is: enough to notice who keeps all of it.
const ENDLESS_BYTES: usize = 256 << 20;
const OTHER_SIZE_BYTES: u64 = 1000;

pub struct Connection<S> {
    stream: BufReader<S>,
    /// The socket below, whatever lies between.
    socket: OwnedFd,
    site: Site,
}

/// Whether another request may follow.
type Keeps = bool;

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub fn new(stream: S, socket: OwnedFd, site: Site) -> Self {
        Connection { stream: BufReader::new(stream), socket, site }
    }

    pub async fn serve(mut self, state: &State) -> io::Result<()> {
        while let Some(asked) = read_head(&mut self.stream, self.site).await? {
            if !self.answer(state, &asked).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn answer(&mut self, state: &State, asked: &Asked) -> io::Result<Keeps> {
        let answer = state.world.answer(self.site, asked);
        let has_bytes = matches!(answer, Answer::File(_)) && asked.method == "GET";
        let request = Request { site: self.site, path: &asked.path, has_bytes };
        let fault = state.script.lock().unwrap().next(&request);
        state.asked.send_modify(|all| all.push(asked.clone()));
        let keeps = matches!(fault, Fault::None)
            && !asked.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        match fault {
            Fault::Status(code) => self.tell(asked, Told::empty(code), keeps).await,
            Fault::StatusWith(code, lines) => {
                let mut told = Told::empty(code);
                let pairs = lines.lines().filter_map(|line| line.split_once(": "));
                told.headers.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
                self.tell(asked, told, keeps).await
            }
            Fault::RedirectTo(to) => {
                let mut told = Told::empty(302);
                told.headers.push(("location".into(), to));
                self.tell(asked, told, keeps).await
            }
            Fault::Body(text) => {
                let told = Told { status: 200, headers: Vec::new(), body: text.into_bytes() };
                self.tell(asked, told, keeps).await
            }
            // Until the client has had enough.
            Fault::NeverAnswer => self.stream.read_u8().await.map(|_| false),
            Fault::Gibberish => {
                self.stream.write_all(b"\x16\x03\x01 this is no HTTP\n\n").await?;
                self.close().await
            }
            Fault::EndlessHead => {
                self.stream.write_all(b"HTTP/1.1 200 OK\r\n").await?;
                self.pour(b"x-more: and more\r\n", ENDLESS_BYTES).await
            }
            fault => match answer {
                Answer::Told(mut told) => {
                    spoil(&mut told.headers, &fault);
                    self.tell_spoilt(asked, told, keeps, &fault).await
                }
                Answer::File(file) => self.send(state, asked, file, keeps, fault).await,
            },
        }
    }

    async fn tell(&mut self, asked: &Asked, told: Told, keeps: Keeps) -> io::Result<Keeps> {
        self.tell_spoilt(asked, told, keeps, &Fault::None).await
    }

    /// The faults of a body that make sense for a text, too.
    async fn tell_spoilt(
        &mut self,
        asked: &Asked,
        told: Told,
        keeps: Keeps,
        fault: &Fault,
    ) -> io::Result<Keeps> {
        let mut head = head(told.status, &told.headers, keeps);
        if let Fault::Endless = fault {
            self.stream.write_all(&[head.as_bytes(), b"\r\n", &told.body].concat()).await?;
            return self.pour(b" ", ENDLESS_BYTES).await;
        }
        head.push_str(&format!("content-length: {}\r\n\r\n", told.body.len()));
        self.stream.write_all(head.as_bytes()).await?;
        let end = match fault {
            Fault::CutAt(end) | Fault::ResetAt(end) | Fault::StallAt(end) => (*end).min(told.body.len()),
            _ => told.body.len(),
        };
        if asked.method != "HEAD" {
            self.stream.write_all(&told.body[..end]).await?;
        }
        self.stream.flush().await?;
        if keeps { Ok(true) } else { self.end(fault).await }
    }

    async fn send(
        &mut self,
        state: &State,
        asked: &Asked,
        file: File,
        keeps: Keeps,
        fault: Fault,
    ) -> io::Result<Keeps> {
        let Some(mut part) = Part::of(asked, &file, &fault) else {
            let mut told = Told::empty(416);
            told.headers.push(("content-range".into(), format!("bytes */{}", file.content.size())));
            return self.tell(asked, told, keeps).await;
        };
        let mut lines = file.headers.clone();
        lines.extend(part.headers(&file, &fault));
        spoil(&mut lines, &fault);
        let head = format!("{}\r\n", head(part.status(), &lines, keeps && part.has_length));
        self.stream.write_all(head.as_bytes()).await?;
        if asked.method == "HEAD" {
            return self.stream.flush().await.map(|()| keeps);
        }
        let is_cut = self.send_bytes(state, &file, &mut part, &fault).await?;
        self.stream.flush().await?;
        if part.more > 0 {
            return self.pour(&[0], part.more).await;
        }
        if keeps && !is_cut { Ok(true) } else { self.end(&fault).await }
    }

    /// Whether it was cut on the way.
    async fn send_bytes(
        &mut self,
        state: &State,
        file: &File,
        part: &mut Part,
        fault: &Fault,
    ) -> io::Result<bool> {
        let stop = match fault {
            Fault::CutAt(bytes) | Fault::ResetAt(bytes) | Fault::StallAt(bytes) => {
                part.to.min(part.from + *bytes as u64)
            }
            _ => part.to,
        };
        let flip = match fault {
            Fault::WrongByte => part.to.checked_sub(1),
            Fault::FlipAt(at) => Some(*at),
            _ => None,
        };
        let mut pace = Pace::of(fault, state.rate);
        let mut pieces = Pieces::new();
        let _sending = state.sending();
        let mut span = Sent { state, span: Span { from: part.from, to: part.from } };
        while span.span.to < stop {
            let at = span.span.to;
            let piece = pieces.at(&file.content, at);
            let length = (piece.len() as u64).min(stop - at).min(pace.bytes_max());
            let cut = state.cut_within(at, at + length);
            let piece = &piece[..cut.map_or(length, |cut| cut - at) as usize];
            pace.wait(piece.len()).await;
            match flip.filter(|flip| (at..at + piece.len() as u64).contains(flip)) {
                None => self.stream.write_all(piece).await?,
                Some(flip) => {
                    let mut wrong = piece.to_vec();
                    wrong[(flip - at) as usize] ^= 1;
                    self.stream.write_all(&wrong).await?;
                }
            }
            let count = piece.len() as u64;
            span.span.to += count;
            state.bytes_sent.send_modify(|sent| *sent += count);
            if cut.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// So many bytes more, this line again and again.
    async fn pour(&mut self, line: &[u8], bytes: usize) -> io::Result<Keeps> {
        let block = line.repeat(SLOW_BYTES / line.len());
        let mut left = bytes;
        while left > 0 {
            let length = left.min(block.len());
            self.stream.write_all(&block[..length]).await?;
            left -= length;
        }
        self.close().await
    }

    async fn end(&mut self, fault: &Fault) -> io::Result<Keeps> {
        match fault {
            Fault::StallAt(_) => self.stream.read_u8().await.map(|_| false),
            Fault::ResetAt(_) => {
                socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO))?;
                Ok(false)
            }
            _ => self.close().await,
        }
    }

    /// So that a cut is seen as the end of the data, not as a reset that discards it.
    async fn close(&mut self) -> io::Result<Keeps> {
        self.stream.shutdown().await?;
        Ok(false)
    }
}

impl Told {
    fn empty(status: u16) -> Told {
        Told { status, headers: Vec::new(), body: Vec::new() }
    }
}

/// Notes what was sent, also when the client leaves in between.
struct Sent<'a> {
    state: &'a State,
    span: Span,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.state.spans.lock().unwrap().push(self.span);
    }
}

/// What of a file is sent.
struct Part {
    from: u64,
    to: u64,
    size: u64,
    is_whole: bool,
    has_length: bool,
    /// Bytes that are not of the file.
    more: usize,
}

impl Part {
    /// `None` if there is no such part.
    fn of(asked: &Asked, file: &File, fault: &Fault) -> Option<Part> {
        let size = file.content.size();
        let is_same = asked.header("if-range").is_none_or(|tag| tag == format!("\"{}\"", file.tag));
        let range = match fault {
            Fault::IgnoreRange | Fault::NoLength | Fault::NewTag => None,
            Fault::OtherTag => asked.header("range"),
            _ => asked.header("range").filter(|_| is_same),
        };
        let (mut from, mut to) = range.map_or(Some((0, size)), |range| bounds(range, size))?;
        match fault {
            Fault::LatePart => from += 1,
            Fault::EarlyPart => from = from.saturating_sub(1),
            Fault::ShortPart if range.is_some() => to = from + (to - from).div_ceil(2),
            _ => {}
        }
        let is_whole = range.is_none() && from == 0;
        let mut part = Part { from, to, size, is_whole, has_length: true, more: 0 };
        match fault {
            Fault::OtherSize => (part.size, part.more) = (size + OTHER_SIZE_BYTES, OTHER_SIZE_BYTES as usize),
            Fault::OtherTotal => part.size += OTHER_SIZE_BYTES,
            Fault::Endless => (part.more, part.has_length) = (ENDLESS_BYTES, false),
            Fault::NoLength => part.has_length = false,
            _ => {}
        }
        Some(part)
    }

    fn status(&self) -> u16 {
        if self.is_whole { 200 } else { 206 }
    }

    fn headers(&self, file: &File, fault: &Fault) -> Vec<(String, String)> {
        let tag = if matches!(fault, Fault::OtherTag | Fault::NewTag) { "other" } else { &file.tag };
        let mut lines = vec![("etag", format!("\"{tag}\"")), ("accept-ranges", "bytes".into())];
        if !self.is_whole && !matches!(fault, Fault::NoContentRange) {
            let last = (self.to - 1).max(self.from);
            lines.push(("content-range", format!("bytes {}-{last}/{}", self.from, self.size)));
        }
        if self.has_length {
            lines.push(("content-length", (self.to - self.from + self.more as u64).to_string()));
        }
        if matches!(fault, Fault::Gzip) {
            lines.push(("content-encoding", "gzip".into()));
        }
        lines.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// `bytes=a-` or `bytes=a-b`, the end excluded.
fn bounds(range: &str, size: u64) -> Option<(u64, u64)> {
    let (from, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let from: u64 = from.parse().ok()?;
    let to = if last.is_empty() { size } else { last.parse::<u64>().ok()?.saturating_add(1).min(size) };
    ((from < to) || (from == 0 && size == 0)).then_some((from, to))
}

/// How fast.
enum Pace {
    Full,
    /// A piece of so many bytes every time.
    Every(Interval, usize),
    Rate {
        per_second: u64,
        begun: Instant,
        bytes: u64,
    },
}

impl Pace {
    fn of(fault: &Fault, rate: Option<u64>) -> Pace {
        match (fault, rate) {
            (Fault::Slow(pause), _) => Pace::Every(tokio::time::interval(*pause), SLOW_BYTES),
            (Fault::Drip(pause), _) => Pace::Every(tokio::time::interval(*pause), 1),
            (_, Some(per_second)) => Pace::Rate { per_second, begun: Instant::now(), bytes: 0 },
            _ => Pace::Full,
        }
    }

    fn bytes_max(&self) -> u64 {
        match self {
            Pace::Full => u64::MAX,
            Pace::Every(_, bytes) => *bytes as u64,
            // So that it flows rather than jumps.
            Pace::Rate { per_second, .. } => (per_second / 50).clamp(1, 256 << 10),
        }
    }

    async fn wait(&mut self, next: usize) {
        match self {
            Pace::Full => {}
            Pace::Every(interval, _) => {
                interval.tick().await;
            }
            Pace::Rate { per_second, begun, bytes } => {
                let due = *begun + Duration::from_secs_f64(*bytes as f64 / *per_second as f64);
                tokio::time::sleep_until(due).await;
                *bytes += next as u64;
            }
        }
    }
}

fn head(status: u16, headers: &[(String, String)], keeps: Keeps) -> String {
    let reason = match status {
        200 => "OK",
        206 => "Partial Content",
        302 => "Found",
        _ => "Told",
    };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !keeps {
        head.push_str("connection: close\r\n");
    }
    head
}

fn spoil(headers: &mut Vec<(String, String)>, fault: &Fault) {
    match fault {
        Fault::Says(name, value) => {
            headers.retain(|(other, _)| other != name);
            headers.push(((*name).to_owned(), value.clone()));
        }
        Fault::Without(name) => headers.retain(|(other, _)| other != name),
        _ => {}
    }
}

async fn read_head(stream: &mut (impl AsyncBufRead + Unpin), site: Site) -> io::Result<Option<Asked>> {
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
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    Ok(Some(Asked { site, method, path, headers }))
}
