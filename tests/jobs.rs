//! Jobs as clients see them: streams that replay, ends that are told, cancels that are awaited, on queen and hive alike.

use crate::support::fleet::{CHAT, endless_job, fleet, pid_of, served};
use crate::support::node::{Daemon, Job, Place, alone, chat, freeze, signal_pid, slow, until};
use rbee::http::{client, reply};
use rbee::wire::Code;
use rbee::wire::job::Terminator;
use rustix::process::Signal;
use serde_json::{Value, json};

fn delete(daemon: &Daemon, path: &str) -> crate::support::node::Answer {
    daemon.request(client::request("DELETE", path, reply::empty()).unwrap())
}

/// Slots of the only worker that are busy, as the worker itself says.
fn busy_slots(daemon: &Daemon, worker: &str) -> usize {
    let slots = daemon.get(&format!("/v1/hives/here/v1/workers/{worker}/slots")).json();
    slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
}

#[test]
fn a_job_is_told_the_same_to_every_reader_now_later_and_from_any_event() {
    let place = Place::new();
    let (daemon, model) = served(&place, &["--name", "here"]);
    let job = daemon.job(&json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 4}));
    let result = job.done();
    assert_eq!(result["usage"]["completion_tokens"], 4, "{result}");
    let text: String = job
        .events
        .iter()
        .filter(|(name, _)| name == "token")
        .map(|(_, data)| data["text"].as_str().unwrap())
        .collect();
    assert_eq!(result["text"], text);
    let late = daemon.follow(&job.id);
    assert_eq!((late.events.len(), &late.terminator), (job.events.len(), &Terminator::Done));
    let events = job.events.len() as u64;
    for (path, header) in [
        (format!("/v1/jobs/{}/stream?from={}", job.id, events - 1), None),
        (format!("/v1/jobs/{}/stream", job.id), Some(events - 2)),
    ] {
        let mut ask = client::get(&path).unwrap();
        if let Some(seen) = header {
            ask.headers_mut().insert("last-event-id", http::HeaderValue::from(seen));
        }
        let answer = daemon.request(ask);
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(text.starts_with(&format!("id: {}\nevent: result\n", events - 1)), "{text}");
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    }
    let record = daemon.get(&format!("/v1/jobs/{}", job.id)).json();
    assert_eq!((&record["state"], &record["result"]), (&json!("done"), result));
}

#[test]
fn a_cancel_answers_with_a_receipt_after_the_slot_is_free_and_again_with_the_same() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &["--name", "here"]);
    let id = daemon.begin(&endless_job(&model));
    let worker = until("tokens come", || {
        let record = daemon.get(&format!("/v1/jobs/{id}")).json();
        let workers = daemon.workers();
        match workers.first() {
            Some(worker) if worker["slots_busy"] == 1 => Ok(worker["worker_id"].as_str().unwrap().to_owned()),
            _ => Err(format!("{record} {workers:?}")),
        }
    });
    let path = format!("/v1/jobs/{id}");
    let cancelled = delete(&daemon, &path);
    assert_eq!(cancelled.status, 200);
    let receipt = cancelled.json();
    assert_eq!(receipt["status"], "cancelled");
    assert_eq!(receipt["receipt"]["clean"], true, "{receipt}");
    until("the worker's own slot is free", || match busy_slots(&daemon, &worker) {
        0 => Ok(()),
        busy => Err(format!("{busy} busy")),
    });
    assert_eq!(daemon.post(&format!("{path}/cancel"), &json!({})).json(), receipt);
    assert_eq!(daemon.follow(&id).terminator, Terminator::Cancelled);
    assert_eq!(daemon.get(&path).json()["state"], "cancelled");
    // The worker lives on and serves.
    let again = daemon.job(&json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 2}));
    assert_eq!(again.done()["worker_id"], worker.as_str());
}

