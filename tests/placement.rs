//! Where requests run: by memory, by what is loaded, by who came first; each refusal and each wait with its reason.

use crate::builds::Shop;
use crate::scripted;
use crate::support::fleet::{CHAT, Full, Pair, served};
use crate::support::gguf::{Fault, Tiny, corrupt, tiny};
use crate::support::node::{Daemon, Job, Place, alone, chat, roomy, until};
use rbee::wire::Code;
use rbee::wire::fleet::now_ms;
use serde_json::{Value, json};

/// Too little for another worker beside one that fits.
const SPARE_MEBIBYTES: u64 = 16;

/// A worker with the defaults, or one slot of all its room.
fn spawn(daemon: &Daemon, model: &str, is_roomy: bool) -> Value {
    if is_roomy {
        return daemon.spawn_roomy(model);
    }
    daemon.job(&json!({"operation": "worker_spawn", "model": model})).done().clone()
}

/// What one worker takes, in MiB, as its hive says.
fn worker_mebibytes(place: &Place, is_roomy: bool) -> u64 {
    let (daemon, model) = served(place, &["--name", "measured"]);
    let worker = spawn(&daemon, &model, is_roomy);
    let bytes = worker["memory_bytes"].as_u64().unwrap_or_else(|| panic!("{worker}"));
    assert!(daemon.terminate().success());
    bytes.div_ceil(1 << 20)
}

/// A daemon with room for one worker, and two models.
struct Narrow {
    daemon: Daemon,
    one: String,
    two: String,
    place: Place,
}

impl Narrow {
    fn start(options: &Tiny, is_roomy: bool) -> Narrow {
        let place = Place::with_model(options);
        let room = (worker_mebibytes(&place, is_roomy) + SPARE_MEBIBYTES).to_string();
        let (daemon, one) = served(&place, &["--name", "narrow", "--memory", &room]);
        let second = place.path("second.gguf");
        std::fs::write(&second, tiny(options)).unwrap();
        let operation = json!({"operation": "model_download", "model": second.to_str().unwrap()});
        let two = daemon.job(&operation).done()["id"].as_str().unwrap().to_owned();
        // Telemetry tells what the second needs once its header was read.
        until("the queen knows what both need", || {
            let hive = daemon.get("/v1/hives/narrow").json();
            let needs = hive["model_needs"].as_array().unwrap().clone();
            let is_known = |needs: &Value| !needs["shapes"].as_array().unwrap().is_empty();
            if needs.iter().filter(|needs| is_known(needs)).count() == 2 {
                Ok(())
            } else {
                Err(hive.to_string())
            }
        });
        Narrow { daemon, one, two, place }
    }

