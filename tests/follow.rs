//! Jobs as a person follows them: through connections that drop and daemons that die, and with Ctrl-C at any moment.

use crate::builds::{QUICK, Shop};
use crate::support::fleet::{endless_job, served};
use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Repo, TestHub};
use crate::support::node::{Daemon, Place, alone, said, slow, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

/// What becomes of one connection.
enum Way {
    Through,
    /// Broken after so many bytes of the answer.
    CutAfter(usize),
    /// The answer comes when the other end of this is dropped or used.
    Held(mpsc::Receiver<()>),
}

/// A relay in front of a daemon; `way` decides by the request's first line.
fn relay(daemon: &Daemon, mut way: impl FnMut(&str) -> Way + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let to = daemon.address.clone();
    // Threads that end with the test's process, or with their connections.
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut first = vec![0; 16 << 10];
            let Ok(length) = client.read(&mut first) else { continue };
            first.truncate(length);
            let line = String::from_utf8_lossy(&first).lines().next().unwrap_or_default().to_owned();
            let way = way(&line);
            // A daemon that is away is a connection that is refused.
            let Ok(mut server) = TcpStream::connect(&to) else { continue };
            server.write_all(&first).unwrap();
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                match way {
                    Way::Through => drop(std::io::copy(&mut server, &mut client)),
                    Way::CutAfter(bytes) => {
                        drop(std::io::copy(&mut (&mut server).take(bytes as u64), &mut client))
                    }
                    Way::Held(release) => {
                        let _ = release.recv();
                        drop(std::io::copy(&mut server, &mut client));
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    url
}

fn spawn(place: &Place, args: &[&str]) -> Child {
    let mut command = place.command(args);
    println!("{command:?}");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn interrupt(child: &Child) {
    send(child, Signal::INT);
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

/// Waits until a job of this operation runs.
#[track_caller]
fn running(daemon: &Daemon, operation: &str) -> String {
    until(&format!("a job of {operation} runs"), || {
        let jobs = daemon.get("/v1/jobs").json();
        let is_it = |job: &&Value| job["operation"] == operation && job["state"] == "running";
        let job = jobs["jobs"].as_array().and_then(|jobs| jobs.iter().find(is_it));
        job.map(|job| job["job_id"].as_str().unwrap().to_owned()).ok_or_else(|| jobs.to_string())
    })
}

fn state(daemon: &Daemon, id: &str) -> Value {
    daemon.get(&format!("/v1/jobs/{id}")).json()["state"].clone()
}

/// Waits for the first piece of an answer.
fn first_word(child: &mut Child) {
    assert!(child.stdout.as_mut().unwrap().read(&mut [0; 1]).unwrap() > 0);
}

#[test]
fn a_follow_across_dropped_connections_loses_nothing_and_repeats_nothing() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &[]);
    let mut operation = endless_job(&model);
    operation["max_tokens"] = json!(200);
    let id = daemon.begin(&operation);
    // In the head of the answer, in the middle of an event, and at any place later.
    let mut cuts = vec![20, 400, 1_700, 3_333, 3_334, 9_000].into_iter();
    let url = relay(&daemon, move |_| cuts.next().map_or(Way::Through, Way::CutAfter));
    let output = place.rbee(&["job", "follow", &id, "--queen", &url]);
    let (stdout, stderr) = said(&output);
    assert!(output.status.success(), "{stderr}");
    let text = daemon.get(&format!("/v1/jobs/{id}")).json()["result"]["text"].as_str().unwrap().to_owned();
    assert_eq!(stdout, text + "\n");
    assert!(stderr.contains("connecting again"), "{stderr}");
    let lines = place.rbee(&["job", "follow", &id, "--queen", &daemon.url(), "--json"]);
    let (stdout, stderr) = said(&lines);
    assert_eq!(stderr, "", "with --json there is nothing else to say");
    let events: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len() as u64, daemon.get(&format!("/v1/jobs/{id}")).json()["events"]);
    assert_eq!(events.last().unwrap()["event"], "result");
}

#[test]
fn a_follow_outlives_its_daemon_and_is_told_that_the_job_was_interrupted() {
    let place = Place::with_model(&slow());
    let address = place.address(7833);
    let (daemon, model) = served(&place, &["--listen", &address]);
    let id = daemon.begin(&endless_job(&model));
    let mut child = spawn(&place, &["job", "follow", &id, "--queen", &daemon.url()]);
    first_word(&mut child);
    daemon.kill9();
    let daemon = Daemon::start(&place, "serve", &["--listen", &address]);
    let output = child.wait_with_output().unwrap();
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("connecting again") && stderr.contains("died before the job had ended"),
        "{stderr}"
    );
    assert!(!stderr.contains('\u{1b}'), "no control codes off a terminal: {stderr:?}");
    assert_eq!(state(&daemon, &id), "interrupted");
}

#[test]
fn a_server_that_is_gone_is_told_after_three_tries() {
    let place = Place::new();
    let url = format!("http://{}", place.address(7833));
    let output = place.rbee(&["job", "follow", "01900000-0000-7000-8000-000000000000", "--queen", &url]);
    let (_, stderr) = said(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr.matches("connecting again").count() == 2 && stderr.contains("CONNECTION_FAILED"),
        "{stderr}"
    );
}

#[test]
fn ctrl_c_before_the_id_is_known_cancels_as_soon_as_it_is() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &[]);
    let (release, held) = mpsc::channel();
    let (asked, posted) = mpsc::channel();
    let (mut held, mut posts) = (Some(held), 0);
    // The model's facts are the first job, the answer the second.
    let url = relay(&daemon, move |line| {
        posts += usize::from(line.starts_with("POST /v1/jobs "));
        match held.take_if(|_| posts == 2) {
            Some(held) => {
                asked.send(()).unwrap();
                Way::Held(held)
            }
            None => Way::Through,
        }
    });
    let child = spawn(&place, &["run", "-m", &model, "--max-tokens", "8000", "--queen", &url, "hello"]);
    posted.recv().unwrap();
    interrupt(&child);
    let id = until("the job is there", || {
        let jobs = daemon.get("/v1/jobs").json()["jobs"].as_array().unwrap().clone();
        let infer = jobs.iter().find(|job| job["operation"] == "infer" && job["state"] == "running");
        infer.map(|job| job["job_id"].as_str().unwrap().to_owned()).ok_or(format!("{jobs:?}"))
    });
    release.send(()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{:?}", said(&output));
    assert!(said(&output).1.contains("cancelled"), "{:?}", said(&output));
    assert_eq!(state(&daemon, &id), "cancelled");
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &[]);
    let id = daemon.begin(&endless_job(&model));
    // The receipt is never told.
    let (_never, held) = mpsc::channel();
    let mut held = Some(held);
    let (asked, cancelled) = mpsc::channel();
    let url = relay(&daemon, move |line| match held.take_if(|_| line.starts_with("DELETE ")) {
        Some(held) => {
            asked.send(()).unwrap();
            Way::Held(held)
        }
        None => Way::Through,
    });
    let mut child = spawn(&place, &["job", "follow", &id, "--queen", &url]);
    first_word(&mut child);
    interrupt(&child);
    cancelled.recv().unwrap();
    let begun = std::time::Instant::now();
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{:?}", said(&output));
    assert!(begun.elapsed().as_secs() < 4, "well before the receipt's limit: {:?}", begun.elapsed());
}

