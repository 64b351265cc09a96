//! The worker through its own program: answers, streams, refusals, cancelling, ending. A tiny random model is written on the
//! spot; what needs a real one looks for it where `support::models` says, and what compares with llama.cpp's own server
//! for that in RBEE_TEST_PEER (a folder with llama-server, built for the same CPU level as the engine: AVX2); without them
//! those tests say that they were skipped.

use crate::support::gguf::{Fault, Tiny, corrupt, tiny};
use crate::support::models::{GEMMA3, SMOLLM2, real_model};
use crate::support::node::RBEE;
use crate::support::worker::{PATIENCE, Worker};
use command_fds::{CommandFdExt, FdMapping};
use rbee::http::client::{self, Target};
use rbee::worker::engine::{Engine, Markup, Row, Token};
use rbee::worker::{Options, sampler};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How far work may come, in steps, after its client left. B15 says one and 100 ms; a machine with much else to do hears of the
/// leaving late, and steps are what it can't hurry. Whoever does not cancel at all comes 20 times as far.
const STEPS_AFTER_MAX: u64 = 4;

impl Worker {
    /// Of each busy slot, what the engine holds for it and how much of that is new.
    async fn busy_slots(&self) -> Vec<(u64, u64)> {
        let slots = self.get("/slots").await;
        let busy = slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true);
        busy.map(|slot| (slot["n_past"].as_u64().unwrap(), slot["n_decoded"].as_u64().unwrap())).collect()
    }

    /// Waits until a slot is busy.
    async fn has_a_busy_slot(&self) {
        let start = Instant::now();
        while self.busy_slots().await.is_empty() {
            assert!(start.elapsed() < PATIENCE, "no slot is busy");
        }
    }

    /// Waits until the only busy slot is free: how far it came until then, in steps, and how long that took. Asks again and
    /// again, for the answers are what is counted.
    async fn freed_after(&self) -> (u64, Duration) {
        let start = Instant::now();
        let mut first = None;
        let mut steps = 0;
        while let [(held, new)] = self.busy_slots().await[..] {
            assert!(start.elapsed() < PATIENCE, "the slot is still busy");
            let (held_first, new_first) = *first.get_or_insert((held, new));
            let read = (held - held_first).saturating_sub(new - new_first);
            steps = read.div_ceil(rbee::worker::batch::PROMPT_TOKENS_MAX as u64) + new - new_first;
        }
        (steps, start.elapsed())
    }
}

/// A tiny model on disk.
fn tiny_model() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    std::fs::write(&path, tiny(&Tiny::default())).unwrap();
    (directory, path)
}

const ONE_THREAD: [&str; 2] = ["--threads", "1"];

fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 24});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn a_stream_holds_the_same_answer_as_a_whole_one_in_openai_s_shape() {
    let (_directory, model) = tiny_model();
    let worker = Worker::ready(&model, &ONE_THREAD).await;
    assert_eq!(worker.get("/health").await["status"], "ok");
    assert_eq!(
        worker.get("/v1/ready").await,
        json!({"ready": true, "state": "ready", "progress_url": "/v1/loading/progress"})
    );
    assert_eq!(worker.get("/v1/models").await["data"][0]["id"], "tiny");

    let whole = worker.post("/v1/chat/completions", &chat("hello", json!({"seed": 7}))).await.unwrap();
    assert_eq!(whole["object"], "chat.completion");
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();

    let options = json!({"seed": 7, "stream": true, "stream_options": {"include_usage": true}});
    let request = client::post("/v1/chat/completions", &chat("hello", options)).unwrap();
    let events = worker.events(request).await;
    let (done, chunks) = events.split_last().unwrap();
    assert_eq!(done.data, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|event| serde_json::from_str(&event.data).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    assert!(chunks.iter().all(|chunk| chunk.get("rbee").is_none()), "token ids only for who asks");
    let [.., last, usage] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!(last["choices"][0]["finish_reason"], whole["choices"][0]["finish_reason"]);
    assert_eq!(last["timings"]["predicted_n"], whole["usage"]["completion_tokens"]);
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    let streamed: String =
        chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, text);
}

