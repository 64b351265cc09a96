//! What a person may write for a model (B30). One grammar, read here and nowhere else:
//!
//! ```text
//!  smollm2-135m-instruct              a recipe's name, or an alias
//!  org/repo                           the hub's; the repository's list of files decides which
//!  org/repo:Q4_K_M[@revision]         the quantisation, in any case
//!  org/repo:sub/file.gguf[@revision]  one file
//!  hf:… hf.co/… https://hf.co/…       the same, as other tools and browsers write it
//!  https://host/file.gguf             a file on a web server
//!  file:PATH, /…, ./…, ../…, ….gguf   a file on this machine
//! ```
//!
//! [`Reference::read`] is pure. Whoever sends a reference to another process sends what [`Reference::parse`] gives, whose
//! paths are absolute.

mod hub;

pub use hub::{HubReference, Pick, Repo, is_plain};

use super::recipe;
use crate::http::url::{BadUrl, Url};
use crate::wire::{Code, Failure};
use std::fmt;
use std::path::{Path, PathBuf};

/// The longest reference accepted: a path's limit, and its prefix.
pub const REFERENCE_BYTES_MAX: usize = 4_096 + FILE_PREFIX.len();
/// The longest recipe's name or alias.
pub const NAME_BYTES_MAX: usize = 100;
const FILE_PREFIX: &str = "file:";
const HUB_PREFIX: &str = "hf:";
/// The hub's own addresses, and what other tools write before a repository's name.
const HUB_HOSTS: [&str; 3] = ["hf.co", "huggingface.co", "www.huggingface.co"];
const EXTENSION: &str = ".gguf";
const PATH_STARTS: [&str; 4] = ["/", "./", "../", "~/"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A recipe's name or an alias, in lower case. What it stands for, the hive knows.
    Name(String),
    Hub(HubReference),
    Url(Url),
    /// Absolute after [`Reference::parse`].
    File(PathBuf),
}

#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    #[error(
        "a model has to be named: org/repo:Q4_K_M, the path of a .gguf file, or one of {}",
        recipe::names()
    )]
    Empty,
    #[error("a model's name of {0} bytes is over the limit of {REFERENCE_BYTES_MAX}")]
    TooLong(usize),
    #[error("`{0}` holds control characters, which no model's name does")]
    Control(String),
    #[error(
        "`{0}` is not a model's name: give org/repo:Q4_K_M for the hub, the path of a .gguf file, or one of {known}",
        known = recipe::names()
    )]
    NotAName(String),
    #[error(
        "`{0}` is a name of another registry: on the hub it is org/repo:Q4_K_M; recipes here are {known}",
        known = recipe::names()
    )]
    Tag(String),
    #[error("`{0}` is not a repository of the hub: those are org/repo, of letters, digits, `-`, `_` and `.`")]
    BadRepo(String),
    #[error("`{0}` is not a revision: a branch, a tag or a commit")]
    BadRevision(String),
    #[error("`{0}` is neither a quantisation such as Q4_K_M nor a .gguf file inside the repository")]
    BadPick(String),
    #[error("`{0}` does not name a .gguf file")]
    NotGguf(String),
    #[error("reading the address")]
    BadUrl(#[from] BadUrl),
    #[error("`{0}` cannot be made an absolute path")]
    NotAbsolute(String, #[source] std::io::Error),
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Failure::new(Code::InvalidRequest, crate::wire::failure::chain(&error))
    }
}

