//! A fleet of real processes: queens, hives and workers that find each other over the link, lose each other and come back.

use crate::support::fleet::{CHAT, Full, Pair, fleet, hive, pid_of, served};
use crate::support::node::{
    Answer, Daemon, PATIENCE, Place, alone, chat, freeze, is_alive, said, signal_pid, until, within,
};
use rbee::http::client;
use rbee::http::link::{HIVE_HEADER, NODE_HEADER, PROTOCOL_HEADER, UPGRADE_TO, VERSION_HEADER};
use rbee::wire::job::Terminator;
use rbee::wire::{Code, VERSION};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// B52, and what a busy machine adds.
const RELINK_MAX: Duration = Duration::from_secs(5);
/// "At once": the link's close is what tells, no time-out.
const AT_ONCE: Duration = Duration::from_secs(1);
/// B6 for a network that falls silent, and what a busy machine adds.
const SILENCE_MAX: Duration = Duration::from_secs(6);

fn names(list: &[Value]) -> Vec<&str> {
    list.iter().map(|item| item["name"].as_str().unwrap()).collect()
}

/// Asks to be a link, as a hive of any name, node and protocol would.
pub fn dial(queen: &Daemon, hive: &str, node: &str, protocol: u32) -> Answer {
    let mut request = client::get("/v1/link").unwrap();
    let headers = [
        ("connection", "upgrade"),
        ("upgrade", UPGRADE_TO),
        (HIVE_HEADER, hive),
        (NODE_HEADER, node),
        (PROTOCOL_HEADER, &protocol.to_string()),
        (VERSION_HEADER, "9.9.9"),
    ];
    for (name, value) in headers {
        let name: http::HeaderName = name.parse().unwrap();
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    queen.request(request)
}

#[test]
fn a_request_to_the_queen_is_answered_by_a_linked_hives_worker_and_the_second_finds_it_warm() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        let first = queen.stream(CHAT, &chat(&model, 5, true)).rest();
        assert!(first.is_clean(), "{first:?}");
        let workers = queen.workers();
        assert_eq!(workers.len(), 1, "{workers:?}");
        let second = queen.post(CHAT, &chat(&model, 5, false));
        assert_eq!(second.json()["usage"]["completion_tokens"], 5, "{second:?}");
        assert_eq!(queen.workers()[0]["worker_id"], workers[0]["worker_id"]);
        assert_eq!(place.spawns(), 1);
        assert!(hive.terminate().success());
        assert!(queen.terminate().success());
    });
}

