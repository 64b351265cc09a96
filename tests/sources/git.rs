//! Repositories as sources: what is pinned stays pinned, and nothing of a repository runs.

use super::{Fetched, Kept, Kind, Scene, Stop, TestHub, failure, sha256};
use rbee::pkgbuild::fetch;
use rbee::wire::Code;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A repository with two commits on `main`, a branch, a tag of each kind.
struct Repository {
    path: PathBuf,
}

impl Repository {
    /// None, aloud, where git is missing.
    fn new(scene: &mut Scene) -> Option<Repository> {
        if Command::new("git").arg("--version").output().is_err() {
            eprintln!("skipped: git is not installed");
            return None;
        }
        let path = scene.path("repo");
        std::fs::create_dir(&path).unwrap();
        scene.trusted.push(format!("file://{}", scene.dir.path().display()));
        let repository = Repository { path };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit("one");
        repository.git(&["tag", "light"]);
        repository.git(&["tag", "-a", "-m", "release", "v1"]);
        repository.commit("two");
        repository.git(&["branch", "side", "light"]);
        Some(repository)
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .current_dir(&self.path)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgSign=false"])
            .args(arguments)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn commit(&self, text: &str) -> String {
        std::fs::write(self.path.join("file"), text).unwrap();
        self.git(&["add", "file"]);
        self.git(&["commit", "--quiet", "-m", text]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn url(&self, fragment: &str) -> String {
        format!("git+file://{}{fragment}", self.path.display())
    }

    /// As makepkg sums it up.
    fn archive_sum(&self, reference: &str) -> String {
        let archive = Command::new("git")
            .current_dir(&self.path)
            .args(["-c", "core.abbrev=no", "archive", "--format", "tar", reference])
            .output();
        sha256(&archive.unwrap().stdout)
    }
}

async fn bring(scene: &Scene, url: &str, sum: &str) -> Result<Vec<Fetched>, Stop> {
    scene.bring("work", &[url], &[(Kind::Sha256, &[sum])]).await
}

/// What `file` says in the working copy.
async fn content(scene: &Scene, url: &str, sum: &str) -> Result<String, Stop> {
    let fetched = bring(scene, url, sum).await?;
    let work = tempfile::tempdir_in(scene.dir.path()).unwrap().keep();
    let srcdir = scene.unpack(work.file_name().unwrap().to_str().unwrap(), &fetched, &[]).await?;
    Ok(std::fs::read_to_string(srcdir.join("repo/file")).unwrap())
}

#[tokio::test]
async fn each_kind_of_reference_leads_to_its_commit() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let first = repository.git(&["rev-parse", "light"]);
    let by_commit = format!("#commit={first}");
    for (fragment, text) in [
        ("", "two"),
        ("#branch=main", "two"),
        ("#branch=side", "one"),
        ("#tag=v1", "one"),
        ("#tag=light", "one"),
        (&by_commit, "one"),
    ] {
        let told = content(&scene, &repository.url(fragment), "SKIP").await.unwrap();
        assert_eq!(told, text, "{fragment}");
    }
    for fragment in [
        "#branch=none",
        "#tag=none",
        "#tag=side",
        "#branch=v1",
        &format!("#commit={}", first.replace(|c: char| c != '0', "1")),
    ] {
        let failed = failure(bring(&scene, &repository.url(fragment), "SKIP").await);
        assert_eq!(failed.code, Code::NotFound, "{fragment}: {failed:?}");
    }
}

#[tokio::test]
async fn a_working_copy_is_makepkgs_and_needs_the_cache_no_more() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let fetched = bring(&scene, &format!("n::{}", repository.url("#tag=v1")), "SKIP").await.unwrap();
    let srcdir = scene.unpack("work", &fetched, &[]).await.unwrap();
    std::fs::remove_dir_all(scene.path("cache")).unwrap();
    let copy = Repository { path: srcdir.join("n") };
    assert_eq!(copy.git(&["describe", "--tags"]), "v1");
    assert_eq!(copy.git(&["rev-parse", "--abbrev-ref", "HEAD"]), "makepkg");
    assert_eq!(copy.git(&["status", "--porcelain"]), "");
    assert_eq!(copy.git(&["fsck", "--strict"]), "");
    assert_eq!(copy.path.join("file").metadata().unwrap().permissions().mode() & 0o777, 0o644);
}

#[tokio::test]
async fn sums_are_those_of_the_archive() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let sum = repository.archive_sum("v1");
    assert_eq!(content(&scene, &repository.url("#tag=v1"), &sum).await.unwrap(), "one");
    let first = repository.git(&["rev-parse", "v1^{commit}"]);
    assert_eq!(content(&scene, &repository.url(&format!("#commit={first}")), &sum).await.unwrap(), "one");
    let failed = failure(bring(&scene, &repository.url("#tag=v1"), &repository.archive_sum("main")).await);
    assert_eq!(failed.code, Code::ChecksumMismatch, "{failed:?}");
    assert_eq!(failed.details["file"], "repo");
    assert!(scene.path("work/fetched").read_dir().unwrap().next().is_none(), "the archive is gone");
}

