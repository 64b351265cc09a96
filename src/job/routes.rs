//! The jobs family of routes, the same on queen and hive. What an operation starts is the role's own; the rest is here.

use super::stream::Step;
use super::{Cancelled, Job, Jobs};
use crate::http::router::{Params, Route};
use crate::http::{Request, Response, reply, sse};
use crate::wire::Failure;
use crate::wire::job::{JobAccepted, JobCancelled, JobEvent};
use std::sync::Arc;

/// What can be asked of existing jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    List,
    Get,
    Stream,
    Cancel,
}

/// A role's table: the family, each endpoint wrapped in the role's own type.
pub const fn table<E: Copy>(list: E, get: E, stream: E, cancel: E) -> [Route<E>; 5] {
    [
        Route { method: "GET", path: "/v1/jobs", to: list },
        Route { method: "GET", path: "/v1/jobs/{id}", to: get },
        Route { method: "GET", path: "/v1/jobs/{id}/stream", to: stream },
        Route { method: "DELETE", path: "/v1/jobs/{id}", to: cancel },
        Route { method: "POST", path: "/v1/jobs/{id}/cancel", to: cancel },
    ]
}

pub async fn serve(
    jobs: &Jobs,
    endpoint: Endpoint,
    params: &Params,
    request: &Request,
) -> Result<Response, Failure> {
    let id = params.get(0);
    match endpoint {
        Endpoint::List => Ok(reply::json(&serde_json::json!({ "jobs": jobs.list() }))),
        Endpoint::Get => Ok(reply::json(&jobs.get(id)?.record())),
        Endpoint::Stream => {
            let job = jobs.get(id)?;
            Ok(follow(job, first_wanted(request)?))
        }
        Endpoint::Cancel => {
            let job_id = jobs.get(id)?.id;
            let (http_status, receipt) = match jobs.cancel(id).await? {
                Cancelled::Clean(receipt) => (200, Some(receipt)),
                Cancelled::Pending => (202, None),
            };
            let status = if receipt.is_some() { "cancelled" } else { "cancelling" };
            Ok(reply::json_status(http_status, &JobCancelled { job_id, status: status.into(), receipt }))
        }
    }
}

pub fn accepted(job: &Job) -> Response {
    reply::json(&JobAccepted { job_id: job.id, sse_url: format!("/v1/jobs/{}/stream", job.id) })
}

/// Where a reader wants to start: after `Last-Event-ID`, or at `?from=`.
fn first_wanted(request: &Request) -> Result<u64, Failure> {
    let number = |name: &str, text: &str| {
        text.trim()
            .parse::<u64>()
            .map_err(|_| Failure::invalid(format!("`{name}` is an event's number, not `{text}`")))
    };
    if let Some(from) = request.query("from") {
        return number("from", &from);
    }
    match request.header("last-event-id") {
        Some(seen) => Ok(number("Last-Event-ID", seen)?.saturating_add(1)),
        None => Ok(0),
    }
}

/// A stream of a job's events. The reader's leaving ends this task and nothing else.
fn follow(job: Arc<Job>, from: u64) -> Response {
    let (sender, response) = sse::channel();
    let mut reader = job.reader(from);
    tokio::spawn(async move {
        loop {
            let step = tokio::select! {
                () = sender.closed() => return,
                step = reader.next() => step,
            };
            let sent = match step {
                Step::Event(seq, event) => {
                    sender.send(Some(seq), Some(event.name()), &event.data().to_string()).await
                }
                Step::Missed(count) => {
                    let gap = JobEvent::warn("missed", format!("{count} earlier events are no longer kept"));
                    sender.send(None, Some(gap.name()), &gap.data().to_string()).await
                }
                Step::End(terminator) => {
                    // The last word; whether the reader is still there no longer matters.
                    let _ = sender.data(&terminator.to_string()).await;
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    });
    response
}
