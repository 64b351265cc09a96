//! Fleets as tests find them: a queen and her hives, one daemon that is both, a worker that is busy; and what is waited for
//! in them.

use super::node::{Daemon, ENDLESS, Place, Stream, chat, roomy, until};
use serde_json::{Value, json};

pub const CHAT: &str = "/v1/chat/completions";

/// Tokens of an answer during which much can happen.
const LASTING: u32 = 1_500;

/// A queen, and a hive called `one`.
#[track_caller]
pub fn fleet(place: &Place, more: &[&str]) -> (Daemon, Daemon) {
    let queen = Daemon::start(place, "queen serve", &[]);
    let hive = hive(place, &queen, more);
    (queen, hive)
}

/// A hive called `one`, linked with a queen.
#[track_caller]
pub fn hive(place: &Place, queen: &Daemon, more: &[&str]) -> Daemon {
    let url = queen.url();
    let hive = Daemon::start(place, "hive serve", &[&["--name", "one", "--queen", &url], more].concat());
    queen.has_hives(1);
    hive
}

/// Queen and hive in one, with the place's model.
#[track_caller]
pub fn served(place: &Place, args: &[&str]) -> (Daemon, String) {
    let daemon = Daemon::start(place, "serve", args);
    let model = daemon.register(place, None);
    (daemon, model)
}

/// Two hives with places of their own, `one` and `two`, linked with the queen `q`.
pub struct Pair {
    pub queen: Daemon,
    pub one: Daemon,
    pub two: Daemon,
    // Last, because fields are dropped in order and a place fails if something of it still runs.
    pub places: [Place; 2],
}

impl Pair {
    #[track_caller]
    pub fn start() -> Pair {
        Pair::at([Place::new(), Place::new()])
    }

    #[track_caller]
    pub fn at(places: [Place; 2]) -> Pair {
        let queen = Daemon::start(&places[0], "queen serve", &["--name", "q"]);
        let url = queen.url();
        let hive = |place: &Place, name: &str, address: &str| {
            Daemon::start(place, "hive serve", &["--name", name, "--queen", &url, "--listen", address])
        };
        let one = hive(&places[0], "one", "127.0.0.2:0");
        let two = hive(&places[1], "two", "127.0.0.3:0");
        queen.has_hives(2);
        Pair { queen, one, two, places }
    }
}

/// A daemon whose only worker has one slot, and that is taken for as long as somebody reads the answer.
pub struct Full {
    pub answer: Stream,
    pub worker: Value,
    pub model: String,
    pub daemon: Daemon,
    pub place: Place,
}

impl Full {
    #[track_caller]
    pub fn start(args: &[&str]) -> Full {
        let place = Place::with_model(&roomy());
        let (daemon, model) = served(&place, args);
        let worker = daemon.spawn_roomy(&model);
        let answer = daemon.endless(&model);
        Full { answer, worker, model, daemon, place }
    }
}

/// An answer for as long as nobody cancels it, as a job.
pub fn endless_job(model: &str) -> Value {
    json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 8000, "stop": ["\u{0}never"]})
}

impl Place {
    /// Worker processes that ever ran here: each has its log.
    pub fn spawns(&self) -> usize {
        let logs = std::fs::read_dir(self.state().join("logs")).into_iter().flatten().flatten();
        logs.filter(|log| log.file_name().to_string_lossy().starts_with("worker-")).count()
    }
}

impl Daemon {
    /// Spawns a worker with one slot of all its model's room.
    #[track_caller]
    pub fn spawn_roomy(&self, model: &str) -> Value {
        self.spawn_roomy_at(None, model)
    }

    /// The same, on the hive of this name.
    #[track_caller]
    pub fn spawn_roomy_at(&self, hive: Option<&str>, model: &str) -> Value {
        let ctx = ENDLESS + 1_000;
        let spawn =
            json!({"operation": "worker_spawn", "model": model, "slots": 1, "ctx": ctx, "hive_id": hive});
        self.job(&spawn).done().clone()
    }

    /// An answer without an end, under way.
    #[track_caller]
    pub fn endless(&self, model: &str) -> Stream {
        let mut stream = self.stream(CHAT, &chat(model, ENDLESS, true));
        stream.take(5);
        stream
    }

    /// An answer that comes to its own end after a while, under way.
    #[track_caller]
    pub fn lasting(&self, model: &str) -> Stream {
        let mut stream = self.stream(CHAT, &chat(model, LASTING, true));
        stream.take(5);
        stream
    }

    /// Gives a short answer, whole.
    #[track_caller]
    pub fn answers(&self, model: &str) {
        let ended = self.stream(CHAT, &chat(model, 3, true)).rest();
        assert!(ended.is_clean(), "{ended:?}");
    }

    #[track_caller]
    pub fn has_no_worker(&self) {
        until("no worker is left", || match self.workers() {
            workers if workers.is_empty() => Ok(()),
            workers => Err(format!("{workers:?}")),
        });
    }

    /// The one worker that there is, once it is as wanted.
    #[track_caller]
    pub fn the_worker(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        until(what, || match self.workers() {
            workers if workers.len() == 1 && is_so(&workers[0]) => Ok(workers[0].clone()),
            workers => Err(format!("{workers:?}")),
        })
    }

    /// Waits until so many slots are busy, of all workers.
    #[track_caller]
    pub fn has_busy_slots(&self, count: u64) {
        until(&format!("{count} slots are busy"), || {
            let workers = self.workers();
            let busy: u64 = workers.iter().map(|worker| worker["slots_busy"].as_u64().unwrap()).sum();
            if busy == count { Ok(()) } else { Err(format!("{workers:?}")) }
        });
    }

    /// Waits until so many requests wait.
    #[track_caller]
    pub fn has_queued(&self, count: u64) {
        until(&format!("{count} wait"), || {
            let queued = self.job(&json!({"operation": "status"})).done()["queued"].clone();
            if queued == count { Ok(()) } else { Err(queued.to_string()) }
        });
    }
}

impl Stream {
    /// What was still to come of an answer comes, and it is whole.
    #[track_caller]
    pub fn is_finished(&mut self) {
        let ended = self.rest();
        let left = ended.events.len();
        assert!(ended.is_clean(), "{:?} after {left} events", ended.broken);
        assert!(left > 100, "it was over before: {left} events later");
    }
}

#[track_caller]
pub fn pid_of(worker: &Value) -> i32 {
    worker["pid"].as_i64().unwrap_or_else(|| panic!("no pid: {worker}")) as i32
}