#[tokio::test]
async fn a_moved_tag_is_followed_and_its_sum_notices() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let sum = repository.archive_sum("v1");
    bring(&scene, &repository.url("#tag=v1"), &sum).await.unwrap();
    repository.git(&["tag", "-f", "-a", "-m", "again", "v1", "main"]);
    let failed = failure(bring(&scene, &repository.url("#tag=v1"), &sum).await);
    assert_eq!(failed.code, Code::ChecksumMismatch, "{failed:?}");
    assert_eq!(content(&scene, &repository.url("#tag=v1"), "SKIP").await.unwrap(), "two");
}

#[tokio::test]
async fn a_tag_that_was_made_under_another_name_is_forged() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let object = repository.git(&["rev-parse", "refs/tags/v1"]);
    repository.git(&["update-ref", "refs/tags/v9", &object]);
    let failed = failure(bring(&scene, &repository.url("#tag=v9"), "SKIP").await);
    assert_eq!(failed.code, Code::ChecksumMismatch, "{failed:?}");
    assert!(failed.message.contains("forged"), "{}", failed.message);
}

#[tokio::test]
async fn a_replaced_object_does_not_stand_for_the_pinned_commit() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let (first, second) = (repository.git(&["rev-parse", "light"]), repository.git(&["rev-parse", "main"]));
    repository.git(&["replace", &first, &second]);
    let url = repository.url(&format!("#commit={first}"));
    assert_eq!(content(&scene, &url, "SKIP").await.unwrap(), "one");
}

#[tokio::test]
async fn what_is_pinned_needs_the_remote_only_once() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let (first, sum) = (repository.git(&["rev-parse", "light"]), repository.archive_sum("v1"));
    let (commit, tag) = (repository.url(&format!("#commit={first}")), repository.url("#tag=v1"));
    let branch = repository.url("#branch=main");
    content(&scene, &commit, "SKIP").await.unwrap();
    std::fs::rename(&repository.path, scene.path("gone")).unwrap();
    assert_eq!(content(&scene, &commit, "SKIP").await.unwrap(), "one");
    assert_eq!(content(&scene, &tag, &sum).await.unwrap(), "one");
    assert!(scene.narration().contains("what was fetched earlier is used"), "{}", scene.narration());
    assert_eq!(failure(bring(&scene, &branch, "SKIP").await).code, Code::DownloadFailed);
}

#[tokio::test]
async fn a_damaged_mirror_is_made_anew() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let fetched = bring(&scene, &repository.url("#branch=main"), "SKIP").await.unwrap();
    let Kept::Git { mirror, .. } = &fetched[0].kept else { panic!("{fetched:?}") };
    std::fs::remove_file(mirror.join("HEAD")).unwrap();
    std::fs::remove_dir_all(mirror.join("objects")).unwrap();
    assert_eq!(content(&scene, &repository.url("#branch=main"), "SKIP").await.unwrap(), "two");
    assert_eq!(scene.cached().len(), 1);
}

