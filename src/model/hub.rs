//! The hub: where it is, what it is told, and how its cache lies on disk, so that other tools find the same files.
//! The only file that names `hf_hub`, whose part is the cache's layout; its own look-up of the home directory is not
//! used, because a static program cannot ask the user database.

use super::listing::{self, Listing};
use super::pick::RepoFile;
use super::reference::{HubReference, is_plain};
use crate::download::{Access, Key, Reach, Visit};
use crate::http::public::leads_inside;
use crate::http::url::{BadUrl, Url};
use hf_hub::{Cache, Repo, RepoType};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

const ENDPOINT_DEFAULT: &str = "https://huggingface.co";
const TOKEN_BYTES_MAX: u64 = 4 << 10;
const REF_BYTES_MAX: u64 = 256;
/// Files in one folder of the cache that are looked at.
const FILES_MAX: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("where the hub's cache is cannot be told: set HOME, HF_HOME or HF_HUB_CACHE")]
    NoHome,
    #[error("reading HF_ENDPOINT")]
    BadEndpoint(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("`{0}` is not the name of a file inside a repository")]
    BadName(String),
}

/// The environment's say about the hub.
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<Key>,
    /// Somebody chose this hub, so what it leads to is chosen, too, if it is one of a private network.
    is_configured: bool,
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
            is_configured: set("HF_ENDPOINT").is_some(),
            endpoint: text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT_DEFAULT.into()),
            cache,
            token: token.map(|token| Key::new(&token)),
            offline: is_on(text("HF_HUB_OFFLINE")),
        })
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn cache(&self) -> &Path {
        &self.cache
    }

    fn root(&self) -> Result<Url, HubError> {
        Url::parse(&self.endpoint).map_err(|e: BadUrl| HubError::BadEndpoint(Box::new(e)))
    }

    /// A question to the hub, below its address.
    pub(super) async fn visit<'a>(
        &self,
        segments: impl IntoIterator<Item = &'a str>,
        query: Option<&str>,
        cancel: &CancellationToken,
    ) -> Result<Visit, HubError> {
        let root = self.root()?;
        Ok(Visit {
            reach: Arc::new(self.reach(&root).await),
            url: root.with_segments(segments).with_query(query),
            access: Access::Hub(self.token.clone()),
            may_be_plain: true,
            cancel: cancel.clone(),
        })
    }

    /// Where the file is fetched from.
    pub(super) async fn file(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        cancel: &CancellationToken,
    ) -> Result<Visit, HubError> {
        let segments = repo.split('/').chain(["resolve", revision]).chain(file.split('/'));
        self.visit(segments, None, cancel).await
    }

    /// A hub of a private network that somebody chose may lead to others of it; every other hub leads to public addresses.
    async fn reach(&self, root: &Url) -> Reach {
        if !self.is_configured {
            return Reach::Public(Vec::new());
        }
        match leads_inside(root).await {
            true => Reach::Anywhere,
            false => Reach::Public(vec![root.origin().to_owned()]),
        }
    }

    /// Where a file lies in the cache: `blob` is the name of its bytes, which the hub gives as their tag.
    pub(super) fn places(
        &self,
        repo: &str,
        commit: &str,
        file: &str,
        blob: &str,
    ) -> Result<Places, HubError> {
        let names = repo.split('/').chain([commit, blob]).chain(file.split('/'));
        if let Some(bad) = names.into_iter().find(|name| !is_plain(name)) {
            return Err(HubError::BadName(bad.escape_debug().to_string()));
        }
        let (folder, snapshot) = self.folders(repo, commit);
        let up = "../".repeat(2 + file.split('/').count() - 1);
        Ok(Places {
            link: format!("{up}blobs/{blob}").into(),
            snapshot: snapshot.join(file),
            blob: folder.join("blobs").join(blob),
            folder,
        })
    }

    /// A repository's folder, and that of one of its commits.
    fn folders(&self, repo: &str, commit: &str) -> (PathBuf, PathBuf) {
        let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, commit.to_owned());
        let cache = Cache::new(self.cache.clone());
        let folder = cache.path().join(repo.folder_name());
        let snapshot = cache.repo(repo).pointer_path(commit);
        (folder, snapshot)
    }

    /// Notes which commit a branch or tag is at, as the hub's tools do.
    pub(super) fn note_revision(&self, repo: &str, revision: &str, commit: &str) -> io::Result<()> {
        if revision == commit || !revision.split('/').all(is_plain) {
            return Ok(());
        }
        let path = self.folders(repo, commit).0.join("refs").join(revision);
        if std::fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit) {
            return Ok(());
        }
        let folder = path.parent().expect("it was just made of a folder and a name");
        std::fs::create_dir_all(folder)?;
        let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
        io::Write::write_all(&mut fresh, commit.as_bytes())?;
        fresh.as_file().sync_all()?;
        fresh.persist(&path)?;
        std::fs::File::open(folder)?.sync_all()
    }

    /// The commit that a reference names, as far as the cache knows.
    fn cached_commit(&self, asked: &HubReference) -> Option<String> {
        let revision = asked.revision_or_main();
        let (folder, snapshot) = self.folders(asked.repo.as_str(), revision);
        if is_commit(revision) && snapshot.is_dir() {
            return Some(revision.to_owned());
        }
        let noted = folder.join("refs").join(revision);
        let length = noted.metadata().ok()?.len();
        let text = (length <= REF_BYTES_MAX).then(|| std::fs::read_to_string(noted).ok()).flatten()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// What the cache has of a repository at the revision that is asked for; for when the hub cannot be asked.
    pub(super) fn cached(&self, asked: &HubReference) -> Option<Listing> {
        let commit = self.cached_commit(asked)?;
        let (_, snapshot) = self.folders(asked.repo.as_str(), &commit);
        let mut files = Vec::new();
        let mut folders = vec![(snapshot, String::new())];
        while let Some((folder, below)) = folders.pop() {
            for entry in folder.read_dir().ok()?.flatten().take(FILES_MAX) {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let path = format!("{below}{name}");
                match entry.path().metadata() {
                    Ok(meta) if meta.is_dir() && entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                        folders.push((entry.path(), format!("{path}/")));
                    }
                    Ok(meta) if meta.is_file() => {
                        let blob = std::fs::read_link(entry.path()).ok();
                        let blob = blob.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
                        let sum = blob.and_then(|blob| listing::sum_of(&blob));
                        files.push(RepoFile { path, size: Some(meta.len()), sum });
                    }
                    // A link whose bytes are gone is a file that is not here.
                    _ => {}
                }
            }
        }
        Some(Listing { repo: asked.repo.as_str().to_owned(), commit, files })
    }
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
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
        let blob = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let hub = hub(&[("HF_HUB_CACHE", "/c")]).unwrap();
        let places = hub.places("org/repo", "abc", "sub/m.gguf", blob).unwrap();
        assert_eq!(places.blob, Path::new("/c/models--org--repo/blobs").join(blob));
        assert_eq!(places.snapshot, Path::new("/c/models--org--repo/snapshots/abc/sub/m.gguf"));
        assert_eq!(places.link, Path::new("../../../blobs").join(blob));
        for bad in ["../x", "a/../b", "", "a//b", "C:\\x", "a\0"] {
            assert!(hub.places("org/repo", "abc", bad, blob).is_err(), "{bad:?}");
            assert!(hub.places("org/repo", "abc", "m", bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_address_follows_the_endpoint_and_a_chosen_private_hub_may_lead_on() {
        let chosen =
            hub(&[("HOME", "/h"), ("HF_ENDPOINT", "http://127.0.0.1:9/m/"), ("HF_TOKEN", "hf_canary")])
                .unwrap();
        let visit =
            chosen.file("org/repo", "refs/pr/1", "d/m.gguf", &CancellationToken::new()).await.unwrap();
        assert_eq!(visit.url.to_string(), "http://127.0.0.1:9/m/org/repo/resolve/refs%2Fpr%2F1/d/m.gguf");
        assert_eq!(*visit.reach, Reach::Anywhere);
        assert!(!format!("{chosen:?} {visit:?}").contains("canary"));
        let usual = hub(&[("HOME", "/h")]).unwrap();
        assert_eq!(usual.reach(&usual.root().unwrap()).await, Reach::Public(Vec::new()));
        let public = hub(&[("HOME", "/h"), ("HF_ENDPOINT", "https://1.1.1.1")]).unwrap();
        let reach = public.reach(&public.root().unwrap()).await;
        assert_eq!(reach, Reach::Public(vec!["https://1.1.1.1".into()]));
    }
}