    fn loaded(&self) -> Vec<String> {
        let workers = self.daemon.workers();
        workers.iter().map(|worker| worker["model"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn an_idle_worker_makes_room_for_another_model() {
    alone(|| {
        let narrow = Narrow::start(&Tiny::default(), false);
        for model in [&narrow.one, &narrow.two, &narrow.one] {
            let answer = narrow.daemon.post(CHAT, &chat(model, 3, false));
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(narrow.loaded(), [model.as_str()]);
        }
        let why = narrow.place.rbee(&["why", &narrow.two, "--queen", &narrow.daemon.url()]);
        let said = String::from_utf8_lossy(&why.stdout).into_owned();
        assert!(why.status.success() && said.contains("evict") && said.contains("stop the idle"), "{said}");
    });
}

#[test]
fn a_worker_at_work_is_never_evicted_and_the_other_model_waits_for_it() {
    alone(|| {
        let narrow = Narrow::start(&roomy(), true);
        narrow.daemon.spawn_roomy(&narrow.one);
        let mut first = narrow.daemon.endless(&narrow.one);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| narrow.daemon.post(CHAT, &chat(&narrow.two, 3, false)));
            narrow.daemon.has_queued(1);
            let placement = narrow.daemon.get(&format!("/v1/placement?model={}", narrow.two)).json();
            assert_eq!(placement["decision"]["action"], "wait", "{placement}");
            assert_eq!(narrow.loaded(), [narrow.one.as_str()]);
            first.take(3);
            drop(first);
            let second = second.join().unwrap();
            assert_eq!(second.status, 200, "{second:?}");
        });
        assert_eq!(narrow.loaded(), [narrow.two.as_str()]);
    });
}

#[test]
fn a_model_that_everybody_wants_cannot_keep_another_out() {
    alone(|| {
        let narrow = Narrow::start(&roomy(), true);
        narrow.daemon.spawn_roomy(&narrow.one);
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let over = || is_over.load(std::sync::atomic::Ordering::SeqCst);
        std::thread::scope(|scope| {
            // Two of them: before one has its answer, the other waits already.
            for _ in 0..2 {
                scope.spawn(|| {
                    while !over() {
                        let answer = narrow.daemon.post(CHAT, &chat(&narrow.one, 200, false));
                        assert!(matches!(answer.status, 200 | 503), "{answer:?}");
                    }
                });
            }
            // The popular one is at work.
            narrow.daemon.has_busy_slots(1);
            let second = narrow.daemon.post(CHAT, &chat(&narrow.two, 3, false));
            is_over.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(second.status, 200, "{second:?}");
        });
    });
}

#[test]
fn what_is_pinned_stays_and_the_refusal_says_what_is_needed_and_what_there_is() {
    alone(|| {
        let narrow = Narrow::start(&Tiny::default(), false);
        let pinned = json!({"operation": "worker_spawn", "model": narrow.one, "pin": true});
        narrow.daemon.job(&pinned).done();
        let refused = narrow.daemon.post(CHAT, &chat(&narrow.two, 3, false));
        assert_eq!(refused.status, 503, "{refused:?}");
        let failure = refused.failure();
        assert_eq!(failure.code, Code::InsufficientMemory);
        let bytes = |key: &str| failure.details[key].as_u64().unwrap();
        assert!(bytes("needed_bytes") > bytes("available_bytes"), "{failure:?}");
        assert_eq!(narrow.loaded(), [narrow.one.as_str()]);
        let why = narrow.place.rbee(&["why", &narrow.two, "--queen", &narrow.daemon.url()]);
        let said = String::from_utf8_lossy(&why.stdout).into_owned();
        assert_eq!(why.status.code(), Some(1), "{said}");
        assert!(said.contains("MiB are needed"), "{said}");
    });
}

#[test]
fn a_model_whose_slots_stay_full_gets_another_worker_where_there_is_room() {
    alone(|| {
        let pair = Pair::at([Place::with_model(&roomy()), Place::new()]);
        let Pair { queen, places, .. } = &pair;
        let model = queen.register(&places[0], Some("one"));
        assert_eq!(queen.register(&places[0], Some("two")), model);
        queen.spawn_roomy_at(Some("one"), &model);
        let mut first = queen.endless(&model);
        // No slot becomes free: what answers this is the other hive's new worker.
        let second = queen.post(CHAT, &chat(&model, 3, false));
        assert_eq!(second.status, 200, "{second:?}");
        let mut hives: Vec<String> =
            queen.workers().iter().map(|worker| worker["hive"].as_str().unwrap().to_owned()).collect();
        hives.sort();
        assert_eq!(hives, ["one", "two"]);
        first.take(3);
    });
}

#[test]
fn a_deadline_is_kept_in_the_queue_and_a_client_that_leaves_it_is_forgotten() {
    alone(|| {
        let Full { place: _place, daemon, model, mut answer, .. } = Full::start(&[]);
        let asked_at = |path: &str, body: &Value, at: String| {
            let mut request = rbee::http::client::post(path, body).unwrap();
            request.headers_mut().insert("x-request-deadline", at.parse().unwrap());
            daemon.request(request)
        };
        let asked = |at| asked_at(CHAT, &chat(&model, 3, false), at);
        let late = asked((now_ms() + 300).to_string());
        assert_eq!((late.status, late.failure().code), (408, Code::RequestTimeout), "{late:?}");
        let passed = asked("1".into());
        assert_eq!(passed.status, 408, "{passed:?}");
        assert_eq!(asked("soon".into()).status, 400);
        let task = json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 3});
        for path in ["/v1/jobs", "/v2/tasks"] {
            assert_eq!(asked_at(path, &task, "1".into()).status, 408);
            assert_eq!(asked_at(path, &task, "soon".into()).status, 400);
            let late = asked_at(path, &task, (now_ms() + 300).to_string());
            let told = match path {
                "/v1/jobs" => format!("{:?}", daemon.follow(late.json()["job_id"].as_str().unwrap())),
                _ => String::from_utf8(late.body.to_vec()).unwrap(),
            };
            assert!(told.contains("REQUEST_TIMEOUT"), "{told}");
        }
        let status = daemon.job(&json!({"operation": "status"}));
        assert_eq!(status.done()["queued"], 0, "the late ones have left the queue");
        daemon.leave_after(CHAT, &chat(&model, 3, false), || daemon.has_queued(1));
        daemon.has_queued(0);
        answer.take(3);
        drop(answer);
        assert_eq!(daemon.post(CHAT, &chat(&model, 3, false)).status, 200);
    });
}

