//! Models through the store, against a real server on loopback that misbehaves by script.

use crate::support::gguf::{self, Tiny, tiny};
use crate::support::hub::{self, Fault, TestHub, places, recipe};
use crate::support::node::RBEE;
use crate::support::told::narration;
use rbee::model::{Fetched, Hub, Limits, Recipe, Reference, Settings, Store, Stored};
use rbee::pkgbuild::Places;
use rbee::wire::job::{JobEvent, Receipt};
use rbee::wire::{Code, Failure};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Long enough for any machine, short enough that a hang is seen.
const SOON: Duration = Duration::from_secs(60);

/// A store of its own, and what it told.
struct Scene {
    dir: TempDir,
    store: Store,
    told: Mutex<Vec<JobEvent>>,
}

impl Scene {
    fn new(endpoint: &str) -> Scene {
        Scene::with(endpoint, &[])
    }

    fn with(endpoint: &str, variables: &[(&str, &str)]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), endpoint, variables);
        Scene { dir, store, told: Mutex::default() }
    }

    /// Another process, as it were, on the same directories.
    fn again(self, endpoint: &str) -> Scene {
        let Scene { dir, store, .. } = self;
        drop(store);
        let store = open(dir.path(), endpoint, &[]);
        Scene { dir, store, told: Mutex::default() }
    }

    async fn fetch_until(&self, recipe: &Recipe, cancel: &CancellationToken) -> Result<Fetched, Failure> {
        let events = |event| self.told.lock().unwrap().push(event);
        tokio::time::timeout(SOON, self.store.fetch_recipe(recipe, &events, cancel)).await.unwrap()
    }

    async fn fetch(&self, recipe: &Recipe) -> Result<Box<Stored>, Failure> {
        match self.fetch_until(recipe, &CancellationToken::new()).await? {
            Fetched::Stored(stored) => Ok(stored),
            Fetched::Cancelled(_) => panic!("nobody cancelled"),
        }
    }

    fn narration(&self) -> String {
        narration(&self.told.lock().unwrap())
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("hub/models--org--tiny")
    }

    /// What lies in the cache, links and folders left out.
    fn files(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.dir.path().join("hub")];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let kind = entry.file_type().unwrap();
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    files.push(entry.path());
                }
            }
        }
        files
    }
}

fn open(dir: &Path, endpoint: &str, variables: &[(&str, &str)]) -> Store {
    let cache = dir.join("hub");
    let hub = Hub::find(|name| match name {
        "HF_HUB_CACHE" => Some(cache.clone().into()),
        "HF_ENDPOINT" => Some(endpoint.into()),
        _ => variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()),
    });
    let (env, shim) = (std::env::vars().collect(), Some(RBEE.into()));
    let builds = Places { env, shim, ..places(dir) };
    let mut settings = Settings::new(dir.join("models"), hub.unwrap(), builds);
    settings.limits = Limits {
        hub_give_up: Duration::from_millis(500),
        head_max: Duration::from_secs(5),
        stall_max: Duration::from_millis(500),
        pause_first: Duration::from_millis(1),
        ..Limits::default()
    };
    Store::open(settings).unwrap()
}

fn model() -> Vec<u8> {
    tiny(&Tiny::default())
}

#[tokio::test]
async fn a_download_is_verified_linked_and_recorded() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), []).await;
    let scene = Scene::new(&hub.endpoint());
    let stored = scene.fetch(&recipe(&bytes)).await.unwrap();
    assert_eq!(stored.path, scene.cache().join("snapshots").join(hub::REVISION).join(hub::FILE));
    assert!(std::fs::read_link(&stored.path).unwrap().starts_with("../../blobs"));
    assert_eq!(std::fs::read(&stored.path).unwrap(), bytes);
    assert_eq!(stored.info.id, "tiny");
    assert_eq!((stored.info.quantization.as_str(), stored.info.vocabulary), ("F32", gguf::VOCABULARY));
    assert_eq!(stored.info.files[0].sha256.as_deref(), Some(recipe(&bytes).sha256.to_string().as_str()));
    assert_eq!(scene.files().len(), 1, "{:?}", scene.files());
    let scene = scene.again(&hub.endpoint());
    assert_eq!(scene.store.list(), std::slice::from_ref(&stored.info));
    assert_eq!(scene.store.get("tiny"), Some(stored.info));
}

