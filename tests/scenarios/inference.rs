//! B10 to B20: an answer, from a cold start to the last token, and all that can happen on the way.

use super::{Person, Running, Told};
use crate::builds::Shop;
use crate::scripted;
use crate::support::fleet::{CHAT, Full, fleet, pid_of, served};
use crate::support::gguf::{Tiny, tiny};
use crate::support::hub::{Content, Repo, TestHub};
use crate::support::node::{
    Answer, Daemon, ENDLESS, PATIENCE, Place, alone, chat, freeze, is_alive, roomy, signal_pid, slow, until,
    write,
};
use rbee::http::client;
use rbee::wire::Code;
use rbee::wire::fleet::now_ms;
use rustix::process::Signal;
use serde_json::{Value, json};

/// The command for an answer of so many tokens.
fn ask<'a>(model: &'a str, tokens: &'a str) -> [&'a str; 8] {
    ["run", "-m", model, "--temperature", "0", "--max-tokens", tokens, "Say something."]
}

#[test]
fn b10_a_cold_start_is_one_command_and_the_second_call_skips_what_is_there() {
    alone(|| {
        let file = Content::of(tiny(&Tiny { endless: true, ..slow() }));
        let hub = TestHub::of([Repo::new("bees/Slow").with("s-Q8_0.gguf", &file)]).open();
        let place = Place::new();
        let person = Person::on_a_fresh_account(&place).with("HF_ENDPOINT", &hub.endpoint());
        let mut first = person.begins(&ask("bees/Slow", "300"));
        first.first_words();
        assert!(!first.is_over(), "tokens come as they are made");
        let told = first.ends();
        assert_eq!(told.code, Some(0), "{told:?}");
        told.tells_in_order(&["starting rbee serve", "Q8_0", " % ", "starting", " %"]);
        told.tells(&["MiB", "/s"]);
        assert!(!told.err.contains('\u{1b}'), "no control codes off a terminal: {:?}", told.err);
        assert_eq!(hub.bytes_sent(), file.size());

        let second = person.does(&ask("bees/Slow", "300"));
        assert_eq!((second.out, second.err.as_str()), (told.out, ""), "warm: nothing to tell");
        assert_eq!((hub.bytes_sent(), place.spawns()), (file.size(), 1));
        person.does(&["queen", "stop"]);
        place.is_deserted_within(PATIENCE);
    });
}

/// Stands in for the vendor's tool: one GPU with 8 GiB.
const NVIDIA_SMI: &str = "#!/bin/sh\necho '0, Test GPU, 8192, 8000, 8.6'\n";