#[test]
fn a_timeout_detaches_and_only_a_cancel_cancels() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &["--name", "here"]);
    let id = daemon.begin(&endless_job(&model));
    let rbee = |args: &[&str]| {
        let output = place.rbee(&[args, &["--queen", &daemon.url()]].concat());
        let (stdout, stderr) = said(&output);
        (output.status.code().unwrap(), stdout, stderr)
    };
    let (code, _, stderr) = rbee(&["job", "follow", &id, "--timeout", "200ms"]);
    assert!(code == 1 && stderr.contains("the job goes on"), "{stderr}");
    // A follower that is killed outright detaches, too.
    let mut child = spawn(&place, &["job", "follow", &id, "--queen", &daemon.url()]);
    first_word(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(state(&daemon, &id), "running");
    let (code, _, stderr) = rbee(&["job", "cancel", &id]);
    assert!(code == 0 && stderr.starts_with("cancelled: ") && !stderr.contains("0 MiB"), "{stderr}");
    let (code, stdout, _) = rbee(&["job", "cancel", &id, "--json"]);
    let again: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &again["receipt"]["clean"]), (0, &json!(true)));
    assert_eq!(rbee(&["job", "cancel", "01900000-0000-7000-8000-000000000000"]).0, 1);
    assert_eq!(rbee(&["job", "cancel", "nonsense"]).0, 2);
    // The hive's own, by its name behind the queen: what was relayed, under one id, and not the queen's answers.
    let relayed = daemon.job(&json!({"operation": "model_list", "hive_id": "here"}));
    let (code, listed, _) = rbee(&["job", "list", "--hive", "here"]);
    assert!(code == 0 && listed.contains(&relayed.id) && !listed.contains("infer"), "{listed}");
    let (code, stdout, _) = rbee(&["job", "follow", &relayed.id, "--hive", "here"]);
    assert!(code == 0 && stdout.contains("models"), "{stdout}");
}