#[tokio::test]
async fn what_cannot_be_answered_is_refused_with_a_sentence_and_takes_no_slot() {
    let (_directory, model) = tiny_model();
    let worker =
        Worker::ready(&model, &[&ONE_THREAD[..], &["--parallel", "2", "--ctx-size", "512"]].concat()).await;
    for (path, body, code) in [
        ("/v1/chat/completions", chat("hi", json!({"tools": [{}]})), "INVALID_REQUEST"),
        ("/v1/chat/completions", chat("hi", json!({"temperature": -1})), "INVALID_REQUEST"),
        ("/v1/chat/completions", json!({"messages": []}), "INVALID_REQUEST"),
        ("/v1/completions", json!({"prompt": ["a", "b"]}), "INVALID_REQUEST"),
        ("/v1/completions", json!({"prompt": "word ".repeat(300)}), "CONTEXT_LENGTH_EXCEEDED"),
        ("/detokenize", json!({"tokens": [-1]}), "INVALID_REQUEST"),
        ("/detokenize", json!({"tokens": [999_999]}), "INVALID_REQUEST"),
        ("/v1/embeddings", json!({"input": "a"}), "NOT_FOUND"),
        ("/health", json!({}), "METHOD_NOT_ALLOWED"),
    ] {
        let failure = worker.post(path, &body).await.unwrap_err();
        assert_eq!(json!(failure.code), code, "{path}: {}", failure.message);
        assert!(failure.message.len() > 10, "{failure:?}");
    }
    let all = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true});
    let answer = worker.post("/v1/completions", &all).await.unwrap();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 256, "the total is shared by the slots");
    // Nested deeper than any parser of ours goes.
    let deep = format!("{{\"messages\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    let mut request = client::request("POST", "/v1/chat/completions", rbee::http::reply::full(deep)).unwrap();
    request.headers_mut().insert("content-type", rbee::http::reply::JSON);
    assert_eq!(client::send(&worker.target, request).await.unwrap().status(), 400);
    assert!(worker.busy_slots().await.is_empty());
}

#[tokio::test]
async fn slots_work_side_by_side_and_each_gives_its_own_answer() {
    let (_directory, model) = tiny_model();
    let worker = Worker::ready(&model, &ONE_THREAD).await;
    let prompts: Vec<String> =
        (0..12).map(|n| format!("the queen {} hive", "of bees ".repeat(n * 5))).collect();
    let mut alone = Vec::new();
    for prompt in &prompts {
        alone.push(worker.complete(prompt, 24).await["rbee"]["token_ids"].clone());
    }
    let answers = prompts.iter().map(|prompt| worker.complete(prompt, 24));
    let together = futures_join(answers).await;
    for (alone, together) in alone.iter().zip(together) {
        assert_eq!(*alone, together["rbee"]["token_ids"]);
    }
}

/// All of them at once, in order.
async fn futures_join<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |context| {
        for (future, value) in pending.iter_mut().filter(|(_, value)| value.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *value = Some(ready);
            }
        }
        match pending.iter().all(|(_, value)| value.is_some()) {
            true => {
                std::task::Poll::Ready(pending.iter_mut().filter_map(|(_, value)| value.take()).collect())
            }
            false => std::task::Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn every_kind_of_broken_model_gives_a_sentence_and_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    for fault in Fault::ALL {
        let path = directory.path().join("broken.gguf");
        std::fs::write(&path, corrupt(fault)).unwrap();
        let (status, said) = Worker::start(&path, &ONE_THREAD).ended().await;
        assert_eq!(status.code(), Some(1), "{fault:?}: {status} {said}");
        let lines = said.lines().filter(|line| !line.contains("kernels")).count();
        assert!(said.contains("broken.gguf") && lines <= 3, "{fault:?}: {said}");
    }
    let (status, said) = Worker::start(&directory.path().join("absent.gguf"), &ONE_THREAD).ended().await;
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("absent.gguf"), "{said}");
}

#[test]
fn a_processor_below_the_floor_gets_a_sentence() {
    let (_directory, model) = tiny_model();
    let old = Command::new("qemu-x86_64")
        .args(["-cpu", "Nehalem", RBEE, "worker", "serve", "--model"])
        .arg(&model)
        .output();
    let Ok(output) = old else {
        eprintln!("skipped: qemu-x86_64 is not installed");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{} {said}", output.status);
    assert!(said.contains("this processor lacks avx"), "{said}");
}

#[tokio::test]
async fn a_gpu_that_is_not_there_is_an_error_and_not_the_cpu() {
    let (_directory, model) = tiny_model();
    for flags in [["--n-gpu-layers", "9"], ["--device", "GPU-3"]] {
        let (status, said) = Worker::start(&model, &flags).ended().await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("GPU"), "{said}");
    }
}

#[tokio::test]
async fn a_chat_template_with_a_mistake_is_told_at_the_start() {
    let (_directory, model) = tiny_model();
    let (status, said) = Worker::start(&model, &["--chat-template", "{% for m in %}"]).ended().await;
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("chat template"), "{said}");
    let worker =
        Worker::ready(&model, &["--chat-template", "{{ messages[0].content }}!", "--threads", "1"]).await;
    let rendered = worker.post("/apply-template", &chat("hi", json!({}))).await.unwrap();
    assert_eq!(rendered["prompt"], "hi!");
}