#[test]
fn a_request_that_two_workers_were_lost_over_is_not_tried_a_third_time() {
    alone(|| {
        let place = Place::new();
        let (_shop, daemon, model) = scripted::served(&place, "", &[]);
        // Two of them, told apart by their slots.
        for slots in [1, 2] {
            let spawn = json!({
                "operation": "worker_spawn", "model": model, "worker": scripted::ID, "slots": slots,
            });
            daemon.job(&spawn).done();
        }
        let harmless = daemon.post(CHAT, &json!({"model": model, "messages": [], "max_tokens": 3}));
        assert_eq!(harmless.status, 200, "{harmless:?}");
        let body = json!({"model": model, "messages": [], "max_tokens": 3, "ends_you": true});
        let refused = daemon.post(CHAT, &body);
        let failure = refused.failure();
        assert_eq!((refused.status, failure.code), (502, Code::WorkerLost), "{failure:?}");
        let lost = failure.details["workers"].as_array().unwrap_or_else(|| panic!("{failure:?}"));
        assert!(lost.len() == 2 && lost[0] != lost[1], "{failure:?}");
        assert!(failure.message.contains("not tried again"), "{}", failure.message);
    });
}

/// Two nodes with the scripted engine, `here` with much more memory; on each it starts after a line of shell.
struct Unlike {
    _shops: [Shop; 2],
    here: Daemon,
    _there: Daemon,
    model: String,
    // Last, because fields are dropped in order and a place fails if something of it still runs.
    _places: [Place; 2],
}

impl Unlike {
    fn start(first: [&str; 2]) -> Unlike {
        let places = [Place::with_model(&Tiny::default()), Place::new()];
        let (shop, here, model) = scripted::served(&places[0], first[0], &[]);
        let (url, elsewhere) = (here.url(), Shop::open(&places[1]));
        scripted::recipe(&elsewhere, first[1]);
        let catalog = elsewhere.daemon.url();
        let there = [
            "--name",
            "there",
            "--queen",
            &url,
            "--listen",
            "127.0.0.3:0",
            "--memory",
            "500",
            "--catalog",
            &catalog,
        ];
        let there = Daemon::start(&places[1], "hive serve", &there);
        here.has_hives(2);
        let install = json!({"operation": "worker_install", "worker_id": scripted::ID, "hive_id": "there"});
        here.job(&install).done();
        assert_eq!(here.register(&places[0], Some("there")), model);
        Unlike { _shops: [shop, elsewhere], here, _there: there, model, _places: places }
    }

    fn begin(&self) -> String {
        self.here.begin(&json!({
            "operation": "infer", "model": self.model, "device": scripted::ID, "prompt": "Bees", "max_tokens": 3,
        }))
    }

    fn infer(&self) -> Job {
        self.here.follow(&self.begin())
    }

    /// A request that waits for a worker which loads `here`, and the worker.
    fn begin_and_load(&self) -> (String, Value) {
        let job = self.begin();
        (job, self.here.the_worker("it loads", |worker| worker["state"] == "loading"))
    }
}

