//! What a person sees of it: the commands, through a daemon of their own, and aliases through the OpenAI routes.

use super::{COMMIT, ID, add, branch, cached, flip, model, open};
use crate::support::fleet::{CHAT, served};
use crate::support::node::{Daemon, Job, Place, RBEE, alone, chat, repeat, said, until};
use rbee::wire::Code;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

/// A store with a model as the hub's tools lay it, in the place's own folders, before any daemon is there.
fn furnish(place: &Place) -> std::path::PathBuf {
    let root = place.state();
    std::fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::symlink(root.join("hub"), place.path("hub")).unwrap();
    branch(&root, "main", COMMIT);
    let link = cached(&root, COMMIT, "m-Q4_K_M.gguf", &model(1));
    add(&open(&root), ID, &[("m-Q4_K_M.gguf", &link)]);
    link
}

fn ask(place: &Place, daemon: &Daemon, words: &[&str]) -> Output {
    place.rbee(&[words, &["--queen", &daemon.url()]].concat())
}

#[track_caller]
fn answers(place: &Place, daemon: &Daemon, words: &[&str]) -> String {
    let output = ask(place, daemon, words);
    let (stdout, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(0), "{words:?}: {stdout}{stderr}");
    stdout
}

#[track_caller]
fn value(place: &Place, daemon: &Daemon, words: &[&str]) -> Value {
    let text = answers(place, daemon, &[words, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
}

#[track_caller]
fn refuses(place: &Place, daemon: &Daemon, words: &[&str], says: &str) -> String {
    let output = ask(place, daemon, words);
    let (stdout, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {stdout}{stderr}");
    assert!(stderr.contains(says), "{words:?}: `{says}` is not in {stderr}");
    stdout
}

fn listed(daemon: &Daemon) -> Vec<String> {
    let models = daemon.get("/v1/models").json()["data"].as_array().unwrap().clone();
    models.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_alias_works_wherever_a_model_is_named() {
    alone(|| {
        let place = Place::new();
        furnish(&place);
        let serve = Daemon::start(&place, "serve", &[]);
        let set = answers(&place, &serve, &["model", "alias", "Small", "org/repo"]);
        assert_eq!(set, "small stands for hf:org/repo\n");
        let later = value(&place, &serve, &["model", "alias", "later", "org/other:q8_0"]);
        assert_eq!(later, json!({"name": "later", "model": "hf:org/other:Q8_0", "id": null}));
        assert_eq!(listed(&serve), [ID, "small"], "what is not there is not offered");
        let table = answers(&place, &serve, &["model", "alias"]);
        assert!(table.contains("small") && table.contains("not there yet"), "{table}");

        for name in ["small", "SMALL", "org/repo", "hf:org/repo:q4_k_m", "org/repo:m-Q4_K_M.gguf", ID] {
            let answer = serve.post(CHAT, &chat(name, 2, false));
            assert_eq!(answer.status, 200, "{name}: {answer:?}");
        }
        assert_eq!(serve.workers().len(), 1, "all of them are one model");
        assert_eq!(serve.workers()[0]["model"], ID);
        assert_eq!(serve.get("/v1/models/small").json()["id"], "small");
        assert_eq!(serve.get("/v1/models/org%2Frepo").json()["id"], ID);
        let unknown = serve.post(CHAT, &chat("later", 2, false)).failure();
        assert_eq!(unknown.code, Code::ModelNotFound);
        let run = value(&place, &serve, &["run", "-m", "small", "--max-tokens", "2", "Hi"]);
        assert_eq!(run["model"], ID);

        let shown = answers(&place, &serve, &["show", "small"]);
        for fact in [ID, COMMIT, "small", "verified", "sha256", "m-Q4_K_M.gguf", "in use by"] {
            assert!(shown.contains(fact), "{fact}: {shown}");
        }
        assert_eq!(value(&place, &serve, &["list"])[0]["aliases"], json!(["small"]));
        refuses(&place, &serve, &["rm", "small"], "alias of hf:org/repo");
        refuses(&place, &serve, &["rm", ID], "in use by w");
        refuses(&place, &serve, &["model", "alias", "smollm2-135m-instruct", ID], "own name already");
        refuses(&place, &serve, &["model", "alias", "no/name", ID], "cannot be an alias");
        refuses(&place, &serve, &["model", "alias", "x", "nonsense"], "neither an alias");
        refuses(&place, &serve, &["model", "unalias", "nobody"], "there are: later, small");

        assert!(answers(&place, &serve, &["model", "alias", "--remove", "small"]).contains("no longer"));
        assert_eq!(listed(&serve), [ID]);
        let unknown = serve.post(CHAT, &chat("small", 2, false)).failure();
        assert_eq!(unknown.code, Code::ModelNotFound);
        assert_eq!(value(&place, &serve, &["model", "unalias", "later"])["model"], "hf:org/other:Q8_0");
    });
}

#[test]
fn a_model_is_removed_when_nobody_uses_it_and_ones_own_file_stays() {
    alone(|| {
        let place = Place::new();
        let link = furnish(&place);
        let (serve, mine) = served(&place, &[]);
        let spawned = serve.job(&json!({"operation": "worker_spawn", "model": "org/repo"})).done().clone();
        let operation = json!({"operation": "model_delete", "id": "org/repo"});
        let refused = serve.job(&operation).find("error").unwrap().clone();
        assert_eq!(refused["code"], "CONFLICT");
        assert_eq!(refused["details"]["in_use_by"], json!([spawned["worker_id"]]));
        assert!(link.exists());
        serve.job(&json!({"operation": "worker_stop", "worker_id": spawned["worker_id"]})).done();

        let size = link.metadata().unwrap().len();
        assert_eq!(
            value(&place, &serve, &["rm", "org/repo"]),
            json!({"id": ID, "bytes_freed": size, "kept": []})
        );
        assert!(!link.is_symlink() && !place.path("hub").join("models--org--repo").exists());
        assert_eq!(listed(&serve), [mine.as_str()]);
        refuses(&place, &serve, &["model", "rm", "org/repo"], "has no model");

        let output = ask(&place, &serve, &["model", "remove", &place.model()]);
        let (stdout, stderr) = said(&output);
        assert!(stdout.contains(", 0 B freed") && stderr.contains("stays"), "{stdout}{stderr}");
        assert!(Path::new(&place.model()).exists() && listed(&serve).is_empty());
    });
}

/// Whoever comes first has it: never a worker on a model that was removed under it.
#[test]
fn a_removal_and_a_start_at_once_never_both_succeed() {
    alone(|| {
        let place = Place::new();
        let hive = Daemon::start(&place, "hive serve", &[]);
        let id = hive.register(&place, None);
        let mut removed = 0;
        for _ in 0..6 {
            hive.register(&place, None);
            let (spawn, removal) = std::thread::scope(|scope| {
                let spawn = scope.spawn(|| hive.job(&json!({"operation": "worker_spawn", "model": id})));
                let removal = scope.spawn(|| hive.job(&json!({"operation": "model_remove", "id": id})));
                (spawn.join().unwrap(), removal.join().unwrap())
            });
            let code = |job: &Job| job.find("error").map(|error| error["code"].as_str().unwrap().to_owned());
            match (code(&spawn).as_deref(), code(&removal).as_deref()) {
                (Some("MODEL_NOT_FOUND"), None) => removed += 1,
                (None, Some("CONFLICT")) => {
                    let worker = spawn.done()["worker_id"].clone();
                    hive.job(&json!({"operation": "worker_stop", "worker_id": worker})).done();
                }
                other => panic!("{other:?}: {spawn:?} {removal:?}"),
            }
        }
        println!("{removed} of 6 were removed first");
    });
}

/// Runs the words on a terminal, which `script` provides, and answers the question there; the exit code and all that was
/// shown. `None` without that program.
fn on_a_terminal(place: &Place, words: &str, typed: &str) -> Option<(Option<i32>, String)> {
    let mut command = place.command(&[]);
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.unwrap().to_owned())).collect();
    command = Command::new("script");
    command.args(["-qefc", &format!("exec {RBEE} {words}"), "/dev/null"]).env_clear().envs(environment);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: there is no `script` to make a terminal");
        return None;
    };
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut shown, mut is_answered, mut buffer) = (String::new(), false, [0; 4096]);
    loop {
        let count = screen.read(&mut buffer).unwrap();
        if count == 0 {
            return Some((child.wait().unwrap().code(), shown));
        }
        shown.push_str(&String::from_utf8_lossy(&buffer[..count]));
        if !is_answered && shown.contains("[y/N]") {
            is_answered = true;
            keyboard.write_all(typed.as_bytes()).unwrap();
        }
    }
}

