//! A worker's life beyond its first: crashes and restarts, pins, drains, and a hive that hands its workers to the next.

use crate::support::fleet::{self, CHAT, fleet, pid_of, served};
use crate::support::node::{
    Answer, Daemon, ENDLESS, PATIENCE, Place, alone, chat, is_alive, roomy, said, signal_pid, until,
};
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};

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

/// Waits until a worker is ready again with another process than before.
#[track_caller]
fn again(daemon: &Daemon, id: &Value, before: i32) -> Value {
    daemon.the_worker("the worker is up again", |now| {
        now["worker_id"] == *id && now["state"] == "ready" && now["pid"] != before
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
        assert_eq!(place.spawns(), 1, "one worker, one log, over all its lives");
    });
}

#[test]
fn a_worker_that_stands_still_is_ended_and_its_requests_are_told_or_moved() {
    alone(|| {
        let place = Place::with_model(&roomy());
        // Long enough for a busy machine, short enough for a test.
        let daemon = Daemon::start(&place, "serve", &["--worker-silence", "4s"]);
        let model = daemon.register(&place, None);
        let first = spawn(&daemon, &model, json!({"ctx": 120_000}));
        let mut stream = daemon.stream(CHAT, &chat(&model, ENDLESS, true));
        assert!(stream.next().unwrap().is_some());
        signal_pid(pid_of(&first), Signal::STOP);
        let mut told = Vec::new();
        while let Ok(Some(event)) = stream.next() {
            told.push(event.data);
        }
        let last = told.last().unwrap();
        assert!(last.contains("WORKER_LOST") && !told.iter().any(|data| data == "[DONE]"), "{last}");
        until("its process is gone", || match is_alive(pid_of(&first)) {
            false => Ok(()),
            true => Err("it stands".into()),
        });
        is_gone(&daemon, &first["worker_id"]);

        // Before the first token nobody sees more of it than time.
        let second = spawn(&daemon, &model, json!({}));
        signal_pid(pid_of(&second), Signal::STOP);
        let answer = daemon.post(CHAT, &chat(&model, 3, false));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(daemon.workers().iter().all(|worker| worker["worker_id"] != second["worker_id"]));
        let ends = daemon.get(&format!("/v1/workers/{}", second["worker_id"].as_str().unwrap())).failure();
        assert!(ends.message.contains("stood still"), "{ends}");
    });
}

