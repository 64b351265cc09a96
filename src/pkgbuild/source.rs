//! The elements of `source=()`, read without touching anything: what a file is called, where it comes from, and the sums
//! that it must have.
//!
//! Read as makepkg reads them, but for what it leaves open: names are plain file names (`name`), no two sources share
//! one, protocols are https, http, file and git over these, a commit is named in full, and no address carries a user.
//! What of this a node lets through is in `trust`.

use super::checksum::{Kind, NotASum, Sum};
use super::name::{self, NameError};
use crate::http::url::{BadUrl, Url};
use crate::wire::{Code, Failure, failure};
use std::path::{Component, Path, PathBuf};

/// The longest element that is worth reading.
const ELEMENT_BYTES_MAX: usize = 4096;
/// Full names of objects, in hexadecimal digits: SHA-1 and SHA-256.
const COMMIT_DIGITS: [usize; 2] = [40, 64];
/// What makepkg takes for signatures.
const SIGNATURE_EXTENSIONS: [&str; 3] = ["sig", "sign", "asc"];
const SKIP: &str = "SKIP";
const OTHER_VERSION_CONTROL: [&str; 4] = ["bzr", "fossil", "hg", "svn"];

/// One source of a recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// What it is called in `$srcdir`.
    pub name: String,
    pub place: Place,
    /// Every sum that the recipe gives for it. None means SKIP: nothing is known of its bytes.
    pub sums: Vec<Sum>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file beside the PKGBUILD.
    Local,
    Http(Url),
    /// `file://`, an absolute path.
    File(PathBuf),
    Git(Git),
}

/// A repository and what of it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Git {
    pub remote: Remote,
    pub reference: Reference,
    /// `?signed`: makepkg has gpg verify the commit or the tag.
    pub signed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remote {
    Http(Url),
    File(PathBuf),
    /// `git://HOST[:PORT]/PATH`, unencrypted and unauthenticated.
    Git {
        host: String,
        port: u16,
        path: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// What the repository itself says.
    Head,
    Branch(String),
    Tag(String),
    /// In full.
    Commit(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error("source `{text}`")]
    Name { text: String, source: NameError },
    #[error("source `{text}`")]
    Address { text: String, source: BadUrl },
    #[error("source `{text}`: {system} is not supported, git and plain files are")]
    VersionControl { text: String, system: String },
    #[error(
        "source `{text}`: the protocol `{protocol}` is not supported; https, http, file and git+https are"
    )]
    Protocol { text: String, protocol: String },
    #[error("source `{text}`: a file beside the PKGBUILD is given by its name alone")]
    LocalPath { text: String },
    #[error("source `{text}`: file:// needs an absolute path without `..`")]
    FilePath { text: String },
    #[error("source `{text}`: `#{fragment}` is neither tag=, branch= nor commit=")]
    Fragment { text: String, fragment: String },
    #[error("source `{text}`: a commit is named in full, by 40 or 64 hexadecimal digits")]
    ShortCommit { text: String },
    #[error("source `{text}`: `{reference}` cannot be a tag or branch")]
    Reference { text: String, reference: String },
    #[error("source `{text}`: of `?{query}` only ?signed is known")]
    Query { text: String, query: String },
    #[error("source `{text}` has a character in it that no address has")]
    Character { text: String },
    #[error("a source has more than {ELEMENT_BYTES_MAX} bytes")]
    Long,
    #[error("{variable} has {sums} elements, source has {sources}")]
    Lengths { variable: String, sums: usize, sources: usize },
    #[error("source `{name}`")]
    Sum { name: String, source: NotASum },
    #[error(
        "source `{name}` has a sum, but a branch is never the same: write SKIP, or name a tag or a commit"
    )]
    BranchSum { name: String },
    #[error("two sources have the name `{0}`")]
    Twice(String),
    #[error(
        "source `{0}` comes over http without encryption: give a sha256 sum of it, or better, or use https"
    )]
    Unencrypted(String),
    #[error(
        "source `{0}` comes over an unencrypted protocol: name a commit in full or give a sha256 sum, or use git+https"
    )]
    UnencryptedGit(String),
    #[error("source `{0}`: files of this machine are no sources of a recipe")]
    ForeignFile(String),
    #[error(
        "source `{0}`: git:// is not used, because anybody on the way could change what comes: use git+https://"
    )]
    GitProtocol(String),
    #[error(
        "`{signature}` signs `{name}`, which has no sha256 sum or better: signatures are not verified here, so give the sum"
    )]
    Signed { signature: String, name: String },
    #[error(
        "source `{0}` asks for a signed commit: signatures are not verified here, so name the commit in full or give a sha256 sum"
    )]
    SignedGit(String),
    #[error("`{0}` is a signature of none of the sources")]
    SignsNothing(String),
}

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Failure::new(Code::RecipeInvalid, failure::chain(&error))
    }
}