#[tokio::test]
async fn a_model_that_is_there_costs_no_traffic() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), []).await;
    let scene = Scene::new(&hub.endpoint());
    scene.fetch(&recipe(&bytes)).await.unwrap();
    scene.fetch(&recipe(&bytes)).await.unwrap();
    assert!(scene.narration().contains("already there"));
    // Without its record, the bytes are found in the hub's cache.
    std::fs::remove_dir_all(scene.dir.path().join("models")).unwrap();
    let scene = scene.again(&hub.endpoint());
    assert_eq!(scene.store.list(), []);
    scene.fetch(&recipe(&bytes)).await.unwrap();
    assert_eq!(hub.asked().len(), 1);
}

#[tokio::test]
async fn a_broken_download_goes_on_from_the_bytes_on_disk() {
    let bytes = model();
    let hub =
        TestHub::start(bytes.clone(), [Fault::CutAt(100_000), Fault::Status(503), Fault::CutAt(50_000)])
            .await;
    let scene = Scene::new(&hub.endpoint());
    scene.fetch(&recipe(&bytes)).await.unwrap();
    let asked = hub.asked();
    let ranges: Vec<_> = asked.iter().map(|a| a.header("range").map(str::to_owned)).collect();
    let rest = |from: usize| format!("bytes={from}-{}", bytes.len() - 1);
    assert_eq!(ranges, [None, Some(rest(100_000)), Some(rest(100_000)), Some(rest(150_000))]);
    assert_eq!(hub.bytes_sent(), bytes.len() as u64);
    assert!(scene.narration().contains("attempt 2/6"), "{}", scene.narration());
}

#[tokio::test]
async fn a_cancelled_download_keeps_its_bytes_and_the_next_process_goes_on() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), [Fault::Slow(Duration::from_millis(20))]).await;
    let scene = Scene::new(&hub.endpoint());
    let cancel = CancellationToken::new();
    let recipe = recipe(&bytes);
    let events = |event: JobEvent| {
        if matches!(event, JobEvent::Progress { position, .. } if position > 0) {
            cancel.cancel();
        }
        scene.told.lock().unwrap().push(event);
    };
    let fetched =
        tokio::time::timeout(SOON, scene.store.fetch_recipe(&recipe, &events, &cancel)).await.unwrap();
    let Fetched::Cancelled(receipt) = fetched.unwrap() else { panic!("not cancelled") };
    assert_eq!(receipt, Receipt::default());
    assert!(scene.narration().contains("are kept"), "{}", scene.narration());
    let part = |file: &&PathBuf| file.extension().is_some_and(|extension| extension == "rbee-part");
    let kept = scene.files().iter().find(part).unwrap().metadata().unwrap().len();
    assert!(kept > 0 && kept < bytes.len() as u64, "{kept}");
    let scene = scene.again(&hub.endpoint());
    scene.fetch(&recipe).await.unwrap();
    assert_eq!(hub.asked()[1].header("range"), Some(format!("bytes={kept}-{}", bytes.len() - 1).as_str()));
}

#[tokio::test]
async fn only_the_part_that_was_asked_for_is_appended() {
    let bytes = model();
    for fault in [Fault::IgnoreRange, Fault::LatePart, Fault::Status(416)] {
        let hub = TestHub::start(bytes.clone(), [Fault::CutAt(100_000), fault]).await;
        let scene = Scene::new(&hub.endpoint());
        let stored = scene.fetch(&recipe(&bytes)).await.unwrap();
        assert_eq!(std::fs::read(&stored.path).unwrap(), bytes);
    }
}

#[tokio::test]
async fn wrong_bytes_are_fetched_again_once() {
    let bytes = model();
    for fault in [Fault::WrongByte, Fault::Endless] {
        let hub = TestHub::start(bytes.clone(), [fault]).await;
        let scene = Scene::new(&hub.endpoint());
        scene.fetch(&recipe(&bytes)).await.unwrap();
        assert_eq!(hub.asked().len(), 2);
    }
}