#[test]
fn a_receipt_does_not_call_clean_what_the_hive_has_not_said() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &[]);
        let model = queen.register(&place, None);
        assert_eq!(queen.post(CHAT, &chat(&model, 1, false)).status, 200);
        let worker = queen.the_worker("it is free again", |worker| worker["slots_busy"] == 0);
        // Nothing of the answer comes, as while a long prompt is processed.
        freeze(pid_of(&worker));
        let id = queen.begin(&endless_job(&model));
        queen.has_busy_slots(1);
        freeze(hive.pid());
        let cancelled = delete(&queen, &format!("/v1/jobs/{id}")).json();
        assert_eq!(
            (&cancelled["status"], &cancelled["receipt"]["clean"]),
            (&json!("cancelled"), &json!(false))
        );
        signal_pid(hive.pid(), Signal::CONT);
        signal_pid(pid_of(&worker), Signal::CONT);
        queen.has_busy_slots(0);
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_an_answer_frees_the_slot_through_queen_link_and_hive() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &["--name", "here"]);
    let mut stream = daemon.stream(CHAT, &chat(&model, 8000, true));
    stream.take(3);
    let worker = daemon.workers()[0]["worker_id"].as_str().unwrap().to_owned();
    assert_eq!(busy_slots(&daemon, &worker), 1);
    drop(stream);
    until("the slot is free", || match busy_slots(&daemon, &worker) {
        0 => Ok(()),
        busy => Err(format!("{busy} busy")),
    });
    daemon.has_busy_slots(0);
}

#[test]
fn what_does_not_exist_is_404_and_what_has_ended_is_409() {
    let place = Place::new();
    let (daemon, model) = served(&place, &["--name", "here"]);
    for id in ["01900000-0000-7000-8000-000000000000", "nonsense"] {
        assert_eq!(daemon.get(&format!("/v1/jobs/{id}")).failure().code, Code::JobNotFound);
        assert_eq!(daemon.get(&format!("/v1/jobs/{id}/stream")).status, 404);
        assert_eq!(delete(&daemon, &format!("/v1/jobs/{id}")).status, 404);
    }
    let done = daemon.job(&json!({"operation": "model_get", "id": model}));
    let conflict = delete(&daemon, &format!("/v1/jobs/{}", done.id));
    assert_eq!((conflict.status, conflict.failure().details["state"].clone()), (409, json!("done")));
    let failed = daemon.job(&json!({"operation": "model_get", "id": "/nowhere/at-all.gguf"}));
    assert!(matches!(failed.terminator, Terminator::Error(_)), "{failed:?}");
    assert_eq!(failed.find("error").unwrap()["code"], "MODEL_NOT_FOUND");
    assert!(failed.find("result").is_none());
    assert_eq!(delete(&daemon, &format!("/v1/jobs/{}", failed.id)).failure().details["state"], "failed");
}

#[test]
fn a_repeated_post_with_one_idempotency_key_starts_one_job() {
    let place = Place::new();
    let daemon = Daemon::start(&place, "serve", &[]);
    let post = || {
        let mut ask = client::post("/v1/jobs", &json!({"operation": "model_list"})).unwrap();
        ask.headers_mut().insert("idempotency-key", http::HeaderValue::from_static("once"));
        daemon.request(ask).json()["job_id"].clone()
    };
    assert_eq!(post(), post());
}

#[test]
fn an_idempotency_key_gives_its_job_again_also_while_its_hive_is_away() {
    alone(|| {
        let place = Place::new();
        let (queen, hive) = fleet(&place, &[]);
        let list = json!({"operation": "model_list"});
        let id = post_once(&queen, &list).json()["job_id"].clone();
        queen.follow(id.as_str().unwrap()).done();
        assert!(hive.terminate().success());
        queen.has_hives(0);
        assert_eq!(post_once(&queen, &list).json()["job_id"], id);
        let other = post_once(&queen, &json!({"operation": "make_coffee"}));
        assert_eq!((other.status, &other.failure().details["job_id"]), (409, &id));
    });
}

#[test]
fn fields_that_are_null_are_as_if_they_were_not_there() {
    let place = Place::new();
    let (daemon, model) = served(&place, &["--name", "here"]);
    let mut asked = chat(&model, 3, false);
    for field in ["stream", "stream_options", "n", "stop", "seed", "tools", "top_p", "max_completion_tokens"]
    {
        asked[field] = Value::Null;
    }
    let answer = daemon.post(CHAT, &asked);
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3, "{answer:?}");
}

