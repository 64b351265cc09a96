//! What a catalog answers. Everything is read-only, has an ETag, and comes whole: the longest answer is our own source.

use super::folder::{Folder, Shelf};
use super::recipe::{self, ARCHIVE, Source, archive_name};
use super::{built_in, check_id};
use crate::http::router::{self, Params, Route};
use crate::http::server::Service;
use crate::http::{Peer, Request, Response, reply};
use crate::wire::catalog::CatalogEntry;
use crate::wire::fleet::Health;
use crate::wire::{API_VERSION, Code, Failure, VERSION};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH};
use serde_json::json;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    Health,
    List,
    Entry,
    Pkgbuild,
    File,
    Source,
}

/// The table, for the dispatcher and for tests.
pub const ROUTES: &[Route<To>] = &[
    Route { method: "GET", path: "/health", to: To::Health },
    Route { method: "HEAD", path: "/health", to: To::Health },
    Route { method: "GET", path: "/workers", to: To::List },
    Route { method: "HEAD", path: "/workers", to: To::List },
    Route { method: "GET", path: "/workers/{id}", to: To::Entry },
    Route { method: "HEAD", path: "/workers/{id}", to: To::Entry },
    Route { method: "GET", path: "/workers/{id}/PKGBUILD", to: To::Pkgbuild },
    Route { method: "HEAD", path: "/workers/{id}/PKGBUILD", to: To::Pkgbuild },
    Route { method: "GET", path: "/workers/{id}/files/{name}", to: To::File },
    Route { method: "HEAD", path: "/workers/{id}/files/{name}", to: To::File },
    Route { method: "GET", path: "/source/{name}", to: To::Source },
    Route { method: "HEAD", path: "/source/{name}", to: To::Source },
];

const JSON: HeaderValue = reply::JSON;
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const BYTES: HeaderValue = HeaderValue::from_static("application/octet-stream");
const GZIP: HeaderValue = HeaderValue::from_static("application/gzip");
/// Kept, but asked about each time: a recipe may change at any moment.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// The catalog as a service: the recipes that are built in, and those of a person's folder, which come first.
#[derive(Debug, Clone)]
pub struct Routes {
    folder: Option<Arc<Folder>>,
}

impl Routes {
    pub fn new(folder: Option<Folder>) -> Self {
        Routes { folder: folder.map(Arc::new) }
    }
}

impl Service for Routes {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        let (to, params) = router::find(ROUTES, request.method().as_str(), request.path())?;
        if to == To::Health {
            return Ok(reply::json(&health()));
        }
        let etag_known = request.headers().get_all(IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
        let known: Vec<String> = etag_known.map(str::to_owned).collect();
        let asked = Asked {
            to,
            root: root(&request),
            is_local: request.query("source").is_some_and(|source| source == "local"),
        };
        let folder = self.folder.clone();
        // Reading a folder may wait for a disk.
        let found = tokio::task::spawn_blocking(move || asked.find(&params, folder.as_deref())).await;
        let (kind, bytes) = found.map_err(|error| Failure::internal(&error))??;
        Ok(tagged(kind, bytes, &known))
    }
}

/// The address that the client used, for addresses in a PKGBUILD. The guard has seen to it that the name is ours.
fn root(request: &Request) -> Option<String> {
    let host = request.header("host")?;
    let host: http::uri::Authority = host.parse().ok()?;
    let is_tls = request.header("x-forwarded-proto") == Some("https");
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b".:-[]".contains(&b);
    let is_network = matches!(request.peer, Peer::Tcp { .. });
    (is_network && host.as_str().bytes().all(is_plain))
        .then(|| format!("{}://{host}", if is_tls { "https" } else { "http" }))
}

struct Asked {
    to: To,
    root: Option<String>,
    is_local: bool,
}

type Found = (HeaderValue, Bytes);

impl Asked {
    fn find(&self, params: &Params, folder: Option<&Folder>) -> Result<Found, Failure> {
        if self.to == To::Source {
            return match params.get(0) == archive_name() {
                true => Ok((GZIP, Bytes::from_static(ARCHIVE))),
                false => {
                    let message = format!("the only source here is {}", archive_name());
                    Err(Failure::new(Code::NotFound, message))
                }
            };
        }
        let shelf = folder.map(Folder::shelf).transpose().map_err(|error| Failure::internal(&error))?;
        if self.to == To::List {
            return Ok((JSON, list(shelf.as_deref())));
        }
        let id = params.get(0);
        check_id(id)?;
        let shelved = match shelf.as_ref().and_then(|shelf| shelf.get(id)) {
            Some(Ok(shelved)) => Some(shelved),
            Some(Err(failure)) => return Err(failure.clone()),
            None => None,
        };
        let entry = shelved.map(|shelved| &shelved.entry).or_else(|| built_in::find(id));
        let entry = entry
            .ok_or_else(|| Failure::new(Code::WorkerNotFound, format!("no recipe is called `{id}` here")))?;
        let pkgbuild = match shelved {
            Some(shelved) => shelved.pkgbuild.as_str(),
            None => built_in::pkgbuild(id).unwrap_or_default(),
        };
        match self.to {
            To::Entry => Ok((JSON, json_bytes(entry))),
            To::Pkgbuild => {
                let source = match &self.root {
                    Some(root) if !self.is_local => Source::At(root),
                    _ => Source::Local,
                };
                Ok((TEXT, recipe::fill(pkgbuild, source).into()))
            }
            _ => {
                let name = params.get(1);
                let bytes = match (shelved, folder) {
                    (Some(_), Some(folder)) => folder.file(id, name, pkgbuild)?.map(Bytes::from),
                    _ => built_in::file(id, name).map(|bytes| bytes.into_owned().into()),
                };
                let missing = || Failure::new(Code::NotFound, format!("{id} has no file `{name}`"));
                Ok((BYTES, bytes.ok_or_else(missing)?))
            }
        }
    }
}

/// All entries by id. What is wrong in the folder is told beside them.
fn list(shelf: Option<&Shelf>) -> Bytes {
    let mut entries: Vec<&CatalogEntry> = built_in::entries().iter().collect();
    let mut wrong = Vec::new();
    for (id, shelved) in shelf.into_iter().flatten() {
        entries.retain(|entry| entry.id != *id);
        match shelved {
            Ok(shelved) => entries.push(&shelved.entry),
            Err(failure) => wrong.push(json!({ "id": id, "message": failure.message })),
        }
    }
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    match wrong.is_empty() {
        true => json_bytes(&json!({ "workers": entries })),
        false => json_bytes(&json!({ "workers": entries, "errors": wrong })),
    }
}

fn json_bytes<T: serde::Serialize>(value: &T) -> Bytes {
    serde_json::to_vec(value).expect("entries have string keys and no numbers that are none").into()
}

/// The answer with its tag, or the word that the client has it already.
fn tagged(kind: HeaderValue, bytes: Bytes, known: &[String]) -> Response {
    let tag = format!("\"{}\"", recipe::sum(&bytes));
    let is_known = known.iter().flat_map(|list| list.split(',')).any(|known| {
        let known = known.trim();
        known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag
    });
    let mut response = Response::new(if is_known { reply::empty() } else { reply::full(bytes) });
    if is_known {
        *response.status_mut() = http::StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    response
        .headers_mut()
        .insert(ETAG, HeaderValue::from_str(&tag).expect("a sum in quotes is visible ASCII"));
    response.headers_mut().insert(CACHE_CONTROL, REVALIDATE);
    response
}

fn health() -> Health {
    Health { status: "ok".into(), version: VERSION.into(), api_version: API_VERSION.into() }
}
