//! A worker's life beyond its first: crashes and restarts, pins, drains, and a hive that hands its workers to the next.

use crate::support::node::{Answer, Daemon, Place, alone, chat, is_alive, roomy, signal_pid, until};
use rbee::wire::Code;
use rustix::process::Signal;
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";
/// Short, so that a test need not wait for seconds.
const SOON: &[&str] = &["--restart-pause", "10ms"];
/// So long that what happens meanwhile happens in the pause.
const NEVER: &[&str] = &["--restart-pause", "1h"];
/// B46.
const RESTARTS_MAX: usize = 3;

fn spawn(daemon: &Daemon, model: &str, more: Value) -> Value {
    let mut operation = json!({"operation": "worker_spawn", "model": model, "slots": 2, "ctx": 512});
    operation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    daemon.job(&operation).done().clone()
}

fn pid_of(worker: &Value) -> i32 {
    worker["pid"].as_i64().unwrap_or_else(|| panic!("no pid: {worker}")) as i32
}

/// Waits until a worker is ready again with another process than before.
#[track_caller]
fn again(daemon: &Daemon, id: &Value, before: i32) -> Value {
    until("the worker is up again", || match daemon.workers() {
        workers
            if workers.len() == 1
                && workers[0]["worker_id"] == *id
                && workers[0]["state"] == "ready"
                && workers[0]["pid"] != before =>
        {
            Ok(workers[0].clone())
        }
        workers => Err(format!("{workers:?}")),
    })
}

#[track_caller]
fn is_gone(daemon: &Daemon, id: &Value) -> Answer {
    let path = format!("/v1/workers/{}", id.as_str().unwrap());
    until("the worker is gone", || match daemon.get(&path) {
        answer if answer.status == 404 => Ok(answer),
        answer => Err(format!("{answer:?}")),
    })
}

fn worker_logs(place: &Place) -> usize {
    let logs = std::fs::read_dir(place.state().join("logs")).unwrap().flatten();
    logs.filter(|log| log.file_name().to_string_lossy().starts_with("worker-")).count()
}

#[test]
fn a_pinned_worker_that_crashes_is_restarted_three_times_as_what_it_was_and_then_forgotten() {
    alone(|| {
        let place = Place::new();
        let hive = Daemon::start(&place, "hive serve", SOON);
        let model = hive.register(&place, None);
        let mut worker = spawn(&hive, &model, json!({"pin": true}));
        let id = worker["worker_id"].clone();
        for restart in 1..=RESTARTS_MAX {
            let pid = pid_of(&worker);
            signal_pid(pid, Signal::KILL);
            let now = again(&hive, &id, pid);
            for kept in ["model", "worker", "device", "slots_total", "ctx", "pinned"] {
                assert_eq!(now[kept], worker[kept], "{kept}");
            }
            let told = hive.get(&format!("/v1/workers/{}", id.as_str().unwrap())).json();
            assert_eq!(told["ends"][0]["restart"], restart, "{told}");
            worker = now;
        }
        let answered =
            hive.post(&format!("/v1/workers/{}{CHAT}", id.as_str().unwrap()), &chat(&model, 3, false));
        assert_eq!(answered.status, 200, "{answered:?}");

        signal_pid(pid_of(&worker), Signal::KILL);
        let failure = is_gone(&hive, &id).failure();
        assert_eq!(failure.code, Code::WorkerNotFound);
        assert!(failure.message.contains("signal 9"), "{failure}");
        let ends = failure.details["ends"].as_array().unwrap();
        assert_eq!(ends.len(), RESTARTS_MAX + 1, "{ends:?}");
        assert_eq!((&ends[0]["crashed"], &ends[0]["restart"]), (&json!(true), &Value::Null));
        assert!(!ends[0]["log"].as_array().unwrap().is_empty(), "the log's tail: {ends:?}");
        assert_eq!(worker_logs(&place), 1, "one worker, one log, over all its lives");
    });
}

#[test]
fn an_unpinned_worker_that_crashes_is_forgotten_and_the_next_spawn_tells_of_it() {
    alone(|| {
        let place = Place::new();
        let hive = Daemon::start(&place, "hive serve", SOON);
        let model = hive.register(&place, None);
        let worker = spawn(&hive, &model, json!({}));
        signal_pid(pid_of(&worker), Signal::KILL);
        is_gone(&hive, &worker["worker_id"]);
        let job = hive.job(&json!({"operation": "worker_spawn", "model": model}));
        assert_ne!(job.done()["worker_id"], worker["worker_id"]);
        let is_told = |(name, data): &(String, Value)| name == "narration" && data["action"] == "crash";
        let told = job.events.iter().find(|event| is_told(event)).unwrap_or_else(|| panic!("{job:?}"));
        assert!(told.1["message"].as_str().unwrap().contains("signal 9"), "{told:?}");
    });
}

/// A pinned worker in the pause before its first restart.
fn in_the_pause(place: &Place) -> (Daemon, Value) {
    let hive = Daemon::start(place, "hive serve", NEVER);
    let model = hive.register(place, None);
    let worker = spawn(&hive, &model, json!({"pin": true}));
    signal_pid(pid_of(&worker), Signal::KILL);
    until("the crash is noticed", || match hive.workers() {
        workers if workers.len() == 1 && workers[0]["state"] == "starting" && workers[0]["pid"].is_null() => {
            Ok(())
        }
        workers => Err(format!("{workers:?}")),
    });
    (hive, worker["worker_id"].clone())
}

#[test]
fn a_stop_in_the_pause_before_a_restart_ends_the_worker_for_good() {
    alone(|| {
        let place = Place::new();
        let (hive, id) = in_the_pause(&place);
        hive.job(&json!({"operation": "worker_stop", "worker_id": id})).done();
        is_gone(&hive, &id);
        assert!(hive.terminate().success());
    });
}

#[test]
fn a_hive_that_ends_in_the_pause_before_a_restart_starts_nothing_more() {
    alone(|| {
        let place = Place::new();
        let (hive, _) = in_the_pause(&place);
        assert!(hive.terminate().success());
        assert_eq!(place.processes(), []);
        assert_eq!(worker_logs(&place), 1);
    });
}

#[test]
fn a_spawn_that_pins_a_running_worker_is_remembered_by_the_next_hive_which_restarts_it_and_never_lets_it_idle_out()
 {
    alone(|| {
        let place = Place::new();
        let hive = Daemon::start(&place, "hive serve", &[]);
        let model = hive.register(&place, None);
        let worker = spawn(&hive, &model, json!({}));
        assert_eq!(worker["pinned"], false);
        let pinned = spawn(&hive, &model, json!({"pin": true}));
        assert_eq!((&pinned["worker_id"], &pinned["pinned"]), (&worker["worker_id"], &json!(true)));
        hive.kill9();

        let hive = Daemon::start(&place, "hive serve", &["--idle-ttl", "1ms", SOON[0], SOON[1]]);
        let adopted = again(&hive, &worker["worker_id"], 0);
        assert_eq!((&adopted["pid"], &adopted["pinned"]), (&worker["pid"], &json!(true)));
        // Another, unpinned, is stopped for being idle, so the limit is at work.
        let other = spawn(&hive, &model, json!({"ctx": 256}));
        let told = is_gone(&hive, &other["worker_id"]).failure();
        assert!(told.message.contains("idle"), "{told}");
        assert!(is_alive(pid_of(&worker)));

        signal_pid(pid_of(&worker), Signal::KILL);
        let restarted = again(&hive, &worker["worker_id"], pid_of(&worker));
        assert_eq!(restarted["pinned"], true);
        assert!(hive.terminate().success());
    });
}
