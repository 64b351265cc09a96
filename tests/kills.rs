//! Each process of a working fleet is killed in the middle of an answer. Nothing may be left running, no client may take a
//! part of an answer for the whole, and what was not killed must go on.
//!
//! RBEE_KILLS says how often each.

use crate::support::fleet::{fleet, hive, pid_of, served};
use crate::support::node::{
    Daemon, ENDLESS, PROMPT, Place, Stream, alone, is_alive, parent_of, repeat, roomy, signal_pid, until,
    within,
};
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ORPHAN_TTL: &str = "1s";
/// When the last orphan must be gone: the lease's end, TERM, and what a busy machine adds.
const ORPHANS_GONE_MAX: Duration = Duration::from_secs(4);
/// For what ends by a signal of the kernel's.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Queen, hive and worker, in the middle of an answer.
struct Busy {
    stream: Stream,
    worker: i32,
    shim: i32,
    id: Value,
    model: String,
    queen: Daemon,
    hive: Daemon,
    // Dropped last: it fails if something of it still runs.
    place: Place,
}

impl Busy {
    fn start(orphan_ttl: &str) -> Busy {
        let place = Place::with_model(&roomy());
        let (queen, hive) = fleet(&place, &["--orphan-ttl", orphan_ttl]);
        let model = queen.register(&place, None);
        let info = queen.spawn_roomy(&model);
        let worker = pid_of(&info);
        Busy {
            stream: queen.endless(&model),
            worker,
            shim: parent_of(worker),
            id: info["worker_id"].clone(),
            model,
            queen,
            hive,
            place,
        }
    }

    /// Neither the worker nor its shim is left.
    #[track_caller]
    fn is_childless_within(&self, limit: Duration) {
        within(limit, "worker and shim are gone", || {
            let left = [self.worker, self.shim].map(is_alive);
            if left != [false; 2] {
                return Err(format!("alive: worker and shim: {left:?}"));
            }
            // The shim's watcher sees that all has ended, and goes.
            let daemons = [self.hive.pid(), self.queen.pid()].map(is_alive);
            let (all, daemons) =
                (self.place.processes().len(), daemons.iter().filter(|alive| **alive).count());
            if all == daemons { Ok(()) } else { Err(format!("{all} processes, {daemons} daemons")) }
        });
    }
}

#[test]
fn a_killed_worker_ends_its_stream_with_an_error_and_is_replaced() {
    alone(|| {
        repeat("worker", || {
            let mut busy = Busy::start(ORPHAN_TTL);
            let begun = Instant::now();
            signal_pid(busy.worker, Signal::KILL);
            let ended = busy.stream.rest();
            ended.is_told();
            let failure = ended.failure().unwrap_or_else(|| panic!("no error event: {ended:?}"));
            assert_eq!(failure.code, Code::WorkerLost, "{failure:?}");
            busy.is_childless_within(AT_ONCE);
            let took = begun.elapsed();
            busy.queen.answers(&busy.model);
            took
        });
    });
}

#[test]
fn a_job_whose_worker_is_killed_ends_in_error_and_tells_how_far_it_came() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (daemon, model) = served(&place, &[]);
        let worker = pid_of(&daemon.spawn_roomy(&model));
        let infer = json!({
            "operation": "infer", "model": model, "max_tokens": ENDLESS, "temperature": 0,
            "messages": [{"role": "user", "content": PROMPT}],
        });
        let id = daemon.begin(&infer);
        until("the job tells tokens", || {
            let told = daemon.get(&format!("/v1/jobs/{id}")).json()["events"].as_u64().unwrap();
            if told > 20 { Ok(()) } else { Err(told.to_string()) }
        });
        signal_pid(worker, Signal::KILL);
        let job = daemon.follow(&id);
        assert!(matches!(job.terminator, Terminator::Error(_)), "{job:?}");
        let error = job.find("error").unwrap();
        assert_eq!(error["code"], "WORKER_LOST", "{error}");
        assert_eq!(daemon.get(&format!("/v1/jobs/{id}")).json()["state"], "failed");
    });
}

#[test]
fn a_killed_shim_takes_its_worker_along_and_the_hive_starts_another() {
    alone(|| {
        repeat("shim", || {
            let mut busy = Busy::start(ORPHAN_TTL);
            let begun = Instant::now();
            signal_pid(busy.shim, Signal::KILL);
            busy.stream.rest().is_told();
            busy.is_childless_within(AT_ONCE);
            let took = begun.elapsed();
            busy.queen.answers(&busy.model);
            took
        });
    });
}