#[test]
fn simultaneous_requests_for_a_model_that_is_not_loaded_share_one_worker() {
    alone(|| {
        let place = Place::new();
        let (queen, _hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        std::thread::scope(|scope| {
            let ask = || {
                let ended = queen.stream(CHAT, &chat(&model, 5, true)).rest();
                assert!(ended.is_clean(), "{ended:?}");
            };
            (0..4).for_each(|_| drop(scope.spawn(ask)));
        });
        assert_eq!(place.spawns(), 1, "{:?}", queen.workers());
    });
}

#[test]
fn two_hives_make_a_fleet_and_a_name_chooses_between_them() {
    alone(|| {
        let pair = Pair::start();
        let Pair { queen, places, .. } = &pair;
        assert_eq!(names(&queen.has_hives(2)), ["one", "two"]);
        let model = queen.register(&places[0], Some("one"));
        assert_eq!(queen.register(&places[0], Some("two")), model);

        let url = queen.url();
        let run = |hive: &str| {
            let args =
                ["run", "--queen", &url, "--hive", hive, "-m", &model, "--max-tokens", "4", "-p", "Hello"];
            let output = places[0].rbee(&args);
            assert!(output.status.success(), "{output:?}");
        };
        run("two");
        let workers = queen.workers();
        assert_eq!(workers.iter().map(|worker| &worker["hive"]).collect::<Vec<_>>(), ["two"], "{workers:?}");
        run("one");
        assert_eq!(queen.workers().len(), 2);
        assert_eq!((places[0].spawns(), places[1].spawns()), (1, 1));

        let status = places[0].rbee(&["status", "--queen", &url]);
        let (shown, _) = said(&status);
        assert!(status.status.success() && shown.contains("one") && shown.contains("two"), "{status:?}");
        let listed = places[0].rbee(&["workers", "list", "--hive", "two", "--queen", &url, "--json"]);
        let (listed, _) = said(&listed);
        assert!(listed.contains("\"two\"") && !listed.contains("\"one\""), "{listed}");

        let unknown = queen.get("/v1/hives/three").failure();
        assert_eq!(unknown.code, Code::HiveNotFound);
        assert!(unknown.message.contains("one, two"), "{unknown}");
        let unknown = queen.post(CHAT, &chat("nobody/has-this", 1, false));
        assert_eq!((unknown.status, unknown.failure().code), (404, Code::ModelNotFound));
    });
}

#[test]
fn a_relayed_job_has_one_id_on_both_sides_and_without_a_hive_it_is_refused_with_the_list() {
    alone(|| {
        let pair = Pair::start();
        let job = pair.queen.job(&json!({"operation": "model_list", "hive_id": "two"}));
        assert_eq!(job.terminator, Terminator::Done);
        let here = pair.queen.get(&format!("/v1/jobs/{}", job.id)).json();
        let there = pair.two.get(&format!("/v1/jobs/{}", job.id)).json();
        assert_eq!((&here["state"], &there["state"]), (&json!("done"), &json!("done")));
        assert_eq!(here["result"], there["result"]);
        assert_eq!(pair.one.get(&format!("/v1/jobs/{}", job.id)).status, 404);

        let refused = pair.queen.post("/v1/jobs", &json!({"operation": "model_list"}));
        assert_eq!(refused.status, 400, "{refused:?}");
        assert!(refused.failure().message.contains("one, two"), "{refused:?}");
        let refused = pair.queen.post("/v1/jobs", &json!({"operation": "model_list", "hive_id": "three"}));
        assert_eq!((refused.status, refused.failure().code), (404, Code::HiveNotFound));
    });
}

#[test]
fn another_machine_cannot_take_a_name_and_the_same_machine_may_have_it_again() {
    alone(|| {
        let pair = Pair::start();
        let thief = Place::new();
        let hive = Daemon::start(&thief, "hive serve", &["--name", "one", "--queen", &pair.queen.url()]);
        until("the second `one` is refused", || {
            let log = hive.log();
            if log.contains("already called `one`") { Ok(()) } else { Err(log) }
        });
        let refused = dial(&pair.queen, "one", "another-node", rbee::wire::PROTOCOL);
        assert_eq!((refused.status, refused.failure().code), (409, Code::Conflict));
        assert_eq!(pair.queen.has_hives(2)[0]["listen"], pair.one.url());

        // Killed and started again, elsewhere even: its state says who it is.
        let Pair { places, queen, one, two: _two } = pair;
        one.kill9();
        let args = ["--name", "one", "--queen", &queen.url(), "--listen", "127.0.0.4:0"];
        let again = Daemon::start(&places[0], "hive serve", &args);
        within(RELINK_MAX, "the restarted hive has its name", || match queen.get("/v1/hives/one") {
            answer if answer.status == 200 && answer.json()["listen"] == again.url() => Ok(()),
            answer => Err(format!("{answer:?}")),
        });
    });
}

#[test]
fn a_hive_of_another_protocol_is_told_both_versions() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let refused = dial(&queen, "old", "node", 99);
        assert_eq!(refused.status, 426, "{refused:?}");
        let failure = refused.failure();
        assert_eq!(failure.code, Code::VersionMismatch);
        assert!(failure.message.contains("9.9.9") && failure.message.contains(VERSION), "{failure}");
        assert!(failure.message.contains("protocol 99"), "{failure}");
        assert!(failure.details["update"].as_str().unwrap().contains("rbee queen start"), "{failure:?}");
        let failure = dial(&queen, "old", "node", 0).failure();
        assert_eq!(failure.details["update"], "update the hive: `rbee hive update old`");
    });
}

#[test]
fn hives_find_a_restarted_queen_and_tell_her_all_they_have() {
    alone(|| {
        let pair = Pair::start();
        let model = pair.queen.register(&pair.places[1], Some("two"));
        pair.queen.answers(&model);
        let workers = pair.queen.workers();
        let Pair { places, queen, one: _one, two: _two } = pair;
        let address = queen.address.clone();
        queen.kill9();
        let queen = Daemon::start(&places[0], "queen serve", &["--listen", &address]);
        within(RELINK_MAX, "both hives are back with what they have", || {
            let hives = queen.get("/v1/hives").json();
            let list = hives["hives"].as_array().unwrap();
            let models = list.iter().find(|hive| hive["name"] == "two").map(|hive| &hive["models"]);
            let is_whole = list.len() == 2 && models == Some(&json!([model]));
            if is_whole && queen.workers().len() == 1 { Ok(()) } else { Err(hives.to_string()) }
        });
        assert_eq!(queen.workers()[0]["worker_id"], workers[0]["worker_id"]);
        queen.answers(&model);
        assert_eq!(places[1].spawns(), 1);
    });
}

#[test]
fn a_dead_hives_workers_leave_the_registry_at_once() {
    alone(|| {
        let pair = Pair::start();
        let model = pair.queen.register(&pair.places[1], Some("two"));
        pair.queen.answers(&model);
        // Places first: bindings are dropped in the reverse order.
        let Pair { places, queen, one: _one, two } = pair;
        let worker = pid_of(&queen.workers()[0]);
        two.kill9();
        within(AT_ONCE, "the hive and its worker have left", || {
            let (hives, workers) = (queen.get("/v1/hives").json(), queen.workers());
            let hives = hives["hives"].as_array().unwrap();
            if names(hives) == ["one"] && workers.is_empty() {
                Ok(())
            } else {
                Err(format!("{hives:?} {workers:?}"))
            }
        });
        // By a new hive it is adopted; that one then ends it in order, rather than this test waiting for the lease.
        let again = Daemon::start(&places[1], "hive serve", &["--name", "two", "--queen", &queen.url()]);
        until("the worker is back", || if queen.workers().len() == 1 { Ok(()) } else { Err(again.log()) });
        assert_eq!(queen.workers()[0]["pid"], worker);
        assert!(again.terminate().success());
        assert!(!is_alive(worker));
    });
}

