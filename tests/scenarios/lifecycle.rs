//! B46 and B50 to B55: how daemons and workers start, crash, end, follow each other, and keep strangers out.

use super::Person;
use crate::scripted;
use crate::support::fleet::{CHAT, fleet, hive, pid_of};
use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Repo, TestHub};
use crate::support::node::{
    Daemon, ENDLESS, PATIENCE, Place, alone, chat, is_alive, parent_of, roomy, signal_pid, until, write,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn b46_a_worker_that_crashes_is_told_with_its_last_words_and_only_a_pinned_one_comes_back() {
    const RESTARTS_MAX: usize = 3;
    alone(|| {
        let place = Place::new();
        let (queen, _hive) = fleet(&place, &["--restart-pause", "10ms"]);
        let person = Person::at(&place, &queen);
        let model = queen.register(&place, None);
        let spawn = ["worker", "spawn", "--model", &model, "--json"];
        let idle = person.does(&spawn).json();
        signal_pid(pid_of(&idle), Signal::KILL);
        queen.has_no_worker();
        let id = idle["worker_id"].as_str().unwrap();
        person.fails(&["workers", "get", id], "WORKER_NOT_FOUND").tells(&["signal 9"]);
        assert_ne!(person.does(&["workers", "logs", id]).out, "", "its log is there");

        let mut worker = person.does(&[&spawn[..], &["--pin"]].concat()).json();
        assert_ne!(worker["worker_id"], idle["worker_id"]);
        let id = worker["worker_id"].as_str().unwrap().to_owned();
        for _ in 0..RESTARTS_MAX {
            let pid = pid_of(&worker);
            signal_pid(pid, Signal::KILL);
            worker = queen.the_worker("it is up again", |now| {
                now["worker_id"] == *id && now["state"] == "ready" && now["pid"] != pid
            });
        }
        let shown = person.does(&["workers", "get", &id]).out;
        assert!(shown.contains("was restarted") && shown.contains("signal 9"), "{shown}");
        signal_pid(pid_of(&worker), Signal::KILL);
        queen.has_no_worker();
        person.fails(&["workers", "get", &id], "WORKER_NOT_FOUND").tells(&["signal 9"]);
    });
}

#[test]
fn b50_a_daemon_that_is_asked_to_end_finishes_what_runs_and_a_hive_that_hands_over_leaves_its_workers() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (queen, mut first) = fleet(&place, &[]);
        let person = Person::at(&place, &queen);
        let model = queen.register(&place, None);
        let worker = queen.spawn_roomy(&model);
        let mut stream = queen.lasting(&model);
        assert_eq!(first.post("/v1/handover", &json!({})).status, 200);
        stream.is_finished();
        assert!(first.ended().success());
        let _second = hive(&place, &queen, &[]);
        let adopted = queen.the_worker("the next hive has it", |now| now["state"] == "ready");
        assert_eq!((&adopted["pid"], place.spawns()), (&worker["pid"], 1), "its model is still loaded");

        // A full stop, by command: what runs is finished, nothing new is let in, nothing is left.
        let mut stream = queen.lasting(&model);
        let stopping = person.begins(&["hive", "stop"]);
        until("nothing new is taken", || match queen.post(CHAT, &chat(&model, 1, false)).status {
            200 => Err("it is answered".into()),
            _ => Ok(()),
        });
        let ended = stream.rest();
        assert!(ended.is_clean(), "{:?} after {} events", ended.broken, ended.events.len());
        let told = stopping.ends();
        assert_eq!(told.code, Some(0), "{told:?}");
        assert!(!is_alive(pid_of(&worker)));
        assert!(queen.terminate().success());
        assert_eq!(place.processes(), []);
    });
}