#[test]
fn a_killed_hives_worker_ends_by_itself_when_no_other_hive_comes() {
    alone(|| {
        repeat("hive", || {
            let mut busy = Busy::start(ORPHAN_TTL);
            let begun = Instant::now();
            signal_pid(busy.hive.pid(), Signal::KILL);
            busy.hive.ended();
            busy.stream.rest().is_told();
            busy.is_childless_within(ORPHANS_GONE_MAX);
            let took = begun.elapsed();
            let sockets = || {
                let files = std::fs::read_dir(busy.place.state().join("run")).unwrap().flatten();
                files.filter(|file| file.path().extension().is_some_and(|kind| kind == "sock")).count()
            };
            assert_eq!(sockets(), 1, "left behind");
            let next = Daemon::start(&busy.place, "hive serve", &[]);
            assert_eq!(sockets(), 0, "cleared by the next hive");
            drop(next);
            took
        });
    });
}

#[test]
fn a_hive_and_a_shim_killed_together_leave_no_worker() {
    alone(|| {
        repeat("hive and shim", || {
            let mut busy = Busy::start(ORPHAN_TTL);
            let begun = Instant::now();
            signal_pid(busy.hive.pid(), Signal::KILL);
            signal_pid(busy.shim, Signal::KILL);
            busy.hive.ended();
            busy.stream.rest().is_told();
            busy.is_childless_within(AT_ONCE);
            begun.elapsed()
        });
    });
}

#[test]
fn a_killed_queens_clients_see_a_broken_stream_and_the_worker_is_free_for_the_next_queen() {
    alone(|| {
        repeat("queen", || {
            let mut busy = Busy::start(ORPHAN_TTL);
            let begun = Instant::now();
            signal_pid(busy.queen.pid(), Signal::KILL);
            busy.queen.ended();
            busy.stream.rest().is_told();
            let address = busy.queen.address.clone();
            busy.hive.the_worker("the slot is free", |worker| worker["slots_busy"] == 0);
            let took = begun.elapsed();
            busy.queen = Daemon::start(&busy.place, "queen serve", &["--listen", &address]);
            busy.queen.answers(&busy.model);
            assert_eq!(busy.queen.workers()[0]["worker_id"], busy.id);
            assert!(is_alive(busy.worker));
            took
        });
    });
}

#[test]
fn a_hive_started_again_in_time_adopts_its_worker_with_the_model_loaded() {
    alone(|| {
        repeat("hive (and its worker adopted)", || {
            let mut busy = Busy::start("30s");
            let begun = Instant::now();
            signal_pid(busy.hive.pid(), Signal::KILL);
            busy.hive.ended();
            busy.stream.rest().is_told();
            busy.hive = hive(&busy.place, &busy.queen, &["--orphan-ttl", "30s"]);
            let adopted = busy.queen.the_worker("the worker is back and free", |worker| {
                worker["state"] == "ready" && worker["slots_busy"] == 0
            });
            let took = begun.elapsed();
            busy.queen.answers(&busy.model);
            assert_eq!((&adopted["worker_id"], pid_of(&adopted)), (&busy.id, busy.worker));
            assert_eq!(busy.place.spawns(), 1, "the model was loaded again");
            took
        });
    });
}

#[test]
fn a_killed_serve_is_followed_by_one_that_adopts_or_by_nothing() {
    alone(|| {
        repeat("serve", || {
            let place = Place::with_model(&roomy());
            let start = |ttl| Daemon::start(&place, "serve", &["--orphan-ttl", ttl]);
            let daemon = start("30s");
            let model = daemon.register(&place, None);
            let worker = daemon.spawn_roomy(&model)["pid"].clone();
            let killed = |mut daemon: Daemon| {
                let mut stream = daemon.endless(&model);
                signal_pid(daemon.pid(), Signal::KILL);
                daemon.ended();
                stream.rest().is_told();
            };
            killed(daemon);
            let second = start("30s");
            assert_eq!(second.workers()[0]["pid"], worker);
            killed(second);
            let third = start("30s");
            assert_eq!(third.workers()[0]["pid"], worker);
            third.answers(&model);
            drop(third);
            assert_eq!(place.processes(), []);

            let fourth = start(ORPHAN_TTL);
            fourth.spawn_roomy(&model);
            let begun = Instant::now();
            killed(fourth);
            place.is_deserted_within(ORPHANS_GONE_MAX);
            begun.elapsed()
        });
    });
}