#[test]
fn an_adopted_worker_that_stands_still_is_ended() {
    alone(|| {
        let place = Place::new();
        let hive = Daemon::start(&place, "hive serve", &[]);
        let model = hive.register(&place, None);
        let worker = spawn(&hive, &model, json!({}));
        hive.kill9();
        signal_pid(pid_of(&worker), Signal::STOP);
        let hive = Daemon::start(&place, "hive serve", &["--worker-silence", "1s"]);
        let failure = is_gone(&hive, &worker["worker_id"]).failure();
        assert!(failure.message.contains("no progress"), "{failure}");
        assert!(!is_alive(pid_of(&worker)));
        assert!(hive.terminate().success());
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
    hive.the_worker("the crash is noticed", |now| now["state"] == "starting" && now["pid"].is_null());
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
fn a_spawn_that_waits_for_a_restart_and_is_cancelled_leaves_the_worker_to_be_restarted() {
    alone(|| {
        let place = Place::new();
        let (hive, id) = in_the_pause(&place);
        let spawn =
            json!({"operation": "worker_spawn", "model": hive.workers()[0]["model"], "slots": 2, "ctx": 512});
        let job = hive.begin(&spawn);
        hive.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
        assert_eq!(hive.follow(&job).terminator, Terminator::Cancelled);
        assert_eq!((&hive.workers()[0]["worker_id"], &hive.workers()[0]["state"]), (&id, &json!("starting")));
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
        assert_eq!(place.spawns(), 1);
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

#[test]
fn a_hive_that_was_told_no_idle_ttl_goes_by_its_queens_even_when_she_is_away() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &["--idle-ttl", "300ms"]);
        let hive = fleet::hive(&place, &queen, &[]);
        let model = hive.register(&place, None);
        let idles_out = || {
            let worker = spawn(&hive, &model, json!({}));
            let told = is_gone(&hive, &worker["worker_id"]).failure();
            assert!(told.message.contains("idle"), "{told}");
        };
        idles_out();
        queen.kill9();
        idles_out();
    });
}

#[track_caller]
fn has_state(queen: &Daemon, state: &str) {
    until("the hive's state is told", || match queen.get("/v1/hives/one").json() {
        hive if hive["state"] == state => Ok(()),
        hive => Err(hive.to_string()),
    });
}

#[test]
fn how_a_worker_ended_is_told_through_the_queen_and_by_the_command_line() {
    alone(|| {
        let place = Place::new();
        let (queen, _hive) = fleet(&place, SOON);
        let model = queen.register(&place, None);
        let worker = spawn(&queen, &model, json!({"pin": true}));
        let id = worker["worker_id"].as_str().unwrap();
        signal_pid(pid_of(&worker), Signal::KILL);
        again(&queen, &worker["worker_id"], pid_of(&worker));
        let shown = place.rbee(&["workers", "get", id, "--queen", &queen.url()]);
        let (answer, _) = said(&shown);
        assert!(answer.contains("was restarted") && answer.contains("signal 9"), "{shown:?}");

        queen.job(&json!({"operation": "worker_stop", "worker_id": id})).done();
        let failure = is_gone(&queen, &worker["worker_id"]).failure();
        assert!(failure.message.contains("was stopped"), "{failure}");
        let shown = place.rbee(&["workers", "get", id, "--queen", &queen.url()]);
        let (_, narrated) = said(&shown);
        assert!(shown.status.code() == Some(1) && narrated.contains("was stopped"), "{shown:?}");
    });
}

#[test]
fn a_request_for_a_pinned_worker_that_is_being_restarted_waits_for_it_and_starts_no_other() {
    alone(|| {
        let place = Place::new();
        let (queen, _hive) = fleet(&place, &["--restart-pause", "2s"]);
        let model = queen.register(&place, None);
        let worker = spawn(&queen, &model, json!({"pin": true}));
        signal_pid(pid_of(&worker), Signal::KILL);
        queen.the_worker("the queen knows that it is being restarted", |now| now["state"] == "starting");
        queen.answers(&model);
        assert_eq!(queen.workers()[0]["worker_id"], worker["worker_id"]);
        assert_eq!((queen.workers().len(), place.spawns()), (1, 1));
    });
}

#[test]
fn a_drain_finishes_what_runs_takes_nothing_new_and_ends_when_the_workers_have_stopped() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (queen, _hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        queen.spawn_roomy(&model);
        let mut stream = queen.lasting(&model);
        std::thread::scope(|scope| {
            let drain = scope.spawn(|| place.rbee(&["hive", "drain", "one", "--queen", &queen.url()]));
            has_state(&queen, "draining");
            let refused = queen.post(CHAT, &chat(&model, 1, false));
            assert_eq!((refused.status, refused.failure().code), (503, Code::ShuttingDown));
            let refused = queen.job(&json!({"operation": "worker_spawn", "model": model, "ctx": 256}));
            assert_eq!(refused.find("error").unwrap()["code"], "SHUTTING_DOWN", "{refused:?}");
            stream.is_finished();
            let drained = drain.join().unwrap();
            assert!(drained.status.success(), "{drained:?}");
        });
        assert_eq!(queen.workers(), [] as [Value; 0]);
        assert_eq!(place.processes_of("worker serve"), [] as [i32; 0]);
        has_state(&queen, "draining");

        let undone = place.rbee(&["hive", "drain", "one", "--undo", "--queen", &queen.url()]);
        assert!(undone.status.success(), "{undone:?}");
        has_state(&queen, "online");
        queen.answers(&model);
    });
}

