//! The hive's routes (contract/http.md, Hive). The same table answers on its own address and on its links.

use crate::hive::patience::{DEADLINE_HEADER, Patience};
use crate::hive::speed::Meter;
use crate::hive::workers::Worker;
use crate::hive::{Hive, handover, heartbeats, link, logs, metrics, operations};
use crate::http::router::{self, Params, Route};
use crate::http::server::Service;
use crate::http::{Peer, Request, Response, relay, reply, request};
use crate::job::routes as jobs;
use crate::wire::fleet::{Health, now_ms};
use crate::wire::job::{JOB_ID_HEADER, JobId};
use crate::wire::operation::HiveOperation;
use crate::wire::{API_VERSION, Code, Failure, VERSION};
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Health,
    Info,
    CreateJob,
    Job(jobs::Endpoint),
    Capabilities,
    Workers,
    Worker,
    WorkerRelay,
    Heartbeats,
    Metrics,
    Logs,
    Handover,
    Telemetry,
}

const fn route(method: &'static str, path: &'static str, to: Endpoint) -> Route<Endpoint> {
    Route { method, path, to }
}

const JOBS: [Route<Endpoint>; 5] = jobs::table(
    Endpoint::Job(jobs::Endpoint::List),
    Endpoint::Job(jobs::Endpoint::Get),
    Endpoint::Job(jobs::Endpoint::Stream),
    Endpoint::Job(jobs::Endpoint::Cancel),
);

pub const TABLE: &[Route<Endpoint>] = &[
    route("GET", "/health", Endpoint::Health),
    route("GET", "/v1/health", Endpoint::Health),
    route("GET", "/v1/info", Endpoint::Info),
    route("POST", "/v1/jobs", Endpoint::CreateJob),
    Route { ..JOBS[0] },
    Route { ..JOBS[1] },
    Route { ..JOBS[2] },
    Route { ..JOBS[3] },
    Route { ..JOBS[4] },
    route("GET", "/v1/capabilities", Endpoint::Capabilities),
    route("GET", "/v1/workers", Endpoint::Workers),
    route("GET", "/v1/workers/{id}", Endpoint::Worker),
    route("ANY", "/v1/workers/{id}/{rest*}", Endpoint::WorkerRelay),
    route("GET", "/metrics", Endpoint::Metrics),
    route("GET", "/v1/heartbeats/stream", Endpoint::Heartbeats),
    route("GET", "/v1/logs", Endpoint::Logs),
    route("POST", "/v1/handover", Endpoint::Handover),
    route("GET", "/v1/telemetry", Endpoint::Telemetry),
];

/// Our own workers' paths that take a slot.
const GENERATING: &[&str] = &["v1/chat/completions", "v1/completions"];

/// Whether a request takes a slot. What another project's engine has its paths for is not known here: whatever is posted
/// to it counts as work.
fn is_work(method: &http::Method, path: &str, is_foreign: bool) -> bool {
    GENERATING.contains(&path) || is_foreign && method == http::Method::POST
}

/// The service behind the hive's listeners and links.
#[derive(Clone)]
pub struct Routes(pub Arc<Hive>);

impl Service for Routes {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        let found = router::find(TABLE, request.method().as_str(), request.path());
        let to = found.as_ref().ok().map(|(endpoint, _)| *endpoint);
        let answer = match found {
            Ok((endpoint, params)) => self.answer(endpoint, params, request).await,
            Err(failure) => Err(failure),
        };
        self.0.requests.count(TABLE, to, &answer);
        answer
    }
}

impl Routes {
    async fn answer(
        &self,
        endpoint: Endpoint,
        params: Params,
        request: Request,
    ) -> Result<Response, Failure> {
        let hive = &self.0;
        match endpoint {
            Endpoint::Health => Ok(reply::json(&Health {
                status: "ok".into(),
                version: VERSION.into(),
                api_version: API_VERSION.into(),
            })),
            Endpoint::Info => Ok(reply::json(&hive.info())),
            Endpoint::CreateJob => create_job(hive, request).await,
            Endpoint::Job(endpoint) => jobs::serve(&hive.jobs, endpoint, &params, &request).await,
            Endpoint::Capabilities => Ok(reply::json(&hive.capabilities().await)),
            Endpoint::Workers => {
                let (workers, ends) = (hive.workers.infos(), hive.workers.ends.all());
                Ok(reply::json(&json!({ "workers": workers, "ends": ends })))
            }
            Endpoint::Worker => {
                let mut facts = json!(hive.workers.get(params.get(0))?.info);
                facts["ends"] = json!(hive.workers.ends.of_worker(params.get(0)));
                Ok(reply::json(&facts))
            }
            Endpoint::Heartbeats => Ok(heartbeats::stream(hive)),
            Endpoint::Metrics => Ok(metrics::page(hive)),
            Endpoint::WorkerRelay => relay_to_worker(hive, &params, request).await,
            Endpoint::Logs => logs::logs(hive, &request).await,
            Endpoint::Handover => handover::hand_over(hive, &request),
            Endpoint::Telemetry if request.peer == Peer::Link => link::telemetry(hive, &request),
            Endpoint::Telemetry => Err(Failure::new(Code::Forbidden, "telemetry is for the link")),
        }
    }
}

