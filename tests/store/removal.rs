//! What a removal takes and what it leaves, and what pruning finds.

use super::{COMMIT, ID, OTHER_COMMIT, REPO, add, branch, cached, digest, model, open, own, stocked};
use rbee::model::{PruneKind, Reference, Removal, Store};
use rbee::wire::{Code, Failure};
use rustix::fs::FlockOperation;
use std::fs::File;
use std::path::Path;

async fn remove(store: &Store, name: &str) -> Result<Option<Removal>, Failure> {
    let Some(id) = store.to_remove(&Reference::parse(name)?)? else { return Ok(None) };
    let turn = store.turn(&id).await;
    store.remove(&turn, &[])
}

async fn freed(store: &Store, name: &str) -> u64 {
    let removal = remove(store, name).await.unwrap().unwrap();
    assert_eq!(store.get(&removal.id), None);
    removal.bytes_freed
}

fn folders(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root.join("hub")).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn shared_bytes_go_with_their_last_user_and_so_do_folders_and_branches() {
    let dir = tempfile::tempdir().unwrap();
    let (root, bytes) = (dir.path(), model(1));
    let store = open(root);
    let main = branch(root, "main", COMMIT);
    let pulled = branch(root, "v1", OTHER_COMMIT);
    let one = cached(root, COMMIT, "m.gguf", &bytes);
    let two = cached(root, OTHER_COMMIT, "sub/m.gguf", &bytes);
    add(&store, ID, &[("m.gguf", &one)]);
    add(&store, "hf:org/repo:sub/m.gguf@v1", &[("sub/m.gguf", &two)]);

    assert_eq!(freed(&store, "org/repo:q4_k_m").await, 0, "the other needs them");
    assert!(!one.parent().unwrap().exists() && !main.exists() && pulled.exists());
    assert_eq!(std::fs::read(&two).unwrap(), bytes);
    let size = bytes.len() as u64;
    assert_eq!(freed(&store, "org/repo@v1").await, size);
    assert_eq!(folders(root), [""; 0], "nothing was left of the repository");
    assert!(store.list().is_empty() && open(root).list().is_empty());
    assert_eq!(remove(&store, "org/repo@v1").await.unwrap(), None);
}

#[tokio::test]
async fn bytes_that_another_tool_uses_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (root, bytes) = (dir.path(), model(1));
    let store = open(root);
    let ours = cached(root, COMMIT, "m.gguf", &bytes);
    let theirs = cached(root, OTHER_COMMIT, "deep/er/m.gguf", &bytes);
    let beside = cached(root, COMMIT, "README.md", b"theirs");
    let main = branch(root, "main", COMMIT);
    add(&store, ID, &[("m.gguf", &ours)]);
    assert_eq!(freed(&store, REPO).await, 0);
    assert_eq!(std::fs::read(theirs).unwrap(), bytes);
    assert!(!ours.is_symlink() && beside.exists() && main.exists(), "their snapshot is still there");
}

#[tokio::test]
async fn a_link_that_two_models_use_stays_for_the_other_and_all_parts_go() {
    let dir = tempfile::tempdir().unwrap();
    let (root, first, second) = (dir.path(), model(1), model(2));
    let store = open(root);
    let one = cached(root, COMMIT, "m-00001-of-00002.gguf", &first);
    let two = cached(root, COMMIT, "m-00002-of-00002.gguf", &second);
    let parts = [("m-00001-of-00002.gguf", one.as_path()), ("m-00002-of-00002.gguf", two.as_path())];
    let stored = add(&store, ID, &parts);
    assert_eq!(stored.info.size_bytes, (first.len() + second.len()) as u64);
    add(&store, "hf:org/repo:m-00001-of-00002.gguf", &parts[..1]);
    assert_eq!(freed(&store, "org/repo:Q4_K_M").await, second.len() as u64);
    assert!(one.exists() && !two.is_symlink());
    assert_eq!(freed(&store, REPO).await, first.len() as u64);
}

#[tokio::test]
async fn nothing_outside_of_the_cache_is_removed_whatever_a_record_says() {
    let dir = tempfile::tempdir().unwrap();
    let (root, bytes) = (dir.path(), model(1));
    let store = open(root);
    let outside = root.join("precious/m.gguf");
    std::fs::create_dir(outside.parent().unwrap()).unwrap();
    std::fs::write(&outside, &bytes).unwrap();
    let (away, folder) = (root.join("hub/away.gguf"), root.join("hub/sub"));
    std::fs::create_dir_all(root.join("hub/plain")).unwrap();
    let link = root.join("hub/plain/link.gguf");
    std::os::unix::fs::symlink(&outside, &away).unwrap();
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    std::os::unix::fs::symlink(outside.parent().unwrap(), &folder).unwrap();
    let dotted = root.join("hub/plain/../../precious/m.gguf");
    // Branches that lie elsewhere are not followed either.
    let branches = root.join("branches");
    std::fs::create_dir(&branches).unwrap();
    std::fs::write(branches.join("main"), COMMIT).unwrap();
    let sound = cached(root, COMMIT, "m.gguf", &bytes);
    std::os::unix::fs::symlink(&branches, root.join("hub/models--org--repo/refs")).unwrap();
    add(&store, "hf:org/repo:Q8_0", &[("m.gguf", &sound)]);
    assert_eq!(freed(&store, REPO).await, bytes.len() as u64);
    assert!(branches.join("main").exists() && !sound.is_symlink());
    for path in [&outside, &dotted, &away, &link, &folder.join("m.gguf"), &store_file(root, &bytes)] {
        add(&store, ID, &[("m.gguf", path)]);
        let removal = remove(&store, REPO).await.unwrap().unwrap();
        assert_eq!((removal.bytes_freed, removal.kept.len()), (0, 1), "{path:?}: {removal:?}");
        assert!(outside.exists(), "{path:?}");
    }
    assert!(!link.is_symlink(), "the link itself was in the cache");
    assert!(root.join("models/not-a-record").exists());

    let mine = own(&store, &outside);
    let removal = remove(&store, &mine).await.unwrap().unwrap();
    assert_eq!((removal.bytes_freed, removal.kept), (0, vec![outside.clone()]));
    assert!(outside.exists() && store.list().is_empty());
}