#[test]
fn b50_what_outlasts_the_drain_is_told_and_a_worker_that_will_not_end_is_killed_after_its_grace() {
    const DRAIN: Duration = Duration::from_secs(1);
    const GRACE: Duration = Duration::from_secs(5);
    alone(|| {
        let place = Place::with_model(&roomy());
        // One that hears no TERM, and one of ours.
        let deaf = "trap '' TERM";
        let (shop, mut daemon, model) = scripted::served(&place, deaf, &["--drain-max", "1s"]);
        let spawn = json!({"operation": "worker_spawn", "model": model, "worker": scripted::ID, "slots": 1});
        let stubborn = daemon.job(&spawn).done().clone();
        let ours = daemon.spawn_roomy(&model);
        let path = |worker: &Value| {
            format!("/v1/hives/here/v1/workers/{}{CHAT}", worker["worker_id"].as_str().unwrap())
        };
        let hangs = json!({"model": model, "messages": [], "max_tokens": 3, "stream": true, "hangs": true});
        let mut streams = [(&stubborn, hangs), (&ours, chat(&model, ENDLESS, true))].map(|(worker, body)| {
            let mut stream = daemon.stream(&path(worker), &body);
            stream.take(3);
            stream
        });
        let begun = Instant::now();
        daemon.signal(Signal::TERM);
        for stream in &mut streams {
            stream.rest().is_told();
        }
        assert!(begun.elapsed() >= DRAIN, "what ran was cut short after {:?}", begun.elapsed());
        assert!(daemon.ended().success());
        assert!(begun.elapsed() >= DRAIN + GRACE, "killed after {:?}", begun.elapsed());
        assert!(![&stubborn, &ours].into_iter().any(|worker| is_alive(pid_of(worker))));
        let log = daemon.log();
        assert!(log.contains("still busy after the drain"), "{log}");
        drop(shop);
        assert_eq!(place.processes(), []);
    });
}

#[test]
fn b51_a_killed_hives_worker_is_taken_over_with_its_model_loaded_or_ends_by_itself() {
    alone(|| {
        let place = Place::new();
        let (queen, first) = fleet(&place, &["--orphan-ttl", "30s"]);
        let model = queen.register(&place, None);
        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        let worker = queen.workers()[0].clone();
        first.kill9();
        queen.has_no_worker();
        let second = hive(&place, &queen, &["--orphan-ttl", "1s"]);
        let adopted = queen.the_worker("it is taken over", |now| now["state"] == "ready");
        for same in ["worker_id", "pid", "model"] {
            assert_eq!(adopted[same], worker[same], "{same}");
        }
        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        assert_eq!(place.spawns(), 1);
        second.job(&json!({"operation": "worker_stop", "worker_id": worker["worker_id"]})).done();

        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        let orphan = pid_of(&queen.workers()[0]);
        let shim = parent_of(orphan);
        second.kill9();
        until("nobody came, and nothing is left", || match [orphan, shim].map(is_alive) {
            [false, false] => Ok(()),
            left => Err(format!("{left:?}")),
        });
    });
}

#[test]
fn b52_a_killed_queens_hives_come_back_to_the_next_with_all_they_have_and_nothing_else_is_lost() {
    alone(|| {
        let file = Content::padded(tiny(&Tiny::default()), 8 << 20, 52);
        let plan = TestHub::of([Repo::new("bees/Late").with("l-Q4_K_M.gguf", &file)]);
        let hub = plan.bytes_per_second(4 << 20).send_buffer(64 << 10).open();
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let (url, address) = (queen.url(), queen.address.clone());
        let args = ["--name", "one", "--queen", &url];
        let hive =
            Daemon::try_start(&place, "hive serve", &args, &[("HF_ENDPOINT", &hub.endpoint())]).unwrap();
        queen.has_hives(1);
        let model = queen.register(&place, None);
        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        let worker = queen.workers()[0].clone();
        let download = json!({"operation": "model_download", "model": "bees/Late"});
        let job = queen.begin(&download);
        hub.has_sent(1 << 20);
        queen.kill9();

        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        let again = queen.the_worker("she knows it all again", |now| now["state"] == "ready");
        assert_eq!((&again["worker_id"], &again["pid"]), (&worker["worker_id"], &worker["pid"]));
        assert_eq!(queen.post(CHAT, &chat(&model, 3, false)).status, 200);
        // What the hive was at, it went on with.
        let done = hive.follow(&job);
        assert_eq!(done.done()["size_bytes"], file.size());
        assert_eq!((hub.bytes_sent(), place.spawns()), (file.size(), 1));
        until("she hears of the model", || match queen.get("/v1/hives/one").json() {
            hive if hive["models"].to_string().contains("bees/Late") => Ok(()),
            hive => Err(hive.to_string()),
        });
    });
}

