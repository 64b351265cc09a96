//! The versioned worker API, workers that are retired or shut down, and the commands for it.

use crate::support::fleet::{CHAT, fleet, pid_of};
use crate::support::node::{Daemon, ENDLESS, Place, alone, chat, freeze, roomy, said, signal_pid, until};
use rbee::http::client;
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::process::Stdio;

/// A queen and a hive, with one worker that is ready.
struct Ready {
    queen: Daemon,
    model: String,
    worker: String,
    _hive: Daemon,
    place: Place,
}

impl Ready {
    fn start() -> Ready {
        let place = Place::with_model(&roomy());
        let (queen, hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        assert_eq!(queen.post(CHAT, &chat(&model, 1, false)).status, 200);
        // That it is free again is told by telemetry, which may come after the answer.
        let worker = queen.the_worker("it is ready", |worker| worker["state"] == "ready");
        let worker = worker["worker_id"].as_str().unwrap().to_owned();
        Ready { queen, model, worker, _hive: hive, place }
    }

    fn rbee(&self, args: &[&str]) -> std::process::Output {
        let url = self.queen.url();
        self.place.rbee(&[args, &["--queen", &url]].concat())
    }

    fn pid(&self) -> i32 {
        pid_of(&self.queen.workers()[0])
    }
}

#[test]
fn workers_are_listed_in_the_versioned_shape_and_each_is_asked_whether_it_is_well() {
    alone(|| {
        let ready = Ready::start();
        let Ready { queen, model, worker, .. } = &ready;
        let listed = queen.get("/v2/workers/list").json();
        let url = format!("{}/v1/hives/one/v1/workers/{worker}", queen.url());
        let expected =
            json!([{"worker_id": worker, "node": "one", "state": "ready", "model_ref": model, "url": url}]);
        assert_eq!(listed["workers"], expected);
        assert_eq!(queen.get(url.strip_prefix(&queen.url()).unwrap()).json()["worker_id"], **worker);

        for path in ["/v2/workers/health", "/v2/workers/health?node=one"] {
            let health = queen.get(path).json();
            let expected = json!([{"worker_id": worker, "node": "one", "state": "ready", "ready": true}]);
            assert_eq!((&health["status"], &health["workers"]), (&json!("ok"), &expected));
        }
        let unknown = queen.get("/v2/workers/health?node=two");
        assert_eq!((unknown.status, unknown.failure().code), (404, Code::HiveNotFound));
        let well = ready.rbee(&["workers", "health"]);
        assert!(well.status.success() && said(&well).0.contains(worker), "{well:?}");

        // It still looks ready; it does not answer.
        let pid = ready.pid();
        freeze(pid);
        let health = queen.get("/v2/workers/health").json();
        assert_eq!((&health["status"], &health["workers"][0]["ready"]), (&json!("degraded"), &json!(false)));
        let ill = ready.rbee(&["workers", "health", "--hive", "one", "--json"]);
        assert_eq!(ill.status.code(), Some(1), "{ill:?}");
        assert_eq!(serde_json::from_str::<Value>(&said(&ill).0).unwrap()["status"], "degraded");
        signal_pid(pid, Signal::CONT);
        let nobody = ready.place.rbee(&["workers", "health", "--queen", "http://127.0.0.1:9"]);
        assert_eq!(nobody.status.code(), Some(1), "{nobody:?}");
    });
}

#[test]
fn a_retired_worker_finishes_what_it_is_at_takes_nothing_new_and_stops() {
    alone(|| {
        let ready = Ready::start();
        let Ready { queen, model, worker, .. } = &ready;
        let mut answer = queen.stream(CHAT, &chat(model, 2_000, true));
        answer.take(3);
        let retired = queen.post(&format!("/v1/workers/{worker}/retire"), &json!({}));
        let told = retired.json();
        assert_eq!((retired.status, &told["worker_id"]), (202, &json!(worker)), "{told}");
        assert_ne!(told["state"], "ready");
        // The next request is for another worker.
        assert_eq!(queen.post(CHAT, &chat(model, 1, false)).status, 200);
        assert!(queen.workers().iter().any(|other| other["worker_id"] != **worker));
        assert!(answer.rest().is_clean(), "what it was at came to its end");
        let job = queen.follow(told["job_id"].as_str().unwrap());
        assert_eq!(job.done()["worker_id"], **worker);
        until("it has gone", || {
            let workers = queen.workers();
            let is_here = workers.iter().any(|other| other["worker_id"] == **worker);
            if is_here { Err(format!("{workers:?}")) } else { Ok(()) }
        });
        let unknown = queen.post(&format!("/v1/workers/{worker}/retire"), &json!({}));
        assert_eq!((unknown.status, unknown.failure().code), (404, Code::WorkerNotFound));

        // By command, with nothing at work.
        let other = queen.workers()[0]["worker_id"].as_str().unwrap().to_owned();
        let output = ready.rbee(&["workers", "retire", &other]);
        let (stdout, stderr) = said(&output);
        assert!(output.status.success() && stdout.contains(&format!("{other} is stopped")), "{stderr}");
        assert!(stderr.contains("takes no new requests"), "{stderr}");
        ready.queen.has_no_worker();
    });
}

#[test]
fn a_retirement_that_is_cancelled_puts_the_worker_back_to_work() {
    alone(|| {
        let ready = Ready::start();
        let Ready { queen, model, worker, .. } = &ready;
        let _answer = queen.endless(model);
        let told =
            queen.post("/v1/jobs", &json!({"operation": "active_worker_retire", "worker_id": worker})).json();
        until("it drains", || match queen.workers()[0]["state"].as_str() {
            Some("draining") => Ok(()),
            state => Err(format!("{state:?}")),
        });
        let id = told["job_id"].as_str().unwrap();
        assert_eq!(
            queen
                .request(
                    client::request("DELETE", &format!("/v1/jobs/{id}"), rbee::http::reply::empty()).unwrap()
                )
                .status,
            200
        );
        until("it is at work again", || match queen.workers()[0]["state"].as_str() {
            Some("busy") => Ok(()),
            state => Err(format!("{state:?}")),
        });
        assert_eq!(queen.post(CHAT, &chat(model, 1, false)).status, 200);
        assert_eq!(queen.workers()[0]["worker_id"], **worker);
    });
}

#[test]
fn a_worker_is_shut_down_at_once_even_while_it_retires() {
    alone(|| {
        let ready = Ready::start();
        let Ready { queen, model, worker, .. } = &ready;
        let mut answer = queen.endless(model);
        assert_eq!(queen.post(&format!("/v1/workers/{worker}/retire"), &json!({})).status, 202);
        let told = queen.post("/v2/workers/shutdown", &json!({"worker_id": worker}));
        assert_eq!((told.status, &told.json()["success"]), (200, &json!(true)), "{told:?}");
        answer.rest().is_told();
        ready.queen.has_no_worker();

        let unknown = queen.post("/v2/workers/shutdown", &json!({"worker_id": worker}));
        assert_eq!((unknown.status, unknown.failure().code), (404, Code::WorkerNotFound));
        let wrong = queen.post("/v2/workers/shutdown", &json!({"worker": worker}));
        assert_eq!(wrong.status, 400);
        assert!(wrong.failure().message.contains("{\"worker_id\""), "{wrong:?}");
        let output = ready.rbee(&["workers", "shutdown", "--id", worker]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(ready.rbee(&["workers", "shutdown"]).status.code(), Some(2));
    });
}

#[test]
fn stop_unloads_every_worker_of_a_model_by_any_of_its_names() {
    alone(|| {
        let ready = Ready::start();
        let unknown = ready.rbee(&["stop", "nobody/has-this"]);
        let (_, stderr) = said(&unknown);
        assert_eq!(unknown.status.code(), Some(1));
        assert!(stderr.contains("not loaded") && stderr.contains(&ready.model), "{stderr}");
        assert!(ready.rbee(&["model", "alias", "small", &ready.model]).status.success());
        let more = ready.rbee(&["worker", "spawn", "--model", "small", "--slots", "1"]);
        assert!(more.status.success(), "{more:?}");
        assert_eq!(ready.queen.workers().len(), 2);
        // Both at work: who asked for their end and thinks better of it has both back.
        let streams = [0, 1].map(|_| ready.queen.stream(CHAT, &chat(&ready.model, 2_000, true)));
        ready.queen.has_busy_slots(2);
        let line = ["stop", "small", "--queen", &ready.queen.url()];
        let mut command = ready.place.command(&line);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let retiring = || {
            let jobs = ready.queen.get("/v1/jobs").json()["jobs"].take();
            let is_one = |job: &&Value| job["operation"] == "active_worker_retire";
            jobs.as_array().unwrap().iter().filter(is_one).cloned().collect::<Vec<_>>()
        };
        until("both retire", || match ready.queen.workers() {
            all if all.iter().all(|worker| worker["state"] == "draining") => Ok(()),
            all => Err(format!("{all:?}")),
        });
        signal_pid(child.id() as i32, Signal::INT);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
        assert!(retiring().iter().all(|job| job["state"] == "cancelled"), "{:?}", retiring());
        assert_eq!(retiring().len(), 2);
        drop(streams);
        let stopped = ready.rbee(&["stop", "small"]);
        let (stdout, stderr) = said(&stopped);
        assert!(stopped.status.success(), "{stderr}");
        assert_eq!(stdout.matches(" is stopped").count(), 2, "{stdout}");
        ready.queen.has_no_worker();
    });
}

#[test]
fn a_task_streams_its_events_and_ends_with_its_reader() {
    alone(|| {
        let ready = Ready::start();
        let Ready { queen, model, .. } = &ready;
        let task = |tokens: u32| json!({"node": "one", "model": model, "prompt": "Say", "max_tokens": tokens, "temperature": 0});
        let mut stream = queen.stream("/v2/tasks", &task(3));
        assert_eq!(stream.status, 200);
        let mut names = Vec::new();
        let last = loop {
            let event = stream.next().unwrap().expect("it does not end without a word");
            match event.name {
                Some(name) => names.push(name),
                None => break event.data,
            }
        };
        assert_eq!(Terminator::parse(&last), Some(Terminator::Done));
        assert_eq!(names.iter().filter(|name| *name == "result").count(), 1, "{names:?}");

        let mut stream = queen.stream("/v2/tasks", &task(ENDLESS));
        stream.take(3);
        queen.has_busy_slots(1);
        drop(stream);
        queen.has_busy_slots(0);

        for (body, status, code) in [
            (json!({"model": model}), 400, Code::InvalidRequest),
            (json!({"model": "nobody/has-this", "prompt": "x"}), 404, Code::ModelNotFound),
            (json!({"model": model, "prompt": "x", "node": "two"}), 404, Code::HiveNotFound),
        ] {
            let refused = queen.post("/v2/tasks", &body);
            assert_eq!((refused.status, refused.failure().code), (status, code), "{body}");
        }
    });
}