#[tokio::test]
async fn bytes_that_stay_wrong_are_refused_and_not_kept() {
    let bytes = model();
    let scripts = [vec![Fault::WrongByte; 2], vec![Fault::Endless; 2], vec![Fault::OtherSize]];
    for script in scripts {
        let requests = script.len();
        let hub = TestHub::start(bytes.clone(), script).await;
        let scene = Scene::new(&hub.endpoint());
        let failure = scene.fetch(&recipe(&bytes)).await.unwrap_err();
        assert_eq!(failure.code, Code::ChecksumMismatch, "{failure}");
        assert_eq!(hub.asked().len(), requests);
        assert_eq!(scene.files(), [] as [PathBuf; 0]);
        assert_eq!(scene.store.list(), []);
    }
}

#[tokio::test]
async fn every_way_to_fail_has_its_own_code() {
    let bytes = model();
    let cases = [
        (vec![Fault::StallAt(1000)], Code::DownloadTimeout, 1, "no byte came"),
        (vec![Fault::Status(404)], Code::ModelNotFound, 1, "404"),
        (vec![Fault::Status(401)], Code::Forbidden, 1, "HF_TOKEN"),
        (vec![Fault::Status(403)], Code::Forbidden, 1, "HF_TOKEN"),
        (vec![Fault::Status(500); 6], Code::DownloadFailed, 6, "after 6 attempts"),
        (vec![Fault::CutAt(0); 6], Code::DownloadFailed, 6, "after 6 attempts"),
        (vec![Fault::Status(418)], Code::DownloadFailed, 1, "418"),
        (vec![Fault::Gzip], Code::DownloadFailed, 1, "gzip"),
        (vec![Fault::RedirectTo("ftp://x/y".into())], Code::DownloadFailed, 1, "redirect"),
    ];
    for (script, code, requests, says) in cases {
        let described = format!("{:?}", script[0]);
        let hub = TestHub::start(bytes.clone(), script).await;
        let scene = Scene::new(&hub.endpoint());
        let failure = scene.fetch(&recipe(&bytes)).await.unwrap_err();
        assert_eq!(failure.code, code, "{described}: {failure}");
        assert!(failure.message.contains(says), "{described}: {failure}");
        assert_eq!(hub.asked().len(), requests, "{described}");
        assert!(!failure.message.contains(&scene.cache().display().to_string()), "{failure}");
    }
}

#[tokio::test]
async fn redirects_are_followed_five_times_and_the_token_stays_at_home() {
    let bytes = model();
    let path = format!("/{}/resolve/{}/{}", hub::REPO, hub::REVISION, hub::FILE);
    let cdn = TestHub::start(bytes.clone(), []).await;
    let away = format!("{}{path}?signature=secret", cdn.endpoint());
    let hub = TestHub::start(bytes.clone(), [Fault::RedirectTo(path.clone()), Fault::RedirectTo(away)]).await;
    let scene = Scene::with(&hub.endpoint(), &[("HF_TOKEN", "hf_canary")]);
    scene.fetch(&recipe(&bytes)).await.unwrap();
    let at_home: Vec<_> = hub.asked().iter().map(|a| a.header("authorization").map(str::to_owned)).collect();
    assert_eq!(at_home, vec![Some("Bearer hf_canary".to_owned()); 2]);
    assert_eq!(cdn.asked()[0].header("authorization"), None);
    let told = format!("{:?}", scene.told.lock().unwrap());
    assert!(!told.contains("canary") && !told.contains("secret"), "{told}");

    let round = TestHub::start(bytes.clone(), vec![Fault::RedirectTo(path); 6]).await;
    let failure = Scene::new(&round.endpoint()).fetch(&recipe(&bytes)).await.unwrap_err();
    assert!(failure.message.contains("redirects"), "{failure}");
    assert_eq!(round.asked().len(), 6);
}

#[tokio::test]
async fn two_who_ask_for_one_model_share_one_download() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), [Fault::Slow(Duration::from_millis(5))]).await;
    let scene = Scene::new(&hub.endpoint());
    let recipe = recipe(&bytes);
    let (one, two) = tokio::join!(scene.fetch(&recipe), scene.fetch(&recipe));
    assert_eq!(one.unwrap().path, two.unwrap().path);
    assert_eq!(hub.asked().len(), 1);
    assert!(scene.narration().contains("waiting for it"), "{}", scene.narration());
}