async fn create_job(hive: &Arc<Hive>, request: Request) -> Result<Response, Failure> {
    let key = request.header(crate::job::KEY_HEADER).map(str::to_owned);
    let given = request.header(JOB_ID_HEADER).filter(|_| request.peer == Peer::Link);
    let id = match given {
        Some(id) => id.parse::<JobId>().map_err(|_| Failure::invalid(format!("`{id}` is no job's id")))?,
        None => JobId::fresh(),
    };
    let bytes = request.json_bytes(request::CONTROL_BYTES_MAX).await?;
    let key = crate::job::Key::read(key.as_deref(), &bytes)?;
    let body: Value = request::parse(&bytes)?;
    let name = body.get("operation").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !HiveOperation::is_name(&name) {
        return Err(Failure::invalid(format!(
            "`{name}` is no operation of a hive; there are: {}",
            HiveOperation::NAMES.join(", ")
        )));
    }
    let operation: HiveOperation = serde_json::from_value(body)
        .map_err(|error| Failure::invalid(format!("the operation does not read: {error}")))?;
    let runner = hive.clone();
    let job = hive
        .jobs
        .start_as(id, operation.name(), key, |context| operations::run(runner, operation, context))?;
    Ok(crate::job::routes::accepted(&job).await)
}

/// A worker's own route. What takes a slot is counted as a busy slot until its last byte has been taken over.
async fn relay_to_worker(hive: &Arc<Hive>, params: &Params, request: Request) -> Result<Response, Failure> {
    let (id, rest) = (params.get(0), params.get(1));
    let about =
        |worker: &Worker| (worker.pool.clone(), worker.info.model.clone(), worker.info.device.clone());
    let (pool, model, device) = hive.workers.look(id, about)?;
    let is_foreign = !pool.target().is_unix();
    let is_work = is_work(request.method(), rest, is_foreign);
    if is_work {
        hive.takes_work()?;
    }
    let busy = is_work.then(|| hive.workers.busy(id)).transpose()?;
    let query = request.inner.uri().query().map_or_else(String::new, |query| format!("?{query}"));
    // An engine that is not ours is watched from here.
    let patience = (is_work && is_foreign).then(|| Patience::new(request.header(DEADLINE_HEADER), now_ms()));
    let request_id = request.id.clone();
    let forwarded = request.forward(&format!("/{rest}{query}"))?;
    let asking = pool.send(forwarded);
    let answer = match patience {
        Some(patience) => patience.head(asking).await?,
        None => asking.await,
    };
    let answer = answer.map_err(|error| {
        Failure::new(
            Code::WorkerLost,
            format!("worker {id} was lost: {}", crate::wire::failure::chain(&error)),
        )
    })?;
    let Some(busy) = busy else { return Ok(relay::relay(answer, relay::Unwatched, ())) };
    let weights = hive.needs.known(&model).map_or(0, |needs| needs.weights_bytes);
    let (workers, own) = (hive.workers.clone(), id.to_owned());
    let is_alone = move || workers.look(&own, |worker| worker.info.slots_busy).is_ok_and(|busy| busy == 1);
    let meter = Meter::new(hive.speeds.clone(), device, weights, is_alone);
    Ok(match patience {
        Some(patience) => relay::relay(patience.body(answer, &request_id), meter, busy),
        None => relay::relay(answer, meter, busy),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    #[test]
    fn whatever_is_posted_to_an_engine_that_is_not_ours_is_work_and_of_ours_what_generates() {
        for (path, of_ours, of_theirs) in
            [("v1/chat/completions", true, true), ("completion", false, true), ("v1/embeddings", false, true)]
        {
            assert_eq!(is_work(&Method::POST, path, false), of_ours, "{path}");
            assert_eq!(is_work(&Method::POST, path, true), of_theirs, "{path}");
        }
        assert!(!is_work(&Method::GET, "slots", true));
    }
}
