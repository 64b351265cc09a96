//! Why a download did not come to its end, and which of it may pass.

use super::Sum;
use crate::http::client::ClientError;
use crate::http::url::BadUrl;
use crate::job::progress::size;
use crate::wire::digest::Digest;
use crate::wire::{Code, Failure, failure};
use serde_json::json;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("asking {origin}")]
    Ask { origin: String, source: ClientError },
    #[error("{origin} gave no answer within {} s", limit.as_secs_f32())]
    NoAnswer { origin: String, limit: Duration },
    #[error("{url} answered {status}")]
    Status { url: String, status: u16, retry_after: Option<Duration> },
    #[error("{url} asks to wait {} s before it is asked again", wait.as_secs())]
    Wait { url: String, wait: Duration },
    #[error("{url} does not send the part that was asked for ({status})")]
    WrongPart { url: String, status: u16 },
    #[error("{0} sends the whole file where a part was asked for; starting again")]
    NoParts(String),
    #[error("{0} has another file than the one that was begun; starting again")]
    Changed(String),
    #[error("{url} is not there ({status}): its name is wrong, or it was removed")]
    NotThere { url: String, status: u16 },
    #[error("{url} may not be read ({status}); {hint}")]
    Denied { url: String, status: u16, hint: &'static str },
    #[error("{0} leads on and on: more than {max} redirects", max = super::REDIRECTS_MAX)]
    Redirects(String),
    #[error("{0} redirects without saying where")]
    NoLocation(String),
    #[error("following a redirect of {from}")]
    BadRedirect { from: String, source: BadUrl },
    #[error("{from} redirects to {to}, an address without encryption")]
    Downgrade { from: String, to: String },
    #[error("{url} sends the file encoded as {encoding}, which was not asked for")]
    Encoded { url: String, encoding: String },
    #[error("{url} has a file of {told} bytes, should be {expected}")]
    WrongSize { url: String, told: u64, expected: u64 },
    #[error("{url} says that the file's SHA-256 sum is {told}, should be {expected}")]
    OtherFile { url: String, told: Digest, expected: Digest },
    #[error("{url} sent more than the {expected} bytes of the file")]
    TooMuch { url: String, expected: u64 },
    #[error("{url} has {}, at most {} are fetched", size(*told), size(*max))]
    TooBig { url: String, told: u64, max: u64 },
    #[error("{} are needed in {}, {} are free: make room, or use another disk", size(*needed), folder.display(), size(*available))]
    Disk { folder: PathBuf, needed: u64, available: u64 },
    #[error("no byte came for {} s, at {}", limit.as_secs_f32(), size(*at))]
    Stalled { limit: Duration, at: u64 },
    #[error("the connection broke at {}", size(*at))]
    Broken { at: u64, source: Option<hyper::Error> },
    #[error("after {attempts} attempts")]
    Exhausted { attempts: u32, source: Box<DownloadError> },
    #[error("the bytes have the sum {got}, should be {expected}")]
    WrongBytes { got: Sum, expected: Sum },
    #[error("`{}` is being written by another program; wait for it, or end it", .0.display())]
    Busy(PathBuf),
    #[error("writing `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cancelled")]
    Cancelled,
}

impl DownloadError {
    /// Whether another attempt may fare better.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            DownloadError::Ask { source: ClientError::Private(_) | ClientError::BadTarget(_), .. } => false,
            DownloadError::Ask { .. } | DownloadError::NoAnswer { .. } => true,
            DownloadError::Broken { .. } | DownloadError::Stalled { .. } => true,
            DownloadError::WrongPart { .. } | DownloadError::NoParts(_) | DownloadError::Changed(_) => true,
            DownloadError::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..),
            _ => false,
        }
    }

    /// The server has what it had no part of: all that was fetched goes.
    pub(super) fn starts_again(&self) -> bool {
        matches!(self, DownloadError::NoParts(_) | DownloadError::Changed(_))
    }

    /// An answer, even a bad one, tells that the server can be reached.
    pub(super) fn is_an_answer(&self) -> bool {
        !matches!(self, DownloadError::Ask { .. } | DownloadError::NoAnswer { .. })
    }

    /// How long the server asks to be left alone.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            DownloadError::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The server is asked too much.
    pub(super) fn is_too_much_asked(&self) -> bool {
        matches!(self, DownloadError::Status { status: 429 | 503, .. })
    }

    pub fn failure(&self, name: &str) -> Failure {
        let mut innermost = self;
        while let DownloadError::Exhausted { source, .. } = innermost {
            innermost = source;
        }
        let code = match innermost {
            DownloadError::Stalled { .. } => Code::DownloadTimeout,
            DownloadError::NotThere { .. } => Code::NotFound,
            DownloadError::Denied { .. } | DownloadError::Ask { source: ClientError::Private(_), .. } => {
                Code::Forbidden
            }
            DownloadError::WrongBytes { .. }
            | DownloadError::OtherFile { .. }
            | DownloadError::WrongSize { .. }
            | DownloadError::TooMuch { .. } => Code::ChecksumMismatch,
            DownloadError::Disk { .. } => Code::InsufficientDisk,
            DownloadError::Write { source, .. } => disk_code(source),
            DownloadError::Busy(_) => Code::Conflict,
            _ => Code::DownloadFailed,
        };
        let failure = Failure::new(code, format!("fetching {name}: {}", failure::chain(self)));
        match innermost {
            DownloadError::Disk { needed, available, .. } => {
                failure.with(json!({"needed": needed, "available": available}))
            }
            _ => failure,
        }
    }
}

/// A full disk is a person's to mend, all else ours.
pub fn disk_code(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::InsufficientDisk,
        _ => Code::Internal,
    }
}

/// Told before it starts, and not after an hour.
pub fn check_room(folder: &Path, bytes: u64) -> Result<(), DownloadError> {
    // A file system that does not tell may still have room.
    let Ok(fs) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let available = fs.f_bavail.saturating_mul(fs.f_frsize);
    let needed = bytes.saturating_add(super::DISK_RESERVE_BYTES);
    match available < needed {
        true => Err(DownloadError::Disk { folder: folder.to_owned(), needed, available }),
        false => Ok(()),
    }
}
