//! A hive that fetches models from a test hub, in a cache of its own; and what must be true of that cache at any time.

use super::hub::content::hex;
use super::hub::{Site, TestHub};
use super::node::{Daemon, Job, Place, said};
use rbee::wire::Failure;
use serde_json::{Value, json};
use sha2::Digest as _;
use std::path::{Path, PathBuf};
use std::process::Output;

const SHA256_HEX: usize = 64;
const SHA1_HEX: usize = 40;

/// Ends in this order: the hive, then what it lives on.
pub struct Puller {
    /// `None` between a kill and the next start.
    hive: Option<Daemon>,
    pub hub: TestHub,
    pub place: Place,
    env: Vec<(String, String)>,
}

impl Puller {
    pub fn new(hub: TestHub) -> Puller {
        Puller::with(hub, &[])
    }

    pub fn with(hub: TestHub, env: &[(&str, &str)]) -> Puller {
        let mut all = vec![("HF_ENDPOINT".to_owned(), hub.endpoint())];
        all.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut puller = Puller { place: Place::new(), hub, hive: None, env: all };
        puller.start();
        puller
    }

    pub fn start(&mut self) {
        let env: Vec<(&str, &str)> = self.env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let hive = Daemon::try_start(&self.place, "hive serve", &[], &env);
        self.hive = Some(hive.unwrap_or_else(|refused| panic!("{refused}")));
    }

    pub fn hive(&self) -> &Daemon {
        self.hive.as_ref().expect("the hive runs")
    }

    /// Ends the hive at once, and starts another.
    pub fn kill9(&mut self) {
        self.hive.take().expect("the hive runs").kill9();
        self.start();
    }

    /// Another hive, with this in its environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_owned()));
        self.hive = None;
        self.start();
    }

    // ── asking

    /// Has the model fetched, to the end of the job.
    pub fn pull(&self, reference: &str) -> Job {
        self.hive().job(&json!({"operation": "model_download", "model": reference}))
    }

    /// Begins to; the job's id.
    pub fn begin(&self, reference: &str) -> String {
        self.hive().begin(&json!({"operation": "model_download", "model": reference}))
    }

    /// Where the model lies after it was fetched.
    #[track_caller]
    pub fn path_of(&self, job: &Job) -> PathBuf {
        job.done()["path"].as_str().unwrap_or_else(|| panic!("no path: {job:?}")).into()
    }

    /// Why it was not fetched.
    #[track_caller]
    pub fn refused(&self, reference: &str) -> Failure {
        let job = self.pull(reference);
        let error = job.find("error").unwrap_or_else(|| panic!("{reference} was not refused: {job:?}"));
        serde_json::from_value(error.clone()).unwrap()
    }

    /// The person's command, at this hive.
    pub fn rbee(&self, args: &[&str]) -> Output {
        self.place.rbee(&[args, &["--hive", &self.hive().url()]].concat())
    }

    /// The exit code of `model download`, and what it said.
    pub fn download(&self, reference: &str) -> (Option<i32>, String) {
        let output = self.rbee(&["model", "download", reference]);
        let (stdout, stderr) = said(&output);
        (output.status.code(), stdout + &stderr)
    }

    pub fn models(&self) -> Vec<Value> {
        let list = self.hive().job(&json!({"operation": "model_list"}));
        list.done()["models"].as_array().unwrap_or_else(|| panic!("{list:?}")).clone()
    }

    // ── the cache

    pub fn cache(&self) -> PathBuf {
        self.place.path("hub")
    }

    /// The folder of a repository.
    pub fn folder(&self, repo: &str) -> PathBuf {
        self.cache().join(format!("models--{}", repo.replace('/', "--")))
    }

    /// Where the hub's tools look for a file.
    pub fn snapshot(&self, repo: &str, commit: &str, file: &str) -> PathBuf {
        self.folder(repo).join("snapshots").join(commit).join(file)
    }

    /// What lies in the cache under a name that says what it holds must hold that; the number of such files. And no link
    /// leads to nothing or out of the cache.
    #[track_caller]
    pub fn is_sound(&self) -> usize {
        let cache = self.cache();
        let mut published = 0;
        for path in entries(&cache) {
            if path.is_symlink() {
                let to = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                assert!(to.starts_with(cache.canonicalize().unwrap()), "{} is outside", to.display());
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_hex = name.bytes().all(|b| b.is_ascii_hexdigit());
            match name.len() {
                SHA256_HEX if is_hex => assert_eq!(name, sha256_of(&path), "{}", path.display()),
                SHA1_HEX if is_hex => assert_eq!(name, blob_of(&path), "{}", path.display()),
                _ => continue,
            }
            published += 1;
        }
        published
    }

    /// Files and links, by the end of their path, that are neither published nor the hub's own bookkeeping.
    pub fn kept(&self) -> Vec<PathBuf> {
        let mut kept = entries(&self.cache());
        kept.retain(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_blob = matches!(name.len(), SHA256_HEX | SHA1_HEX)
                && name.bytes().all(|b| b.is_ascii_hexdigit())
                && !path.is_symlink();
            let is_of = |folder: &str| path.components().any(|part| part.as_os_str() == folder);
            !is_blob && !is_of("refs") && !is_of("snapshots") && !is_of(".locks") && name != "CACHEDIR.TAG"
        });
        kept
    }

    /// The token went to the hub and to nobody else.
    #[track_caller]
    pub fn token_stayed_at_home(&self) {
        for asked in self.hub.asked() {
            let has_key = asked.header("authorization").is_some();
            assert_eq!(has_key, asked.site == Site::Hub, "{asked:?}");
        }
    }
}

/// All that is no folder, below a folder.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

pub fn sha256_of(path: &Path) -> String {
    let mut sum = sha2::Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut Summed(&mut sum)).unwrap();
    hex(&sum.finalize())
}

fn blob_of(path: &Path) -> String {
    let mut sum = sha1::Sha1::new();
    sum.update(format!("blob {}\0", path.metadata().unwrap().len()));
    std::io::copy(&mut std::fs::File::open(path).unwrap(), &mut Summed(&mut sum)).unwrap();
    hex(&sum.finalize())
}

struct Summed<'a, D>(&'a mut D);

impl<D: sha2::Digest> std::io::Write for Summed<'_, D> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