/// Reads one array of sources with the arrays of sums that belong to it, each of which has one element a source.
pub fn parse(list: &[String], sums: &[(Kind, Vec<String>)]) -> Result<Vec<Source>, SourceError> {
    for (kind, values) in sums {
        if values.len() != list.len() {
            let variable = kind.variable().to_owned();
            return Err(SourceError::Lengths { variable, sums: values.len(), sources: list.len() });
        }
    }
    let mut sources = Vec::with_capacity(list.len());
    for (index, text) in list.iter().enumerate() {
        let mut source = element(text)?;
        for (kind, values) in sums.iter().filter(|(_, values)| values[index] != SKIP) {
            let sum = Sum::parse(*kind, &values[index])
                .map_err(|error| SourceError::Sum { name: source.name.clone(), source: error })?;
            source.sums.push(sum);
        }
        if source.moves() && !source.sums.is_empty() {
            return Err(SourceError::BranchSum { name: source.name });
        }
        sources.push(source);
    }
    Ok(sources)
}

impl Source {
    pub fn is_signature(&self) -> bool {
        self.signed_name().is_some()
    }

    /// What a signature's file signs, but for a suffix of compression.
    pub(super) fn signed_name(&self) -> Option<&str> {
        let (name, extension) = self.name.rsplit_once('.')?;
        SIGNATURE_EXTENSIONS.contains(&extension).then_some(name)
    }

    /// Whether one of its sums cannot be met by other bytes.
    pub fn is_pinned(&self) -> bool {
        self.sums.iter().any(|sum| sum.kind().is_strong())
            || matches!(&self.place, Place::Git(Git { reference: Reference::Commit(_), .. }))
    }

    /// Whether it is what a branch is today.
    fn moves(&self) -> bool {
        matches!(&self.place, Place::Git(Git { reference: Reference::Head | Reference::Branch(_), .. }))
    }
}

/// One element, without its sums.
fn element(text: &str) -> Result<Source, SourceError> {
    if text.len() > ELEMENT_BYTES_MAX {
        return Err(SourceError::Long);
    }
    let shown = || text.escape_debug().to_string();
    let (given, address) = match text.split_once("::") {
        // The colons of an IPv6 address come after a scheme's.
        Some((name, address)) if !name.contains("://") => (Some(name), address),
        _ => (None, text),
    };
    let (place, own) = match address.split_once("://") {
        // A local file cannot be renamed: makepkg would look for one of the new name.
        None if given.is_some() || text.contains(['/', '\\']) => {
            return Err(SourceError::LocalPath { text: shown() });
        }
        None => (Place::Local, text),
        Some((scheme, rest)) => {
            if address.contains(|c: char| c.is_control() || c.is_whitespace()) {
                return Err(SourceError::Character { text: shown() });
            }
            match scheme.split_once('+').unwrap_or((scheme, "")) {
                ("https" | "http", "") => {
                    let url = Url::parse(address)
                        .map_err(|source| SourceError::Address { text: shown(), source })?;
                    (Place::Http(url), last(address))
                }
                ("file", "") => (Place::File(file_path(rest, &shown)?), last(address)),
                ("git", transport) => {
                    let (bare, git) = git(transport, rest, &shown)?;
                    (Place::Git(git), bare)
                }
                (system, _) if OTHER_VERSION_CONTROL.contains(&system) => {
                    return Err(SourceError::VersionControl { text: shown(), system: system.to_owned() });
                }
                _ => return Err(SourceError::Protocol { text: shown(), protocol: scheme.to_owned() }),
            }
        }
    };
    let name = given.unwrap_or(own);
    name::check(name).map_err(|source| SourceError::Name { text: shown(), source })?;
    Ok(Source { name: name.to_owned(), place, sums: Vec::new() })
}