#[test]
fn bad_operations_are_refused_by_name_before_a_job_is_made() {
    let place = Place::new();
    let daemon = Daemon::start(&place, "serve", &[]);
    let refused = daemon.post("/v1/jobs", &json!({"operation": "make_coffee"})).failure();
    assert!(refused.message.contains("make_coffee") && refused.message.contains("infer"), "{refused}");
    let lacking = daemon.post("/v1/jobs", &json!({"operation": "infer"})).failure();
    assert!(lacking.message.contains("model"), "{lacking}");
    let nameless = daemon.post("/v1/jobs", &json!({"operation": "model_list", "hive_id": 42}));
    assert_eq!(nameless.status, 400);
    assert!(nameless.failure().message.contains("`hive_id`"), "{nameless:?}");
    let form = client::request("POST", "/v1/jobs", reply::full("operation=infer")).unwrap();
    assert_eq!(daemon.request(form).status, 415);
    let neither = daemon.job(&json!({"operation": "infer", "model": "m"}));
    assert_eq!(neither.find("error").unwrap()["code"], "INVALID_REQUEST");
    assert_eq!(daemon.get("/v1/jobs").json()["jobs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_hives_job_has_one_id_on_both_sides() {
    let place = Place::new();
    let (daemon, model) = served(&place, &["--name", "here"]);
    let job = daemon.job(&json!({"operation": "model_get", "id": model, "hive_id": "here"}));
    assert_eq!(job.done()["context_length"], 2_048);
    let on_hive = daemon.get(&format!("/v1/hives/here/v1/jobs/{}", job.id)).json();
    assert_eq!((&on_hive["job_id"], &on_hive["state"]), (&json!(job.id), &json!("done")));
    let nowhere =
        daemon.post("/v1/jobs", &json!({"operation": "model_list", "hive_id": "elsewhere"})).failure();
    assert_eq!(nowhere.code, Code::HiveNotFound);
    assert!(nowhere.message.contains("here"), "{nowhere}");
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_clear_error_and_no_daemon_dies_of_it() {
    let place = Place::new();
    let (daemon, model) = served(&place, &["--name", "here"]);
    let broken = place.path("broken.gguf");
    let whole = std::fs::read(place.path("tiny.gguf")).unwrap();
    std::fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    let refused = daemon.job(&json!({"operation": "model_download", "model": broken.to_str().unwrap()}));
    assert_eq!(refused.find("error").unwrap()["code"], "INVALID_MODEL", "{refused:?}");
    // Registered while whole, cut short behind the store's back.
    std::fs::write(place.path("tiny.gguf"), &whole[..whole.len() / 2]).unwrap();
    let late = daemon.job(&json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 2}));
    assert_eq!(late.find("error").unwrap()["code"], "INVALID_MODEL", "{late:?}");
    assert_eq!(daemon.get("/health").status, 200);
}

/// What a stream says, byte for byte.
fn told(daemon: &Daemon, id: &str, from: u64) -> String {
    let answer = daemon.get(&format!("/v1/jobs/{id}/stream?from={from}"));
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn post_once(daemon: &Daemon, operation: &Value) -> crate::support::node::Answer {
    let mut ask = client::post("/v1/jobs", operation).unwrap();
    ask.headers_mut().insert("idempotency-key", http::HeaderValue::from_static("once"));
    daemon.request(ask)
}

#[test]
fn jobs_survive_an_orderly_restart_and_a_kill_with_their_events_keys_and_receipts() {
    let place = Place::with_model(&slow());
    let (daemon, model) = served(&place, &["--name", "here"]);
    let list = json!({"operation": "model_list"});
    let keyed = post_once(&daemon, &list).json()["job_id"].as_str().unwrap().to_owned();
    daemon.follow(&keyed).done();
    let infer = json!({"operation": "infer", "model": model, "prompt": "Bees", "max_tokens": 5});
    // The first one tells of the load, too, and of that only the last word is journalled.
    let cold = daemon.job(&infer);
    let done = daemon.job(&infer);
    let events = done.events.len() as u64;
    let cancelled = daemon.begin(&endless_job(&model));
    until("tokens come", || match told_tokens(&daemon, &cancelled) {
        0 => Err("none".into()),
        _ => Ok(()),
    });
    let receipt = delete(&daemon, &format!("/v1/jobs/{cancelled}")).json();
    let record = daemon.get(&format!("/v1/jobs/{}", done.id)).json();
    let whole = told(&daemon, &done.id, 0);
    assert!(daemon.terminate().success());

    let daemon = Daemon::start(&place, "serve", &["--name", "here"]);
    assert_eq!(told(&daemon, &done.id, 0), whole);
    let again = daemon.follow(&cold.id);
    assert_eq!(again.done(), cold.done());
    assert!(again.find("narration").unwrap()["message"].as_str().unwrap().contains("starting"), "{again:?}");
    // However many there were: a quick load tells few.
    let progress = |job: &Job| job.events.iter().filter(|(name, _)| name == "progress").count();
    assert_eq!(progress(&again), progress(&cold).min(1), "{again:?}");
    assert!(told(&daemon, &done.id, events - 1).starts_with(&format!("id: {}\nevent: result\n", events - 1)));
    assert_eq!(told(&daemon, &done.id, events), "data: [DONE]\n\n");
    assert!(told(&daemon, &done.id, u64::MAX).starts_with(&format!("id: {}\nevent: result\n", events - 1)));
    assert_eq!(daemon.get(&format!("/v1/jobs/{}", done.id)).json(), record);
    assert_eq!(
        delete(&daemon, &format!("/v1/jobs/{cancelled}")).json(),
        receipt,
        "the receipt of the first cancel"
    );
    assert_eq!(daemon.follow(&cancelled).terminator, Terminator::Cancelled);
    assert_eq!(post_once(&daemon, &list).json()["job_id"], keyed.as_str(), "the key is still known");
    let other = post_once(&daemon, &json!({"operation": "status"}));
    assert_eq!((other.status, &other.failure().details["job_id"]), (409, &json!(keyed)));

    // A kill in the middle of an answer: the job ends as what it is.
    let killed = daemon.begin(&endless_job(&model));
    until("tokens come", || match told_tokens(&daemon, &killed) {
        0..5 => Err("too few".into()),
        _ => Ok(()),
    });
    daemon.kill9();
    let daemon = Daemon::start(&place, "serve", &["--name", "here"]);
    let interrupted = daemon.follow(&killed);
    let Terminator::Error(message) = &interrupted.terminator else { panic!("{interrupted:?}") };
    assert_eq!(interrupted.find("error").unwrap()["message"], message.as_str());
    assert_eq!(daemon.get(&format!("/v1/jobs/{killed}")).json()["state"], "interrupted");
    let refused = delete(&daemon, &format!("/v1/jobs/{killed}"));
    assert_eq!((refused.status, &refused.failure().details["state"]), (409, &json!("interrupted")));
    assert_eq!(told(&daemon, &done.id, 0), whole, "the older ones are as they were");
    let ids: Vec<Value> = daemon.get("/v1/jobs").json()["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job_id"].clone())
        .collect();
    assert_eq!(ids[..3], [json!(killed), json!(cancelled), json!(done.id)], "the newest first");
    // The hive of the same process has journals of its own.
    for role in ["queen", "hive"] {
        assert!(place.state().join("jobs").join(role).read_dir().unwrap().count() > 0, "{role}");
    }
}

/// Tokens that a running job has told so far.
fn told_tokens(daemon: &Daemon, id: &str) -> u64 {
    let record = daemon.get(&format!("/v1/jobs/{id}")).json();
    assert_eq!(record["state"], "running", "{record}");
    // What is not a token is a handful.
    record["events"].as_u64().unwrap().saturating_sub(10)
}

#[test]
fn a_hives_own_jobs_are_asked_for_at_its_address_also_after_its_restart() {
    let place = Place::new();
    let hive = Daemon::start(&place, "hive serve", &[]);
    let model = hive.register(&place, None);
    let rbee = |hive: &Daemon, args: &[&str]| {
        let output = place.rbee(&[args, &["--hive", &hive.url()]].concat());
        (output.status.code(), crate::support::node::said(&output))
    };
    let job = hive.job(&json!({"operation": "model_get", "id": model}));
    let before = rbee(&hive, &["job", "follow", &job.id]);
    assert_eq!(before.0, Some(0), "{before:?}");
    assert!(before.1.0.contains("\"context_length\":2048"), "{before:?}");
    hive.kill9();
    let hive = Daemon::start(&place, "hive serve", &[]);
    assert_eq!(rbee(&hive, &["job", "follow", &job.id]).1.0, before.1.0);
    let (code, (listed, _)) = rbee(&hive, &["job", "list"]);
    assert!(code == Some(0) && listed.contains(&job.id) && listed.contains("done"), "{listed}");
    let (code, (record, _)) = rbee(&hive, &["job", "get", &job.id, "--json"]);
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!((code, &record["result"]["context_length"]), (Some(0), &json!(2048)));
    let (code, (_, said)) = rbee(&hive, &["job", "cancel", &job.id]);
    assert!(code == Some(1) && said.contains("already ended as done"), "{said}");
}

#[test]
fn a_job_that_is_reported_fails_when_its_report_ends_without_an_end() {
    let place = Place::new();
    let queen = Daemon::start(&place, "queen serve", &[]);
    let report = |operation: &str, content_type: &'static str, body: String| {
        let path = format!("/v1/jobs/reported?operation={operation}");
        let mut request = client::request("POST", &path, reply::full(body)).unwrap();
        request.headers_mut().insert("content-type", http::HeaderValue::from_static(content_type));
        queen.request(request)
    };
    let refused = report("hive_install", "application/json", "{}".into());
    assert_eq!((refused.status, refused.failure().code), (415, Code::UnsupportedMediaType));
    let refused = report("infer", "text/event-stream", String::new());
    assert_eq!((refused.status, refused.failure().code), (400, Code::InvalidRequest));
    assert!(refused.failure().message.contains("hive_install"), "{:?}", refused.failure());
    assert_eq!(queen.get("/v1/jobs").json()["jobs"], json!([]));

    let step = "event: narration\ndata: {\"action\":\"a\",\"message\":\"begun\",\"level\":\"info\"}\n\n";
    let newer = "event: hologram\ndata: {}\n\ndata: nameless\n\n";
    let receipt = "event: cancelled\ndata: {\"clean\":true,\"processes_reaped\":2}\n\n";
    for (end, state, words) in [
        ("", "failed", "it has ended without a word"),
        ("event: result\ndata: 7\n\n", "done", ""),
        ("event: error\ndata: {\"code\":\"BUILD_FAILED\",\"message\":\"no\"}\n\n", "failed", "no"),
        (receipt, "cancelled", ""),
        ("event: cancelled\ndata: {\"clean\":7}\n\n", "failed", "its receipt does not read"),
    ] {
        let answer = report("hive_update", "text/event-stream; charset=utf-8", format!("{step}{newer}{end}"));
        let told = String::from_utf8(answer.body.to_vec()).unwrap();
        assert_eq!(answer.status, 200, "{told}");
        // The answer has ended, so the job has.
        let job = queen.get("/v1/jobs").json()["jobs"][0].clone();
        assert!(told.contains("event: accepted") && told.contains(job["job_id"].as_str().unwrap()), "{told}");
        assert_eq!((&job["operation"], &job["state"]), (&json!("hive_update"), &json!(state)), "{job}");
        let message = job["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(words), "`{words}` is not in {job}");
        assert_eq!(job["receipt"]["processes_reaped"].as_u64(), (state == "cancelled").then_some(2), "{job}");
        let replayed = queen.follow(job["job_id"].as_str().unwrap());
        assert_eq!(
            (replayed.events[0].0.as_str(), &replayed.events[0].1["message"]),
            ("narration", &json!("begun"))
        );
    }
}
