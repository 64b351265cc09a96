//! What a repository of the hub holds at a revision: asked once, and from then on everything is of one commit.

use super::hub::{Hub, is_commit};
use super::pick::RepoFile;
use super::reference::{HubReference, Repo};
use crate::download::{DownloadError, Limits, Sum, refusal};
use crate::http::url::Url;
use crate::wire::{Code, Failure, failure};
use http::header::{ACCEPT, ETAG, HeaderMap, HeaderValue};
use serde::Deserialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The hub lists some tens of thousands of files in this.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Sizes and sums, too.
const QUERY: &str = "blobs=true";
const LINKED_ETAG: &str = "x-linked-etag";
const LINKED_SIZE: &str = "x-linked-size";
const ERROR_CODE: &str = "x-error-code";

#[derive(Debug, Clone, PartialEq)]
pub struct Listing {
    /// As the hub writes it.
    pub repo: String,
    pub commit: String,
    pub files: Vec<RepoFile>,
}

/// As the hub answers; what else it says is of no use here.
#[derive(Debug, Deserialize)]
struct Answered {
    id: Option<String>,
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Debug, Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ListingError {
    #[error(transparent)]
    Download(#[from] DownloadError),
    #[error("the hub has no repository {0}, or it is private: set HF_TOKEN if it is yours")]
    NoRepo(String),
    #[error("{repo} has no revision `{revision}`")]
    NoRevision { repo: String, revision: String },
    #[error("{origin} does not list {repo} as the hub does: {problem}")]
    Answer { origin: String, repo: String, problem: String },
}

impl ListingError {
    /// The hub did not answer, whatever it might have said; or said that it cannot just now.
    pub fn is_unreachable(&self) -> bool {
        self.retry_after().is_some()
    }

    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            ListingError::Download(DownloadError::Status {
                status: 408 | 429 | 500.., retry_after, ..
            }) => Some(retry_after.unwrap_or_default()),
            ListingError::Download(
                DownloadError::Ask { .. } | DownloadError::NoAnswer { .. } | DownloadError::Broken { .. },
            ) => Some(Duration::ZERO),
            _ => None,
        }
    }

    pub fn failure(&self, name: &str) -> Failure {
        match self {
            ListingError::Download(error) => super::fetch::failure_of(name, error),
            ListingError::NoRepo(_) | ListingError::NoRevision { .. } => {
                Failure::new(Code::ModelNotFound, self.to_string())
            }
            ListingError::Answer { .. } => Failure::new(Code::DownloadFailed, failure::chain(self)),
        }
    }
}

impl Hub {
    /// Asks the hub what a repository holds.
    pub(super) async fn list(
        &self,
        asked: &HubReference,
        limits: &Limits,
        cancel: &CancellationToken,
    ) -> Result<Listing, ListingError> {
        let repo = asked.repo.as_str();
        let segments = ["api", "models"].into_iter().chain(repo.split('/'));
        let segments = segments.chain(["revision", asked.revision_or_main()]);
        let visit =
            self.visit(segments, Some(QUERY), cancel).await.map_err(|error| ListingError::Answer {
                origin: self.endpoint().to_owned(),
                repo: repo.to_owned(),
                problem: failure::chain(&error),
            })?;
        let headers = |_: &Url| {
            let json = HeaderValue::from_static("application/json");
            HeaderMap::from_iter([(ACCEPT, json)])
        };
        let answer = visit.ask("GET", |_| limits.head_max, headers).await?;
        let (head, body) = answer.response.into_parts();
        let code = head.headers.get(ERROR_CODE).and_then(|code| code.to_str().ok());
        match (head.status.as_u16(), code) {
            (200, _) => {}
            (404, Some("RevisionNotFound")) => {
                let revision = asked.revision_or_main().to_owned();
                return Err(ListingError::NoRevision { repo: repo.to_owned(), revision });
            }
            // The hub says so of private ones, too, to whoever has no key.
            (404 | 401, Some("RepoNotFound")) | (404, _) => {
                return Err(ListingError::NoRepo(repo.to_owned()));
            }
            (status, _) => return Err(refusal(&answer.url, &visit.access, status, &head.headers).into()),
        }
        let origin = answer.url.origin().to_owned();
        let bad =
            |problem: String| ListingError::Answer { origin: origin.clone(), repo: repo.to_owned(), problem };
        let read = crate::http::request::read(body, ANSWER_BYTES_MAX);
        let bytes = tokio::time::timeout(limits.stall_max, cancel.run_until_cancelled(read))
            .await
            .map_err(|_| DownloadError::Stalled { limit: limits.stall_max, at: 0 })?
            .ok_or(DownloadError::Cancelled)?
            .map_err(|failure| match failure.code {
                Code::BodyTooLarge => bad(failure.message),
                _ => DownloadError::Broken { at: 0, source: None }.into(),
            })?;
        understand(asked, &bytes).map_err(bad)
    }