#[tokio::test]
async fn a_drain_finishes_the_running_stream_and_ends_with_0() {
    let Some(model) = real_model(SMOLLM2) else { return };
    let worker = Worker::ready(&model, &ONE_THREAD).await;
    let body = json!({"prompt": "Bees", "max_tokens": 60, "ignore_eos": true, "stream": true});
    let mut stream = worker.open("/v1/completions", &body).await;
    stream.next().await.unwrap().unwrap();
    worker.signal(Signal::TERM);
    let mut last = String::new();
    let mut tokens = 1;
    while let Some(event) = stream.next().await.unwrap() {
        tokens += 1;
        last = event.data;
    }
    assert_eq!((last.as_str(), tokens > 30), ("[DONE]", true), "{tokens} events");
    let (status, said) = worker.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
}

#[tokio::test]
async fn a_second_term_ends_a_running_stream_at_once_and_says_so() {
    let Some(model) = real_model(GEMMA3) else { return };
    let worker = Worker::ready(&model, &ONE_THREAD).await;
    let body =
        json!({"prompt": "Bees ".repeat(1_400), "max_tokens": 900, "ignore_eos": true, "stream": true});
    let mut stream = worker.open("/v1/completions", &body).await;
    worker.signal(Signal::TERM);
    worker.signal(Signal::TERM);
    worker.signal(Signal::INT);
    // The connection is cut, or the error event still got out; [DONE] never comes.
    while let Ok(Some(event)) = stream.next().await {
        assert_ne!(event.data, "[DONE]");
    }
    let (status, said) = worker.ended().await;
    assert_eq!(status.code(), Some(0), "{said}");
}

