//! A model on the hub: `org/repo[:pick][@revision]`.

use super::{ReferenceError, ends_as_file, has_extension};
use std::fmt;

/// The hub's own limit for each half of a repository's name.
const REPO_NAME_BYTES_MAX: usize = 96;
const REVISION_BYTES_MAX: usize = 255;
const PICK_BYTES_MAX: usize = 1_024;
const QUANTIZATION_BYTES_MAX: usize = 32;
/// The revision that is meant when none is named.
const MAIN: &str = "main";
/// What other tools write for "whichever".
const ANY: &str = "latest";
/// Between repository and revision in the addresses of the hub's pages.
const PAGES: [&str; 4] = ["resolve", "blob", "raw", "tree"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    pub repo: Repo,
    pub pick: Pick,
    /// A branch, a tag or a commit; the main branch without.
    pub revision: Option<String>,
}

/// `org/repo`. The hub finds it in any case, so equality knows none.
#[derive(Debug, Clone, Eq)]
pub struct Repo(String);

impl PartialEq for Repo {
    fn eq(&self, other: &Repo) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

/// Which of the repository's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    Any,
    /// In upper case.
    Quantization(String),
    /// A path inside the repository.
    File(String),
}

impl Repo {
    /// Reads `org/repo` by the hub's rules.
    pub fn read(text: &str) -> Option<Repo> {
        let (org, name) = text.split_once('/')?;
        (is_repo_name(org) && is_repo_name(name)).then(|| Repo(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

impl fmt::Display for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `--` stands for the slash in the cache's folders.
fn is_repo_name(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=REPO_NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && !text.starts_with(['.', '-'])
        && !text.ends_with(['.', '-'])
        && !text.contains("--")
        && !text.contains("..")
}

/// As git has it, near enough to make no path and no option of it.
fn is_revision(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-/+".contains(&b);
    (1..=REVISION_BYTES_MAX).contains(&text.len())
        && text.bytes().all(is_plain)
        && text.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '-']))
        && !text.contains("..")
        // It could not be told from a file's name.
        && !ends_as_file(text)
}

impl HubReference {
    pub fn label(&self) -> String {
        match &self.pick {
            Pick::Any => self.repo.name().to_owned(),
            Pick::Quantization(quantization) => format!("{}:{quantization}", self.repo.name()),
            Pick::File(file) => file.rsplit('/').next().unwrap_or(file).to_owned(),
        }
    }

    pub fn means(&self, there: &HubReference) -> bool {
        let is_pick = match (&self.pick, &there.pick) {
            (Pick::Any, _) => true,
            (asked, there) => asked == there,
        };
        is_pick && self.repo == there.repo && self.revision == there.revision
    }

    pub fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

/// `org/repo[:pick][@revision]`, or `org/repo[@revision][:pick]`.
pub(super) fn read(text: &str) -> Result<HubReference, ReferenceError> {
    let text = text.trim_end_matches('/');
    let (text, revision) = match text.rsplit_once('@') {
        // An `@` inside a file's name is the file's.
        Some((rest, last)) if !ends_as_file(last) || !rest.contains(':') => match last.split_once(':') {
            Some((revision, pick)) => (format!("{rest}:{pick}"), Some(revision)),
            None => (rest.to_owned(), Some(last)),
        },
        _ => (text.to_owned(), None),
    };
    let (repo, pick) = match text.split_once(':') {
        Some((repo, pick)) => (repo, read_pick(pick)?),
        None => (text.as_str(), Pick::Any),
    };
    let repo = Repo::read(repo).ok_or_else(|| ReferenceError::BadRepo(repo.to_owned()))?;
    Ok(HubReference { repo, pick, revision: revision.map(read_revision).transpose()?.flatten() })
}

/// What stands behind the hub's host in an address: `org/repo`, with pages and files, too.
pub(super) fn read_path(path: &str) -> Result<HubReference, ReferenceError> {
    let mut segments = path.trim_end_matches('/').splitn(5, '/');
    let pair = (segments.next(), segments.next(), segments.next(), segments.next(), segments.next());
    let (Some(org), Some(name), Some(page), Some(revision), file) = pair else { return read(path) };
    if !PAGES.contains(&page) {
        return Err(ReferenceError::BadRepo(path.to_owned()));
    }
    let repo =
        Repo::read(&format!("{org}/{name}")).ok_or_else(|| ReferenceError::BadRepo(path.to_owned()))?;
    let pick = match file.filter(|file| !file.is_empty()) {
        None => Pick::Any,
        Some(file) if has_extension(file) => read_pick(file)?,
        Some(file) => return Err(ReferenceError::NotGguf(file.to_owned())),
    };
    Ok(HubReference { repo, pick, revision: read_revision(revision)? })
}

fn read_pick(text: &str) -> Result<Pick, ReferenceError> {
    let bad = || ReferenceError::BadPick(text.to_owned());
    if has_extension(text) {
        let is_inside = text.len() <= PICK_BYTES_MAX && text.split('/').all(is_plain);
        return if is_inside { Ok(Pick::File(text.to_owned())) } else { Err(bad()) };
    }
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    match text.len() {
        1..=QUANTIZATION_BYTES_MAX if text.bytes().all(is_word) => match text.eq_ignore_ascii_case(ANY) {
            true => Ok(Pick::Any),
            false => Ok(Pick::Quantization(text.to_ascii_uppercase())),
        },
        _ => Err(bad()),
    }
}

/// None for the main branch, which is what none means.
fn read_revision(text: &str) -> Result<Option<String>, ReferenceError> {
    match is_revision(text) {
        true => Ok((text != MAIN).then(|| text.to_owned())),
        false => Err(ReferenceError::BadRevision(text.to_owned())),
    }
}

/// A name that is one component of a path on any system: no device of Windows either.
pub fn is_plain(name: &str) -> bool {
    const NOWHERE: [char; 9] = ['/', '\\', ':', '*', '?', '"', '<', '>', '|'];
    const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let is_numbered = |device: &str| {
        stem.strip_prefix(device).is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()))
    };
    !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.ends_with(['.', ' '])
        && !name.contains(NOWHERE)
        && !name.contains(char::is_control)
        && !DEVICES.contains(&stem.as_str())
        && !is_numbered("com")
        && !is_numbered("lpt")
}

/// The text that stands behind `%` signs; what is no escape stays as it is, and is refused as a name later.
pub(super) fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        rest = match escaped {
            Some(byte) => {
                bytes.push(byte);
                &tail[2..]
            }
            None => {
                bytes.push(*first);
                tail
            }
        };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned())
}

impl fmt::Display for HubReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        match &self.pick {
            Pick::Any => {}
            Pick::Quantization(text) | Pick::File(text) => write!(f, ":{text}")?,
        }
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}