#[test]
fn prune_asks_at_a_terminal_and_takes_no_for_an_answer() {
    alone(|| {
        let place = Place::new();
        let link = furnish(&place);
        let hive = Daemon::start(&place, "hive serve", &[]);
        let part = link.canonicalize().unwrap().with_file_name("aa.rbee-part");
        std::fs::write(&part, [7; 2048]).unwrap();
        let words = format!("model prune --hive {}", hive.url());
        for no in ["\n", "n\n", "what?\n"] {
            let Some((code, shown)) = on_a_terminal(&place, &words, no) else { return };
            assert_eq!(code, Some(0), "{shown}");
            assert!(shown.contains("Remove these and free 2 KiB? [y/N]") && part.exists(), "{shown}");
        }
        let (code, shown) = on_a_terminal(&place, &words, "\u{3}").unwrap();
        assert!(code == Some(130) && part.exists(), "Ctrl-C: {code:?} {shown}");
        let (code, shown) = on_a_terminal(&place, &words, "y\n").unwrap();
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("2 KiB freed") && !part.exists(), "{shown}");
    });
}

#[test]
fn wrong_bytes_are_refused_by_spawn_told_by_verify_and_not_offered() {
    alone(|| {
        let place = Place::new();
        let link = furnish(&place);
        let serve = Daemon::start(&place, "serve", &[]);
        let table = answers(&place, &serve, &["model", "verify"]);
        assert!(table.contains("m-Q4_K_M.gguf") && table.contains("ok"), "{table}");
        flip(&link);
        let failure = serve.post(CHAT, &chat("org/repo", 2, false)).failure();
        assert_eq!(failure.code, Code::ChecksumMismatch);
        assert!(failure.message.contains(&format!("rbee model download {ID}")), "{failure}");
        until("it is not offered any more", || {
            let listed = listed(&serve);
            if listed.is_empty() { Ok(()) } else { Err(format!("{listed:?}")) }
        });
        assert!(serve.workers().is_empty());
        let (_, warned) = said(&ask(&place, &serve, &["model", "list"]));
        assert!(warned.contains("is damaged"), "{warned}");
        assert!(answers(&place, &serve, &["model", "get", "org/repo"]).contains("mends it"));

        let table = refuses(&place, &serve, &["model", "verify", "org/repo"], "CHECKSUM_MISMATCH");
        assert!(table.contains("differs"), "{table}");
        let json = refuses(&place, &serve, &["model", "verify", "--json"], "`m-Q4_K_M.gguf` differs");
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["models"][0]["id"], &json["models"][0]["ok"]), (&json!(ID), &json!(false)));
        refuses(&place, &serve, &["model", "verify", "org/none"], "has no model");

        flip(&link);
        answers(&place, &serve, &["model", "verify"]);
        assert_eq!(serve.post(CHAT, &chat(ID, 2, false)).status, 200);
    });
}