#[tokio::test]
async fn nothing_of_a_repository_or_of_the_users_configuration_runs() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    let canary = scene.path("canary");
    let script = scene.path("script");
    std::fs::write(&script, format!("#!/bin/sh\ntouch {}\n", canary.display())).unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let run = script.display();
    let home = scene.path("home");
    std::fs::create_dir_all(home.join("hooks")).unwrap();
    std::fs::copy(&script, home.join("hooks/post-checkout")).unwrap();
    let config = format!(
        "[core]\n\thooksPath = {}\n\tfsmonitor = {run}\n\tpager = {run}\n[filter \"x\"]\n\tsmudge = {run}\n\trequired = true\n[protocol \"ext\"]\n\tallow = always\n",
        home.join("hooks").display()
    );
    std::fs::write(home.join(".gitconfig"), config).unwrap();
    scene.env.extend([
        ("HOME".to_owned(), home.display().to_string()),
        ("GIT_CONFIG_COUNT".to_owned(), "1".to_owned()),
    ]);
    std::fs::write(repository.path.join(".gitattributes"), "* filter=x\n").unwrap();
    let module = format!("[submodule \"m\"]\n\tpath = m\n\turl = ext::{run}\n");
    std::fs::write(repository.path.join(".gitmodules"), module).unwrap();
    repository.git(&["add", ".gitattributes", ".gitmodules"]);
    repository.commit("three");
    assert_eq!(content(&scene, &repository.url("#branch=main"), "SKIP").await.unwrap(), "three");
    assert!(!canary.exists());
}

/// A folder's files by their path, as a plain web server has them.
fn files_below(folder: &Path, prefix: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in folder.read_dir().unwrap().map(|entry| entry.unwrap()) {
        let path = format!("{prefix}/{}", entry.file_name().to_str().unwrap());
        match entry.file_type().unwrap().is_dir() {
            true => files_below(&entry.path(), &path, files),
            false => files.push((path, std::fs::read(entry.path()).unwrap())),
        }
    }
}

#[tokio::test]
async fn over_http_our_own_client_looks_where_it_leads_first() {
    use crate::support::hub::Fault;
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    repository.git(&["repack", "-adq"]);
    repository.git(&["update-server-info"]);
    let mut files = Vec::new();
    files_below(&repository.path.join(".git"), "/o/repo.git", &mut files);
    let hub = TestHub::serve_files("127.0.0.1:0", None, files.clone(), []).await;
    let first = repository.git(&["rev-parse", "light"]);
    let url = |hub: &TestHub, path: &str| format!("git+{}{path}#commit={first}", hub.endpoint());

    let failed = failure(bring(&scene, &url(&hub, "/o/repo.git"), "SKIP").await);
    assert_eq!((failed.code, hub.asked().len()), (Code::Forbidden, 0), "{failed:?}");

    scene.trusted.push(hub.endpoint());
    assert_eq!(content(&scene, &url(&hub, "/o/repo.git"), "SKIP").await.unwrap(), "one");

    let moved = format!("{}/o/repo.git/info/refs?service=git-upload-pack", hub.endpoint());
    let old = TestHub::serve_files(
        "127.0.0.1:0",
        None,
        Vec::new(),
        [Fault::RedirectTo(moved.clone()), Fault::RedirectTo(moved)],
    )
    .await;
    scene.trusted.push(old.endpoint());
    let named = format!("repo::{}", url(&old, "/x/other"));
    assert_eq!(content(&scene, &named, "SKIP").await.unwrap(), "one");

    let before = hub.asked().len();
    scene.trusted.retain(|entry| *entry != hub.endpoint());
    std::fs::remove_dir_all(scene.path("cache")).unwrap();
    let failed = failure(bring(&scene, &named, "SKIP").await);
    assert_eq!((failed.code, hub.asked().len()), (Code::Forbidden, before), "{failed:?}");
    let failed = failure(bring(&scene, &url(&old, "/gone"), "SKIP").await);
    assert_eq!(failed.code, Code::NotFound, "{failed:?}");
}

#[tokio::test]
async fn without_git_it_is_told_how_to_get_it() {
    let mut scene = Scene::new(&["file:///"]);
    scene.env = vec![("PATH".into(), scene.path("recipe").display().to_string())];
    let failed = failure(bring(&scene, "git+file:///nowhere#tag=v1", "SKIP").await);
    assert_eq!(failed.code, Code::MissingDependencies, "{failed:?}");
    assert!(failed.message.contains("apt install git"), "{}", failed.message);
}

#[tokio::test]
async fn a_cancel_ends_git_and_leaves_no_half_mirror() {
    let mut scene = Scene::new(&[]);
    let Some(repository) = Repository::new(&mut scene) else { return };
    scene.cancel.cancel();
    let outcome = bring(&scene, &repository.url("#branch=main"), "SKIP").await;
    assert!(matches!(outcome, Err(Stop::Cancelled(_))), "{outcome:?}");
    fetch::sweep(&scene.path("cache"));
    assert_eq!(scene.cached(), [""; 0]);
}