fn last(address: &str) -> &str {
    address.rsplit('/').next().unwrap_or(address)
}

/// What follows `git+SCHEME://`: the repository's name, and what is wanted of it.
fn git<'a>(
    transport: &str,
    rest: &'a str,
    shown: &dyn Fn() -> String,
) -> Result<(&'a str, Git), SourceError> {
    // Fragment and query come in either order.
    let bare = rest.split(['#', '?']).next().unwrap_or(rest);
    let fragment = rest.split_once('#').map(|(_, tail)| tail.split('?').next().unwrap_or(tail));
    let query = rest.split_once('?').map(|(_, tail)| tail.split('#').next().unwrap_or(tail));
    let signed = match query {
        None => false,
        Some("signed") => true,
        Some(query) => return Err(SourceError::Query { text: shown(), query: query.to_owned() }),
    };
    let remote = match transport {
        "https" | "http" => Url::parse(&format!("{transport}://{bare}"))
            .map(Remote::Http)
            .map_err(|source| SourceError::Address { text: shown(), source })?,
        "file" => Remote::File(file_path(bare, shown)?),
        "" | "git" => {
            // The same reading of host and port as everywhere.
            let url = Url::parse(&format!("http://{bare}"))
                .map_err(|source| SourceError::Address { text: shown(), source })?;
            git_remote(&url)
        }
        other => return Err(SourceError::Protocol { text: shown(), protocol: format!("git+{other}") }),
    };
    let reference = match fragment.map(|fragment| fragment.split_once('=').ok_or(fragment)) {
        None => Reference::Head,
        Some(Ok(("commit", id))) if is_commit(id) => Reference::Commit(id.to_ascii_lowercase()),
        Some(Ok(("commit", _))) => return Err(SourceError::ShortCommit { text: shown() }),
        Some(Ok(("tag" | "branch", name))) if !is_reference(name) => {
            return Err(SourceError::Reference { text: shown(), reference: name.escape_debug().to_string() });
        }
        Some(Ok(("tag", name))) => Reference::Tag(name.to_owned()),
        Some(Ok(("branch", name))) => Reference::Branch(name.to_owned()),
        Some(Ok((fragment, _)) | Err(fragment)) => {
            return Err(SourceError::Fragment { text: shown(), fragment: fragment.to_owned() });
        }
    };
    let name = last(bare.strip_suffix('/').unwrap_or(bare));
    let name = name.split(".git").next().unwrap_or(name);
    Ok((name, Git { remote, reference, signed }))
}

fn git_remote(url: &Url) -> Remote {
    const GIT_PORT: u16 = 9418;
    let authority = url.origin().trim_start_matches("http://");
    let split = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = split.unwrap_or((authority, GIT_PORT));
    Remote::Git { host: host.to_owned(), port, path: url.path().to_owned() }
}

fn file_path(rest: &str, shown: &dyn Fn() -> String) -> Result<PathBuf, SourceError> {
    let path = Path::new(rest);
    let is_plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !is_plain {
        return Err(SourceError::FilePath { text: shown() });
    }
    Ok(path.to_owned())
}

fn is_commit(text: &str) -> bool {
    COMMIT_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// git's own rules for names of references, and no `=`.
fn is_reference(name: &str) -> bool {
    const FORBIDDEN: [char; 11] = [' ', '~', '^', ':', '?', '*', '[', '\\', '=', '\u{7f}', '"'];
    let is_part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.split('/').all(is_part)
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.contains(FORBIDDEN)
        && !name.contains(char::is_control)
}

impl Remote {
    /// As git is told it.
    pub fn address(&self) -> String {
        match self {
            Remote::Http(url) => format!("{}{}", url.origin(), url.path()),
            Remote::File(path) => format!("file://{}", path.display()),
            Remote::Git { host, port, path } => format!("git://{host}:{port}{path}"),
        }
    }
}

#[cfg(test)]
#[path = "source/tests.rs"]
mod tests;
