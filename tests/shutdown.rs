//! How daemons end in order: what runs is finished, nothing new is taken, nothing is left; and what `rbee run` starts, with
//! and without --ephemeral.

use crate::builds::{Shop, go_on, has_told};
use crate::support::fleet::{CHAT, Full, fleet};
use crate::support::node::{Daemon, PROMPT, Place, RBEE, alone, chat, repeat, roomy, said, until};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A second SIGTERM ends all within a worker's grace.
const STOP_MAX: Duration = Duration::from_secs(6);

#[test]
fn a_daemon_may_open_more_files_than_a_shell_lets_its_programs() {
    alone(|| {
        let place = Place::new();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).unwrap();
        let daemon = Daemon::start(&place, "serve", &[]);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let soft: u64 = line.split_ascii_whitespace().nth(3).unwrap().parse().unwrap();
        // Of `/proc`'s line "Max open files  SOFT  HARD  files".
        assert_eq!(soft, limit.maximum.map_or(10_240, |most| most.min(10_240)), "{line}");
        assert!(daemon.terminate().success());
    });
}

#[test]
fn a_queen_that_shuts_down_finishes_the_stream_she_relays() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (mut queen, hive) = fleet(&place, &[]);
        finishes_its_stream(&place, &mut queen, |queen| queen.signal(Signal::TERM));
        assert!(queen.ended().success());
        assert!(hive.terminate().success());
    });
}

#[test]
fn a_hive_that_shuts_down_finishes_the_stream_and_its_worker_ends_with_it() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (mut queen, mut hive) = fleet(&place, &[]);
        finishes_its_stream(&place, &mut queen, |_| hive.signal(Signal::TERM));
        assert!(hive.ended().success());
        assert_eq!(place.processes().len(), 1, "{:?}", place.processes());
        assert_eq!(queen.workers(), [] as [Value; 0]);
    });
}

#[test]
fn a_hive_that_shuts_down_ends_the_build_it_has_begun_and_the_queen_hears_how() {
    alone(|| {
        let place = Place::new();
        let shop = Shop::open(&place);
        shop.waiting_recipe("slow");
        let (queen, mut hive) = fleet(&place, &["--catalog", &shop.daemon.url()]);
        let id = queen.begin(&json!({"operation": "worker_install", "worker_id": "slow"}));
        has_told(&queen, &id, "waiting");
        hive.signal(Signal::TERM);
        // It has nothing else to do: its telemetry ends first.
        queen.has_hives(0);
        go_on(&place);
        queen.follow(&id).done();
        assert!(hive.ended().success());
    });
}

#[test]
fn a_hive_that_shuts_down_drains_all_its_workers_at_once() {
    alone(|| {
        const TOKENS: u32 = 1_500;
        let place = Place::with_model(&roomy());
        let (queen, mut hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        let spawn = |ctx: u32| {
            let operation = json!({"operation": "worker_spawn", "model": model, "slots": 1, "ctx": ctx});
            hive.job(&operation).done()["worker_id"].as_str().unwrap().to_owned()
        };
        let workers = [spawn(4_096), spawn(8_192)];
        let mut streams = workers.map(|id| {
            let mut stream = hive.stream(&format!("/v1/workers/{id}{CHAT}"), &chat(&model, TOKENS, true));
            stream.take(5);
            stream
        });
        hive.signal(Signal::TERM);
        until("both are draining", || match queen.workers() {
            workers if workers.len() == 2 && workers.iter().all(|worker| worker["state"] == "draining") => {
                Ok(())
            }
            workers => Err(format!("{workers:?}")),
        });
        for stream in &mut streams {
            let ended = stream.rest();
            assert!(ended.is_clean(), "{:?} after {} events", ended.broken, ended.events.len());
        }
        assert!(hive.ended().success());
        assert_eq!(place.processes().len(), 1, "{:?}", place.processes());
    });
}

/// A stream through `asked` that a signal to some daemon does not cut short.
#[track_caller]
fn finishes_its_stream(place: &Place, asked: &mut Daemon, signal: impl FnOnce(&Daemon)) {
    let model = asked.register(place, None);
    asked.spawn_roomy(&model);
    let mut stream = asked.lasting(&model);
    signal(asked);
    stream.is_finished();
}

#[test]
fn shutdown_finishes_the_running_stream() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let mut daemon = Daemon::start(&place, "serve", &[]);
        finishes_its_stream(&place, &mut daemon, |daemon| daemon.signal(Signal::TERM));
        assert!(daemon.ended().success());
        assert_eq!(place.processes(), []);
    });
}

#[test]
fn a_daemon_that_shuts_down_takes_no_new_requests() {
    alone(|| {
        let Full { place: _place, daemon, mut answer, .. } = Full::start(&[]);
        daemon.signal(Signal::TERM);
        until("the port is closed", || match std::net::TcpStream::connect(&daemon.address) {
            Err(_) => Ok(()),
            Ok(_) => Err("it still accepts".into()),
        });
        answer.take(5);
    });
}

