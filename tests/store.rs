//! The store of models: records that survive, names that mean one model, bytes that are checked, and what a removal may
//! take. Its own rules are held on a store in this process, what a person sees with the built program.

mod bytes;
mod house;
mod mend;
mod removal;

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::places;
use rbee::model::gguf;
use rbee::model::{Digest, Hub, New, NewFile, Settings, Store, Stored};
use sha2::Digest as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OTHER_COMMIT: &str = "fedcba9876543210fedcba9876543210fedcba98";
const REPO: &str = "org/repo";
const ID: &str = "hf:org/repo:Q4_K_M";

/// A store with its folder of records and a hub's cache, both below `root`.
fn open(root: &Path) -> Store {
    let cache = root.join("hub");
    std::fs::create_dir_all(&cache).unwrap();
    let hub = Hub::find(|name| (name == "HF_HUB_CACHE").then(|| cache.clone().into())).unwrap();
    Store::open(Settings::new(root.join("models"), hub, places(root))).unwrap()
}

/// A store of one model, [`ID`], and the link by which its file is used.
fn stocked() -> (TempDir, Store, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let link = cached(dir.path(), COMMIT, "m.gguf", &model(1));
    add(&store, ID, &[("m.gguf", &link)]);
    (dir, store, link)
}

fn digest(bytes: &[u8]) -> Digest {
    let mut hasher = sha2::Sha256::new();
    hasher.update(bytes);
    Digest::of(hasher)
}

/// A model's bytes, others for each number.
fn model(seed: u64) -> Vec<u8> {
    tiny(&Tiny { seed, ..Tiny::default() })
}

/// Lays a file into the cache as the hub's tools do; gives the link by which it is used.
fn cached(root: &Path, commit: &str, name: &str, bytes: &[u8]) -> PathBuf {
    let folder = root.join("hub/models--org--repo");
    let (blobs, snapshot) = (folder.join("blobs"), folder.join("snapshots").join(commit));
    let (sum, link) = (digest(bytes).to_string(), snapshot.join(name));
    for folder in [&blobs, link.parent().unwrap()] {
        std::fs::create_dir_all(folder).unwrap();
    }
    std::fs::write(blobs.join(&sum), bytes).unwrap();
    let up = "../".repeat(2 + name.matches('/').count());
    std::os::unix::fs::symlink(format!("{up}blobs/{sum}"), &link).unwrap();
    link
}

fn branch(root: &Path, name: &str, commit: &str) -> PathBuf {
    let refs = root.join("hub/models--org--repo/refs");
    std::fs::create_dir_all(&refs).unwrap();
    std::fs::write(refs.join(name), commit).unwrap();
    refs.join(name)
}

/// Records files that lie there already as one model.
fn add(store: &Store, id: &str, files: &[(&str, &Path)]) -> Stored {
    let file = |(name, path): &(&str, &Path)| {
        let bytes = std::fs::read(path).unwrap();
        let sha256 = Some(digest(&bytes));
        NewFile { path: (*path).to_owned(), name: (*name).to_owned(), sha256, is_published: true }
    };
    let new = New {
        id: id.into(),
        reference: id.into(),
        revision: Some(COMMIT.into()),
        files: files.iter().map(file).collect(),
        header: gguf::inspect(files[0].1).unwrap(),
    };
    store.add(new).unwrap()
}

/// A person's own file.
fn own(store: &Store, path: &Path) -> String {
    let id = format!("file:{}", path.display());
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = vec![NewFile { path: path.to_owned(), name, sha256: None, is_published: false }];
    let header = gguf::inspect(path).unwrap();
    store.add(New { id: id.clone(), reference: id.clone(), revision: None, files, header }).unwrap();
    id
}

/// Changes one byte in the weights and nothing of the length.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Gives a file a time that it has not had.
fn touch(path: &Path) {
    let then = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}
