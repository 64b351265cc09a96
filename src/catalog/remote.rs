//! A catalog on another machine, asked over HTTP. Its answers are bounded and looked at before anybody uses them; what has
//! not changed since the last time is not sent again.

use super::entry::{self, ENTRY_BYTES_MAX};
use super::recipe::{PKGBUILD_BYTES_MAX, Recipe};
use super::{LOCAL_FILE_BYTES_MAX, Listing};
use crate::http::client::{self, ClientError, Target};
use crate::http::request::{parse, percent_encode};
use crate::wire::catalog::CatalogEntry;
use crate::wire::{Code, Failure, failure};
use bytes::Bytes;
use http::StatusCode;
use http::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long one question may take, from the connection to the last byte.
const ASK_MAX: Duration = Duration::from_secs(30);
/// The longest list of entries.
const LISTING_BYTES_MAX: usize = 4 << 20;
const ENTRIES_MAX: usize = 1_000;
/// Answers kept to compare with.
const KEPT_MAX: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct Remote {
    target: Target,
    /// Whether sources come as files beside the PKGBUILD, which are asked for with the key. Who fetches by address has none.
    has_key: bool,
    kept: Arc<Mutex<HashMap<String, Kept>>>,
}

#[derive(Debug, Clone)]
struct Kept {
    etag: HeaderValue,
    body: Bytes,
}

#[derive(Debug, thiserror::Error)]
enum RemoteError {
    #[error("the catalog at {0} does not answer: is it running, is --catalog (RBEE_CATALOG) right?")]
    Down(String, #[source] ClientError),
    #[error("the catalog at {0} took longer than {max} s", max = ASK_MAX.as_secs())]
    Slow(String),
    #[error("the catalog at {0} asks for a key; give it with --catalog-key-file")]
    Locked(String),
    #[error("the catalog at {0} answered {1}")]
    Status(String, String),
    #[error("the catalog at {0} gave an answer that is none")]
    Answer(String, #[source] Failure),
}

impl Remote {
    pub fn new(target: Target, has_key: bool) -> Self {
        Remote { target, has_key, kept: Arc::default() }
    }

    pub fn name(&self) -> String {
        self.target.to_string()
    }

    /// Its entries. One that is wrong does not hide the others.
    pub async fn list(&self) -> Result<Listing, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            workers: Vec<Value>,
        }
        let body = self.ask("/workers", LISTING_BYTES_MAX).await?;
        let answer: Answer = parse(&body).map_err(|failure| self.bad(failure))?;
        let (mut entries, mut wrong) = (Vec::new(), Vec::new());
        for value in answer.workers.into_iter().take(ENTRIES_MAX) {
            match read(value) {
                Ok(entry) => entries.push(entry),
                Err(error) => wrong.push(error),
            }
        }
        let warning = (!wrong.is_empty()).then(|| {
            let message = format!("{} recipes of the catalog at {} are left out", wrong.len(), self.target);
            Failure::new(Code::RecipeInvalid, message).with(json!({ "log": wrong }))
        });
        Ok(Listing { entries, source: self.name(), warning })
    }

    pub async fn get(&self, id: &str) -> Result<Recipe, Failure> {
        let body = self.ask(&format!("/workers/{id}"), ENTRY_BYTES_MAX).await?;
        let entry: CatalogEntry = parse(&body).map_err(|failure| self.bad(failure))?;
        entry::check(&entry, id)?;
        let local = if self.has_key { "?source=local" } else { "" };
        let path = format!("{}{local}", entry.pkgbuild_url);
        let pkgbuild = String::from_utf8(self.ask(&path, PKGBUILD_BYTES_MAX).await?.into());
        let pkgbuild = pkgbuild
            .map_err(|_| Failure::new(Code::RecipeInvalid, format!("the PKGBUILD of {id} is not UTF-8")))?;
        Ok(Recipe::new(entry, pkgbuild, &self.name()))
    }

    pub async fn file(&self, id: &str, name: &str) -> Result<Bytes, Failure> {
        let path = format!("/workers/{id}/files/{}", percent_encode(name));
        Ok(self.answer(&path, None, LOCAL_FILE_BYTES_MAX).await?.1)
    }

    /// A body, from memory where the catalog says that it is still the same.
    async fn ask(&self, path: &str, limit: usize) -> Result<Bytes, Failure> {
        let kept = self.kept().get(path).cloned();
        let (etag, body) = self.answer(path, kept, limit).await?;
        if let Some(etag) = etag {
            let mut all = self.kept();
            if all.len() >= KEPT_MAX && !all.contains_key(path) {
                all.clear();
            }
            all.insert(path.to_owned(), Kept { etag, body: body.clone() });
        }
        Ok(body)
    }

    async fn answer(
        &self,
        path: &str,
        kept: Option<Kept>,
        limit: usize,
    ) -> Result<(Option<HeaderValue>, Bytes), Failure> {
        let exchange = async {
            let mut request = client::get(path).map_err(|error| self.down(error))?;
            if let Some(kept) = &kept {
                request.headers_mut().insert(IF_NONE_MATCH, kept.etag.clone());
            }
            let answer = client::send(&self.target, request).await.map_err(|error| self.down(error))?;
            let status = answer.status();
            match kept {
                Some(kept) if status == StatusCode::NOT_MODIFIED => return Ok((None, kept.body)),
                _ => {}
            }
            let etag = answer.headers().get(ETAG).cloned();
            let body = crate::http::request::read(answer.into_body(), limit).await;
            let body = body.map_err(|failure| self.bad(failure))?;
            match status {
                StatusCode::OK => Ok((etag, body)),
                _ => Err(self.refused(status, &body)),
            }
        };
        let slow = |_| unavailable(&RemoteError::Slow(self.name()), &self.name());
        tokio::time::timeout(ASK_MAX, exchange).await.map_err(slow)?
    }

    /// What it says of a recipe is passed on; anything else means that it is no catalog, or not a good one.
    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        let told = Failure::from_body(status.as_u16(), body);
        match told.code {
            Code::WorkerNotFound | Code::NotFound | Code::RecipeInvalid => told,
            _ if status == StatusCode::UNAUTHORIZED => {
                unavailable(&RemoteError::Locked(self.name()), &self.name())
            }
            _ => {
                let told = format!("{}: {}", status.as_u16(), told.message);
                unavailable(&RemoteError::Status(self.name(), told), &self.name())
            }
        }
    }

    fn down(&self, error: ClientError) -> Failure {
        unavailable(&RemoteError::Down(self.name(), error), &self.name())
    }

    fn bad(&self, failure: Failure) -> Failure {
        unavailable(&RemoteError::Answer(self.name(), failure), &self.name())
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().expect("no holder of the kept answers panics")
    }
}

fn unavailable(error: &RemoteError, url: &str) -> Failure {
    Failure::new(Code::CatalogUnavailable, failure::chain(error)).with(json!({ "url": url }))
}

fn read(value: Value) -> Result<CatalogEntry, String> {
    if value.to_string().len() > ENTRY_BYTES_MAX {
        return Err("an entry that is too long".into());
    }
    let id = value.get("id").and_then(Value::as_str).unwrap_or("").to_owned();
    let entry: CatalogEntry = serde_json::from_value(value).map_err(|error| format!("{id}: {error}"))?;
    entry::check(&entry, &id).map_err(|error| format!("{id}: {error}"))?;
    Ok(entry)
}
