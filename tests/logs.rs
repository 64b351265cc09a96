//! What daemons and workers say, and who is told: files that are kept, streams that follow, and no key in any of them.

use crate::support::fleet::{Pair, served};
use crate::support::node::{Daemon, PATIENCE, Place, alone, said, signal_pid, until};
use rbee::http::sse::Event;
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

fn log_line(event: &Event) -> Option<Value> {
    (event.name.as_deref() == Some("log")).then(|| serde_json::from_str(&event.data).unwrap())
}

/// A stream of log lines, read to its end.
#[track_caller]
fn whole(daemon: &Daemon, path: &str) -> (Vec<Value>, Option<Terminator>) {
    let mut stream = daemon.watch(path);
    assert_eq!(stream.status, 200);
    let (mut lines, mut terminator) = (Vec::new(), None);
    while let Some(event) = stream.next().unwrap() {
        assert_eq!(terminator, None, "after the end came {event:?}");
        lines.extend(log_line(&event));
        if event.name.is_none() {
            terminator = Terminator::parse(&event.data);
        }
    }
    (lines, terminator)
}

fn has(lines: &[Value], node: &str, worker: Option<&str>, words: &str) -> bool {
    lines.iter().any(|line| {
        line["node"] == node
            && line["worker"].as_str() == worker
            && line["line"].as_str().unwrap().contains(words)
    })
}

#[test]
fn the_queen_tells_the_lines_of_the_whole_fleet_each_with_its_node_and_worker() {
    alone(|| {
        let pair = Pair::start();
        let Pair { queen, one, places, .. } = &pair;
        let url = queen.url();
        let model = queen.register(&places[1], Some("two"));
        queen.answers(&model);
        let worker = queen.workers()[0]["worker_id"].as_str().unwrap().to_owned();

        let (lines, terminator) = whole(queen, "/v2/logs");
        assert_eq!(terminator, Some(Terminator::Done));
        assert!(has(&lines, "q", None, "hive connected"), "{lines:?}");
        assert!(has(&lines, "one", None, "listening") && has(&lines, "two", None, "linked"), "{lines:?}");
        assert!(lines.iter().any(|line| line["worker"] == *worker && line["node"] == "two"), "{lines:?}");

        let (lines, _) = whole(queen, "/v2/logs?node=one&tail=1");
        assert!(lines.len() == 1 && lines[0]["node"] == "one", "{lines:?}");
        let (lines, _) = whole(queen, &format!("/v2/logs?worker={worker}"));
        assert!(!lines.is_empty() && lines.iter().all(|line| line["worker"] == *worker), "{lines:?}");
        let (direct, _) = whole(one, "/v1/logs");
        assert!(has(&direct, "one", None, "listening"), "{direct:?}");

        assert_eq!(queen.get("/v2/logs?node=three").failure().code, Code::HiveNotFound);
        assert_eq!(queen.get("/v2/logs?node=three&worker=w1").failure().code, Code::HiveNotFound);
        assert_eq!(queen.get("/v2/logs?worker=none").failure().code, Code::WorkerNotFound);
        assert_eq!(queen.get("/v2/logs?worker=../hive").failure().code, Code::InvalidRequest);
        assert_eq!(queen.get("/v2/logs?tail=100000").failure().code, Code::InvalidRequest);

        let shown = places[0].rbee(&["logs", "--queen", &url]);
        let (answer, _) = said(&shown);
        assert!(shown.status.success() && answer.contains(&format!("two {worker} | ")), "{shown:?}");
        let shown = places[0].rbee(&["workers", "logs", &worker, "--queen", &url, "--tail", "1", "--json"]);
        let (answer, _) = said(&shown);
        let parsed: Vec<Value> = answer.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(parsed.len() == 1 && parsed.iter().all(|line| line["worker"] == *worker), "{shown:?}");
        let shown = places[0].rbee(&["logs", "--hive", "three", "--queen", &url]);
        assert_eq!(shown.status.code(), Some(1), "{shown:?}");
    });
}

