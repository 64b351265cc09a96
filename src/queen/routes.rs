//! The queen's routes (contract/http.md, Queen).

use crate::http::link::Hello;
use crate::http::router::{self, Params, Route};
use crate::http::server::Service;
use crate::http::{Request, Response, auth, link, relay, reply, request};
use crate::job::{self, Outcome, routes as jobs};
use crate::queen::dispatch::{DEADLINE_HEADER, Deadline};
use crate::queen::placement::Want;
use crate::queen::{Queen, heartbeats, hive_job, infer, logs, metrics, openai, reported, v2, worker_facts};
use crate::wire::failure::listed;
use crate::wire::fleet::{Health, Info, now_ms};
use crate::wire::operation::{HiveOperation, QueenOperation};
use crate::wire::{API_VERSION, Code, Failure, PROTOCOL, VERSION};
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Health,
    Info,
    CreateJob,
    ReportJob,
    Job(jobs::Endpoint),
    ChatCompletions,
    Completions,
    Models,
    Model,
    Hives,
    Hive,
    ForgetHive,
    HiveRelay,
    Workers,
    Worker,
    RetireWorker,
    Heartbeats,
    Metrics,
    V2Workers,
    V2Health,
    V2Shutdown,
    V2Tasks,
    Placement,
    Logs,
    Link,
    Join,
    Token,
    WithdrawToken,
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
    route("POST", "/v1/jobs/reported", Endpoint::ReportJob),
    Route { ..JOBS[0] },
    Route { ..JOBS[1] },
    Route { ..JOBS[2] },
    Route { ..JOBS[3] },
    Route { ..JOBS[4] },
    route("POST", "/v1/chat/completions", Endpoint::ChatCompletions),
    route("POST", "/openai/v1/chat/completions", Endpoint::ChatCompletions),
    route("POST", "/v1/completions", Endpoint::Completions),
    route("POST", "/openai/v1/completions", Endpoint::Completions),
    route("GET", "/v1/models", Endpoint::Models),
    route("GET", "/openai/v1/models", Endpoint::Models),
    route("GET", "/v1/models/{id*}", Endpoint::Model),
    route("GET", "/openai/v1/models/{id*}", Endpoint::Model),
    route("GET", "/v1/hives", Endpoint::Hives),
    route("GET", "/v1/hives/{name}", Endpoint::Hive),
    route("DELETE", "/v1/hives/{name}", Endpoint::ForgetHive),
    route("ANY", "/v1/hives/{name}/{rest*}", Endpoint::HiveRelay),
    route("GET", "/v1/workers", Endpoint::Workers),
    route("GET", "/v1/workers/{id}", Endpoint::Worker),
    route("POST", "/v1/workers/{id}/retire", Endpoint::RetireWorker),
    route("GET", "/v1/heartbeats/stream", Endpoint::Heartbeats),
    route("GET", "/metrics", Endpoint::Metrics),
    route("GET", "/v2/workers/list", Endpoint::V2Workers),
    route("GET", "/v2/workers/health", Endpoint::V2Health),
    route("POST", "/v2/workers/shutdown", Endpoint::V2Shutdown),
    route("POST", "/v2/tasks", Endpoint::V2Tasks),
    route("GET", "/v1/placement", Endpoint::Placement),
    route("GET", "/v2/logs", Endpoint::Logs),
    route("GET", auth::LINK_PATH, Endpoint::Link),
    route("POST", auth::JOIN_PATH, Endpoint::Join),
    route("POST", "/v1/tokens", Endpoint::Token),
    route("DELETE", "/v1/tokens", Endpoint::WithdrawToken),
];

/// The service behind the queen's listeners.
#[derive(Debug, Clone)]
pub struct Routes(pub Arc<Queen>);

impl Service for Routes {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        let found = router::find(TABLE, request.method().as_str(), request.path());
        let to = found.as_ref().ok().map(|(endpoint, _)| *endpoint);
        let answer = match found {
            Ok((endpoint, params)) => self.0.answer(endpoint, &params, request).await,
            Err(failure) => Err(failure),
        };
        self.0.tally.requests.count(TABLE, to, &answer);
        answer
    }
}

