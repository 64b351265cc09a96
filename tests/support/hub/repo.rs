//! A repository as the hub tells of it: commits, the names of them, and files.

use super::content::{Content, hex, mixed};
use serde_json::{Value, json};
use std::sync::Arc;

/// The size of the text that git keeps in place of a large file.
const POINTER_BYTES: usize = 135;

#[derive(Debug, Clone)]
pub struct RepoFile {
    pub name: String,
    pub content: Arc<Content>,
    /// Kept beside git, as large files are: known by its sha256, and sent by the CDN if there is one.
    pub is_large: bool,
}

impl RepoFile {
    pub fn tag(&self) -> &str {
        if self.is_large { self.content.sha256() } else { self.content.blob() }
    }

    /// What git calls it: of a large file, the pointer's name.
    fn blob(&self) -> String {
        if !self.is_large {
            return self.content.blob().to_owned();
        }
        let pointer = format!(
            "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n",
            self.content.sha256(),
            self.content.size()
        );
        Content::of(pointer.into_bytes()).blob().to_owned()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Open,
    /// Its files, to those with the token only; what it is, to all.
    Gated,
    /// Not even that it is there.
    Private,
}

/// The state of a repository after one change.
#[derive(Debug, Clone)]
pub struct Commit {
    pub id: String,
    pub files: Vec<RepoFile>,
}

#[derive(Debug, Clone)]
pub struct Repo {
    /// `org/name`.
    pub id: String,
    /// What it was called before, which leads here.
    pub old: Option<String>,
    pub gate: Gate,
    /// The newest last; never none.
    commits: Vec<Commit>,
    /// Names of commits beside `main`, which is the newest.
    names: Vec<(String, String)>,
}

impl Repo {
    pub fn new(id: &str) -> Repo {
        let first = Commit { id: commit_id(id, 0), files: Vec::new() };
        Repo { id: id.to_owned(), old: None, gate: Gate::Open, commits: vec![first], names: Vec::new() }
    }

    /// With a large file more.
    pub fn with(self, name: &str, content: &Arc<Content>) -> Repo {
        self.add(name, content, true)
    }

    /// With a file more that git itself keeps.
    pub fn with_small(self, name: &str, content: &Arc<Content>) -> Repo {
        self.add(name, content, false)
    }

    fn add(mut self, name: &str, content: &Arc<Content>, is_large: bool) -> Repo {
        let files = &mut self.commits.last_mut().expect("a repository has a commit").files;
        files.retain(|file| file.name != name);
        files.push(RepoFile { name: name.to_owned(), content: content.clone(), is_large });
        self
    }

    pub fn formerly(mut self, id: &str) -> Repo {
        self.old = Some(id.to_owned());
        self
    }

    pub fn gated(mut self) -> Repo {
        self.gate = Gate::Gated;
        self
    }

    pub fn private(mut self) -> Repo {
        self.gate = Gate::Private;
        self
    }

    /// Names the newest commit.
    pub fn named(mut self, name: &str) -> Repo {
        let id = self.newest().id.clone();
        self.names.push((name.to_owned(), id));
        self
    }

    /// Another commit, with the files of the last; what comes after is of it.
    pub fn changed(mut self) -> Repo {
        let commit =
            Commit { id: commit_id(&self.id, self.commits.len() as u64), files: self.newest().files.clone() };
        self.commits.push(commit);
        self
    }

    pub fn newest(&self) -> &Commit {
        self.commits.last().expect("a repository has a commit")
    }

    /// By a branch, a tag, or a commit's whole id.
    pub fn commit(&self, revision: &str) -> Option<&Commit> {
        if revision == "main" {
            return Some(self.newest());
        }
        let id = self.names.iter().find(|(name, _)| name == revision).map_or(revision, |(_, id)| id);
        self.commits.iter().find(|commit| commit.id == id)
    }

    /// The answer about a repository at a commit.
    pub fn info(&self, commit: &Commit, with_blobs: bool) -> Value {
        let files: Vec<Value> = commit.files.iter().map(|file| sibling(file, with_blobs)).collect();
        let owner = self.id.split('/').next();
        let gated = if self.gate == Gate::Gated { json!("manual") } else { json!(false) };
        json!({
            "_id": &commit.id[..24], "id": self.id, "modelId": self.id, "author": owner, "sha": commit.id,
            "lastModified": "2026-01-02T03:04:05.000Z", "createdAt": "2026-01-02T03:04:05.000Z",
            "private": self.gate == Gate::Private, "gated": gated, "disabled": false,
            "downloads": 7, "likes": 1, "tags": ["gguf", "region:us"], "library_name": "gguf",
            "siblings": files, "spaces": [], "usedStorage": 0,
        })
    }

    /// The answer about a folder and all below it.
    pub fn tree(&self, commit: &Commit) -> Value {
        let entry = |file: &RepoFile| {
            let mut entry = json!({
                "type": "file", "oid": file.blob(), "size": file.content.size(), "path": file.name,
            });
            if file.is_large {
                entry["lfs"] = json!({
                    "oid": file.content.sha256(), "size": file.content.size(), "pointerSize": POINTER_BYTES,
                });
            }
            entry
        };
        commit.files.iter().map(entry).collect()
    }
}

fn sibling(file: &RepoFile, with_blobs: bool) -> Value {
    let mut sibling = json!({"rfilename": file.name});
    if with_blobs {
        sibling["blobId"] = json!(file.blob());
        sibling["size"] = json!(file.content.size());
        if file.is_large {
            sibling["lfs"] = json!({
                "sha256": file.content.sha256(), "size": file.content.size(), "pointerSize": POINTER_BYTES,
            });
        }
    }
    sibling
}

fn commit_id(repo: &str, number: u64) -> String {
    let name = repo.bytes().fold(number, |sum, byte| mixed(sum ^ u64::from(byte)));
    let words = [mixed(name), mixed(name ^ 1), mixed(name ^ 2)];
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    hex(&bytes[..20])
}