#[test]
fn a_log_is_followed_as_it_grows_and_over_the_end_of_a_worker() {
    alone(|| {
        let place = Place::new();
        let (daemon, model) = served(&place, &["--name", "one"]);
        let url = daemon.url();
        let mut follow = place.command(&["logs", "--follow", "--queen", &url]);
        let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        let seen = |lines: &mut std::io::Lines<_>, words: &str| loop {
            let line: String = lines.next().unwrap().unwrap();
            if line.contains(words) {
                return line;
            }
        };
        // What was said before it came; then it follows.
        seen(&mut lines, "listening");
        let worker = daemon.job(&json!({"operation": "worker_spawn", "model": model})).done().clone();
        let id = worker["worker_id"].as_str().unwrap();
        seen(&mut lines, &format!("one {id} | "));
        daemon.job(&json!({"operation": "worker_stop", "worker_id": id})).done();
        let ended = seen(&mut lines, "worker ended");
        assert!(ended.starts_with("one | "), "{ended}");
        signal_pid(follow.id() as i32, Signal::INT);
        assert_eq!(follow.wait().unwrap().code(), Some(130));

        // What it said is still there, read from its file.
        let (lines, terminator) = whole(&daemon, &format!("/v2/logs?worker={id}"));
        assert!(!lines.is_empty() && terminator == Some(Terminator::Done), "{lines:?}");
        let mut stream = daemon.watch("/v2/logs?follow=true&tail=0");
        daemon.signal(Signal::TERM);
        let ended = stream.rest();
        let last = ended.events.last().unwrap();
        assert!(last.starts_with("[ERROR]") && last.contains("shutting down"), "{ended:?}");
    });
}

#[test]
fn a_log_that_tells_everything_can_be_followed_without_telling_of_itself_for_ever() {
    alone(|| {
        let place = Place::new();
        let all: &[(&str, &str)] = &[("RBEE_LOG", "trace")];
        let queen = Daemon::try_start(&place, "queen serve", &[], all).unwrap();
        let args = ["--name", "one", "--queen", &queen.url()];
        let hive = Daemon::try_start(&place, "hive serve", &args, all).unwrap();
        queen.has_hives(1);
        let mut stream = queen.watch("/v2/logs?follow=true&tail=0");
        // Ended by the daemon, and before that by nothing: what came meanwhile is what the two said by themselves.
        assert!(hive.terminate().success());
        assert!(queen.terminate().success());
        let lines = stream.rest().events.len();
        assert!(lines < 1_000, "{lines} lines");
    });
}

#[test]
fn what_carries_a_followed_log_is_in_the_files_and_not_in_what_is_told() {
    alone(|| {
        let place = Place::new();
        let carriers: &[(&str, &str)] =
            &[("RBEE_LOG", "debug,h2=trace,hyper=trace,hyper_util=trace,mio=trace")];
        let queen = Daemon::try_start(&place, "queen serve", &["--name", "q"], carriers).unwrap();
        let args = ["--name", "one", "--queen", &queen.url()];
        let hive = Daemon::try_start(&place, "hive serve", &args, carriers).unwrap();
        queen.has_hives(1);
        let mut streams =
            [queen.watch("/v2/logs?follow=true&tail=1000"), hive.watch("/v1/logs?follow=true&tail=1000")];
        // Both have begun to tell when something is said that was not before.
        queen.job(&json!({"operation": "hive_drain", "name": "one"})).done();
        let mut told = Vec::new();
        for stream in &mut streams {
            until("the followed log tells of the drain", || {
                let event = stream.next().unwrap().expect("it goes on");
                let is_it = event.data.contains("draining: no new requests");
                told.push(event.data);
                if is_it { Ok(()) } else { Err(told.last().unwrap().clone()) }
            });
        }
        assert!(hive.terminate().success());
        assert!(queen.terminate().success());
        for mut stream in streams {
            told.extend(stream.rest().events);
        }
        let carried: Vec<&String> = told
            .iter()
            .filter(|line| {
                [" h2", " hyper", " mio"].iter().any(|target| line.contains(&format!("{target}::")))
            })
            .collect();
        assert!(carried.is_empty(), "{} of {} lines: {}", carried.len(), told.len(), carried[0]);
        for log in ["queen.log", "hive.log"] {
            let kept = std::fs::read_to_string(place.state().join("logs").join(log)).unwrap();
            assert!(kept.contains("TRACE h2::"), "{log} keeps it");
        }
    });
}

#[test]
fn a_daemon_keeps_a_file_that_the_next_life_goes_on_with() {
    alone(|| {
        let place = Place::new();
        let first = Daemon::start(&place, "hive serve", &["--name", "one"]);
        let first_address = first.address.clone();
        assert!(first.terminate().success());
        let second = Daemon::start(&place, "hive serve", &["--name", "one"]);
        let (lines, _) = whole(&second, "/v1/logs");
        for words in [first_address.as_str(), "ended", second.address.as_str()] {
            assert!(has(&lines, "one", None, words), "{words}: {lines:?}");
        }
        let kept = std::fs::read_to_string(place.state().join("logs/hive.log")).unwrap();
        assert!(kept.contains(&first_address) && kept.contains(&second.address), "{kept}");
        assert!(second.log().contains("listening"), "in the foreground on stderr, too");
    });
}

