//! The versioned worker API: live workers in few fields, whether each of them answers, an end at once, and one answer as a
//! stream. For programs that know these paths; everything here can be had by the other routes, too.

use crate::http::link::Caller;
use crate::http::{Request, Response, client, reply, request};
use crate::job::routes as jobs;
use crate::queen::dispatch::{DEADLINE_HEADER, Deadline};
use crate::queen::placement::{self, Want};
use crate::queen::{Queen, infer};
use crate::wire::Failure;
use crate::wire::fleet::{HiveInfo, WorkerInfo, now_ms};
use crate::wire::operation::Infer;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long a worker may take to say that it is well.
pub const HEALTH_ANSWER_MAX: Duration = Duration::from_secs(3);
/// Workers that are asked at once.
pub const HEALTH_ASKED_MAX: usize = 64;

#[derive(Debug, Deserialize)]
struct Shutdown {
    worker_id: String,
}

#[derive(Debug, Deserialize)]
struct Task {
    #[serde(default)]
    node: Option<String>,
    model: String,
    prompt: String,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    temperature: Option<f32>,
}

/// GET /v2/workers/list.
pub fn list(queen: &Queen) -> Response {
    let fleet = queen.registry.fleet();
    let told = |worker: &WorkerInfo| {
        json!({
            "worker_id": worker.worker_id, "node": worker.hive, "state": worker.state, "model_ref": worker.model,
            "url": format!(
                "{}/v1/hives/{}/v1/workers/{}",
                queen.options.base_url,
                request::percent_encode(&worker.hive),
                request::percent_encode(&worker.worker_id)
            ),
        })
    };
    reply::json(&json!({"workers": fleet.workers().map(told).collect::<Vec<_>>()}))
}

/// GET /v2/workers/health: each worker is asked itself, because one that hangs looks ready from outside.
pub async fn health(queen: &Queen, asked: &Request) -> Result<Response, Failure> {
    let node = asked.query("node").filter(|node| !node.is_empty());
    if let Some(node) = &node {
        queen.registry.hive(node)?;
    }
    let fleet = queen.registry.fleet();
    let hives = fleet.hives.values().filter(|hive| node.as_ref().is_none_or(|node| *node == hive.info.name));
    let turns = Arc::new(Semaphore::new(HEALTH_ASKED_MAX));
    let mut asking = JoinSet::new();
    for hive in hives {
        for worker in hive.info.workers.iter().cloned() {
            let (caller, turns) = (hive.caller.clone(), turns.clone());
            asking.spawn(async move {
                let _turn = turns.acquire().await;
                let answers = worker.state.serves() && is_well(caller, &worker.worker_id).await;
                (worker, answers)
            });
        }
    }
    let mut workers = asking.join_all().await;
    workers.sort_unstable_by(|(a, _), (b, _)| (&a.hive, &a.worker_id).cmp(&(&b.hive, &b.worker_id)));
    // One that still loads, or ends as it was told to, is not ill.
    let is_fine = |(worker, ready): &(WorkerInfo, bool)| *ready || !worker.state.serves();
    let status = if workers.iter().all(is_fine) { "ok" } else { "degraded" };
    let told: Vec<Value> = workers
        .iter()
        .map(|(worker, ready)| {
            json!({"worker_id": worker.worker_id, "node": worker.hive, "state": worker.state, "ready": ready})
        })
        .collect();
    Ok(reply::json(&json!({"status": status, "workers": told})))
}

async fn is_well(caller: Caller, worker_id: &str) -> bool {
    let path = format!("/v1/workers/{}/health", request::percent_encode(worker_id));
    let Ok(ask) = client::get(&path) else { return false };
    let answer = tokio::time::timeout(HEALTH_ANSWER_MAX, caller.send(ask)).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.status().is_success()))
}

/// POST /v2/workers/shutdown.
pub async fn shutdown(queen: &Arc<Queen>, asked: Request) -> Result<Response, Failure> {
    let Shutdown { worker_id } = body(asked, "{\"worker_id\": \"…\"}").await?;
    Ok(reply::json(&queen.shut_down(&worker_id).await?))
}

/// POST /v2/tasks: the events of an inference; the reader's leaving ends it.
pub async fn tasks(queen: &Arc<Queen>, asked: Request) -> Result<Response, Failure> {
    let deadline = Deadline::read(asked.header(DEADLINE_HEADER), now_ms())?;
    let expected = "{\"node\"?, \"model\", \"prompt\", \"max_tokens\"?, \"temperature\"?}";
    let Task { node, model, prompt, max_tokens, temperature } = body(asked, expected).await?;
    Deadline::keep(deadline.as_ref(), queen.settled()).await?;
    if let Some(node) = &node {
        queen.registry.hive(node)?;
    }
    // Said by the status, while there is still one to say it by.
    let fleet = queen.registry.fleet();
    let want = Want { model: fleet.meant(&model, node.as_deref()), hive: node.clone(), ..Want::default() };
    if fleet.holders(&want.model, node.as_deref()).is_empty() {
        let all: Vec<&HiveInfo> = fleet.hives.values().map(|hive| &hive.info).collect();
        return Err(placement::nowhere(&want, &all));
    }
    let operation = Infer {
        model,
        prompt: Some(prompt),
        max_tokens,
        temperature,
        hive: node,
        stream: true,
        ..Infer::default()
    };
    let handler = queen.clone();
    let job =
        queen.jobs.start("infer", None, |context| infer::infer(handler, context, operation, deadline))?;
    jobs::owned(&queen.jobs, job).await
}

async fn body<T: DeserializeOwned>(asked: Request, expected: &str) -> Result<T, Failure> {
    let bytes = asked.json_bytes(request::CONTROL_BYTES_MAX).await?;
    request::parse(&bytes)
        .map_err(|failure| Failure::new(failure.code, format!("{}; it takes {expected}", failure.message)))
}