impl Queen {
    async fn answer(
        self: &Arc<Self>,
        endpoint: Endpoint,
        params: &Params,
        request: Request,
    ) -> Result<Response, Failure> {
        match endpoint {
            Endpoint::Health => Ok(reply::json(&Health {
                status: "ok".into(),
                version: VERSION.into(),
                api_version: API_VERSION.into(),
            })),
            Endpoint::Info => Ok(reply::json(&self.info())),
            Endpoint::CreateJob => self.create_job(request).await,
            Endpoint::ReportJob => reported::take(self, request).await,
            Endpoint::Job(endpoint) => jobs::serve(&self.jobs, endpoint, params, &request).await,
            Endpoint::ChatCompletions => openai::complete(self, "/v1/chat/completions", request).await,
            Endpoint::Completions => openai::complete(self, "/v1/completions", request).await,
            Endpoint::Models => Ok(openai::models(self)),
            Endpoint::Model => openai::model(self, &request::percent_decode(params.get(0))),
            Endpoint::Hives => Ok(reply::json(&json!({ "hives": self.registry.fleet().infos() }))),
            Endpoint::Hive => Ok(reply::json(&self.registry.hive(params.get(0))?.info)),
            Endpoint::ForgetHive => self.forget(params.get(0)).await,
            Endpoint::HiveRelay => self.relay(params, request).await,
            Endpoint::Workers => {
                let fleet = self.registry.fleet();
                Ok(reply::json(&json!({ "workers": fleet.workers().collect::<Vec<_>>() })))
            }
            Endpoint::Worker => Ok(reply::json(&worker_facts::facts(self, params.get(0)).await?)),
            Endpoint::Logs => logs::logs(self, &request).await,
            Endpoint::RetireWorker => self.begin_retire(params.get(0)).await,
            Endpoint::Heartbeats => Ok(heartbeats::stream(self)),
            Endpoint::Metrics => Ok(metrics::page(self)),
            Endpoint::V2Workers => Ok(v2::list(self)),
            Endpoint::V2Health => v2::health(self, &request).await,
            Endpoint::V2Shutdown => v2::shutdown(self, request).await,
            Endpoint::V2Tasks => v2::tasks(self, request).await,
            Endpoint::Placement => self.placement(&request).map(|told| reply::json(&told)),
            Endpoint::Link => self.link(request),
            Endpoint::Join => self.join(request).await,
            Endpoint::Token => self.make_token(request).await,
            Endpoint::WithdrawToken => self.withdraw_token(request).await,
        }
    }

    fn info(&self) -> Info {
        Info {
            role: "queen".into(),
            name: self.options.name.clone(),
            base_url: self.options.base_url.clone(),
            version: VERSION.into(),
            protocol: PROTOCOL,
            features: vec!["openai".into(), "jobs".into(), "link".into()],
            build: env!("RBEE_COMMIT").into(),
            pid: std::process::id(),
            started_at: self.started_at,
        }
    }

    pub(super) fn worker(&self, id: &str) -> Result<crate::wire::fleet::WorkerInfo, Failure> {
        let fleet = self.registry.fleet();
        fleet.workers().find(|worker| worker.worker_id == id).cloned().ok_or_else(|| {
            Failure::new(Code::WorkerNotFound, format!("no worker {id} is running; see `rbee workers list`"))
        })
    }

    /// Where a request would run now, and what each node has to say to it.
    fn placement(&self, request: &Request) -> Result<Value, Failure> {
        let asked = request.query("model").filter(|model| !model.is_empty());
        let asked = asked.ok_or_else(|| Failure::invalid("name a model: /v1/placement?model=NAME"))?;
        let hive = request.query("hive");
        self.dispatcher.explain(&Want {
            model: self.registry.meant(&asked, hive.as_deref()),
            worker_id: request.query("worker_id"),
            device: request.query("device"),
            hive,
        })
    }

    /// A hive's own route, over its link.
    async fn relay(&self, params: &Params, request: Request) -> Result<Response, Failure> {
        let hive = self.registry.hive(params.get(0))?;
        let query = request.inner.uri().query().map_or_else(String::new, |query| format!("?{query}"));
        let path = format!("/{}{query}", params.get(1));
        let name = hive.info.name.clone();
        let answer = hive.caller.send(request.forward(&path)?).await.map_err(|error| {
            Failure::new(
                Code::HiveLost,
                format!("the hive {name} was lost: {}", crate::wire::failure::chain(&error)),
            )
        })?;
        Ok(relay::relay(answer, relay::Unwatched, ()))
    }

    fn link(self: &Arc<Self>, mut request: Request) -> Result<Response, Failure> {
        let hello = Hello::read(&request)?;
        self.may_link(&hello, &request.holder)?;
        self.registry.admit(&hello)?;
        let holder = request.holder.clone();
        let upgraded = hyper::upgrade::on(&mut request.inner);
        let queen = self.clone();
        // None of the tasks that a shutdown waits for: a link is no work in itself, and lasts until that has ended.
        tokio::spawn(async move {
            tokio::select! {
                upgraded = upgraded => match upgraded {
                    Ok(io) => queen.attach(hello, io, queen.revoked(&holder)).await,
                    Err(error) => tracing::debug!(%error, "a link was not turned round"),
                },
                () = queen.shutdown.stopped() => {}
            }
        });
        Ok(link::accepted(self.options.idle_ttl))
    }