#[tokio::test]
async fn the_end_of_the_lease_is_the_end_of_the_worker() {
    let (_directory, model) = tiny_model();
    let (lease, held) = std::io::pipe().unwrap();
    let mut command = Command::new(RBEE);
    command.args([
        "worker",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--lease-fd",
        "4",
        "--threads",
        "1",
        "--model",
    ]);
    command.arg(&model).fd_mappings(vec![FdMapping { parent_fd: lease.into(), child_fd: 4 }]).unwrap();
    let mut child = command.spawn().unwrap();
    drop(command);
    drop(held);
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(PATIENCE, status).await.unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_slot_within_a_step() {
    let Some(model) = real_model(GEMMA3) else { return };
    let worker = Worker::ready(&model, &["--threads", "1", "--ctx-size", "16384", "--parallel", "2"]).await;
    let prompt = "The bees of the hive fly out in the morning. ".repeat(500);
    let stream = json!({"prompt": prompt, "max_tokens": 900, "ignore_eos": true, "stream": true});
    let inside_prompt = worker.open("/v1/completions", &stream).await;
    assert_eq!(worker.busy_slots().await.len(), 1);
    drop(inside_prompt);
    let (steps, took) = worker.freed_after().await;
    println!("left inside the prompt: free after {steps} steps, {took:?}");
    assert!(steps <= STEPS_AFTER_MAX, "{steps}");

    let whole = json!({"prompt": prompt, "max_tokens": 900, "ignore_eos": true});
    tokio::select! {
        answer = worker.post("/v1/completions", &whole) => panic!("it takes longer: {answer:?}"),
        () = worker.has_a_busy_slot() => {}
    }
    let (steps, took) = worker.freed_after().await;
    println!("left while waiting for a whole answer: free after {steps} steps, {took:?}");
    assert!(steps <= STEPS_AFTER_MAX, "{steps}");

    let short = json!({"prompt": "Bees", "max_tokens": 900, "ignore_eos": true, "stream": true});
    let mut mid_stream = worker.open("/v1/completions", &short).await;
    for _ in 0..5 {
        mid_stream.next().await.unwrap().unwrap();
    }
    drop(mid_stream);
    let (tokens, took) = worker.freed_after().await;
    println!("left in mid-stream: free after {tokens} tokens, {took:?}");
    assert!(tokens <= 100, "{tokens} of 900");
}

/// llama.cpp's own server.
struct Peer {
    child: Child,
    target: Target,
}

impl Peer {
    async fn start(model: &Path) -> Option<Peer> {
        let program =
            std::env::var_os("RBEE_TEST_PEER").map(|folder| Path::new(&folder).join("llama-server"));
        let Some(program) = program.filter(|program| program.is_file()) else {
            eprintln!("skipped: RBEE_TEST_PEER names no folder with llama-server");
            return None;
        };
        // It can't tell the port it got, so one is chosen for it; a neighbour that takes it first fails this test.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(program);
        // Checkpoints cut a prompt in two, for models with a sliding window; other kernels then give other figures.
        command
            .args(["--port", &port.to_string(), "-np", "1", "-c", "4096", "-t", "1", "--no-webui"])
            .args(["--ctx-checkpoints", "0", "-m"])
            .arg(model);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let peer = Peer { child, target: Target::parse(&format!("http://127.0.0.1:{port}")).unwrap() };
        // It listens once the model is loaded, and says so. What it says later is read away, so that it never waits for us.
        let listening = tokio::task::spawn_blocking(move || {
            let listens = said.any(|line| line.unwrap().contains("listening on"));
            std::thread::spawn(move || said.for_each(drop));
            listens
        });
        assert!(tokio::time::timeout(PATIENCE, listening).await.unwrap().unwrap(), "it ended");
        Some(peer)
    }

    /// Its tokens, and how far the best two were apart at each.
    async fn complete(&self, prompt: &str, count: u32) -> (Vec<Token>, Vec<f64>) {
        let body = json!({
            "prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": true, "cache_prompt": false,
            "n_probs": 2,
        });
        let answer: Value =
            client::ask(&self.target, client::post("/completion", &body).unwrap()).await.unwrap();
        let gap = |token: &Value| {
            let best = |n: usize| token["top_logprobs"][n]["logprob"].as_f64().unwrap();
            best(0) - best(1)
        };
        let gaps = answer["completion_probabilities"].as_array().unwrap().iter().map(gap).collect();
        (serde_json::from_value(answer["tokens"].clone()).unwrap(), gaps)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two answers are equal if they are, or if they part where the model itself is undecided by either side's figures: kernels
/// differ with CPU and batch, by about this much in a logit.
const UNDECIDED_MAX: f64 = 0.05;
const PROMPTS: [&str; 5] = [
    "The capital of France is",
    "Once upon a time, in a hive far away,",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4, 5,",
    "Die Bienen fliegen im Sommer und",
];

#[tokio::test]
async fn answers_at_temperature_zero_are_llama_server_s() {
    for name in [SMOLLM2, GEMMA3] {
        let Some(model) = real_model(name) else { continue };
        let Some(peer) = Peer::start(&model).await else { return };
        let worker = Worker::ready(&model, &["--threads", "1", "--parallel", "1"]).await;
        let mut apart = 0;
        for prompt in PROMPTS {
            let ours = worker.complete(prompt, 48).await;
            let ours: Vec<Token> = serde_json::from_value(ours["rbee"]["token_ids"].clone()).unwrap();
            let (theirs, gaps) = peer.complete(prompt, 48).await;
            // One side counts the end token among the tokens, the other does not.
            let Some(at) = ours.iter().zip(&theirs).position(|(a, b)| a != b) else {
                assert!(ours.len().abs_diff(theirs.len()) <= 1, "{name}, {prompt:?}: {ours:?} {theirs:?}");
                continue;
            };
            apart += 1;
            let (ours, theirs) = (top_two_gap(&model, prompt, &ours[..at]), gaps[at]);
            println!(
                "{name}, {prompt:?}: parted at token {at}; the best two are {ours:.4} apart here, {theirs:.4} there"
            );
            assert!(ours.min(theirs) < UNDECIDED_MAX, "{name}, {prompt:?}: parted at token {at}");
        }
        println!(
            "{name}: {} of {} answers are llama-server's to the last token",
            PROMPTS.len() - apart,
            PROMPTS.len()
        );
    }
}

/// How far the two likeliest tokens are apart after a prompt and the beginning of its answer, decoded as the worker does it: the
/// prompt at once, then token by token. (Decoded all at once, other kernels run and give other figures.)
fn top_two_gap(model: &Path, prompt: &str, answer: &[Token]) -> f64 {
    let options = Options { parallel: 1, threads: 1, threads_batch: 1, ..Options::for_model(model) };
    let (_, mut engine) = rbee::worker::engine(&options, &mut |_| true).unwrap();
    let prompt = engine.vocabulary().tokenize(prompt, Markup::PROMPT).unwrap();
    let row =
        |token: &Token, at: usize| Row { token: *token, position: at as u32, sequence: 0, logits: true };
    let mut rows: Vec<Row> = prompt.iter().enumerate().map(|(at, token)| row(token, at)).collect();
    let last = rows.len() - 1;
    rows[..last].iter_mut().for_each(|row| row.logits = false);
    engine.decode(&rows, &|| false).unwrap();
    for (at, token) in answer.iter().enumerate() {
        engine.decode(&[row(token, prompt.len() + at)], &|| false).unwrap();
    }
    let logits = engine.logits(if answer.is_empty() { last } else { 0 }).unwrap();
    let best = sampler::likeliest(logits).unwrap() as usize;
    let top = std::mem::replace(&mut logits[best], f32::NEG_INFINITY);
    f64::from(top - logits[sampler::likeliest(logits).unwrap() as usize])
}