#[test]
fn a_drain_that_is_cancelled_is_undone_and_what_ran_runs_on() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (queen, _hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        let worker = queen.spawn_roomy(&model);
        let mut stream = queen.endless(&model);
        let drain = json!({"operation": "hive_drain", "name": "one"});
        let id = queen.begin(&drain);
        has_state(&queen, "draining");
        let cancelled = queen.post(&format!("/v1/jobs/{id}/cancel"), &json!({}));
        assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &json!("cancelled")));
        assert_eq!(queen.follow(&id).terminator, Terminator::Cancelled);
        has_state(&queen, "online");
        stream.take(5);
        assert_eq!(queen.workers()[0]["pid"], worker["pid"]);
        let unknown = queen.job(&json!({"operation": "hive_drain", "name": "nobody"}));
        assert_eq!(unknown.find("error").unwrap()["code"], "HIVE_NOT_FOUND", "{unknown:?}");
    });
}

#[test]
fn a_handover_finishes_the_stream_and_leaves_the_worker_to_the_next_hive_with_its_model_loaded() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (queen, mut hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        let worker = queen.spawn_roomy(&model);
        let mut stream = queen.lasting(&model);
        let answer = hive.post("/v1/handover", &json!({}));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["workers"], json!([worker["worker_id"]]));
        stream.is_finished();
        assert!(hive.ended().success());
        assert!(is_alive(pid_of(&worker)));

        let next = fleet::hive(&place, &queen, &[]);
        let adopted = again(&queen, &worker["worker_id"], 0);
        assert_eq!(adopted["pid"], worker["pid"]);
        queen.answers(&model);
        assert_eq!(place.spawns(), 1, "the model was loaded again");
        assert!(next.terminate().success());
        assert!(!is_alive(pid_of(&worker)));
    });
}

#[test]
fn a_handover_in_the_pause_before_a_restart_leaves_the_worker_to_the_next_hive_too() {
    alone(|| {
        let place = Place::new();
        let (mut hive, id) = in_the_pause(&place);
        let answer = hive.post("/v1/handover", &json!({}));
        assert_eq!(answer.json()["workers"], json!([id]));
        assert!(hive.ended().success());
        let next = Daemon::start(&place, "hive serve", NEVER);
        let adopted = again(&next, &id, 0);
        assert_eq!((&adopted["pinned"], place.spawns()), (&json!(true), 1));
        assert!(next.terminate().success());
    });
}

#[test]
fn a_handover_may_be_asked_for_through_the_queen_and_without_a_next_hive_the_worker_ends() {
    alone(|| {
        let place = Place::new();
        let (queen, mut hive) = fleet(&place, &["--orphan-ttl", "1s"]);
        let model = queen.register(&place, None);
        let worker = spawn(&queen, &model, json!({}));
        let answer = queen.post("/v1/hives/one/v1/handover", &json!({}));
        assert_eq!(answer.json()["status"], "handing_over", "{answer:?}");
        assert!(hive.ended().success());
        assert!(queen.terminate().success());
        place.is_deserted_within(PATIENCE);
        assert!(!is_alive(pid_of(&worker)));
    });
}

#[test]
fn a_queen_and_hive_of_one_process_hand_over_to_the_next() {
    alone(|| {
        let place = Place::new();
        let (mut daemon, model) = served(&place, &["--name", "one"]);
        let worker = spawn(&daemon, &model, json!({"pin": true}));
        let answer = daemon.post("/v1/hives/one/v1/handover", &json!({}));
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(daemon.ended().success());
        let next = Daemon::start(&place, "serve", &["--name", "one"]);
        let adopted = again(&next, &worker["worker_id"], 0);
        assert_eq!((&adopted["pid"], &adopted["pinned"]), (&worker["pid"], &json!(true)));
        assert!(next.terminate().success());
    });
}