#[test]
fn b11_what_does_not_fit_or_lacks_its_backend_is_refused_before_it_starts_and_what_is_lowered_is_told() {
    alone(|| {
        let place = Place::with_model(&roomy());
        write(&place.path("tools/nvidia-smi"), NVIDIA_SMI, 0o755);
        let path = format!("{}:{}", place.path("tools").display(), std::env::var("PATH").unwrap());
        let start = |memory: &str| {
            let args = ["--name", "small", "--memory", memory];
            Daemon::try_start(&place, "serve", &args, &[("PATH", &path)]).unwrap()
        };
        let daemon = start("4096");
        let person = Person::at(&place, &daemon);
        let model = daemon.register(&place, None);
        let types = |person: &Person<'_>, more: &[&str]| {
            person.types(&[&["worker", "spawn", "--model", &model], more].concat())
        };
        // Never the CPU where a GPU was asked for.
        for (more, says) in [
            (&["--worker", "cuda"][..], "rbee worker install llm-worker-rbee-cuda"),
            (&["--device", "GPU-0"], "rbee worker install llm-worker-rbee-cuda"),
            (&["--worker", "metal"], "no `metal` device"),
            (&["--device", "7"], "no device `7`"),
        ] {
            let told = types(&person, more);
            assert_eq!(told.code, Some(1), "{told:?}");
            told.tells(&["BACKEND_UNAVAILABLE", says]);
        }
        assert_eq!(place.spawns(), 0);
        // On the CPU unasked only where nothing else was said, and then that is told.
        let told = types(&person, &["--json"]);
        told.tells(&["GPU", "rbee worker install llm-worker-rbee-cuda"]);
        let worker = told.json();
        assert_eq!((&worker["slots_total"], &worker["ctx"]), (&json!(4), &json!(4_096)), "the defaults");
        let whole = worker["memory_bytes"].as_u64().unwrap();
        let file = place.path("tiny.gguf").metadata().unwrap().len();
        assert!(whole >= file * 6 / 5, "{whole} for a file of {file}");
        assert!(daemon.terminate().success());

        // Room for less than that, then for nothing.
        let daemon = start(&((whole >> 20) - 1).to_string());
        let person = Person::at(&place, &daemon);
        daemon.register(&place, None);
        let told = types(&person, &["--json"]);
        told.tells(&["memory is short", "instead of 4 of 4096"]);
        let lowered = told.json();
        assert!(lowered["slots_total"].as_u64() < Some(4), "{lowered}");
        assert!(lowered["memory_bytes"].as_u64() < Some(whole), "{lowered}");
        person.does(&["workers", "shutdown", "--id", lowered["worker_id"].as_str().unwrap()]);
        let told = types(&person, &["--slots", "64", "--ctx", "65536"]);
        assert_eq!(told.code, Some(1), "{told:?}");
        let fits = format!("it would fit with --slots {} --ctx {}", lowered["slots_total"], lowered["ctx"]);
        told.tells(&["INSUFFICIENT_MEMORY", "MiB free", "needs at least", &fits]);
        assert!(daemon.terminate().success());
        let daemon = start("1");
        let model = daemon.register(&place, None);
        let spawn = daemon.job(&json!({"operation": "worker_spawn", "model": model}));
        let error = spawn.find("error").unwrap_or_else(|| panic!("{spawn:?}"));
        assert_eq!(error["code"], "INSUFFICIENT_MEMORY", "{error}");
        assert!(error["details"]["needed_bytes"].as_u64() > error["details"]["available_bytes"].as_u64());
        assert!(error["message"].as_str().unwrap().contains("smaller quantisation"), "{error}");
        assert_eq!(place.spawns(), 2, "each refusal came before a start");
    });
}

#[test]
fn b12_loading_shows_how_far_it_is_and_a_load_that_fails_says_why_and_leaves_no_process() {
    alone(|| {
        let place = Place::with_model(&slow());
        let shop = Shop::open(&place);
        let package = |line: &str| {
            format!(
                "package() {{ mkdir -p \"$pkgdir/bin\"; printf '#!/bin/sh\\n{line}\\n' > \"$pkgdir/bin/engine\"; chmod 755 \"$pkgdir/bin/engine\"; }}"
            )
        };
        let serve = "[serve]\nargv = [\"{host}\"]\nhealth = \"/health\"\napi = \"openai\"\n";
        shop.recipe("mute", &package("echo loading for ever; exec sleep 1000"), serve);
        shop.recipe("broken", &package("echo out of luck; exit 3"), serve);
        let daemon = shop.hive(&place, &["--loading-silence", "1s"]);
        let person = Person::at(&place, &daemon);
        for id in ["mute", "broken"] {
            person.does(&["worker", "install", id]);
        }
        let model = daemon.register(&place, None);
        let told = person.does(&["worker", "spawn", "--model", &model]);
        // A quick load need not tell every step.
        told.tells_in_order(&["starting a worker", "loading", " %"]);

        let told =
            person.fails(&["worker", "spawn", "--model", &model, "--worker", "mute"], "LOADING_TIMEOUT");
        told.tells(&["loading for ever"]);
        let told = person.fails(&["worker", "spawn", "--model", &model, "--worker", "broken"], "out of luck");
        told.tells(&["3"]);
        let is_theirs = |line: &str| {
            ["sleep 1000", "workers/mute", "workers/broken"].iter().any(|word| line.contains(word))
        };
        until("nothing of the two is left", || match place.processes() {
            left if left.iter().all(|(_, line)| !is_theirs(line)) => Ok(()),
            left => Err(format!("{left:?}")),
        });
        assert_eq!(daemon.workers().len(), 1);
    });
}

