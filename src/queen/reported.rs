//! A job that a keeper does: `hive install` takes the ssh of the person who asked for it, keys and agent and all, which no
//! daemon has. The keeper reports it event by event in a request that lasts as long as the work; here it is a job like any
//! other, and a cancel goes down the same connection, whose receipt comes back.

use crate::http::{Request, Response, sse};
use crate::job::{Context, Outcome};
use crate::queen::Queen;
use crate::wire::job::{JobAccepted, JobEvent, Receipt, reported};
use crate::wire::operation::ReportedOperation;
use crate::wire::{Code, Failure};
use hyper::body::Incoming;
use std::sync::Arc;
use std::time::Duration;

/// Not even a sign of life from the keeper for so long: it is gone, its machine perhaps, and nobody told us.
const SILENCE_MAX: Duration = sse::KEEP_ALIVE.saturating_mul(4);

/// Takes a report, and answers for as long as it lasts.
pub async fn take(queen: &Arc<Queen>, request: Request) -> Result<Response, Failure> {
    let named = request.query("operation").unwrap_or_default();
    let operation = ReportedOperation::of_name(&named).ok_or_else(|| {
        let known: Vec<&str> = ReportedOperation::ALL.iter().map(|operation| operation.name()).collect();
        Failure::invalid(format!("`{named}` is not reported; there are: {}", known.join(", ")))
    })?;
    // What a browser cannot send across origins without asking.
    if !request.is_of_type("text/event-stream") {
        return Err(Failure::new(
            Code::UnsupportedMediaType,
            "a report is a stream of a job's events: `content-type: text/event-stream`",
        ));
    }
    let (down, response) = sse::channel();
    let report = sse::Reader::new(request.inner.into_body());
    let job = queen.jobs.start(operation.name(), None, |context| follow(report, down.clone(), context))?;
    job.recorded().await;
    let accepted =
        serde_json::to_string(&JobAccepted::of(job.id)).map_err(|error| Failure::internal(&error))?;
    // A keeper that has gone already is noticed by its report.
    let _ = down.event(reported::ACCEPTED, &accepted).await;
    // The end of the answer is the word that the job's end is known.
    tokio::spawn(async move {
        job.over().await;
        drop(down);
    });
    Ok(response)
}

async fn follow(mut report: sse::Reader<Incoming>, down: sse::Sender, context: Context) -> Outcome {
    let mut is_told = false;
    loop {
        let event = tokio::select! {
            event = report.next_within(SILENCE_MAX) => event,
            () = context.token().cancelled(), if !is_told => {
                if !context.is_asked() {
                    // A shutdown: the work needs no queen, and goes on.
                    return Outcome::Cancelled(Receipt::default());
                }
                is_told = true;
                // As above.
                let _ = down.event(reported::CANCEL, "{}").await;
                continue;
            }
        };
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return gone("it has ended without a word"),
            Err(error) => return gone(&crate::wire::failure::chain(&error)),
        };
        let Some(name) = event.name else { continue };
        if name == reported::CANCELLED {
            return match serde_json::from_str(&event.data) {
                Ok(receipt) => {
                    context.cancelled_there();
                    Outcome::Cancelled(receipt)
                }
                Err(error) => gone(&format!("its receipt does not read: {error}")),
            };
        }
        match JobEvent::from_parts(&name, &event.data) {
            Some(JobEvent::Result(value)) => return Outcome::Done(value),
            Some(JobEvent::Error(failure)) => return Outcome::Failed(failure),
            Some(event) => context.emit(event),
            // A newer keeper's.
            None => {}
        }
    }
}

fn gone(why: &str) -> Outcome {
    let message = format!("the command that did this is gone ({why}); look at its machine");
    Outcome::Failed(Failure::new(Code::ConnectionFailed, message))
}
