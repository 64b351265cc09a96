//! The hub: where it is, what it is told, and how its cache lies on disk, so that other tools find the same files.
//! The only file that names `hf_hub`, whose part is the cache's layout; its own look-up of the home directory is not
//! used, because a static program cannot ask the user database.

use super::digest::Digest;
use super::recipe::HubFile;
use crate::http::url::{BadUrl, Url};
use hf_hub::{Cache, Repo, RepoType};
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

const ENDPOINT_DEFAULT: &str = "https://huggingface.co";
const TOKEN_BYTES_MAX: u64 = 4 << 10;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("where the hub's cache is cannot be told: set HOME, HF_HOME or HF_HUB_CACHE")]
    NoHome,
    #[error("reading HF_ENDPOINT")]
    BadEndpoint(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`{0}` is not the name of a file inside a repository")]
    BadName(String),
}

/// A key to the hub. It is shown to nobody: no `Display`, and a `Debug` that tells nothing.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Token(String);

impl Token {
    pub fn header(&self) -> Option<http::HeaderValue> {
        let mut value = http::HeaderValue::from_str(&format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The environment's say about the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<Token>,
    /// HF_HUB_OFFLINE: nothing may be asked of anybody.
    pub offline: bool,
}

impl Hub {
    pub fn of_process() -> Result<Self, HubError> {
        Hub::find(|name| std::env::var_os(name))
    }

    pub fn find(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface")));
        let cache =
            path("HF_HUB_CACHE").or_else(|| home.as_ref().map(|h| h.join("hub"))).ok_or(HubError::NoHome)?;
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let token_file = path("HF_TOKEN_PATH").or_else(|| home.map(|h| h.join("token")));
        let token = match text("HF_TOKEN") {
            Some(token) => Some(token),
            None if is_on(text("HF_HUB_DISABLE_IMPLICIT_TOKEN")) => None,
            None => token_file.and_then(|file| read_token(&file)),
        };
        Ok(Hub {
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT_DEFAULT.into()),
            cache,
            token: token.map(|t| Token(t.trim().to_owned())),
            offline: is_on(text("HF_HUB_OFFLINE")),
        })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn cache(&self) -> &Path {
        &self.cache
    }

    pub(super) fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// Where the file is fetched from.
    pub(super) fn url(&self, file: &HubFile) -> Result<Url, HubError> {
        let endpoint = Url::parse(&self.endpoint).map_err(|e: BadUrl| HubError::BadEndpoint(Box::new(e)))?;
        let segments =
            file.repo.split('/').chain(["resolve", file.revision.as_str()]).chain(file.file.split('/'));
        Ok(endpoint.with_segments(segments))
    }

    /// Where the file lies in the cache.
    pub(super) fn places(&self, file: &HubFile, digest: Digest) -> Result<Places, HubError> {
        let names = file.repo.split('/').chain([file.revision.as_str()]).chain(file.file.split('/'));
        if let Some(bad) = names.into_iter().find(|name| !is_plain(name)) {
            return Err(HubError::BadName(bad.escape_debug().to_string()));
        }
        let repo = Repo::with_revision(file.repo.clone(), RepoType::Model, file.revision.clone());
        let cache = Cache::new(self.cache.clone());
        let folder = cache.path().join(repo.folder_name());
        let snapshot = cache.repo(repo).pointer_path(&file.revision).join(&file.file);
        let blob = folder.join("blobs").join(digest.to_string());
        let up = "../".repeat(2 + file.file.split('/').count() - 1);
        Ok(Places { link: format!("{up}blobs/{digest}").into(), snapshot, blob, folder })
    }
}

/// One file's places in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Places {
    /// The repository's folder.
    pub folder: PathBuf,
    /// The bytes.
    pub blob: PathBuf,
    /// The name they are used by: a link.
    pub snapshot: PathBuf,
    /// What the link says.
    pub link: PathBuf,
}

/// A name that is one component of a path on any system.
pub(super) fn is_plain(name: &str) -> bool {
    const WINDOWS_TOO: [char; 3] = ['\\', ':', '\0'];
    !name.is_empty()
        && name != "."
        && name != ".."
        && !name.contains(WINDOWS_TOO)
        && !name.contains(char::is_control)
}

/// As the hub's own tools read their switches.
fn is_on(value: Option<String>) -> bool {
    value.is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

fn read_token(path: &Path) -> Option<String> {
    let length = path.metadata().ok().filter(|m| m.is_file())?.len();
    let text = (length <= TOKEN_BYTES_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()?;
    Some(text).filter(|t| !t.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(vars: &[(&str, &str)]) -> Result<Hub, HubError> {
        Hub::find(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    fn file(name: &str) -> HubFile {
        HubFile { repo: "org/repo".into(), revision: "abc".into(), file: name.into() }
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_tools_look() {
        let cache = |vars: &[(&str, &str)]| hub(vars).unwrap().cache().display().to_string();
        assert_eq!(cache(&[("HOME", "/h")]), "/h/.cache/huggingface/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f")]), "/f/hub");
        assert_eq!(cache(&[("HOME", "/h"), ("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), "/c");
        assert!(matches!(hub(&[]), Err(HubError::NoHome)));
    }

    #[test]
    fn a_files_places_are_the_hubs_own_layout() {
        let digest = Digest::of(sha2::Digest::new());
        let places = hub(&[("HF_HUB_CACHE", "/c")]).unwrap().places(&file("sub/m.gguf"), digest).unwrap();
        assert_eq!(places.blob, Path::new("/c/models--org--repo/blobs").join(digest.to_string()));
        assert_eq!(places.snapshot, Path::new("/c/models--org--repo/snapshots/abc/sub/m.gguf"));
        assert_eq!(places.link, Path::new("../../../blobs").join(digest.to_string()));
        for bad in ["../x", "a/../b", "", "a//b", "C:\\x", "a\0"] {
            assert!(hub(&[("HF_HUB_CACHE", "/c")]).unwrap().places(&file(bad), digest).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_address_follows_the_endpoint_and_the_token_shows_nowhere() {
        let hub = hub(&[("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:9/m/"), ("HF_TOKEN", "hf_canary")])
            .unwrap();
        assert_eq!(
            hub.url(&file("m.gguf")).unwrap().to_string(),
            "http://127.0.0.1:9/m/org/repo/resolve/abc/m.gguf"
        );
        assert!(!format!("{hub:?}").contains("canary"));
        assert_eq!(hub.token().and_then(Token::header).unwrap(), "Bearer hf_canary");
    }
}