#[test]
fn b13_when_all_is_busy_a_request_waits_its_turn_and_beyond_the_queue_it_is_told_when_to_come_again() {
    alone(|| {
        let Full { place, daemon, model, answer, worker } = Full::start(&["--queue", "1"]);
        let person = Person::at(&place, &daemon);
        let id = worker["worker_id"].as_str().unwrap();
        // By the worker's own name, so that none is started beside it.
        let line = [&ask(&model, "5")[..], &["--worker", id]].concat();
        let waiting = person.begins(&line);
        daemon.has_queued(1);

        let refused = daemon.post(CHAT, &chat(&model, 3, false));
        assert_eq!((refused.status, refused.failure().code), (503, Code::AllSlotsBusy), "{refused:?}");
        assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        let details = refused.failure().details;
        assert_eq!((&details["slots_total"], &details["slots_busy"]), (&json!(1), &json!(1)), "{details}");
        let told = person.fails(&line, "ALL_SLOTS_BUSY");
        told.tells_in_order(&["trying again in 1 s", "trying again in 2 s", "trying again in 4 s"]);

        drop(answer);
        let told = waiting.ends();
        assert_eq!(told.code, Some(0), "{told:?}");
        told.tells(&["1. in the queue"]);
        assert_eq!(place.spawns(), 1);
        assert!(daemon.terminate().success());

        // Nor does anybody wait for longer than that was said.
        let daemon = Daemon::start(&place, "serve", &["--queue-wait", "200ms"]);
        daemon.spawn_roomy(&model);
        let _first = daemon.endless(&model);
        let refused = daemon.post(CHAT, &chat(&model, 3, false));
        assert_eq!((refused.status, refused.failure().code), (503, Code::AllSlotsBusy), "{refused:?}");
        assert!(refused.headers.contains_key("retry-after"), "{refused:?}");
    });
}

#[test]
fn b14_what_makes_no_progress_or_comes_too_late_is_ended_and_its_slot_freed() {
    alone(|| {
        let place = Place::new();
        let (_shop, daemon, model) = scripted::served(&place, "", &[]);
        let spawn = json!({"operation": "worker_spawn", "model": model, "worker": scripted::ID, "slots": 1, "ctx": 512});
        let worker = daemon.job(&spawn).done().clone();
        let asked = |body: Value, ms: u64| {
            let mut request = client::post(CHAT, &body).unwrap();
            let at = (now_ms() + ms).to_string();
            request.headers_mut().insert("x-request-deadline", at.parse().unwrap());
            daemon.request(request)
        };
        // Another project's engine that has hung: it knows nothing of deadlines, whoever stands before it does.
        let body = |tokens: u32, stream: bool| json!({"model": model, "messages": [], "max_tokens": tokens, "stream": stream, "hangs": true});
        let silent = asked(body(0, false), 300);
        assert_eq!((silent.status, silent.failure().code), (408, Code::RequestTimeout), "{silent:?}");
        daemon.has_busy_slots(0);
        let begun = asked(body(3, true), 2_000);
        let text = String::from_utf8(begun.body.to_vec()).unwrap();
        assert_eq!((begun.status, text.matches("\" bee\"").count()), (200, 3), "{text}");
        assert!(text.contains("REQUEST_TIMEOUT") && !text.contains("[DONE]"), "{text}");
        daemon.has_busy_slots(0);
        let well = json!({"model": model, "messages": [], "max_tokens": 3});
        assert_eq!(asked(well, 60_000).status, 200);
        assert_eq!(daemon.workers()[0]["pid"], worker["pid"]);
        // And our own worker, in the middle of a prompt that is long.
        let slow_place = Place::with_model(&slow());
        let (ours, model) = served(&slow_place, &["--listen", "127.0.0.7:0"]);
        assert_eq!(ours.post(CHAT, &chat(&model, 1, false)).status, 200);
        let mut late = chat(&model, 3, false);
        late["messages"][0]["content"] = json!("bees ".repeat(400));
        let mut request = client::post(CHAT, &late).unwrap();
        request.headers_mut().insert("x-request-deadline", (now_ms() + 200).to_string().parse().unwrap());
        let answer: Answer = ours.request(request);
        assert!([408, 504].contains(&answer.status), "{answer:?}");
        ours.has_busy_slots(0);
    });
}

