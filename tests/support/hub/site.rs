//! What is the right answer to a request: the hub's to questions about repositories and files, the CDN's to signed links.

use super::content::{Content, hex, mixed};
use super::fault::Site;
use super::repo::{Commit, Gate, Repo};
use super::{Asked, REVISION};
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// An answer before a fault has its way.
pub enum Answer {
    Told(Told),
    File(File),
}

pub struct Told {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The whole file; how much of it is sent, the request says.
pub struct File {
    pub content: Arc<Content>,
    pub tag: String,
    pub headers: Vec<(String, String)>,
}

fn headers(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// As the hub refuses: for programs in the headers, for people in the body.
fn refused(status: u16, code: Option<&str>, message: &str) -> Answer {
    let mut lines = headers(&[("content-type", "application/json"), ("x-error-message", message)]);
    lines.extend(code.map(|code| ("x-error-code".to_owned(), code.to_owned())));
    let body = serde_json::json!({"error": message}).to_string().into_bytes();
    Answer::Told(Told { status, headers: lines, body })
}

fn told(value: &Value) -> Answer {
    let lines = headers(&[("content-type", "application/json; charset=utf-8")]);
    Answer::Told(Told { status: 200, headers: lines, body: value.to_string().into_bytes() })
}

/// What is where.
pub struct World {
    pub repos: Vec<Repo>,
    /// By the end of their path: a server of files that knows of no repositories.
    pub plain: Vec<(String, Arc<Content>)>,
    /// The key that opens what is gated or private.
    pub token: Option<String>,
    /// Where large files are, if not here.
    pub cdn: Option<String>,
    pub links: Links,
}

/// The links that the hub has signed.
pub struct Links {
    /// How often one may be used.
    pub uses: usize,
    pub salt: u64,
    issued: Mutex<HashMap<String, (Arc<Content>, usize)>>,
}

impl Links {
    pub fn new(uses: usize, salt: u64) -> Links {
        Links { uses, salt, issued: Mutex::default() }
    }

    fn issue(&self, cdn: &str, content: &Arc<Content>) -> String {
        let mut issued = self.issued.lock().unwrap();
        let word = mixed(self.salt ^ issued.len() as u64);
        let bytes: Vec<u8> = [word, mixed(word)].iter().flat_map(|word| word.to_le_bytes()).collect();
        let (folder, signature) = (hex(&bytes[..8]), hex(&bytes[8..]));
        let path = format!(
            "/repos/{folder}/{}?response-content-disposition=inline&Expires=1767323045&Signature={signature}~&Key-Pair-Id=K1",
            content.sha256()
        );
        issued.insert(path.clone(), (content.clone(), 0));
        format!("{cdn}{path}")
    }

    /// One of the issued paths, while it lasts.
    fn open(&self, path: &str) -> Option<Arc<Content>> {
        let mut issued = self.issued.lock().unwrap();
        let (content, used) = issued.get_mut(path)?;
        *used += 1;
        (*used <= self.uses).then(|| content.clone())
    }
}

impl World {
    pub fn answer(&self, site: Site, asked: &Asked) -> Answer {
        match site {
            Site::Hub => self.of_hub(asked),
            Site::Cdn => self.of_cdn(asked),
        }
    }

    /// As an object store does it.
    fn of_cdn(&self, asked: &Asked) -> Answer {
        let xml = |status: u16, code: &str| {
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
            let lines = headers(&[("content-type", "application/xml")]);
            Answer::Told(Told { status, headers: lines, body: body.into_bytes() })
        };
        if asked.header("authorization").is_some() {
            return xml(400, "InvalidArgument");
        }
        let Some(content) = self.links.open(&asked.path) else { return xml(403, "AccessDenied") };
        let tag = format!("{:032x}-1", u128::from_str_radix(&content.sha256()[..32], 16).unwrap());
        let lines = headers(&[
            ("content-type", "binary/octet-stream"),
            ("last-modified", "Fri, 02 Jan 2026 03:04:05 GMT"),
            ("x-cache", "Miss from cloudfront"),
        ]);
        Answer::File(File { content, tag, headers: lines })
    }

    fn of_hub(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap_or_default();
        if let Some((_, content)) = self.plain.iter().find(|(end, _)| path.ends_with(end.as_str())) {
            let lines = headers(&[("x-repo-commit", REVISION)]);
            return Answer::File(File { content: content.clone(), tag: "tiny".into(), headers: lines });
        }
        if self.repos.is_empty() {
            return Answer::Told(Told { status: 404, headers: Vec::new(), body: Vec::new() });
        }
        let names: Vec<String> = path.trim_start_matches('/').split('/').map(unescaped).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["api", "models", owner, name] => self.info(asked, owner, name, "main"),
            ["api", "models", owner, name, "revision", revision] => self.info(asked, owner, name, revision),
            ["api", "models", owner, name, "tree", revision, ..] => {
                self.at(asked, owner, name, revision, |repo, commit| told(&repo.tree(commit)))
            }
            [owner, name, "resolve", revision, file @ ..] => {
                self.resolve(asked, owner, name, revision, &file.join("/"))
            }
            _ => refused(404, None, "Sorry, we can't find the page you are looking for."),
        }
    }

    fn info(&self, asked: &Asked, owner: &str, name: &str, revision: &str) -> Answer {
        let with_blobs = asked.path.contains("blobs=true");
        self.at(asked, owner, name, revision, |repo, commit| told(&repo.info(commit, with_blobs)))
    }

    fn resolve(&self, asked: &Asked, owner: &str, name: &str, revision: &str, file: &str) -> Answer {
        self.at(asked, owner, name, revision, |repo, commit| {
            if repo.gate == Gate::Gated && !self.has_key(asked) {
                let (status, what) = match asked.header("authorization") {
                    None => {
                        (401, "You must have access to it and be authenticated to access it. Please log in.")
                    }
                    Some(_) => {
                        (403, "You are not in the authorized list. Visit the repository to ask for access.")
                    }
                };
                let message = format!("Access to model {} is restricted. {what}", repo.id);
                return refused(status, Some("GatedRepo"), &message);
            }
            let Some(found) = commit.files.iter().find(|f| f.name == file) else {
                return refused(404, Some("EntryNotFound"), "Entry not found");
            };
            let mut lines = headers(&[("x-repo-commit", &commit.id)]);
            let Some(cdn) = self.cdn.as_ref().filter(|_| found.is_large) else {
                return Answer::File(File {
                    content: found.content.clone(),
                    tag: found.tag().into(),
                    headers: lines,
                });
            };
            let location = self.links.issue(cdn, &found.content);
            lines.extend(headers(&[
                ("content-type", "text/plain; charset=utf-8"),
                ("accept-ranges", "bytes"),
                ("x-linked-size", &found.content.size().to_string()),
                ("x-linked-etag", &format!("\"{}\"", found.tag())),
                ("etag", &format!("\"{}\"", found.tag())),
                ("location", &location),
            ]));
            let body = format!("Found. Redirecting to {location}").into_bytes();
            Answer::Told(Told { status: 302, headers: lines, body })
        })
    }

    /// What stands at a revision that the asker may see.
    fn at(
        &self,
        asked: &Asked,
        owner: &str,
        name: &str,
        revision: &str,
        then: impl FnOnce(&Repo, &Commit) -> Answer,
    ) -> Answer {
        let has_key = self.has_key(asked);
        let is_known = asked.header("authorization").is_none() || self.token.is_none() || has_key;
        if !is_known {
            return refused(401, None, "Invalid credentials in Authorization header");
        }
        let id = format!("{owner}/{name}");
        if let Some(moved) = self.repos.iter().find(|repo| repo.old.as_ref() == Some(&id)) {
            let location = asked.path.replacen(&id, &moved.id, 1);
            let lines = headers(&[("location", &location)]);
            return Answer::Told(Told { status: 307, headers: lines, body: Vec::new() });
        }
        let found = self.repos.iter().find(|repo| repo.id == id);
        match found.filter(|repo| repo.gate != Gate::Private || has_key) {
            // To a stranger, the hub does not even tell what is not there.
            None if asked.header("authorization").is_none() => {
                refused(401, None, "Invalid username or password.")
            }
            None => refused(404, Some("RepoNotFound"), "Repository not found"),
            Some(repo) => match repo.commit(revision) {
                None => refused(404, Some("RevisionNotFound"), &format!("Invalid rev id: {revision}")),
                Some(commit) => then(repo, commit),
            },
        }
    }

    fn has_key(&self, asked: &Asked) -> bool {
        let key = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        key.is_some() && key == self.token.as_deref()
    }
}

/// A part of a path without its percent signs.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail.get(..2).filter(|_| *first == b'%').and_then(|two| std::str::from_utf8(two).ok());
        match escaped.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