#[test]
fn a_sigterm_cancels_what_runs_on_the_server_as_ctrl_c_does_and_exits_143() {
    alone(|| {
        let place = Place::with_model(&slow());
        let content = Content::padded(tiny(&Tiny::default()), 64 << 20, 1);
        let hub = TestHub::of([Repo::new("bees/Large").with("m-Q4_K_M.gguf", &content)]);
        let hub = hub.bytes_per_second(1 << 20).open();
        let shop = Shop::open(&place);
        shop.recipe("slow", &format!("build() {{ echo building; sleep 1000; }}\n{QUICK}"), "");
        let (catalog, endpoint) = (shop.daemon.url(), hub.endpoint());
        let args = ["--name", "here", "--catalog", catalog.as_str()];
        let daemon = Daemon::try_start(&place, "serve", &args, &[("HF_ENDPOINT", &endpoint)]).unwrap();
        let (url, model) = (daemon.url(), place.model());
        let run = ["run", "-m", &model, "--max-tokens", "8000", "--temperature", "0", "hello"];
        for (operation, words) in [
            ("infer", &run[..]),
            ("model_download", &["model", "download", "bees/Large:Q4_K_M"]),
            ("worker_install", &["worker", "install", "slow"]),
        ] {
            let mut child = spawn(&place, &[words, &["--queen", &url]].concat());
            let job = running(&daemon, operation);
            let mut text = String::new();
            if operation == "infer" {
                first_word(&mut child);
            }
            send(&child, Signal::TERM);
            if let Some(stdout) = &mut child.stdout {
                stdout.read_to_string(&mut text).unwrap();
            }
            let output = child.wait_with_output().unwrap();
            let (_, stderr) = said(&output);
            assert_eq!(output.status.code(), Some(143), "{operation}: {stderr}");
            assert!(stderr.contains("cancelled: "), "{operation}: {stderr}");
            assert_eq!(state(&daemon, &job), "cancelled", "{operation}");
            assert!(operation != "infer" || text.ends_with('\n'), "{text:?}");
        }
    });
}

#[test]
fn an_answer_is_cancelled_when_its_terminal_or_its_reader_has_gone_but_not_under_nohup() {
    alone(|| {
        let place = Place::with_model(&slow());
        let daemon = Daemon::start(&place, "serve", &[]);
        let (url, model) = (daemon.url(), place.model());
        let run = |tokens: &'static str| {
            ["run", "-m", &model, "--queen", &url, "--max-tokens", tokens, "--temperature", "0", "hello"]
                .map(str::to_owned)
        };
        let begin = |tokens: &'static str| {
            let words = run(tokens);
            let mut child = spawn(&place, &words.each_ref().map(String::as_str));
            let job = running(&daemon, "infer");
            first_word(&mut child);
            (child, job)
        };
        let (mut child, job) = begin("8000");
        send(&child, Signal::HUP);
        // Read on, as a terminal's other end would: a pipe that is full holds up the last words.
        child.stdout.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(143));
        assert_eq!(state(&daemon, &job), "cancelled");

        let (mut child, job) = begin("8000");
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(!said(&output).1.contains("error:"), "a reader that has had enough is no error: {output:?}");
        assert_eq!(state(&daemon, &job), "cancelled");

        let like = place.command(&[]);
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_rbee")]).args(run("40"));
        command.env_clear().envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        first_word(&mut child);
        send(&child, Signal::HUP);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
}