    /// What is known of a file of which the listing told too little: its first answer tells, without its bytes.
    pub(super) async fn look(
        &self,
        listing: &Listing,
        file: &RepoFile,
        limits: &Limits,
        cancel: &CancellationToken,
    ) -> Result<RepoFile, DownloadError> {
        let visit = self.file(&listing.repo, &listing.commit, &file.path, cancel).await;
        let visit = visit.map_err(|_| DownloadError::NotThere { url: file.path.clone(), status: 404 })?;
        let headers = |_: &Url| {
            let identity = HeaderValue::from_static("identity");
            HeaderMap::from_iter([(http::header::ACCEPT_ENCODING, identity)])
        };
        let answer = visit.ask("HEAD", |_| limits.head_max, headers).await?;
        let status = answer.response.status();
        if !status.is_success() {
            let headers = answer.response.headers();
            return Err(refusal(&answer.url, &visit.access, status.as_u16(), headers));
        }
        let text = |headers: &HeaderMap, name: &str| {
            headers.get(name).and_then(|value| Some(value.to_str().ok()?.to_owned()))
        };
        let linked = |name: &str| answer.first.as_ref().and_then(|first| text(first, name));
        let tag = linked(LINKED_ETAG).or_else(|| text(answer.response.headers(), ETAG.as_str()));
        let size = linked(LINKED_SIZE).or_else(|| text(answer.response.headers(), "content-length"));
        Ok(RepoFile {
            path: file.path.clone(),
            size: size.and_then(|size| size.parse().ok()).or(file.size),
            sum: tag.and_then(|tag| sum_of(tag.trim_start_matches("W/").trim_matches('"'))).or(file.sum),
        })
    }
}

fn understand(asked: &HubReference, bytes: &[u8]) -> Result<Listing, String> {
    let answered: Answered = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let commit = answered.sha.filter(|sha| is_commit(sha)).ok_or("it names no commit")?;
    // As the hub writes it, so that one repository has one folder however it was typed.
    let named = answered.id.and_then(|id| Repo::read(&id)).filter(|id| *id == asked.repo);
    let file = |sibling: Sibling| {
        let (lfs_size, lfs_sum) = sibling.lfs.map_or((None, None), |lfs| (lfs.size, lfs.sha256));
        let size = lfs_size.or(sibling.size);
        // Without an entry for large files it is git's own, known by its name there.
        let git = sibling.blob_id.filter(|_| lfs_size.is_none());
        RepoFile { path: sibling.rfilename, size, sum: lfs_sum.or(git).and_then(|sum| sum_of(&sum)) }
    };
    Ok(Listing {
        repo: named.unwrap_or_else(|| asked.repo.clone()).as_str().to_owned(),
        commit: commit.to_ascii_lowercase(),
        files: answered.siblings.into_iter().map(file).collect(),
    })
}

/// What a tag of the hub says of the bytes: their SHA-256 sum, or git's name for them.
pub(super) fn sum_of(tag: &str) -> Option<Sum> {
    if let Ok(digest) = tag.parse() {
        return Some(Sum::Sha256(digest));
    }
    if !is_commit(tag) {
        return None;
    }
    let mut bytes = [0; 20];
    for (byte, at) in bytes.iter_mut().zip((0..40).step_by(2)) {
        *byte = u8::from_str_radix(&tag[at..at + 2], 16).ok()?;
    }
    Some(Sum::GitBlob(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Reference;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    const SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(text: &str) -> Result<Listing, String> {
        let Ok(Reference::Hub(asked)) = Reference::read("org/repo") else { panic!() };
        understand(&asked, text.as_bytes())
    }

    #[test]
    fn the_hubs_answer_tells_files_sizes_and_sums() {
        let listing = read(&format!(
            r#"{{"id":"Org/Repo","sha":"{COMMIT}","private":false,"siblings":[
                {{"rfilename":"m.gguf","size":5,"blobId":"{COMMIT}","lfs":{{"sha256":"{SHA256}","size":7,"pointerSize":3}}}},
                {{"rfilename":"README.md","size":5,"blobId":"{COMMIT}"}},
                {{"rfilename":"bare"}}]}}"#
        ))
        .unwrap();
        assert_eq!((listing.repo.as_str(), listing.commit.as_str()), ("Org/Repo", COMMIT));
        let told: Vec<_> = listing.files.iter().map(|file| (file.size, file.sum.is_some())).collect();
        assert_eq!(told, [(Some(7), true), (Some(5), true), (None, false)]);
        assert!(matches!(listing.files[0].sum, Some(Sum::Sha256(_))));
        assert!(matches!(listing.files[1].sum, Some(Sum::GitBlob(_))));
        assert!(read("{}").is_err() && read("[]").is_err() && read(r#"{"sha":"../x"}"#).is_err());
        let other = read(&format!(r#"{{"id":"evil/other","sha":"{COMMIT}"}}"#)).unwrap();
        assert_eq!(other.repo, "org/repo", "an answer does not choose another folder");
    }
}