#[test]
fn b15_a_client_that_leaves_in_the_prompt_or_the_answer_frees_its_slot() {
    alone(|| {
        let place = Place::with_model(&slow());
        let (daemon, model) = served(&place, &[]);
        let spawn = json!({"operation": "worker_spawn", "model": model, "slots": 1, "ctx": 32_768});
        daemon.job(&spawn).done();
        // A prompt that takes minutes.
        let mut long = chat(&model, 3, false);
        long["messages"][0]["content"] = json!("bees fly ".repeat(2_000));
        daemon.leave_after(CHAT, &long, || daemon.has_busy_slots(1));
        daemon.has_busy_slots(0);
        let mut stream = daemon.stream(CHAT, &chat(&model, 20_000, true));
        stream.take(3);
        daemon.has_busy_slots(1);
        drop(stream);
        daemon.has_busy_slots(0);
        // The only slot there is answers the next.
        assert_eq!(daemon.post(CHAT, &chat(&model, 3, false)).status, 200);
        assert_eq!(place.spawns(), 1);
    });
}

/// Presses Ctrl-C and waits for the end.
#[track_caller]
fn interrupted(running: Running) -> Told {
    signal_pid(running.pid(), Signal::INT);
    let told = running.ends();
    assert_eq!(told.code, Some(130), "{told:?}");
    told.tells(&["cancelled: "]);
    told
}

#[test]
fn b16_ctrl_c_cancels_waits_for_the_receipt_and_frees_the_slot_in_the_answer_and_in_the_queue() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (daemon, model) = served(&place, &[]);
        let person = Person::at(&place, &daemon);
        let worker = daemon.spawn_roomy(&model);
        let id = worker["worker_id"].as_str().unwrap();
        let line = [&ask(&model, "100000")[..], &["--worker", id]].concat();
        let mut first = person.begins(&line);
        first.first_words();
        let waiting = person.begins(&line);
        daemon.has_queued(1);
        interrupted(waiting);
        daemon.has_queued(0);
        assert!(!first.is_over());
        interrupted(first);
        assert_eq!(daemon.workers()[0]["slots_busy"], 0, "the receipt came after the slot was free");
        let jobs = daemon.get("/v1/jobs").json()["jobs"].as_array().unwrap().clone();
        let cancelled = jobs.iter().filter(|job| job["operation"] == "infer" && job["state"] == "cancelled");
        assert_eq!(cancelled.count(), 2, "{jobs:?}");
    });
}

#[test]
fn b17_a_worker_lost_before_the_first_token_costs_time_and_after_it_the_rest_but_never_the_words() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let (daemon, model) = served(&place, &[]);
        let person = Person::at(&place, &daemon);
        let worker = daemon.spawn_roomy(&model);
        freeze(pid_of(&worker));
        let asking = person.begins(&ask(&model, "5"));
        // The request is at the stopped worker.
        daemon.has_busy_slots(1);
        signal_pid(pid_of(&worker), Signal::KILL);
        let told = asking.ends();
        assert_eq!(told.code, Some(0), "{told:?}");
        assert_ne!(told.out, "");
        assert_eq!(place.spawns(), 2);

        // On the wire: an error event that tells how many tokens there were, and no [DONE].
        let first = daemon.workers()[0]["worker_id"].as_str().unwrap().to_owned();
        person.does(&["workers", "shutdown", "--id", &first]);
        let worker = daemon.spawn_roomy(&model);
        let mut stream = daemon.stream(CHAT, &chat(&model, ENDLESS, true));
        let role = stream.take(4).remove(0).data;
        assert!(role.contains("assistant"), "{role}");
        signal_pid(pid_of(&worker), Signal::KILL);
        let ended = stream.rest();
        ended.is_told();
        let failure = ended.failure().unwrap_or_else(|| panic!("{:?}", ended.broken));
        // Three were read before; the last event is the error.
        let tokens = 3 + ended.events.len() - 1;
        assert_eq!(failure.code, Code::WorkerLost);
        assert_eq!(failure.details["tokens"], tokens, "{failure:?}");

        // At the command line: the words so far are in a file that is named.
        daemon.has_no_worker();
        let worker = daemon.spawn_roomy(&model);
        let id = worker["worker_id"].as_str().unwrap().to_owned();
        let mut running = person.begins(&[&ask(&model, "100000")[..], &["--worker", &id]].concat());
        running.first_words();
        signal_pid(pid_of(&worker), Signal::KILL);
        let told = running.ends();
        assert_eq!(told.code, Some(1), "{told:?}");
        told.tells(&["WORKER_LOST", "tokens"]);
        let named = told.err.lines().find_map(|line| line.split_once("what had come of the answer is in "));
        let kept = std::fs::read_to_string(named.unwrap_or_else(|| panic!("{}", told.err)).1).unwrap();
        assert_eq!(kept.trim_end_matches('\n'), told.out.trim_end_matches('\n'));
        assert!(!kept.is_empty());
    });
}