#[test]
fn prune_shows_and_removes_only_when_told() {
    alone(|| {
        let place = Place::new();
        let link = furnish(&place);
        let serve = Daemon::start(&place, "serve", &[]);
        assert_eq!(answers(&place, &serve, &["model", "prune"]), "nothing was left behind\n");
        let blobs = link.canonicalize().unwrap().parent().unwrap().to_owned();
        let part = blobs.join("aa.rbee-part");
        std::fs::write(&part, [7; 2048]).unwrap();
        let shown = answers(&place, &serve, &["model", "prune"]);
        assert!(shown.contains("2 KiB") && shown.contains("--yes") && part.exists(), "{shown}");
        let looked = value(&place, &serve, &["model", "prune"]);
        assert_eq!((&looked["applied"], &looked["bytes"]), (&json!(false), &json!(2048)));
        assert!(part.exists());
        let done = answers(&place, &serve, &["model", "prune", "--yes"]);
        assert!(done.contains("1 removed, 2 KiB freed") && !part.exists() && link.exists(), "{done}");
    });
}

#[test]
fn a_kill_between_writes_leaves_a_store_that_reads() {
    alone(|| {
        let place = Place::new();
        furnish(&place);
        repeat("the hive that writes records", || {
            let hive = Daemon::start(&place, "hive serve", &[]);
            let mine = hive.register(&place, None);
            let (is_over, written) = (AtomicBool::new(false), AtomicU32::new(0));
            let address = hive.address.clone();
            let begun = std::thread::scope(|scope| {
                let write = || {
                    let mut count = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        let operation = json!({"operation": "model_alias_set", "name": format!("n{}", count % 50), "model": ID});
                        count += u32::from(post(&address, &operation));
                        // A model's record, written whole each time.
                        count += u32::from(post(&address, &json!({"operation": "model_verify"})));
                        written.store(count, Ordering::Relaxed);
                    }
                };
                scope.spawn(write);
                until("it writes", || match written.load(Ordering::Relaxed) {
                    20.. => Ok(()),
                    few => Err(format!("{few} operations")),
                });
                let begun = Instant::now();
                hive.kill9();
                is_over.store(true, Ordering::Relaxed);
                begun
            });
            let hive = Daemon::start(&place, "hive serve", &[]);
            let took = begun.elapsed();
            let models =
                hive.job(&json!({"operation": "model_list"})).done()["models"].as_array().unwrap().clone();
            let ids: Vec<&str> = models.iter().map(|model| model["id"].as_str().unwrap()).collect();
            assert_eq!(ids, [mine.as_str(), ID]);
            let aliases = hive.job(&json!({"operation": "model_alias_list"})).done()["aliases"].clone();
            assert!(aliases.as_array().unwrap().iter().all(|alias| alias["id"] == ID), "{aliases}");
            assert!(!hive.log().contains("damaged") && !hive.log().contains("do not read"), "{}", hive.log());
            let left = std::fs::read_dir(place.state().join("models")).unwrap().flatten();
            let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
            assert!(left.iter().all(|name| name.ends_with(".json")), "{left:?}");
            drop(hive);
            took
        });
    });
}

/// Posts a job without a word if nobody is there any more.
fn post(address: &str, operation: &Value) -> bool {
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return false };
    let body = operation.to_string();
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let mut answer = String::new();
    let sent = stream.write_all((head + &body).as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    sent.is_ok() && answer.starts_with("HTTP/1.1 200")
}
