//! One cache for all tools: what the hub's own Python client has fetched is there for rbee, and the other way round.

use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Repo, Site, TestHub};
use crate::support::node::alone;
use crate::support::pull::Puller;
use crate::support::python::HubClient;
use std::path::Path;
use std::sync::Arc;

const REPO: &str = "bees/Tiny-GGUF";
const FILE: &str = "Tiny-Q4_K_M.gguf";
const TOKEN: &str = "hf_canary";
/// Large enough for several connections, small enough to be quick.
const FILE_BYTES: u64 = 9 << 20;

const DOWNLOAD: &str = "print(hf_hub_download(sys.argv[1], sys.argv[2]))";
const DOWNLOAD_LOCAL: &str = "print(hf_hub_download(sys.argv[1], sys.argv[2], local_files_only=True))";
const SNAPSHOT_LOCAL: &str = "print(snapshot_download(sys.argv[1], local_files_only=True))";
/// Every file of every revision, and what the client finds wrong.
const SCAN: &str = "
found = scan_cache_dir()
for repo in found.repos:
    for revision in repo.revisions:
        for file in revision.files:
            print(repo.repo_id, revision.commit_hash, ','.join(sorted(revision.refs)), file.file_name, file.size_on_disk)
for warning in found.warnings:
    print('WARNING', warning)
";
/// The names, the size of all, the sums of the large ones.
const LISTS: &str = "
hub, repo = HfApi(), sys.argv[1]
print(sorted(hub.list_repo_files(repo)))
print(sum(file.size for file in hub.list_repo_tree(repo, recursive=True)))
print(*[file.lfs.sha256 for file in hub.model_info(repo, files_metadata=True).siblings if file.lfs])
";
/// What the client calls each of the refusals, `repository file revision token` an argument.
const REFUSED: &str = "
for case in sys.argv[1:]:
    repo, file, revision, token = case.split(' ')
    try:
        print(hf_hub_download(repo, file, revision=revision, token=token or False))
    except Exception as error:
        print(type(error).__name__)
";

fn model() -> Arc<Content> {
    Content::padded(tiny(&Tiny::default()), FILE_BYTES, 1)
}

fn repo() -> Repo {
    Repo::new(REPO)
        .with(FILE, &model())
        .with_small("README.md", &Content::of(b"# Tiny\n".to_vec()))
        .with_small("sub/config.json", &Content::of(b"{}".to_vec()))
}

#[test]
fn the_test_hub_is_a_hub_to_the_hubs_own_client() {
    let dir = tempfile::tempdir().unwrap();
    let gated = Repo::new("bees/Gated").gated().with("g.gguf", &model());
    let private = Repo::new("bees/Private").private().with("p.gguf", &model());
    let old = repo().named("v1").changed().with_small("README.md", &Content::of(b"# Tiny, again\n".to_vec()));
    let commit = old.newest().id.clone();
    let hub = TestHub::of([old, gated, private]).cdn().token(TOKEN).open();
    let Some(client) = HubClient::new(dir.path(), &hub.endpoint(), &dir.path().join("hub")) else { return };

    let path = client.run(DOWNLOAD, &[REPO, FILE]).remove(0);
    assert!(Path::new(&path).ends_with(format!("snapshots/{commit}/{FILE}")), "{path}");
    assert_eq!(std::fs::read(&path).unwrap(), model().bytes());
    assert_eq!(hub.bytes_sent(), FILE_BYTES);
    let snapshot = "print(snapshot_download(sys.argv[1], revision=sys.argv[2]))";
    let folder = client.run(snapshot, &[REPO, "v1"]).remove(0);
    assert_eq!(std::fs::read(Path::new(&folder).join("README.md")).unwrap(), b"# Tiny\n");
    assert_eq!(std::fs::read(Path::new(&folder).join("sub/config.json")).unwrap(), b"{}");
    let files = format!("['README.md', '{FILE}', 'sub/config.json']");
    let told = [files, (FILE_BYTES + 16).to_string(), model().sha256().to_owned()];
    assert_eq!(client.run(LISTS, &[REPO]), told);

    let cases = [
        // A 401 without a reason the client reads as "no such repository" only where the hub is encrypted.
        ("bees/None", FILE, "main", "", "HfHubHTTPError"),
        ("bees/Private", "p.gguf", "main", "", "HfHubHTTPError"),
        (REPO, "none.gguf", "main", "", "RemoteEntryNotFoundError"),
        (REPO, FILE, "none", "", "RevisionNotFoundError"),
        ("bees/None", FILE, "main", TOKEN, "RepositoryNotFoundError"),
        ("bees/Gated", "g.gguf", "main", "", "GatedRepoError"),
    ];
    let asked: Vec<String> = cases
        .iter()
        .map(|(repo, file, revision, token, _)| format!("{repo} {file} {revision} {token}"))
        .collect();
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    assert_eq!(client.run(REFUSED, &asked), cases.map(|case| case.4));
    let opened = ["bees/Gated g.gguf main", "bees/Private p.gguf main"].map(|case| format!("{case} {TOKEN}"));
    for path in client.run(REFUSED, &opened.each_ref().map(String::as_str)) {
        assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_BYTES, "{path}");
    }
    for asked in hub.asked_of(Site::Cdn) {
        assert!(asked.header("authorization").is_none() && asked.path.contains("Signature="), "{asked:?}");
    }
    let scanned = client.run(SCAN, &[]);
    assert!(!scanned.iter().any(|line| line.starts_with("WARNING")), "{scanned:?}");
}

