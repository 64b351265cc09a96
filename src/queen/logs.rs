//! `GET /v2/logs`: the lines of the whole fleet as one stream, each with its node and worker: the queen's own and what every
//! hive tells of itself. A hive that comes later is followed from then on, one that is lost is said to be.

use crate::daemon::lines::{Reader, Step};
use crate::daemon::log;
use crate::http::link::{Caller, Streamed};
use crate::http::relay::STALL_MAX;
use crate::http::sse::{self, Gone, Sender};
use crate::http::{Request, Response, client};
use crate::queen::Queen;
use crate::queen::fleet::Hive;
use crate::shutdown::Shutdown;
use crate::wire::job::{JobEvent, Terminator};
use crate::wire::logs::{LogLine, LogQuery};
use crate::wire::{Code, Failure, failure};
use serde_json::json;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long a hive may take to begin with its lines.
pub const BEGIN_MAX: Duration = Duration::from_secs(5);

/// A hive's lines as they come.
type Lines = sse::Reader<Streamed>;

pub async fn logs(queen: &Arc<Queen>, request: &Request) -> Result<Response, Failure> {
    let query = LogQuery::read(|name| request.query(name))?;
    let (to, response) = sse::channel();
    let (shutdown, asked) = (queen.shutdown.clone(), query.clone());
    let told: Telling = match (&query.worker, &query.node) {
        (Some(worker), _) => {
            let (hive, lines) = of_worker(queen, worker, &query).await?;
            Box::pin(one(hive, lines, to.clone()))
        }
        (None, Some(node)) if *node == queen.options.name && !queen.knows(node) => {
            Box::pin(own(queen, &query).tell(to.clone()))
        }
        (None, Some(node)) => {
            let hive = queen.registry.hive(node)?;
            let lines = begin(&hive.caller, &query.text()).await?;
            Box::pin(one(hive.info.name.clone(), lines, to.clone()))
        }
        (None, None) => Box::pin(all(queen.clone(), asked, to.clone())),
    };
    tokio::spawn(tell(told, to, shutdown));
    Ok(response)
}

type Telling = std::pin::Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

/// Why the lines are not whole.
enum Broken {
    ReaderGone,
    Source(String),
}

impl From<Gone> for Broken {
    fn from(_: Gone) -> Self {
        Broken::ReaderGone
    }
}

/// Tells until the end, and says how it ended.
async fn tell(told: Telling, to: Sender, shutdown: Shutdown) {
    let told = tokio::select! {
        told = told => told,
        () = to.closed() => return,
        () = shutdown.drained() => Err(Broken::Source("the queen is shutting down".into())),
    };
    let terminator = match told {
        Ok(()) => Terminator::Done,
        Err(Broken::Source(why)) => Terminator::Error(why),
        Err(Broken::ReaderGone) => return,
    };
    // Whether the reader is still there no longer matters.
    let _ = to.data(&terminator.to_string()).await;
}

impl Queen {
    fn knows(&self, hive: &str) -> bool {
        self.registry.fleet().hives.contains_key(hive)
    }
}

/// The queen's own lines.
struct Own {
    node: String,
    lines: Reader,
}

fn own(queen: &Queen, query: &LogQuery) -> Own {
    Own { node: queen.options.name.clone(), lines: log::lines().reader(query.tail, query.follow) }
}

impl Own {
    async fn tell(mut self, to: Sender) -> Result<(), Broken> {
        loop {
            let event = match self.lines.next().await {
                Some(Step::Line(line)) => {
                    let (node, stream) = (self.node.clone(), "queen".into());
                    to.event("log", &json!(LogLine { node, worker: None, stream, line }).to_string()).await
                }
                Some(Step::Missed(lines)) => {
                    warn(&to, format!("lines that are no longer kept: {lines}")).await
                }
                None => return Ok(()),
            };
            event?;
        }
    }
}

async fn warn(to: &Sender, message: String) -> Result<(), Gone> {
    let event = JobEvent::warn("logs", message);
    to.event(event.name(), &event.data().to_string()).await
}

/// Asks a hive for its lines; what it refuses is the refusal here, too.
async fn begin(caller: &Caller, query: &str) -> Result<Lines, Failure> {
    let ask = client::get(&format!("/v1/logs?{query}")).map_err(|error| Failure::internal(&error))?;
    let lost = |what: String| Failure::new(Code::HiveLost, what);
    let answer = tokio::time::timeout(BEGIN_MAX, caller.send(ask)).await;
    let answer = answer
        .map_err(|_| lost(format!("the hive did not answer within {} s", BEGIN_MAX.as_secs())))?
        .map_err(|error| lost(format!("the hive was lost: {}", failure::chain(&error))))?;
    if answer.status().is_success() {
        return Ok(sse::Reader::new(answer.into_body()));
    }
    Err(match client::whole(answer).await {
        Err(failure) => failure,
        Ok(_) => lost("the hive answered with something else".into()),
    })
}

