//! What is done on another machine, as a job of the queen's: its events go up in one long request, and a cancel comes down in
//! its answer. The queen is told of the work; it does not need her. If she is lost the work goes on without.

use crate::http::client::{self, Target};
use crate::http::sse;
use crate::keeper::{KeeperError, version};
use crate::wire::failure::chain;
use crate::wire::job::{JobAccepted, JobEvent, JobId, Receipt, reported};
use crate::wire::operation::ReportedOperation;
use crate::wire::{Code, Failure};
use http::header::{CONTENT_TYPE, HeaderValue};
use hyper::body::Incoming;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the queen may take to answer the first event, or to make room for another: the work waits no longer.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// She keeps her answer alive.
const SILENCE_MAX: Duration = sse::KEEP_ALIVE.saturating_mul(4);

/// The way up.
pub struct Report {
    job: Option<JobId>,
    events: sse::Sender,
    is_lost: AtomicBool,
}

/// The way down. None where the queen has not taken the report.
pub struct Orders(Option<sse::Reader<Incoming>>);

impl Report {
    /// `warn` is told if the queen lets us wait: then a proxy before her holds back what is not whole.
    pub async fn open(
        queen: &Target,
        operation: ReportedOperation,
        warn: impl FnOnce(&str),
    ) -> Result<(Report, Orders), KeeperError> {
        let (events, body) = sse::channel();
        let path = format!("/v1/jobs/reported?operation={}", operation.name());
        let mut request = client::request("POST", &path, body.into_body())?;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        let accepting = async {
            let answer = client::send(queen, request).await?;
            version::check(queen, &answer)?;
            if !answer.status().is_success() {
                let failure = client::whole(answer).await.err();
                return Err(failure.unwrap_or_else(|| Failure::new(Code::Unknown, "it is no stream")).into());
            }
            let mut orders = sse::Reader::new(answer.into_body());
            let accepted = orders.next().await.ok().flatten();
            let accepted = accepted.filter(|event| event.name.as_deref() == Some(reported::ACCEPTED));
            let accepted = accepted.and_then(|event| serde_json::from_str::<JobAccepted>(&event.data).ok());
            Ok::<_, KeeperError>(accepted.map(|accepted| (accepted.job_id, orders)))
        };
        let (job, orders) = match tokio::time::timeout(ANSWER_MAX, accepting).await {
            Ok(accepted) => accepted?.unzip(),
            Err(_) => (None, None),
        };
        if job.is_none() {
            warn("the queen does not take this up as a job (a proxy in between?); going on without");
        }
        let is_lost = AtomicBool::new(job.is_none());
        Ok((Report { job, events, is_lost }, Orders(orders)))
    }

    pub fn job(&self) -> Option<JobId> {
        self.job
    }

    /// Whether it was lost just now.
    pub async fn tell(&self, event: &JobEvent) -> bool {
        self.send(event.name(), &event.data().to_string()).await
    }

    async fn send(&self, name: &str, data: &str) -> bool {
        if self.is_lost.load(Ordering::Relaxed) {
            return false;
        }
        let sent = tokio::time::timeout(ANSWER_MAX, self.events.event(name, data)).await;
        !matches!(sent, Ok(Ok(()))) && !self.is_lost.swap(true, Ordering::Relaxed)
    }

    /// The job's end, and the queen's word that she has it; what becomes of it no longer matters to the work.
    pub async fn ended(&self, done: &Result<Value, KeeperError>, mut orders: Orders) {
        let event = match done {
            Ok(value) => JobEvent::Result(value.clone()),
            Err(KeeperError::Refused(failure)) => JobEvent::Error(failure.clone()),
            Err(KeeperError::Usage(words)) => JobEvent::Error(Failure::invalid(words.clone())),
            Err(error) => JobEvent::Error(Failure::internal(error)),
        };
        self.tell(&event).await;
        orders.ended().await;
    }

    /// The same, after a cancel.
    pub async fn cancelled(&self, receipt: &Receipt, mut orders: Orders) {
        let receipt = serde_json::to_string(receipt).unwrap_or_default();
        self.send(reported::CANCELLED, &receipt).await;
        orders.ended().await;
    }
}

impl Orders {
    /// Waits until somebody cancels the job. An error, once, is the loss of the queen.
    pub async fn cancel(&mut self) -> Result<(), String> {
        while let Some(orders) = &mut self.0 {
            let broken = match orders.next_within(SILENCE_MAX).await {
                Ok(Some(event)) if event.name.as_deref() == Some(reported::CANCEL) => return Ok(()),
                Ok(Some(_)) => continue,
                Ok(None) => "she has stopped".to_owned(),
                Err(error) => chain(&error),
            };
            self.0 = None;
            return Err(broken);
        }
        std::future::pending().await
    }

    /// Waits until the queen has the job's end: the end of her answer.
    async fn ended(&mut self) {
        let Some(orders) = &mut self.0 else { return };
        let all = async { while let Ok(Some(_)) = orders.next().await {} };
        // She answers at once or is lost.
        let _ = tokio::time::timeout(ANSWER_MAX, all).await;
    }
}