#[tokio::test]
async fn progress_is_told_at_most_ten_times_a_second() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), [Fault::Slow(Duration::from_millis(10))]).await;
    let scene = Scene::new(&hub.endpoint());
    let started = Instant::now();
    scene.fetch(&recipe(&bytes)).await.unwrap();
    let tenths = started.elapsed().as_millis() as usize / 100;
    let told = scene.told.lock().unwrap();
    let positions: Vec<u64> = told
        .iter()
        .filter_map(|event| match event {
            JobEvent::Progress { position, total, .. } if *total == Some(bytes.len() as u64) => {
                Some(*position)
            }
            _ => None,
        })
        .collect();
    assert!(positions.len() <= tenths + 3, "{} in {tenths} tenths of a second", positions.len());
    assert!(positions.is_sorted() && positions.last() == Some(&(bytes.len() as u64)), "{positions:?}");
}

#[tokio::test]
async fn a_disk_too_small_is_told_before_anything_is_asked() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), []).await;
    let scene = Scene::new(&hub.endpoint());
    let huge = Recipe { size: 1 << 60, ..recipe(&bytes) };
    let failure = scene.fetch(&huge).await.unwrap_err();
    assert_eq!(failure.code, Code::InsufficientDisk);
    assert!(failure.details["needed"].as_u64() > failure.details["available"].as_u64());
    assert_eq!(hub.asked().len(), 0);
}

#[tokio::test]
async fn offline_means_that_nobody_is_asked() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), []).await;
    let scene = Scene::with(&hub.endpoint(), &[("HF_HUB_OFFLINE", "1")]);
    let failure = scene.fetch(&recipe(&bytes)).await.unwrap_err();
    assert!(failure.message.contains("HF_HUB_OFFLINE"), "{failure}");
    assert_eq!(hub.asked().len(), 0);
}

/// A recipe that fetches the model with Python from `url` in prepare(), the only phase that may; `None` where there is no
/// Python.
fn with_pkgbuild(bytes: &[u8], url: &str) -> Option<Recipe> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3");
        return None;
    }
    let pkgbuild = format!(
        r#"
pkgname=tiny
pkgver=1
pkgrel=1
arch=(any)
options=('network=prepare')
prepare() {{
  python3 -c 'import sys, urllib.request; urllib.request.urlretrieve(sys.argv[1], sys.argv[2])' "{url}" {file}
}}
package() {{
  mkdir "$pkgdir/models"
  cp {file} "$pkgdir/models/"
}}
"#,
        file = hub::FILE
    );
    Some(Recipe { pkgbuild, ..recipe(bytes) })
}

fn url(hub: &TestHub) -> String {
    format!("{}/{}/resolve/{}/{}", hub.endpoint(), hub::REPO, hub::REVISION, hub::FILE)
}

#[tokio::test]
async fn an_unreachable_hub_is_given_up_quickly_and_the_recipe_brings_the_same_bytes() {
    let bytes = model();
    let elsewhere = TestHub::start(bytes.clone(), []).await;
    let Some(recipe) = with_pkgbuild(&bytes, &url(&elsewhere)) else { return };
    let silent = TestHub::start(bytes.clone(), [Fault::NeverAnswer]).await;
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for endpoint in [silent.endpoint(), nobody, "http://no-such-host.invalid".into()] {
        let scene = Scene::new(&endpoint);
        let stored = scene.fetch(&recipe).await.unwrap();
        assert_eq!(std::fs::read(&stored.path).unwrap(), bytes);
        assert!(scene.narration().contains("running the recipe of tiny"), "{}", scene.narration());
        assert_eq!(scene.files().len(), 1, "{:?}", scene.files());
        assert_eq!(std::fs::read_dir(scene.dir.path().join("builds")).unwrap().count(), 0);
    }
    assert_eq!(silent.asked().len(), 1);
}

#[tokio::test]
async fn a_model_that_the_hub_does_not_have_lies_beside_the_records() {
    let bytes = model();
    let elsewhere = TestHub::start(bytes.clone(), []).await;
    let Some(recipe) = with_pkgbuild(&bytes, &url(&elsewhere)) else { return };
    let scene = Scene::new("http://no-such-hub.invalid");
    let stored = scene.fetch(&Recipe { hub: None, ..recipe }).await.unwrap();
    assert_eq!(std::fs::read(&stored.path).unwrap(), bytes);
    assert!(stored.path.ends_with("packages/tiny/tiny.gguf"), "{}", stored.path.display());
    assert_eq!(stored.path.parent().unwrap().read_dir().unwrap().count(), 2, "the link and its bytes");
}