#[test]
fn a_hive_that_falls_silent_leaves_in_time_and_is_whole_again_without_a_restart() {
    alone(|| {
        let pair = Pair::start();
        pair.two.signal(Signal::STOP);
        within(SILENCE_MAX, "the silent hive has left", || match pair.queen.get("/v1/hives").json() {
            hives if names(hives["hives"].as_array().unwrap()) == ["one"] => Ok(()),
            hives => Err(hives.to_string()),
        });
        pair.two.signal(Signal::CONT);
        within(RELINK_MAX, "it is back", || match pair.queen.get("/v1/hives").json() {
            hives if names(hives["hives"].as_array().unwrap()) == ["one", "two"] => Ok(()),
            hives => Err(hives.to_string()),
        });
    });
}

#[test]
fn a_worker_lost_before_its_first_token_is_replaced_and_the_client_sees_only_time() {
    alone(|| {
        let place = Place::new();
        let (daemon, model) = served(&place, &[]);
        daemon.answers(&model);
        let worker = pid_of(&daemon.workers()[0]);
        freeze(worker);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| daemon.answers(&model));
            // The request is at the stopped worker.
            daemon.has_busy_slots(1);
            signal_pid(worker, Signal::KILL);
            asking.join().unwrap();
        });
        assert_eq!(place.spawns(), 2);
    });
}

#[test]
fn requests_whose_worker_was_lost_are_served_by_the_next_one_though_nobody_else_may_wait() {
    alone(|| {
        let place = Place::new();
        let (daemon, model) = served(&place, &["--queue", "0"]);
        daemon.answers(&model);
        let worker = pid_of(&daemon.workers()[0]);
        freeze(worker);
        std::thread::scope(|scope| {
            let asking = [0, 1, 2].map(|_| scope.spawn(|| daemon.answers(&model)));
            daemon.has_busy_slots(3);
            signal_pid(worker, Signal::KILL);
            asking.into_iter().for_each(|asked| asked.join().unwrap());
        });
        assert_eq!(place.spawns(), 2);
    });
}

#[test]
fn a_request_whose_only_hive_is_lost_before_the_first_token_is_served_when_it_is_back() {
    alone(|| {
        let place = Place::new();
        let (queen, lost) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        queen.answers(&model);
        let worker = pid_of(&queen.workers()[0]);
        freeze(worker);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| queen.answers(&model));
            queen.has_busy_slots(1);
            lost.kill9();
            queen.has_hives(0);
            signal_pid(worker, Signal::KILL);
            let _back = hive(&place, &queen, &[]);
            asking.join().unwrap();
        });
    });
}

#[test]
fn a_request_whose_hive_dies_before_the_first_token_moves_to_another() {
    alone(|| {
        let pair = Pair::start();
        let model = pair.queen.register(&pair.places[0], Some("two"));
        pair.queen.answers(&model);
        assert_eq!(pair.queen.register(&pair.places[0], Some("one")), model);
        let Pair { places, queen, one: _one, two } = pair;
        let worker = queen.workers()[0].clone();
        assert_eq!(worker["hive"], "two");
        let pid = pid_of(&worker);
        freeze(pid);
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| queen.answers(&model));
            // The request is at the stopped worker.
            queen.has_busy_slots(1);
            two.kill9();
            asking.join().unwrap();
        });
        assert_eq!(queen.workers()[0]["hive"], "one");
        // Rather than wait for its lease's end.
        signal_pid(pid, Signal::KILL);
        places[1].is_deserted_within(PATIENCE);
    });
}

#[test]
fn when_all_slots_are_busy_a_request_waits_for_the_next_free_one() {
    alone(|| {
        let Full { place, daemon, model, answer, .. } = Full::start(&[]);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| daemon.answers(&model));
            daemon.has_queued(1);
            assert!(!second.is_finished());
            // The reader's leaving frees the slot.
            drop(answer);
            second.join().unwrap();
        });
        assert_eq!(place.spawns(), 1);
    });
}

#[test]
fn when_the_queue_is_full_a_request_is_refused_with_the_slots_and_when_to_come_again() {
    alone(|| {
        let full = Full::start(&["--queue", "0"]);
        let refused = full.daemon.post(CHAT, &chat(&full.model, 3, true));
        assert_eq!(refused.status, 503, "{refused:?}");
        assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        let failure = refused.failure();
        assert_eq!(failure.code, Code::AllSlotsBusy);
        assert_eq!((&failure.details["slots_total"], &failure.details["slots_busy"]), (&json!(1), &json!(1)));
    });
}