    async fn create_job(self: &Arc<Self>, request: Request) -> Result<Response, Failure> {
        let key = request.header(job::KEY_HEADER).map(str::to_owned);
        let deadline = request.header(DEADLINE_HEADER).map(str::to_owned);
        let bytes = request.json_bytes(request::CONTROL_BYTES_MAX).await?;
        let key = job::Key::read(key.as_deref(), &bytes)?;
        // Before anything that may have changed since the first time: its hive may be away.
        if let Some(job) = key.as_ref().map(|key| self.jobs.started_by(key)).transpose()?.flatten() {
            return Ok(jobs::accepted(&job).await);
        }
        let body: Value = request::parse(&bytes)?;
        let name = body.get("operation").and_then(Value::as_str).unwrap_or_default().to_owned();
        let hive_id = match body.get("hive_id") {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(name.clone()),
            Some(other) => return Err(Failure::invalid(format!("`hive_id` is a hive's name, not {other}"))),
        };
        let is_hives = HiveOperation::is_name(&name);
        if is_hives && (hive_id.is_some() || !QueenOperation::NAMES.contains(&name.as_str())) {
            let operation: HiveOperation = read_operation(body)?;
            self.settled().await;
            let hive = self.hive_for_operation(hive_id)?;
            let queen = self.clone();
            let job = self
                .jobs
                .start(operation.name(), key, |context| hive_job::relay(queen, hive, operation, context))?;
            return Ok(jobs::accepted(&job).await);
        }
        if !QueenOperation::NAMES.contains(&name.as_str()) {
            let known = [QueenOperation::NAMES, HiveOperation::NAMES].concat().join(", ");
            return Err(Failure::invalid(format!("`{name}` is no operation; there are: {known}")));
        }
        let operation: QueenOperation = read_operation(body)?;
        let queen = self.clone();
        let deadline = match operation {
            QueenOperation::Infer(_) => Deadline::read(deadline.as_deref(), now_ms())?,
            _ => None,
        };
        let job =
            self.jobs.start(operation.name(), key, |context| queen.run(operation, deadline, context))?;
        Ok(jobs::accepted(&job).await)
    }

    /// A hive operation goes to the hive it names, else to the only one.
    fn hive_for_operation(&self, named: Option<String>) -> Result<String, Failure> {
        if let Some(name) = named {
            return self.registry.hive(&name).map(|hive| hive.info.name.clone());
        }
        let fleet = self.registry.fleet();
        let mut hives = fleet.hives.values();
        match (hives.next(), hives.next()) {
            (Some(only), None) => Ok(only.info.name.clone()),
            (None, _) => Err(Failure::new(
                Code::HiveNotFound,
                "no hive is connected to this queen; start one with `rbee hive serve --queen URL`",
            )),
            _ => Err(Failure::invalid(format!("say which hive: {}", listed(fleet.hives.keys())))),
        }
    }

    async fn run(
        self: Arc<Self>,
        operation: QueenOperation,
        deadline: Option<Deadline>,
        context: job::Context,
    ) -> Outcome {
        let fleet = self.registry.fleet();
        match operation {
            QueenOperation::Infer(operation) => infer::infer(self, context, *operation, deadline).await,
            QueenOperation::ActiveWorkerList => {
                Outcome::Done(json!({ "workers": fleet.workers().collect::<Vec<_>>() }))
            }
            QueenOperation::ActiveWorkerGet { worker_id } => {
                self.worker(&worker_id).map(|worker| json!(worker)).into()
            }
            QueenOperation::ActiveWorkerRetire { worker_id } => self.clone().retire(worker_id, context).await,
            QueenOperation::HiveList => Outcome::Done(json!({ "hives": fleet.infos() })),
            QueenOperation::HiveGet { name } => self.registry.hive(&name).map(|hive| json!(hive.info)).into(),
            QueenOperation::HiveDrain { name, undo } => {
                let drain = HiveOperation::HiveDrain { undo };
                hive_job::relay(self, name, drain, context).await
            }
            QueenOperation::Status => Outcome::Done(json!({
                "queen": self.info(),
                "hives": fleet.infos(),
                "queued": self.dispatcher.queued(),
                "jobs": self.jobs.list(),
            })),
            QueenOperation::QueenCheck => Outcome::Done(json!({"ok": true, "version": VERSION})),
        }
    }
}

fn read_operation<T: serde::de::DeserializeOwned>(body: Value) -> Result<T, Failure> {
    serde_json::from_value(body)
        .map_err(|error| Failure::invalid(format!("the operation does not read: {error}")))
}