#[test]
fn b53_a_command_ends_when_it_is_done_and_the_daemons_it_started_live_on() {
    alone(|| {
        let place = Place::new();
        let person = Person::on_a_fresh_account(&place);
        let model = place.model();
        let told = person.does(&["run", "-m", &model, "--max-tokens", "3", "hello"]);
        told.tells(&["starting rbee serve"]);
        let roles: Vec<String> = place.processes().into_iter().map(|(_, line)| line).collect();
        assert!(!roles.iter().any(|line| line.contains(" run ")), "{roles:?}");
        assert_eq!(place.processes_of("worker serve").len(), 1, "{roles:?}");
        let status = person.does(&["status"]).out;
        assert!(status.contains("tiny.gguf"), "{status}");
        person.does(&["queen", "stop"]);
        place.is_deserted_within(PATIENCE);
        assert_eq!(person.types(&["status"]).code, Some(1));
    });
}

#[test]
fn b54_what_keeps_a_daemon_from_starting_is_said_by_name() {
    alone(|| {
        let (place, other) = (Place::new(), Place::new());
        let queen = Daemon::start(&place, "queen serve", &[]);
        let pid = format!("pid {}", queen.pid());
        let person = Person::at(&other, &queen);
        let told = person.types(&["hive", "serve", "--listen", &queen.address]);
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&["in use", &pid, "--listen"]);
        let told = Person::at(&place, &queen).types(&["queen", "serve", "--listen", "127.0.0.1:0"]);
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&[&pid, "--state-dir"]);

        let config = other.path("home/.config/rbee/config.toml");
        write(&config, "verbose = true\n[queen]\nqueue_wait = 30\n", 0o600);
        let told = person.types(&["queen", "serve"]);
        assert_eq!(told.code, Some(2), "{told:?}");
        told.tells(&[&format!("{}:3: `queen.queue_wait` = `30`", config.display())]);
    });
}

#[test]
fn b55_only_who_has_a_key_is_let_in_and_no_page_or_alias_of_others_ever() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let refused = Daemon::try_start(&place, "serve", &["--listen", "0.0.0.0:0"], &[]);
        let refused = refused.err().expect("beyond loopback, without a key");
        assert_eq!(refused.exit.code(), Some(1));
        assert!(refused.said.contains("rbee key create"), "{refused}");

        let owner = Person::on_a_fresh_account(&place);
        let created = owner.does(&["key", "create", "--name", "laptop"]);
        let key = created.out.trim().to_owned();
        let daemon = Daemon::start(&place, "serve", &["--listen", "0.0.0.0:0"]);
        let port = daemon.address.rsplit_once(':').unwrap().1.to_owned();
        let host = format!("127.0.0.1:{port}");
        let url = format!("http://{host}");
        // Of this account, without a word about keys; from another, only with one.
        owner.does(&["workers", "list", "--queen", &url]);
        let elsewhere = Place::new();
        let stranger = Person { place: &elsewhere, queen: url.clone(), env: Vec::new() };
        stranger.fails(&["workers", "list"], "MISSING_API_KEY");
        stranger.fails(&["workers", "list", "--api-key", "rbee_wrong"], "INVALID_API_KEY");
        stranger.does(&["workers", "list", "--api-key", &key]);

        let bearer = format!("host: {host}\r\nauthorization: Bearer {key}");
        let get = |headers: &str| daemon.raw(&format!("GET /v1/info HTTP/1.1\r\n{headers}"));
        assert_eq!(get(&bearer), 200);
        assert_eq!(get(&format!("host: {host}\r\nauthorization: Bearer {key}x")), 401);
        assert_eq!(get(&format!("{bearer}\r\norigin: https://evil.example")), 403);
        assert_eq!(daemon.raw(&format!("POST /v1/jobs HTTP/1.1\r\n{bearer}\r\norigin: null")), 403);
        let log = daemon.log();
        assert!(!log.contains(&key) && !log.contains("rbee_wrong"), "{log}");
        owner.does(&["key", "revoke", "laptop"]);
        until("the key opens nothing any more", || {
            match daemon.raw(&format!("GET /v1/info HTTP/1.1\r\n{bearer}")) {
                401 => Ok(()),
                status => Err(status.to_string()),
            }
        });
        assert!(daemon.terminate().success());

        // On loopback, with no key at all, a name that is not ours is still refused.
        assert_eq!(owner.does(&["key", "list", "--json"]).json(), json!([]));
        let open = Daemon::start(&place, "serve", &[]);
        assert_eq!(open.raw("GET /v1/info HTTP/1.1\r\nhost: evil.example"), 403);
        assert_eq!(open.get("/v1/info").status, 200);
    });
}