#[test]
fn what_python_fetched_is_there_for_rbee_and_costs_no_byte() {
    alone(|| {
        let puller = Puller::new(TestHub::of([repo()]).cdn().open());
        let Some(client) =
            HubClient::new(&puller.place.path("home"), &puller.hub.endpoint(), &puller.cache())
        else {
            return;
        };
        let path = client.run(DOWNLOAD, &[REPO, FILE]).remove(0);
        let sent = puller.hub.bytes_sent();
        let (code, told) = puller.download(&format!("{REPO}:q4_k_m"));
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("already"), "{told}");
        assert_eq!(puller.hub.bytes_sent(), sent, "{:?}", puller.hub.asked());
        let again = puller.pull(&format!("hf.co/{REPO}:Q4_K_M"));
        assert_eq!(puller.path_of(&again), Path::new(&path));
        assert_eq!(puller.hub.bytes_sent(), sent);
        // And is as Python left it.
        let scanned = client.run(SCAN, &[]);
        assert!(!scanned.iter().any(|line| line.starts_with("WARNING")), "{scanned:?}");
        assert_eq!(client.run(DOWNLOAD_LOCAL, &[REPO, FILE]), [path]);
        puller.is_sound();
    });
}

#[test]
fn what_rbee_fetched_is_there_for_python_without_the_hub() {
    alone(|| {
        let repo = repo();
        let commit = repo.newest().id.clone();
        let puller = Puller::new(TestHub::of([repo]).cdn().open());
        let Some(client) =
            HubClient::new(&puller.place.path("home"), &puller.hub.endpoint(), &puller.cache())
        else {
            return;
        };
        let job = puller.pull(&format!("{REPO}:Q4_K_M"));
        let path = puller.path_of(&job);
        assert_eq!(path, puller.snapshot(REPO, &commit, FILE));
        let asked = puller.hub.asked().len();
        assert_eq!(client.run(DOWNLOAD_LOCAL, &[REPO, FILE]), [path.to_str().unwrap()]);
        let folder = path.parent().unwrap().to_str().unwrap();
        assert_eq!(client.run(SNAPSHOT_LOCAL, &[REPO]), [folder]);
        assert_eq!(client.run(SCAN, &[]), [format!("{REPO} {commit} main {FILE} {FILE_BYTES}")]);
        assert_eq!(puller.hub.asked().len(), asked, "nobody was asked");
        // Online, the client asks whether it is the newest, and fetches nothing.
        let sent = puller.hub.bytes_sent();
        assert_eq!(client.run(DOWNLOAD, &[REPO, FILE]), [path.to_str().unwrap()]);
        assert_eq!(puller.hub.bytes_sent(), sent);
    });
}