impl Reference {
    /// Reads what a person wrote. Relative paths are relative to this process.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        match Reference::read(text)? {
            Reference::File(path) => {
                let absolute = std::path::absolute(&path)
                    .map_err(|e| ReferenceError::NotAbsolute(path.display().to_string(), e))?;
                Ok(Reference::File(settled(absolute)))
            }
            other => Ok(other),
        }
    }

    /// The grammar alone.
    pub fn read(text: &str) -> Result<Self, ReferenceError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(ReferenceError::Control(text.escape_debug().to_string()));
        }
        if let Some(path) = strip_prefix(text, FILE_PREFIX) {
            let path = path.strip_prefix("//").filter(|rest| rest.starts_with('/')).unwrap_or(path);
            return if path.is_empty() {
                Err(ReferenceError::Empty)
            } else {
                Ok(Reference::File(path.into()))
            };
        }
        if strip_prefix(text, "https://").or_else(|| strip_prefix(text, "http://")).is_some() {
            return address(text);
        }
        if let Some(rest) = strip_prefix(text, HUB_PREFIX) {
            return hub::read(rest.strip_prefix("//").unwrap_or(rest)).map(Reference::Hub);
        }
        if let Some((host, rest)) = text.split_once('/')
            && HUB_HOSTS.iter().any(|known| host.eq_ignore_ascii_case(known))
        {
            return hub::read_path(rest).map(Reference::Hub);
        }
        let is_file = !text.contains(':') && has_extension(text);
        if is_file || PATH_STARTS.iter().any(|start| text.starts_with(start)) {
            return Ok(Reference::File(text.into()));
        }
        match (text.contains('/'), text.contains(':')) {
            (true, _) => hub::read(text).map(Reference::Hub),
            (false, true) => Err(ReferenceError::Tag(text.to_owned())),
            (false, false) if is_name(text) => Ok(Reference::Name(text.to_ascii_lowercase())),
            (false, false) => Err(ReferenceError::NotAName(text.to_owned())),
        }
    }

    /// The model that is used when none is named.
    pub fn default_model() -> Reference {
        Reference::Name(recipe::DEFAULT.to_owned())
    }

    /// The last of the name, for bars and narration.
    pub fn label(&self) -> String {
        let last = |text: &str| text.rsplit('/').next().unwrap_or(text).to_owned();
        match self {
            Reference::Name(name) => name.clone(),
            Reference::Hub(hub) => hub.label(),
            Reference::Url(url) => last(&url.to_string()),
            Reference::File(path) => last(&path.to_string_lossy()),
        }
    }

    /// Whether a person who wrote this means the model that is called `id`, the canonical form of what was fetched: who
    /// leaves out the quantisation or writes it in another case means the one that is there.
    pub fn means(&self, id: &str) -> bool {
        match (self, Reference::read(id)) {
            (Reference::Hub(asked), Ok(Reference::Hub(there))) => asked.means(&there),
            (Reference::Url(asked), Ok(Reference::Url(there))) => asked.to_string() == there.to_string(),
            (asked, Ok(there)) => *asked == there,
            (_, Err(_)) => false,
        }
    }
}

/// A recipe's name or an alias: what can stand on a command line and means no path.
pub fn is_name(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
}

pub(super) fn has_extension(text: &str) -> bool {
    text.len() > EXTENSION.len() && ends_as_file(text)
}

/// Whether this is the end of a model's file's name, or all of its extension.
pub(super) fn ends_as_file(text: &str) -> bool {
    let start = text.len().saturating_sub(EXTENSION.len());
    text.get(start..).is_some_and(|end| end.eq_ignore_ascii_case(EXTENSION))
}

/// Schemes and hosts are the same in any case.
fn strip_prefix<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then(|| &text[prefix.len()..])
}

fn address(text: &str) -> Result<Reference, ReferenceError> {
    let url = Url::parse(text)?;
    let host = url.origin().split("://").nth(1).unwrap_or_default();
    if HUB_HOSTS.contains(&host) {
        let path = url.path().split('?').next().unwrap_or_default();
        return hub::read_path(&hub::unescaped(path.trim_start_matches('/'))).map(Reference::Hub);
    }
    // Display leaves out the query, where a signature may stand.
    match has_extension(&url.to_string()) {
        true => Ok(Reference::Url(url)),
        false => Err(ReferenceError::NotGguf(url.to_string())),
    }
}

/// One name a file: the folder's links and `..` followed, the file's own name kept, because in the hub's cache it is the
/// link that tells what the file is.
fn settled(path: PathBuf) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => path,
    }
}

/// The canonical form: what records, requests and lists name the model by.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Name(name) => f.write_str(name),
            Reference::Hub(hub) => write!(f, "{HUB_PREFIX}{hub}"),
            // With the query, without which the file may not be had.
            Reference::Url(url) => write!(f, "{}{}", url.origin(), url.path()),
            Reference::File(path) => write!(f, "{FILE_PREFIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests;
