//! What a hub does wrong, and when: a script for the requests in order, and rules for those of one kind.

use std::time::Duration;

#[derive(Debug, Clone)]
pub enum Fault {
    None,
    /// Only a status.
    Status(u16),
    /// A status and lines of headers.
    StatusWith(u16, String),
    /// Another file of the same length, though If-Range asked for the first.
    OtherTag,
    /// The file is another one: the whole of it is sent when If-Range asks for the first.
    NewTag,
    /// The whole without saying how long it is, as it ends with the connection.
    NoLength,
    /// Closes the connection after so many bytes of the body.
    CutAt(usize),
    /// The same, with a reset, which discards what is on its way.
    ResetAt(usize),
    /// Sends so many bytes of the body, then nothing.
    StallAt(usize),
    /// The last byte of the body is another.
    WrongByte,
    /// One bit of this byte of the file is another, if it is of the part that is sent.
    FlipAt(u64),
    /// The whole file, whatever part was asked for.
    IgnoreRange,
    /// A part that begins one byte late.
    LatePart,
    /// A part that begins one byte early.
    EarlyPart,
    /// The first half of the part that was asked for, and says so.
    ShortPart,
    /// The right part, said to be of a longer file.
    OtherTotal,
    /// A part without saying which.
    NoContentRange,
    /// Accepts, reads, never says a word.
    NeverAnswer,
    /// What is no HTTP at all.
    Gibberish,
    /// A head without an end.
    EndlessHead,
    /// More bytes than the file has, without a length.
    Endless,
    /// Another file: longer, and says so.
    OtherSize,
    /// Says that it is compressed.
    Gzip,
    RedirectTo(String),
    /// So long for every 16 KiB.
    Slow(Duration),
    /// So long for every byte.
    Drip(Duration),
    /// This header is another.
    Says(&'static str, String),
    /// This header is not there.
    Without(&'static str),
    /// Another body, with 200.
    Body(String),
}

/// Which of the two servers is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Hub,
    Cdn,
}

/// A kind of request, and which of them.
#[derive(Debug, Clone)]
pub struct When {
    kind: Kind,
    /// One of these is in the path; any path if there are none.
    parts: Vec<String>,
    skip: usize,
    times: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Any,
    /// What the hub knows of a repository.
    Listing,
    /// The hub's answer about one file, a redirect or the bytes.
    Resolve,
    /// Whoever sends the bytes.
    Bytes,
}

impl When {
    fn of(kind: Kind) -> When {
        When { kind, parts: Vec::new(), skip: 0, times: usize::MAX }
    }

    pub fn any() -> When {
        When::of(Kind::Any)
    }

    pub fn listing() -> When {
        When::of(Kind::Listing)
    }

    pub fn resolve() -> When {
        When::of(Kind::Resolve)
    }

    pub fn bytes() -> When {
        When::of(Kind::Bytes)
    }

    /// Only where the path has this in it, or what another call says.
    pub fn path(mut self, part: &str) -> When {
        self.parts.push(part.to_owned());
        self
    }

    /// Only the one of this number, counted from nought.
    pub fn nth(mut self, number: usize) -> When {
        (self.skip, self.times) = (number, 1);
        self
    }

    fn is_of(&self, request: &Request<'_>) -> bool {
        let is_kind = match self.kind {
            Kind::Any => true,
            Kind::Listing => request.site == Site::Hub && request.path.starts_with("/api/"),
            Kind::Resolve => request.site == Site::Hub && request.path.contains("/resolve/"),
            Kind::Bytes => request.has_bytes,
        };
        is_kind && (self.parts.is_empty() || self.parts.iter().any(|part| request.path.contains(part)))
    }
}

/// What of a request is looked at.
pub struct Request<'a> {
    pub site: Site,
    pub path: &'a str,
    /// Whether a file's bytes are the right answer to it.
    pub has_bytes: bool,
}

#[derive(Debug)]
struct Rule {
    when: When,
    fault: Fault,
    seen: usize,
}

#[derive(Debug, Default)]
pub struct Script {
    in_order: std::collections::VecDeque<Fault>,
    rules: Vec<Rule>,
}

impl Script {
    pub fn in_order(faults: impl IntoIterator<Item = Fault>) -> Script {
        Script { in_order: faults.into_iter().collect(), rules: Vec::new() }
    }

    pub fn add(&mut self, when: When, fault: Fault) {
        self.rules.push(Rule { when, fault, seen: 0 });
    }

    pub fn clear(&mut self) {
        *self = Script::default();
    }

    /// The fault of this request. Every rule counts the requests of its kind, whichever rule it is that acts.
    pub fn next(&mut self, request: &Request<'_>) -> Fault {
        let mut acting = None;
        for rule in self.rules.iter_mut().filter(|rule| rule.when.is_of(request)) {
            let number = rule.seen;
            rule.seen += 1;
            let is_meant = number >= rule.when.skip && number - rule.when.skip < rule.when.times;
            if is_meant && acting.is_none() {
                acting = Some(rule.fault.clone());
            }
        }
        acting.or_else(|| self.in_order.pop_front()).unwrap_or(Fault::None)
    }
}