#[tokio::test]
async fn a_recipe_that_makes_other_bytes_is_refused() {
    let bytes = model();
    let elsewhere = TestHub::start(tiny(&Tiny { seed: 2, ..Tiny::default() }), []).await;
    let Some(recipe) = with_pkgbuild(&bytes, &url(&elsewhere)) else { return };
    let hub = TestHub::start(bytes.clone(), [Fault::Status(404)]).await;
    let scene = Scene::new(&hub.endpoint());
    let failure = scene.fetch(&recipe).await.unwrap_err();
    assert_eq!(failure.code, Code::ModelNotFound);
    for part in ["is not there", "should be", "HF_ENDPOINT", ".gguf"] {
        assert!(failure.message.contains(part), "{failure}");
    }
    assert_eq!(scene.files(), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn a_cancelled_recipe_leaves_no_process_and_no_file() {
    let bytes = model();
    let stalled = TestHub::start(bytes.clone(), [Fault::StallAt(1000)]).await;
    let Some(recipe) = with_pkgbuild(&bytes, &url(&stalled)) else { return };
    let scene = Scene::new("http://127.0.0.1:1");
    let cancel = CancellationToken::new();
    let cancelling = async {
        // Asked by the recipe's own program, so it runs.
        stalled.first_asked().await;
        cancel.cancel();
    };
    let (fetched, ()) = tokio::join!(scene.fetch_until(&recipe, &cancel), cancelling);
    let Fetched::Cancelled(receipt) = fetched.unwrap() else { panic!("not cancelled") };
    assert!(receipt.clean && receipt.processes_reaped > 0, "{receipt:?}");
    assert_eq!(receipt.survivors, []);
    assert_eq!(scene.files(), [] as [PathBuf; 0]);
    assert_eq!(std::fs::read_dir(scene.dir.path().join("builds")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_file_is_used_where_it_lies_and_a_broken_one_is_refused() {
    let scene = Scene::new("http://127.0.0.1:1");
    let write = |name: &str, bytes: &[u8]| {
        let path = scene.dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        Reference::parse(&path.display().to_string()).unwrap()
    };
    let cancel = CancellationToken::new();
    let fetch = async |reference: &Reference| match scene.store.fetch(reference, &|_| {}, &cancel).await {
        Ok(Fetched::Stored(stored)) => Ok(stored),
        Ok(Fetched::Cancelled(_)) => panic!("nobody cancelled"),
        Err(failure) => Err(failure),
    };
    let good = write("good.gguf", &model());
    assert!(scene.store.find(&good).unwrap().is_none());
    let stored = fetch(&good).await.unwrap();
    assert_eq!(stored.info.id, good.to_string());
    assert!(scene.store.find(&good).unwrap().is_some());

    for fault in gguf::Fault::ALL.into_iter().filter(|fault| fault.is_refused()) {
        let failure = fetch(&write("bad.gguf", &gguf::corrupt(fault))).await.unwrap_err();
        assert_eq!(failure.code, Code::InvalidModel, "{fault:?}: {failure}");
    }
    let absent = Reference::parse("/no/such/model.gguf").unwrap();
    assert_eq!(fetch(&absent).await.unwrap_err().code, Code::ModelNotFound);

    // Changed under its name, the record follows; taken away, it is not listed.
    write("good.gguf", &tiny(&Tiny { half: true, ..Tiny::default() }));
    assert_eq!(scene.store.find(&good).unwrap().unwrap().info.quantization, "F16");
    std::fs::remove_file(&stored.path).unwrap();
    assert_eq!(scene.store.list(), []);
}

#[tokio::test]
async fn a_damaged_record_hides_one_model_and_no_other() {
    let bytes = model();
    let hub = TestHub::start(bytes.clone(), []).await;
    let scene = Scene::new(&hub.endpoint());
    scene.fetch(&recipe(&bytes)).await.unwrap();
    for (name, text) in [("a.json", "{"), ("b.json", "[]"), ("c.txt", "x"), ("d.json", "")] {
        std::fs::write(scene.dir.path().join("models").join(name), text).unwrap();
    }
    let scene = scene.again(&hub.endpoint());
    assert_eq!(scene.store.list().len(), 1);
}