#[test]
fn a_worker_that_ends_while_it_loads_is_replaced_on_another_node() {
    alone(|| {
        let fleet = Unlike::start(["echo no driver >&2; exit 3", ""]);
        let job = fleet.infer();
        job.done();
        let is_retry = |(name, data): &&(String, Value)| name == "narration" && data["action"] == "retry";
        let told =
            job.events.iter().find(is_retry).unwrap_or_else(|| panic!("{job:?}")).1["message"].to_string();
        assert!(told.contains("no driver") && told.contains("trying elsewhere"), "{told}");
        assert_eq!(fleet.here.workers()[0]["hive"], "there");
    });
}

#[test]
fn a_model_that_the_engine_does_not_know_is_refused_in_the_engines_words() {
    alone(|| {
        let place = Place::with_model(&Tiny::default());
        std::fs::write(place.model(), corrupt(Fault::UnknownArchitecture)).unwrap();
        let (daemon, model) = served(&place, &[]);
        let refused = daemon.post(CHAT, &chat(&model, 3, false));
        let failure = refused.failure();
        assert_eq!((refused.status, failure.code), (400, Code::InvalidModel), "{failure:?}");
        assert!(failure.message.contains("unknown model architecture"), "{failure}");
        let log = failure.details["log"].as_array().unwrap_or_else(|| panic!("{failure:?}"));
        assert!(!log.is_empty(), "{failure:?}");
        daemon.has_no_worker();
    });
}

#[test]
fn a_worker_that_is_stopped_while_it_loads_is_not_started_elsewhere() {
    alone(|| {
        // It never begins to listen.
        let fleet = Unlike::start(["exec tail -f /dev/null", ""]);
        let (job, loading) = fleet.begin_and_load();
        let stop = json!({"operation": "worker_stop", "worker_id": loading["worker_id"], "hive_id": "here"});
        fleet.here.job(&stop).done();
        let ended = fleet.here.follow(&job);
        let failure = ended.find("error").unwrap_or_else(|| panic!("{ended:?}"));
        assert!(failure["message"].as_str().unwrap().contains("was stopped"), "{failure}");
        fleet.here.has_no_worker();
    });
}

#[test]
fn a_request_whose_worker_loads_on_a_node_that_is_drained_goes_elsewhere() {
    alone(|| {
        let fleet = Unlike::start(["exec tail -f /dev/null", ""]);
        let (job, loading) = fleet.begin_and_load();
        assert_eq!(loading["hive"], "here");
        fleet.here.job(&json!({"operation": "hive_drain", "hive_id": "here"})).done();
        fleet.here.follow(&job).done();
        assert_eq!(fleet.here.workers()[0]["hive"], "there");
    });
}

#[test]
fn a_model_whose_workers_end_while_they_load_is_tried_on_two_nodes_and_no_more() {
    alone(|| {
        let fleet = Unlike::start(["echo no driver >&2; exit 3"; 2]);
        let job = fleet.infer();
        let failure = job.find("error").unwrap_or_else(|| panic!("{job:?}"));
        assert_eq!(failure["code"], "WORKER_LOST");
        assert!(failure["message"].as_str().unwrap().contains("not tried again"), "{failure}");
        assert_eq!(failure["details"]["workers"].as_array().map(Vec::len), Some(2), "{failure}");
    });
}

#[test]
fn a_device_is_meant_by_its_number_too_and_the_worker_on_it_is_used_again() {
    alone(|| {
        let place = Place::with_model(&Tiny::default());
        let (daemon, model) = served(&place, &[]);
        let infer = json!({
            "operation": "infer", "model": model, "device": "0", "prompt": "Bees", "max_tokens": 1,
        });
        let used = [0, 1].map(|_| daemon.job(&infer).done()["worker_id"].clone());
        let spawn = json!({"operation": "worker_spawn", "model": model, "device": "0"});
        let spawned = daemon.job(&spawn).done()["worker_id"].clone();
        assert!(used[0] == used[1] && used[0] == spawned, "{used:?} {spawned}");
        assert_eq!(daemon.workers().len(), 1);
    });
}