/// The log of a worker, wherever it runs or ran.
async fn of_worker(queen: &Queen, worker: &str, query: &LogQuery) -> Result<(String, Lines), Failure> {
    if let Some(node) = &query.node {
        queen.registry.hive(node)?;
    }
    let fleet = queen.registry.fleet();
    let runs_there = |hive: &&Hive| hive.info.workers.iter().any(|running| running.worker_id == worker);
    let named = fleet
        .hives
        .values()
        .map(AsRef::as_ref)
        .filter(|hive: &&Hive| query.node.as_ref().is_none_or(|node| *node == hive.info.name));
    let mut hives: Vec<&Hive> = named.collect();
    if let Some(at) = hives.iter().position(runs_there) {
        hives = vec![hives[at]];
    }
    let mut unknown = Failure::new(
        Code::WorkerNotFound,
        format!("no hive has a log of a worker {worker}; see `rbee workers list`"),
    );
    for hive in hives {
        match begin(&hive.caller, &query.text()).await {
            Ok(lines) => return Ok((hive.info.name.clone(), lines)),
            Err(failure) if failure.code == Code::WorkerNotFound => {}
            Err(failure) => unknown = failure,
        }
    }
    Err(unknown)
}

/// Passes a hive's lines on to their end.
async fn one(hive: String, mut lines: Lines, to: Sender) -> Result<(), Broken> {
    let broke = |why: &dyn std::fmt::Display| Broken::Source(format!("the lines of {hive} broke off: {why}"));
    loop {
        let event = match lines.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Err(broke(&"without a word")),
            Err(error) => return Err(broke(&failure::chain(&error))),
        };
        match (&event.name, Terminator::parse(&event.data)) {
            // The link is never held up by a reader that does not read.
            (Some(name), _) => tokio::time::timeout(STALL_MAX, to.event(name, &event.data))
                .await
                .map_err(|_| Broken::ReaderGone)??,
            (None, Some(Terminator::Done)) => return Ok(()),
            (None, Some(Terminator::Error(why))) => return Err(broke(&why)),
            (None, _) => {}
        }
    }
}

/// Everybody's. With `follow` it ends when the reader leaves or the queen does.
async fn all(queen: Arc<Queen>, query: LogQuery, to: Sender) -> Result<(), Broken> {
    if !query.follow {
        if !queen.options.shares_its_log {
            own(&queen, &query).tell(to.clone()).await?;
        }
        let mut missing = Vec::new();
        for (name, hive) in queen.registry.fleet().hives.iter() {
            let told = match begin(&hive.caller, &query.text()).await {
                Ok(lines) => one(name.clone(), lines, to.clone()).await,
                Err(failure) => Err(Broken::Source(format!("{name}: {}", failure.message))),
            };
            match told {
                Ok(()) => {}
                Err(Broken::Source(why)) => missing.push(why),
                Err(gone) => return Err(gone),
            }
        }
        return if missing.is_empty() { Ok(()) } else { Err(Broken::Source(missing.join("; "))) };
    }
    let mut telling = JoinSet::new();
    if !queen.options.shares_its_log {
        let own = own(&queen, &query).tell(to.clone());
        telling.spawn(async move { (None, own.await) });
    }
    let mut fleet = queen.registry.watch();
    // By name, the link that is followed.
    let mut followed: HashMap<String, u64> = HashMap::new();
    let mut query = query;
    loop {
        let hives = fleet.borrow_and_update().hives.clone();
        for (name, hive) in hives.iter() {
            let (name, hive) = (name.clone(), hive.clone());
            let link = hive.link;
            if followed.insert(name.clone(), link) == Some(link) {
                continue;
            }
            let (to, text) = (to.clone(), query.text());
            telling.spawn(async move {
                let told = match begin(&hive.caller, &text).await {
                    Ok(lines) => one(name.clone(), lines, to).await,
                    Err(failure) => Err(Broken::Source(format!("{name}: {}", failure.message))),
                };
                (Some(name), told)
            });
        }
        // Who comes back was read before.
        query.tail = 0;
        tokio::select! {
            changed = fleet.changed() => if changed.is_err() { return Ok(()) },
            Some(ended) = telling.join_next() => match ended {
                Ok((_, Err(Broken::ReaderGone))) => return Err(Broken::ReaderGone),
                Ok((Some(_), Err(Broken::Source(why)))) => warn(&to, why).await?,
                _ => {}
            },
        }
    }
}