#[test]
fn b18_an_idle_worker_stops_a_pinned_one_stays_and_no_queen_is_needed_for_either() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &["--idle-ttl", "1s"]);
        let model = queen.register(&place, None);
        let spawn = |slots: u32, pin: bool| {
            let spawn = json!({
                "operation": "worker_spawn", "model": model, "slots": slots, "ctx": 512, "pin": pin,
            });
            hive.job(&spawn).done().clone()
        };
        let pinned = spawn(2, true);
        let idle = spawn(1, false);
        let address = queen.address.clone();
        queen.kill9();
        hive.the_worker("the idle one has stopped", |left| left["worker_id"] == pinned["worker_id"]);
        until("its memory is back", || match is_alive(pid_of(&idle)) {
            false => Ok(()),
            true => Err("it lives".into()),
        });
        assert!(is_alive(pid_of(&pinned)));
        hive.job(&json!({"operation": "worker_stop", "worker_id": pinned["worker_id"]})).done();

        let queen = Daemon::start(&place, "queen serve", &["--listen", &address]);
        queen.has_hives(1);
        let person = Person::at(&place, &queen);
        let told = person.does(&ask(&model, "3"));
        told.tells(&["starting"]);
        assert_eq!(place.spawns(), 3, "a cold start again");
    });
}

#[test]
fn b19_two_requests_for_one_missing_model_share_one_download_and_one_spawn() {
    alone(|| {
        let file = Content::padded(tiny(&Tiny { endless: true, ..Tiny::default() }), 4 << 20, 19);
        let plan = TestHub::of([Repo::new("bees/Both").with("b-Q4_K_M.gguf", &file)]);
        let hub = plan.bytes_per_second(8 << 20).open();
        let place = Place::new();
        let env = [("HF_ENDPOINT", &*hub.endpoint())];
        let daemon = Daemon::try_start(&place, "serve", &[], &env).unwrap();
        let person = Person::at(&place, &daemon);
        let both = [person.begins(&ask("bees/Both", "5")), person.begins(&ask("bees/Both:q4_k_m", "5"))];
        let both = both.map(Running::ends);
        for told in &both {
            assert_eq!((told.code, &told.out), (Some(0), &both[0].out), "{told:?}");
        }
        assert_eq!((hub.bytes_sent(), place.spawns()), (file.size(), 1));
    });
}

#[test]
fn b20_an_ephemeral_run_starts_everything_and_leaves_nothing_even_if_it_is_killed() {
    alone(|| {
        let place = Place::with_model(&roomy());
        let person = Person::on_a_fresh_account(&place);
        let model = place.model();
        let line = |tokens: &'static str| [&ask(&model, tokens)[..], &["--ephemeral"]].concat();
        let told = person.does(&line("5"));
        assert_ne!(told.out, "");
        assert_eq!(place.processes(), [], "all gone at the exit");

        let mut running = person.begins(&line("100000"));
        running.first_words();
        assert_eq!(place.processes_of("worker serve").len(), 1);
        signal_pid(running.pid(), Signal::KILL);
        running.child.wait().unwrap();
        place.is_deserted_within(PATIENCE);

        let daemon = Daemon::start(&place, "serve", &[]);
        let person = Person::at(&place, &daemon);
        person.does(&line("5"));
        assert_eq!(daemon.workers().len(), 1, "used, and left as it was");
    });
}
