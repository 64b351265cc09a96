//! From the hub to the disk and off it again: what is damaged is mended by a download, what is removed is gone whole, and
//! what a kill has left is found.

use super::{flip, touch};
use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Fault, Repo, TestHub, When};
use crate::support::node::alone;
use crate::support::pull::{Puller, sha256_of};
use rbee::wire::{Code, Failure};
use serde_json::{Value, json};
use std::sync::Arc;

const REPO: &str = "bees/Tiny-GGUF";
const ID: &str = "hf:bees/Tiny-GGUF:Q4_K_M";

fn model(seed: u64, bytes: u64) -> Arc<Content> {
    let head = tiny(&Tiny { seed, ..Tiny::default() });
    Content::padded(head, bytes, seed)
}

fn repo(bytes: u64) -> Repo {
    Repo::new(REPO).with("Tiny-Q8_0.gguf", &model(8, bytes)).with("Tiny-Q4_K_M.gguf", &model(4, bytes))
}

fn run(puller: &Puller, operation: Value) -> Result<Value, Failure> {
    let job = puller.hive().job(&operation);
    match job.find("error") {
        Some(error) => Err(serde_json::from_value(error.clone()).unwrap()),
        None => Ok(job.done().clone()),
    }
}

#[test]
fn a_download_mends_what_was_damaged_and_a_removal_leaves_nothing() {
    alone(|| {
        let size = 1_000_000;
        let puller = Puller::new(TestHub::of([repo(size)]).cdn().open());
        let path = puller.path_of(&puller.pull(REPO));
        let spawn = json!({"operation": "worker_spawn", "model": REPO});
        let worker = run(&puller, spawn.clone()).unwrap()["worker_id"].clone();
        assert_eq!(
            run(&puller, json!({"operation": "worker_stop", "worker_id": worker})).unwrap()["worker_id"],
            worker
        );
        flip(&path);
        let refused = run(&puller, spawn.clone()).unwrap_err();
        assert_eq!(refused.code, Code::ChecksumMismatch);
        assert!(refused.message.contains(&format!("rbee model download {ID}")), "{refused}");

        let (code, said) = puller.download(ID);
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(sha256_of(&path), model(4, size).sha256());
        let worker = run(&puller, spawn).unwrap();
        assert_eq!(worker["model"], ID);
        let stop = json!({"operation": "worker_stop", "worker_id": worker["worker_id"]});
        run(&puller, stop).unwrap();

        let sent = puller.hub.bytes_sent();
        touch(&path);
        let again = puller.pull(ID);
        assert_eq!(
            (again.done()["damaged"].clone(), puller.hub.bytes_sent()),
            (json!(false), sent),
            "{again:?}"
        );
        let other = puller.path_of(&puller.pull(&format!("{REPO}:Q8_0")));
        let removal = run(&puller, json!({"operation": "model_remove", "id": ID})).unwrap();
        assert_eq!(removal["bytes_freed"], size);
        assert!(!path.is_symlink() && other.exists());
        assert_eq!(puller.is_sound(), 1);
        run(&puller, json!({"operation": "model_remove", "id": REPO})).unwrap();
        assert_eq!((puller.is_sound(), puller.folder(REPO).exists()), (0, false));
        assert!(puller.models().is_empty());
    });
}

#[test]
fn a_download_that_was_killed_is_found_by_prune_but_not_one_at_work() {
    alone(|| {
        let size = 8 << 20;
        let mut puller = Puller::new(TestHub::of([repo(size)]).cdn().open());
        puller.hub.fail(When::bytes(), Fault::StallAt(2 << 20));
        let prune = |puller: &Puller, apply: bool| {
            run(puller, json!({"operation": "model_prune", "apply": apply})).unwrap()
        };
        puller.begin(ID);
        puller.hub.has_sent(1 << 20);
        assert_eq!(prune(&puller, true)["items"], json!([]), "somebody is at it");
        puller.kill9();
        let found = prune(&puller, false);
        assert!(found["items"].as_array().unwrap().iter().all(|item| item["kind"] == "download"), "{found}");
        assert!(!found["items"].as_array().unwrap().is_empty() && !puller.kept().is_empty());
        prune(&puller, true);
        assert!(puller.kept().is_empty(), "{:?}", puller.kept());
        puller.hub.behave();
        assert_eq!(sha256_of(&puller.path_of(&puller.pull(ID))), model(4, size).sha256());
    });
}

#[test]
fn two_names_of_one_model_share_one_download() {
    alone(|| {
        let size = 4 << 20;
        let puller = Puller::new(TestHub::of([repo(size)]).cdn().open());
        let names = [REPO.to_owned(), ID.to_owned(), format!("{REPO}:Tiny-Q4_K_M.gguf")];
        let jobs: Vec<String> = names.iter().map(|name| puller.begin(name)).collect();
        let done: Vec<_> = jobs.iter().map(|job| puller.hive().follow(job)).collect();
        for job in &done {
            assert_eq!(sha256_of(&puller.path_of(job)), model(4, size).sha256());
        }
        assert_eq!(puller.hub.bytes_sent(), size, "once for all of them");
    });
}