#[test]
fn whoever_waits_for_memory_that_is_promised_to_another_model_is_served_after_it() {
    alone(|| {
        let narrow = Narrow::start(&Tiny::default(), false);
        // Cold, and at once: one of the two finds all memory promised.
        let ids = [&narrow.one, &narrow.two, &narrow.one, &narrow.two].map(|model| {
            narrow.daemon.begin(&json!({
                "operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 3,
            }))
        });
        for id in ids {
            narrow.daemon.follow(&id).done();
        }
    });
}

#[test]
fn a_deadline_is_kept_while_a_queen_waits_for_her_first_hive() {
    alone(|| {
        let place = Place::new();
        let queen = Daemon::start(&place, "queen serve", &[]);
        let mut request = rbee::http::client::post(CHAT, &chat("m", 3, false)).unwrap();
        let at = (now_ms() + 200).to_string();
        request.headers_mut().insert("x-request-deadline", at.parse().unwrap());
        let late = queen.request(request);
        assert_eq!((late.status, late.failure().code), (408, Code::RequestTimeout), "{late:?}");
    });
}

#[test]
fn an_engine_that_is_named_is_started_beside_another_that_has_the_model_loaded() {
    alone(|| {
        let place = Place::new();
        let (_shop, daemon, model) = scripted::served(&place, "", &[]);
        assert_eq!(daemon.post(CHAT, &chat(&model, 1, false)).status, 200);
        let infer = json!({
            "operation": "infer", "model": model, "device": scripted::ID, "prompt": "Bees", "max_tokens": 3,
        });
        let result = daemon.job(&infer).done().clone();
        let workers = daemon.workers();
        let used = workers.iter().find(|worker| worker["worker_id"] == result["worker_id"]);
        assert_eq!((workers.len(), &used.unwrap()["worker"]), (2, &json!(scripted::ID)), "{workers:?}");
    });
}

#[test]
fn requests_that_wait_for_a_worker_to_come_up_are_in_the_queue_in_order_and_up_to_its_limit() {
    alone(|| {
        const QUEUE: u64 = 6;
        let place = Place::new();
        let gate = place.path("gate");
        let first = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
        let (_shop, daemon, model) = scripted::served(&place, &first, &["--queue", &QUEUE.to_string()]);
        let infer = json!({
            "operation": "infer", "model": model, "device": scripted::ID, "prompt": "Bees", "max_tokens": 3,
        });
        let wait_in_turn = |count: u64| -> Vec<String> {
            let enter = |number| {
                let id = daemon.begin(&infer);
                daemon.has_queued(number);
                id
            };
            (1..=count).map(enter).collect()
        };
        // The first is the cause of the spawn, and beside the limit.
        let waiting = wait_in_turn(QUEUE + 1);
        let refused = daemon.job(&infer);
        let failure = refused.find("error").unwrap_or_else(|| panic!("{refused:?}"));
        assert_eq!(failure["code"], "ALL_SLOTS_BUSY", "{failure}");
        std::fs::write(&gate, "").unwrap();
        for id in &waiting {
            daemon.follow(id).done();
        }
        let last = daemon.follow(&waiting[QUEUE as usize]);
        let place = format!("{}. in the queue", QUEUE + 1);
        let is_told = |data: &Value| data["message"].as_str().is_some_and(|told| told.contains(&place));
        assert!(last.events.iter().any(|(_, data)| is_told(data)), "{last:?}");

        // A worker with one slot, so that they go one after the other.
        let worker = daemon.workers()[0]["worker_id"].clone();
        daemon.job(&json!({"operation": "worker_stop", "worker_id": worker})).done();
        daemon.has_no_worker();
        std::fs::remove_file(&gate).unwrap();
        let spawn = json!({"operation": "worker_spawn", "model": model, "worker": scripted::ID, "slots": 1});
        let spawning = daemon.begin(&spawn);
        daemon.the_worker("it is on its way", |_| true);
        let waiting = wait_in_turn(QUEUE);
        std::fs::write(&gate, "").unwrap();
        daemon.follow(&spawning).done();
        let ended_at = |id: &String| {
            daemon.follow(id).done();
            daemon.get(&format!("/v1/jobs/{id}")).json()["ended_at"].as_u64().unwrap()
        };
        let ends: Vec<u64> = waiting.iter().map(ended_at).collect();
        assert!(ends.is_sorted(), "{ends:?}");
    });
}