#[test]
fn a_started_daemon_logs_to_its_file_and_says_where_starting_again_is_no_failure_and_stop_ends_it() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = (place.address(7833), place.address(7835));
        let url = format!("http://{queen}");
        let started =
            place.rbee(&["queen", "start", "--listen", &queen, "--name", "q", "--queue-wait", "7s"]);
        let (answer, narrated) = said(&started);
        assert!(started.status.success(), "{narrated}");
        let log = place.state().join("logs/queen.log");
        assert!(answer.contains(&queen) && answer.contains(log.to_str().unwrap()), "{answer}");
        let key = "s3cret-start-key";
        let hive_args =
            ["hive", "start", "--listen", &hive, "--queen", &url, "--name", "one", "--api-key", key];
        let started = place.rbee(&[&hive_args[..], &["--json"]].concat());
        let (answer, _) = said(&started);
        let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{started:?}"));
        assert_eq!(answer["status"], "started");
        let pid = answer["pid"].as_i64().unwrap();
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(line.contains("hive\0serve") && !line.contains(key), "{line:?}");

        let again = place.rbee(&["queen", "start", "--listen", &queen]);
        let (answer, _) = said(&again);
        assert!(again.status.success() && answer.contains("runs already"), "{again:?}");
        until("the hive is linked", || {
            let status = place.rbee(&["hive", "list", "--queen", &url]);
            if said(&status).0.contains("one") { Ok(()) } else { Err(format!("{status:?}")) }
        });
        let kept = std::fs::read_to_string(&log).unwrap();
        assert!(kept.contains("listening") && kept.contains("hive connected"), "{kept}");
        let shown = place.rbee(&["logs", "--hive", &format!("http://{hive}"), "--api-key", key]);
        assert!(shown.status.success() && said(&shown).0.contains("linked"), "{shown:?}");
        for role in ["hive", "queen"] {
            let status = place.rbee(&[role, "status", "--queen", &url, "--hive", &hive, "--api-key", key]);
            assert!(status.status.success(), "{status:?}");
            let stopped = place.rbee(&[role, "stop"]);
            assert!(stopped.status.success(), "{stopped:?}");
        }
        place.is_deserted_within(PATIENCE);
    });
}

#[test]
fn a_start_that_fails_says_why_and_what_to_do() {
    alone(|| {
        let place = Place::new();
        let taken = std::net::TcpListener::bind(place.address(7833)).unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let started = place.rbee(&["queen", "start", "--listen", &address]);
        let (_, narrated) = said(&started);
        assert_eq!(started.status.code(), Some(1), "{started:?}");
        let pid = format!("pid {}", std::process::id());
        assert!(narrated.contains(&pid) && narrated.contains("--listen"), "{narrated}");
        let open = place.rbee(&["hive", "start", "--listen", "0.0.0.0:0"]);
        let (_, narrated) = said(&open);
        assert!(open.status.code() == Some(1) && narrated.contains("key"), "{narrated}");
    });
}

#[test]
fn no_key_is_ever_in_a_log() {
    alone(|| {
        const KEY: &str = "s3cret-key-of-the-fleet";
        const WRONG: &str = "s3cret-but-wrong";
        let place = Place::new();
        let debug: &[(&str, &str)] =
            &[("RBEE_LOG", "trace,h2=trace,hyper=trace,hyper_util=trace"), ("RBEE_API_KEY", KEY)];
        let mut queen = Daemon::try_start(&place, "queen serve", &[], debug).unwrap();
        let url = queen.url();
        let mut hive =
            Daemon::try_start(&place, "hive serve", &["--name", "one", "--queen", &url], debug).unwrap();
        queen.use_key(WRONG);
        assert_eq!(queen.get("/v1/hives").failure().code, Code::InvalidApiKey);
        queen.use_key(KEY);
        hive.use_key(KEY);
        queen.has_hives(1);
        let model = queen.register(&place, None);
        queen.answers(&model);
        let lines = [whole(&queen, "/v2/logs?tail=1000").0, whole(&hive, "/v1/logs?tail=1000").0].concat();
        assert!(lines.len() > 10, "{lines:?}");
        let mut told = vec![queen.log(), hive.log(), serde_json::to_string(&lines).unwrap()];
        for entry in std::fs::read_dir(place.state().join("logs")).unwrap().flatten() {
            told.push(String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned());
        }
        assert!(told.len() >= 6, "queen, hive and worker have files");
        assert!(told[0].contains("TRACE h2"), "what carries the requests was asked to say all");
        for text in told {
            let at = [KEY, WRONG].iter().find_map(|key| text.find(key));
            assert_eq!(at.map(|at| &text[at.saturating_sub(200)..at]), None);
        }
    });
}