/// Directly beside the records, where nothing but records is.
fn store_file(root: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let path = root.join("models/not-a-record");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[tokio::test]
async fn a_removal_is_refused_while_the_model_is_used_or_not_named_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let (root, one, two) = (dir.path(), model(1), model(2));
    let store = open(root);
    let (a, b) = (cached(root, COMMIT, "a.gguf", &one), cached(root, COMMIT, "b.gguf", &two));
    add(&store, ID, &[("a.gguf", &a)]);
    add(&store, "hf:org/repo:Q8_0", &[("b.gguf", &b)]);
    store.set_alias("small", Reference::parse("org/repo:Q4_K_M").unwrap()).unwrap();

    let refused = |failure: Failure, says: &str| {
        assert_eq!(failure.code, Code::Conflict, "{failure}");
        assert!(failure.message.contains(says), "{failure}");
    };
    refused(remove(&store, REPO).await.unwrap_err(), "hf:org/repo:Q4_K_M, hf:org/repo:Q8_0");
    refused(remove(&store, "small").await.unwrap_err(), "alias of hf:org/repo:Q4_K_M");
    let turn = store.turn("hf:org/repo:Q8_0").await;
    refused(store.remove(&turn, &["w1".into()]).unwrap_err(), "in use by w1");
    assert!(a.exists() && b.exists() && store.list().len() == 2);
    assert_eq!(store.remove(&turn, &[]).unwrap().unwrap().bytes_freed, two.len() as u64);
}

#[tokio::test]
async fn a_removal_that_was_cut_short_can_be_asked_for_again() {
    let (dir, store, link) = stocked();
    let root = dir.path();
    std::fs::remove_file(link.canonicalize().unwrap()).unwrap();
    assert!(store.list().is_empty());
    assert_eq!(freed(&store, REPO).await, 0);
    assert_eq!(folders(root), [""; 0]);
}

#[test]
fn pruning_finds_what_nobody_is_at_and_nothing_of_other_tools() {
    let (dir, store, link) = stocked();
    let root = dir.path();
    let gone = cached(root, OTHER_COMMIT, "gone.gguf", &model(2));
    add(&store, "hf:org/repo:Q8_0", &[("gone.gguf", &gone)]);
    std::fs::remove_file(gone.canonicalize().unwrap()).unwrap();

    let blobs = root.join("hub/models--org--repo/blobs");
    let left = |name: &str| {
        std::fs::write(blobs.join(name), [7; 1000]).unwrap();
        blobs.join(name)
    };
    let (part, journal) = (left("aa.rbee-part"), left("aa.rbee-journal"));
    let (busy, of_busy, theirs) = (left("bb.rbee-part"), left("bb.rbee-journal"), left("cc.incomplete"));
    let held = File::open(&of_busy).unwrap();
    rustix::fs::flock(&held, FlockOperation::LockExclusive).unwrap();
    let (package, scratch) = (root.join("models/packages/some-model/blobs"), blobs.join(".rbee-package-x"));
    for (folder, bytes) in [(&package, 500), (&scratch, 300)] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(digest(b"x").to_string()), vec![7; bytes]).unwrap();
    }

    let look = store.prune(false).unwrap();
    let kinds: Vec<(PruneKind, u64)> = look.items.iter().map(|item| (item.kind, item.bytes)).collect();
    let expected = [
        (PruneKind::Download, 1000),
        (PruneKind::Download, 1000),
        (PruneKind::Download, 300),
        (PruneKind::Bytes, 500),
        (PruneKind::Record, 0),
    ];
    assert_eq!((look.applied, kinds.as_slice(), look.bytes), (false, &expected[..], 2800), "{look:?}");
    assert!(part.exists() && journal.exists() && package.exists());

    let done = store.prune(true).unwrap();
    assert_eq!((done.applied, &done.items, done.bytes), (true, &look.items, 2800));
    assert!(
        !part.exists() && !journal.exists() && !scratch.exists() && !root.join("models/packages").exists()
    );
    assert!(busy.exists() && of_busy.exists() && theirs.exists() && link.exists() && !gone.is_symlink());
    assert_eq!(store.prune(true).unwrap().items, []);
    let ids: Vec<String> = open(root).list().into_iter().map(|model| model.id).collect();
    assert_eq!(ids, [ID]);
}
