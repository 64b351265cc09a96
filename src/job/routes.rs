//! The jobs family of routes, the same on queen and hive. What an operation starts is the role's own; the rest is here.

use super::stream::{Reader, Step};
use super::{Cancelled, Job, Jobs};
use crate::http::router::{Params, Route};
use crate::http::{Request, Response, reply, sse};
use crate::wire::Failure;
use crate::wire::job::{JobAccepted, JobCancelled, JobEvent};
use std::sync::Arc;
use std::time::Duration;

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
        Endpoint::Get => Ok(reply::json(&jobs.record(&*jobs.get(id)?).await?)),
        Endpoint::Stream => {
            let from = first_wanted(request.query("from").as_deref(), request.header("last-event-id"))?;
            let job = jobs.get(id)?;
            Ok(follow(jobs.reader(&job, from).await?, jobs.keep_alive))
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

/// The answer to a POST, given when the job's record would survive a kill of the daemon.
pub async fn accepted(job: &Job) -> Response {
    job.recorded().await;
    reply::json(&JobAccepted::of(job.id))
}

/// Where a reader wants to start: after `Last-Event-ID`, else at `?from=`. A browser that connects again sends the header
/// with the address it had at first, so the header counts.
pub fn first_wanted(from: Option<&str>, last_event_id: Option<&str>) -> Result<u64, Failure> {
    let number = |name: &str, text: &str| {
        text.trim()
            .parse::<u64>()
            .map_err(|_| Failure::invalid(format!("`{name}` is an event's number, not `{text}`")))
    };
    match (last_event_id.filter(|id| !id.trim().is_empty()), from) {
        (Some(seen), _) => Ok(number("Last-Event-ID", seen)?.saturating_add(1)),
        (None, Some(from)) => number("from", from),
        (None, None) => Ok(0),
    }
}

/// A stream of a job that is nobody else's: the reader's leaving cancels it.
pub async fn owned(jobs: &Jobs, job: Arc<Job>) -> Result<Response, Failure> {
    let reader = jobs.reader(&job, 0).await?;
    let jobs_of = jobs.clone();
    Ok(follow_and(reader, jobs.keep_alive, move || {
        tokio::spawn(async move {
            // It may have ended in the same moment.
            let _ = jobs_of.cancel(&job.id.to_string()).await;
        });
    }))
}

/// A stream of a job's events. The reader's leaving ends this task and nothing else.
fn follow(reader: Reader, keep_alive: Duration) -> Response {
    follow_and(reader, keep_alive, || {})
}

/// The same, with what is done when the reader has left.
fn follow_and(mut reader: Reader, keep_alive: Duration, left: impl FnOnce() + Send + 'static) -> Response {
    let (sender, response) = sse::channel_kept_alive(keep_alive);
    tokio::spawn(async move {
        loop {
            let step = tokio::select! {
                () = sender.closed() => return left(),
                step = reader.next() => step,
            };
            let sent = match step {
                Step::Event(seq, event) => {
                    sender.send(Some(seq), Some(event.name()), &event.data().to_string()).await
                }
                Step::Missed { first, count } => {
                    let gap = JobEvent::warn("missed", missed(first, count));
                    sender.send(None, Some(gap.name()), &gap.data().to_string()).await
                }
                Step::End(terminator) => {
                    // The last word; whether the reader is still there no longer matters.
                    let _ = sender.data(&terminator.to_string()).await;
                    return;
                }
            };
            if sent.is_err() {
                return left();
            }
        }
    });
    response
}

fn missed(first: u64, count: u64) -> String {
    match count {
        1 => format!("event {first} is no longer kept"),
        _ => format!("{count} events are no longer kept: {first} to {}", first + count - 1),
    }
}

#[cfg(test)]
mod tests;