#[test]
fn a_second_sigterm_stops_at_once() {
    alone(|| {
        let Full { place, mut daemon, mut answer, .. } = Full::start(&[]);
        let begun = Instant::now();
        daemon.signal(Signal::TERM);
        until("the first is noticed", || {
            let log = daemon.log();
            if log.contains("shutting down") { Ok(()) } else { Err(log) }
        });
        daemon.signal(Signal::TERM);
        answer.rest().is_told();
        let exit = daemon.ended();
        assert!(exit.success(), "{exit}");
        assert!(begun.elapsed() < STOP_MAX, "{:?}", begun.elapsed());
        assert_eq!(place.processes(), []);
    });
}

/// `rbee run` at a queen of the place's own.
fn run<'a>(queen: &'a str, model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["run", "--queen", queen, "-m", model, "--max-tokens", "8", "-p", PROMPT];
    args.extend(more);
    args
}

#[test]
fn an_ephemeral_run_starts_everything_answers_and_leaves_nothing() {
    alone(|| {
        let place = Place::new();
        let (queen, model) = (format!("http://{}", place.address(7833)), place.model());
        let output = place.rbee(&run(&queen, &model, &["--ephemeral"]));
        assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
        assert_eq!(place.processes(), [], "{output:?}");
    });
}

#[test]
fn an_ephemeral_run_that_is_killed_leaves_nothing() {
    alone(|| {
        repeat("keeper of --ephemeral", || {
            let place = Place::with_model(&roomy());
            let (queen, model) = (format!("http://{}", place.address(7833)), place.model());
            let mut args = run(&queen, &model, &["--ephemeral", "--temperature", "0"]);
            let tokens = args.iter().position(|arg| *arg == "8").unwrap();
            args[tokens] = "4000";
            let mut command = place.command(&args);
            let mut keeper = command.stdout(Stdio::piped()).spawn().unwrap();
            let mut first = [0];
            keeper.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
            let begun = Instant::now();
            keeper.kill().unwrap();
            keeper.wait().unwrap();
            place.is_deserted_within(STOP_MAX);
            begun.elapsed()
        });
    });
}

#[test]
fn an_ephemeral_run_uses_a_daemon_that_is_there_and_leaves_it() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::start(&place, "serve", &[]);
        let (queen, model) = (daemon.url(), place.model());
        let output = place.rbee(&run(&queen, &model, &["--ephemeral"]));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(daemon.workers().len(), 1);
        assert_eq!(daemon.get("/health").status, 200);
    });
}

#[test]
fn two_first_runs_share_one_start_and_what_they_started_stays_until_it_is_stopped() {
    alone(|| {
        let place = Place::new();
        let (queen, model) = (format!("http://{}", place.address(7833)), place.model());
        std::thread::scope(|scope| {
            let first = || {
                let output = place.rbee(&run(&queen, &model, &[]));
                assert!(output.status.success() && !output.stdout.is_empty(), "{output:?}");
            };
            (0..2).for_each(|_| drop(scope.spawn(first)));
        });
        assert_eq!(place.processes_of(" serve --detach").len(), 1, "{:?}", place.processes());
        assert_eq!(place.processes_of("worker serve").len(), 1, "{:?}", place.processes());
        let stopped = place.rbee(&["queen", "stop", "--queen", &queen]);
        assert!(stopped.status.success(), "{:?}", said(&stopped));
        place.is_deserted_within(STOP_MAX);
    });
}

/// As systemd's `Restart=always` does.
#[test]
fn a_stop_waits_for_the_daemon_that_ran_and_not_for_the_one_that_takes_its_place_at_once() {
    alone(|| {
        let place = Place::new();
        let like =
            place.command(&["hive", "serve", "--listen", "127.0.0.1:0", "--queen", "http://127.0.0.1:9"]);
        let over = place.path("over");
        let script = format!("until [ -e {} ]; do \"$@\"; done", over.display());
        let mut supervisor = Command::new("sh");
        supervisor.args(["-c", &script, "sh", RBEE]).args(like.get_args()).env_clear();
        supervisor.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut supervisor = supervisor.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let lock = place.state().join("hive.lock");
        let holder = || until("a hive has the lock", || rbee::daemon::holder(&lock).ok_or_else(String::new));
        let stop = || {
            let stopped = place.rbee(&["hive", "stop"]);
            let (_, told) = said(&stopped);
            assert!(stopped.status.success() && told.contains("stopped"), "{stopped:?}");
            told
        };
        for _ in 0..3 {
            let before = holder();
            let told = stop();
            assert!(told.contains(&format!("(pid {})", before.pid)), "{told}: {before:?}");
            assert!(!before.still_lives());
            assert_ne!(holder(), before, "the next one");
        }
        holder();
        std::fs::write(&over, "").unwrap();
        stop();
        assert!(supervisor.wait().is_ok());
    });
}
