//! Sources of recipes: what comes, what is refused, what is kept; against servers on loopback that misbehave by script.

mod archives;
mod git;

use crate::support::authority::authority;
use crate::support::hub::{Fault, TestHub};
use crate::support::origin::Folder;
use crate::support::told::narration;
use rbee::pkgbuild::checksum::Kind;
use rbee::pkgbuild::fetch::{self, FetchOrder, Fetched, Kept, Stop};
use rbee::pkgbuild::source::parse;
use rbee::pkgbuild::trust::Trusted;
use rbee::pkgbuild::{Errands, Limits, unpack};
use rbee::wire::job::{JobEvent, Receipt};
use rbee::wire::{Code, Failure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Long enough for any machine, short enough that a hang is seen.
const SOON: Duration = Duration::from_secs(60);
/// Several writes, not a multiple of anything.
const BYTES: usize = 3_500_001;

/// A cache, builds that use it, and what they told.
struct Scene {
    dir: TempDir,
    trusted: Vec<String>,
    limits: Limits,
    env: Vec<(String, String)>,
    told: Mutex<Vec<JobEvent>>,
    cancel: CancellationToken,
    /// When so many bytes have come.
    cancel_at: Option<u64>,
}

impl Scene {
    fn new(trusted: &[&str]) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["cache", "recipe"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let mut limits = Limits::default();
        limits.download.head_max = Duration::from_secs(5);
        limits.download.stall_max = Duration::from_millis(500);
        limits.download.pause_first = Duration::from_millis(1);
        let trusted = trusted.iter().map(|entry| (*entry).to_owned()).collect();
        let env = vec![("PATH".to_owned(), std::env::var("PATH").unwrap())];
        Scene {
            dir,
            trusted,
            limits,
            env,
            told: Mutex::default(),
            cancel: CancellationToken::new(),
            cancel_at: None,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Fetches in a work folder of its own; what comes is read from there by the test.
    async fn bring(&self, work: &str, list: &[&str], sums: &[(Kind, &[&str])]) -> Result<Vec<Fetched>, Stop> {
        let sources =
            parse(&own(list), &sums.iter().map(|(kind, sums)| (*kind, own(sums))).collect::<Vec<_>>());
        let sources = sources.map_err(Failure::from)?;
        self.with_order(work, async |order, events| fetch::fetch(&sources, order, events).await).await
    }

    /// Unpacks what was fetched into `src` of the work folder.
    async fn unpack(&self, work: &str, fetched: &[Fetched], noextract: &[&str]) -> Result<PathBuf, Stop> {
        let srcdir = self.path(work).join("src");
        std::fs::create_dir_all(&srcdir).unwrap();
        let unpacked = self.with_order(work, async |order, events| {
            unpack::unpack(fetched, &own(noextract), &srcdir, order, events).await
        });
        unpacked.await.map(|()| srcdir.clone())
    }

    async fn with_order<T>(
        &self,
        work: &str,
        act: impl AsyncFnOnce(&FetchOrder<'_>, &(dyn Fn(JobEvent) + Send + Sync)) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let (cache, work, recipe, processes) =
            (self.path("cache"), self.path(work), Folder(self.path("recipe")), self.path("run"));
        let (trusted, never) = (Trusted::new(&self.trusted), CancellationToken::new());
        let shim = Path::new(env!("CARGO_BIN_EXE_rbee"));
        let order = FetchOrder {
            id: "test",
            cache: &cache,
            work: &work,
            origin: &recipe,
            trusted: &trusted,
            limits: &self.limits,
            env: &self.env,
            errands: Errands { processes: &processes, shim: Some(shim), cancel: &self.cancel, hurry: &never },
        };
        let events = |event| {
            if let JobEvent::Progress { position, .. } = event
                && self.cancel_at.is_some_and(|at| position >= at)
            {
                self.cancel.cancel();
            }
            self.told.lock().unwrap().push(event);
        };
        tokio::time::timeout(SOON, act(&order, &events)).await.unwrap()
    }

    /// One source, with its sum.
    async fn one(&self, text: &str, sum: &str) -> Result<PathBuf, Failure> {
        match self.bring("work", &[text], &[(Kind::Sha256, &[sum])]).await {
            Ok(fetched) => Ok(file(&fetched[0]).to_owned()),
            Err(Stop::Failed(failure)) => Err(failure),
            Err(Stop::Cancelled(_)) => panic!("nobody cancelled"),
        }
    }

    fn narration(&self) -> String {
        narration(&self.told.lock().unwrap())
    }

    /// Names in the cache without their keys, in order.
    fn cached(&self) -> Vec<String> {
        let entries = self.path("cache").read_dir().unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.map(|name| name.split_once('-').map_or(name.clone(), |n| n.1.to_owned())).collect();
        names.sort();
        names
    }
}

fn own(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn file(fetched: &Fetched) -> &Path {
    match &fetched.kept {
        Kept::File(path) => path,
        other => panic!("{other:?} is no file"),
    }
}

fn failure<T: std::fmt::Debug>(result: Result<T, Stop>) -> Failure {
    match result.unwrap_err() {
        Stop::Failed(failure) => failure,
        Stop::Cancelled(receipt) => panic!("{receipt:?}"),
    }
}

fn noise() -> Vec<u8> {
    (0..BYTES as u32)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(BYTES)
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn serve(script: impl IntoIterator<Item = Fault>) -> (TestHub, Vec<u8>, String) {
    let bytes = noise();
    let sum = sha256(&bytes);
    let hub = TestHub::serve_files("127.0.0.1:0", None, vec![("/a.bin".into(), bytes.clone())], script).await;
    (hub, bytes, sum)
}

/// A scene in which the hub is trusted, and the address of its file.
fn scene_of(hub: &TestHub) -> (Scene, String) {
    (Scene::new(&[&hub.endpoint()]), format!("{}/a.bin", hub.endpoint()))
}

#[tokio::test]
async fn what_was_fetched_once_is_verified_and_not_fetched_again() {
    let (hub, bytes, sum) = serve([]).await;
    let (scene, url) = scene_of(&hub);
    let path = scene.one(&url, &sum).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    assert_eq!(scene.one(&url, &sum).await.unwrap(), path);
    assert_eq!(hub.asked().len(), 1);
    assert_eq!(scene.cached(), ["a.bin"]);
    let progress = |event: &JobEvent| match event {
        JobEvent::Progress { position, total, .. } => Some((*position, *total)),
        _ => None,
    };
    let told: Vec<_> = scene.told.lock().unwrap().iter().filter_map(progress).collect();
    assert_eq!(told.last(), Some(&(BYTES as u64, Some(BYTES as u64))));

    // Somebody has changed it.
    std::fs::write(&path, "changed").unwrap();
    assert_eq!(std::fs::read(scene.one(&url, &sum).await.unwrap()).unwrap(), bytes);
    assert_eq!(hub.asked().len(), 2);
}

#[tokio::test]
async fn a_changed_sum_or_address_never_meets_the_old_file() {
    let (hub, _, sum) = serve([]).await;
    let (scene, url) = scene_of(&hub);
    scene.one(&url, &sum).await.unwrap();
    let other = sha256(b"a newer file");
    let failure = scene.one(&url, &other).await.unwrap_err();
    assert_eq!(failure.code, Code::ChecksumMismatch, "{failure:?}");
    assert_eq!(failure.details["kind"], "sha256");
    assert_eq!(failure.details["wanted"], other.as_str());
    assert_eq!(failure.details["got"], sum.as_str());
    assert_eq!(failure.details["file"], "a.bin");
    scene.one(&format!("a.bin::{}/x/a.bin", hub.endpoint()), &sum).await.unwrap();
    assert_eq!(scene.cached(), ["a.bin", "a.bin"], "nothing of the wrong one is kept");
    assert_eq!(hub.asked().len(), 3);
}

#[tokio::test]
async fn every_sum_of_a_source_is_compared() {
    let (hub, _, sum) = serve([]).await;
    let (scene, url) = scene_of(&hub);
    let md5 = "00000000000000000000000000000000";
    let sums: [(Kind, &[&str]); 2] = [(Kind::Sha256, &[&sum]), (Kind::Md5, &[md5])];
    let failed = failure(scene.bring("work", &[&url], &sums).await);
    assert_eq!((failed.code, &failed.details["kind"]), (Code::ChecksumMismatch, &"md5".into()));
    assert_eq!(scene.cached(), [""; 0]);
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke() {
    let cut = BYTES / 2;
    let (hub, bytes, sum) = serve([Fault::CutAt(cut), Fault::Status(503), Fault::CutAt(1000)]).await;
    let (scene, url) = scene_of(&hub);
    let path = scene.one(&url, &sum).await.unwrap();
    assert_eq!(std::fs::read(path).unwrap(), bytes);
    assert_eq!(hub.bytes_sent(), BYTES as u64, "no byte came twice");
    let asked = hub.asked();
    assert_eq!(asked[1].header("range"), Some(format!("bytes={cut}-{}", BYTES - 1).as_str()));
    assert_eq!(asked[1].header("if-range"), Some("\"tiny\""));
    assert_eq!(asked.len(), 4);
    assert!(scene.narration().contains("attempt 2/6"), "{}", scene.narration());
}

#[tokio::test]
async fn what_is_no_part_of_the_file_is_never_appended() {
    for fault in [Fault::IgnoreRange, Fault::LatePart, Fault::OtherTag] {
        let what = format!("{fault:?}");
        let (hub, bytes, sum) = serve([Fault::CutAt(BYTES / 3), fault]).await;
        let (scene, url) = scene_of(&hub);
        let path = scene.one(&url, &sum).await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes, "{what}");
    }
}

#[tokio::test]
async fn wrong_bytes_end_it_and_are_not_kept() {
    for (fault, code) in [
        (Fault::WrongByte, Code::ChecksumMismatch),
        (Fault::OtherSize, Code::ChecksumMismatch),
        (Fault::Endless, Code::ChecksumMismatch),
        (Fault::Status(404), Code::NotFound),
        (Fault::Status(403), Code::Forbidden),
        (Fault::StallAt(1000), Code::DownloadTimeout),
    ] {
        let what = format!("{fault:?}");
        let (hub, _, sum) = serve([fault]).await;
        let (scene, url) = scene_of(&hub);
        let failure = scene.one(&url, &sum).await.unwrap_err();
        assert_eq!(failure.code, code, "{what}: {failure:?}");
        assert_eq!(hub.asked().len(), 1, "{what}");
        let kept = if code == Code::DownloadTimeout { 1000 } else { 0 };
        let cached = scene.path("cache").read_dir().unwrap().map(|entry| entry.unwrap());
        let bytes: u64 = cached
            .filter(|e| e.path().extension().is_none_or(|kind| kind != "rbee-journal"))
            .map(|e| e.metadata().unwrap().len())
            .sum();
        assert!(bytes >= kept && bytes < kept + 100, "{what}: {bytes} in {:?}", scene.cached());
    }
}

#[tokio::test]
async fn a_file_without_a_length_is_whole_when_its_sum_is_right() {
    let (hub, bytes, sum) = serve([Fault::NoLength]).await;
    let (scene, url) = scene_of(&hub);
    assert_eq!(std::fs::read(scene.one(&url, &sum).await.unwrap()).unwrap(), bytes);
}

#[tokio::test]
async fn attempts_come_to_an_end() {
    let (hub, _, sum) = serve((0..20).map(|_| Fault::Status(500))).await;
    let (scene, url) = scene_of(&hub);
    let failure = scene.one(&url, &sum).await.unwrap_err();
    assert_eq!(failure.code, Code::DownloadFailed, "{failure:?}");
    assert!(
        failure.message.contains("after 6 attempts") && failure.message.contains("500"),
        "{}",
        failure.message
    );
    assert_eq!(hub.asked().len(), 6);
    assert_eq!(scene.cached(), [""; 0], "an empty part is no part");
}

#[tokio::test]
async fn a_server_that_asks_for_a_pause_gets_it_if_it_is_short() {
    let wait = |seconds: u32| Fault::StatusWith(429, format!("retry-after: {seconds}\r\n"));
    let (hub, _, sum) = serve([wait(1)]).await;
    let (scene, url) = scene_of(&hub);
    let started = std::time::Instant::now();
    scene.one(&url, &sum).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    let (hub, _, sum) = serve([wait(86_400)]).await;
    let (scene, url) = scene_of(&hub);
    let failure = scene.one(&url, &sum).await.unwrap_err();
    assert!(failure.message.contains("86400 s"), "{}", failure.message);
    assert_eq!(hub.asked().len(), 1);
}

#[tokio::test]
async fn what_is_too_big_is_not_begun() {
    let (hub, _, sum) = serve([Fault::None, Fault::NoLength]).await;
    let (mut scene, url) = scene_of(&hub);
    scene.limits.download.bytes_max = BYTES as u64 - 1;
    for _ in 0..2 {
        let failure = scene.one(&url, &sum).await.unwrap_err();
        assert!(failure.message.contains("at most"), "{}", failure.message);
    }
    scene.limits.download.bytes_max = BYTES as u64;
    scene.one(&url, &sum).await.unwrap();
}

#[tokio::test]
async fn nothing_that_a_stranger_names_leads_into_our_network() {
    let (inner, _, sum) = serve([]).await;
    let inside = format!("{}/a.bin", inner.endpoint());
    let stranger = Scene::new(&[]);
    let by_name = inside.replace("127.0.0.1", "localhost");
    let mapped = inside.replace("127.0.0.1", "[::ffff:127.0.0.1]");
    for url in
        [&inside, &by_name, &mapped, "http://169.254.169.254/latest", "http://0.0.0.0/a", "https://[::1]/a"]
    {
        let failure = stranger.one(url, &sum).await.unwrap_err();
        assert_eq!(failure.code, Code::Forbidden, "{url}: {failure:?}");
    }
    let (outer, _, _) =
        serve([Fault::RedirectTo(inside.clone()), Fault::RedirectTo("file:///etc/passwd".into())]).await;
    let (scene, url) = scene_of(&outer);
    let failure = scene.one(&url, &sum).await.unwrap_err();
    assert_eq!(failure.code, Code::Forbidden, "{failure:?}");
    let failure = scene.one(&url, &sum).await.unwrap_err();
    assert!(failure.message.contains("following a redirect"), "{}", failure.message);
    assert_eq!(inner.asked().len(), 0, "nobody was asked");
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_carry_no_keys() {
    let (end, bytes, sum) = serve([]).await;
    let to_end = Fault::RedirectTo(format!("{}/a.bin?signed=1", end.endpoint()));
    let (start, _, _) = serve([Fault::RedirectTo("/next".into()), to_end]).await;
    let scene = Scene::new(&[&start.endpoint(), &end.endpoint()]);
    let url = format!("{}/a.bin", start.endpoint());
    assert_eq!(std::fs::read(scene.one(&url, &sum).await.unwrap()).unwrap(), bytes);
    assert!(end.asked()[0].header("authorization").is_none());

    let (round, _, sum) = serve((0..20).map(|_| Fault::RedirectTo("/a.bin".into()))).await;
    let (scene, url) = scene_of(&round);
    assert!(scene.one(&url, &sum).await.unwrap_err().message.contains("more than 5 redirects"));
    assert_eq!(round.asked().len(), 6);
}

#[tokio::test]
async fn over_http_a_source_needs_a_sum() {
    let (hub, _, _) = serve([]).await;
    let (scene, url) = scene_of(&hub);
    let refused = failure(scene.bring("one", &[&url], &[(Kind::Sha256, &["SKIP"])]).await);
    assert_eq!((refused.code, hub.asked().len()), (Code::RecipeInvalid, 0), "{refused:?}");
}

/// Runs the named test in a process of its own that trusts a certificate authority of its own.
fn over_tls(test: &str) -> bool {
    const INSIDE: &str = "RBEE_TEST_AUTHORITY";
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, dir.path())
        .env("SSL_CERT_FILE", dir.path().join("ca.pem"))
        .stdin(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "{name}");
    false
}

async fn serve_tls(script: impl IntoIterator<Item = Fault>) -> (TestHub, Vec<u8>, String) {
    let dir = PathBuf::from(std::env::var_os("RBEE_TEST_AUTHORITY").unwrap());
    let tls = authority(&dir, &["localhost", "127.0.0.1"]);
    let bytes = noise();
    let sum = sha256(&bytes);
    let files = vec![("/a.bin".into(), bytes.clone())];
    (TestHub::serve_files("127.0.0.1:0", Some(tls), files, script).await, bytes, sum)
}

#[tokio::test]
async fn a_source_without_a_sum_is_fetched_for_every_build() {
    if !over_tls("a_source_without_a_sum_is_fetched_for_every_build") {
        return;
    }
    let (hub, bytes, _) = serve_tls([Fault::None, Fault::CutAt(BYTES / 2), Fault::OtherTag]).await;
    let (scene, url) = scene_of(&hub);
    for work in ["one", "two"] {
        let fetched = scene.bring(work, &[&url], &[(Kind::Sha256, &["SKIP"])]).await.unwrap();
        assert_eq!(std::fs::read(file(&fetched[0])).unwrap(), bytes, "{work}");
        assert!(file(&fetched[0]).starts_with(scene.path(work)));
    }
    // The second was cut, and the rest was of another file: without a sum only the tag can tell.
    assert_eq!(hub.asked().len(), 4);
    assert_eq!(scene.cached(), [""; 0]);
    assert!(scene.narration().contains("has no sum"), "{}", scene.narration());
}

#[tokio::test]
async fn what_begins_encrypted_stays_encrypted() {
    if !over_tls("what_begins_encrypted_stays_encrypted") {
        return;
    }
    let (plain, _, sum) = serve([]).await;
    let (hub, _, _) = serve_tls([Fault::RedirectTo(format!("{}/a.bin", plain.endpoint()))]).await;
    let scene = Scene::new(&[&hub.endpoint(), &plain.endpoint()]);
    let failure = scene.one(&format!("{}/a.bin", hub.endpoint()), &sum).await.unwrap_err();
    assert!(failure.message.contains("without encryption"), "{}", failure.message);
    assert_eq!(plain.asked().len(), 0);
}

#[tokio::test]
async fn two_builds_share_one_download() {
    let (hub, bytes, sum) = serve([Fault::Slow(Duration::from_millis(1))]).await;
    let (scene, url) = scene_of(&hub);
    let (one, two) = tokio::join!(scene.one(&url, &sum), scene.one(&url, &sum));
    assert_eq!(one.clone().unwrap(), two.unwrap());
    assert_eq!(std::fs::read(one.unwrap()).unwrap(), bytes);
    assert_eq!(hub.asked().len(), 1);
    assert!(scene.narration().contains("being fetched already"), "{}", scene.narration());
}

#[tokio::test]
async fn a_cancel_is_heard_at_once_and_what_came_is_gone_on_with() {
    let (hub, bytes, sum) = serve([Fault::Slow(Duration::from_millis(20))]).await;
    let (mut scene, url) = scene_of(&hub);
    scene.cancel_at = Some(100_000);
    let outcome = scene.bring("work", &[&url], &[(Kind::Sha256, &[&sum])]).await;
    assert!(matches!(outcome, Err(Stop::Cancelled(Receipt { clean: true, .. }))), "{outcome:?}");
    assert!(hub.bytes_sent() < BYTES as u64);
    (scene.cancel, scene.cancel_at) = (CancellationToken::new(), None);
    // A new process would find the same: part and tag lie on the disk.
    assert_eq!(std::fs::read(scene.one(&url, &sum).await.unwrap()).unwrap(), bytes);
    let asked = hub.asked();
    assert_eq!(asked[1].header("if-range"), Some("\"tiny\""));
    assert!(asked[1].header("range").is_some());
    assert_eq!(scene.cached(), ["a.bin"]);
}

#[tokio::test]
async fn files_of_the_recipe_are_verified_and_kept_for_no_longer_than_the_build() {
    let scene = Scene::new(&[]);
    std::fs::write(scene.path("recipe/fix.patch"), "abc").unwrap();
    let right = sha256(b"abc");
    assert_eq!(scene.one("fix.patch", &right).await.unwrap(), scene.path("work/fetched/fix.patch"));
    assert_eq!(scene.one("fix.patch", &sha256(b"x")).await.unwrap_err().code, Code::ChecksumMismatch);
    assert!(!scene.path("work/fetched/fix.patch").exists());
    assert_eq!(scene.one("missing.patch", &right).await.unwrap_err().code, Code::NotFound);
    assert_eq!(scene.cached(), [""; 0]);
    let file_url = format!("file://{}", scene.path("recipe/fix.patch").display());
    assert_eq!(scene.one(&file_url, &right).await.unwrap_err().code, Code::RecipeInvalid);
}

#[tokio::test]
async fn parts_that_nobody_went_on_with_are_swept() {
    let scene = Scene::new(&[]);
    let cache = scene.path("cache");
    for name in ["k-old.rbee-part", "k-old.rbee-journal", "k-new.rbee-part", "k-a.tar.gz"] {
        std::fs::write(cache.join(name), "x").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
    for name in ["k-old.rbee-part", "k-old.rbee-journal", "k-a.tar.gz"] {
        std::fs::File::options().write(true).open(cache.join(name)).unwrap().set_modified(long_ago).unwrap();
    }
    std::fs::create_dir(cache.join("k.unfinished")).unwrap();
    std::fs::create_dir(cache.join("k.git")).unwrap();
    fetch::sweep(&cache);
    assert_eq!(scene.cached(), ["a.tar.gz", "k.git", "new.rbee-part"]);
}
