//! Posting a job and following it to its end: across dropped connections, and through Ctrl-C, which cancels on the server and
//! waits for the receipt. Ctrl-C before the job's id is known cancels as soon as it is; a second one leaves at once.

use crate::http::{client, reply, sse};
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::keeper::server::{Server, TRY_PAUSES};
use crate::wire::failure::chain;
use crate::wire::job::{JobAccepted, JobCancelled, JobEvent, JobId, Terminator};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a cancel's answer is waited for: the longest grace, and 3 s.
pub const RECEIPT_MAX: Duration = Duration::from_secs(8);

/// A command's jobs on one server.
pub struct Follower<'s> {
    server: &'s Server,
    render: &'s Render,
    interrupt: Signal,
    timeout: Option<Duration>,
}

/// What a command does with a job's events, beside showing them.
pub type Each<'e> = &'e mut (dyn FnMut(&JobEvent) -> std::io::Result<()> + Send);

enum Ended {
    Terminated(Terminator),
    Interrupted,
}

impl<'s> Follower<'s> {
    pub fn new(
        server: &'s Server,
        render: &'s Render,
        timeout: Option<Duration>,
    ) -> Result<Self, KeeperError> {
        let interrupt =
            signal(SignalKind::interrupt()).map_err(|error| KeeperError::local("catching Ctrl-C", error))?;
        Ok(Follower { server, render, interrupt, timeout })
    }

    /// Posts an operation and follows its job; gives its result.
    pub async fn run(&mut self, operation: &Value, each: Each<'_>) -> Result<Value, KeeperError> {
        let mut operation = operation.clone();
        if let (Some(hive), Some(fields)) = (&self.server.hive_id, operation.as_object_mut()) {
            fields.entry("hive_id").or_insert_with(|| Value::from(hive.as_str()));
        }
        // A repeated POST after a lost answer must not start a second job.
        let key = crate::wire::id::fresh().to_string();
        let mut post = client::post("/v1/jobs", &operation)?;
        if let Ok(value) = http::HeaderValue::from_str(&key) {
            post.headers_mut().insert("idempotency-key", value);
        }
        let posted = client::ask::<JobAccepted>(&self.server.target, post);
        let mut posted = Box::pin(posted);
        let mut interrupted = false;
        let accepted = loop {
            tokio::select! {
                accepted = &mut posted => break accepted,
                _ = self.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) {
                        return Err(KeeperError::Interrupted);
                    }
                }
            }
        };
        let id = match accepted {
            Ok(accepted) => accepted.job_id,
            Err(client::AskError::Client(error)) => return Err(self.server.unreachable(Some(error))),
            Err(client::AskError::Refused(failure)) => return Err(failure.into()),
        };
        if interrupted {
            return self.cancel(id).await;
        }
        self.follow(id, each).await
    }

    /// Follows a job from its first event to its end.
    pub async fn follow(&mut self, id: JobId, each: Each<'_>) -> Result<Value, KeeperError> {
        let (mut result, mut error) = (Value::Null, None);
        let render = self.render;
        let mut see = |event: JobEvent| {
            each(&event)?;
            render.event(&event)?;
            match event {
                JobEvent::Result(value) => result = value,
                JobEvent::Error(failure) => error = Some(failure),
                _ => {}
            }
            Ok(())
        };
        let timeout = self.timeout;
        let watched = self.watch(id, &mut see);
        let ended = match timeout {
            None => watched.await?,
            Some(after) => {
                tokio::time::timeout(after, watched).await.map_err(|_| KeeperError::TimedOut {
                    after,
                    hint: format!("; the job goes on (`rbee job follow {id}`, `rbee job cancel {id}`)"),
                })??
            }
        };
        self.render.clear();
        match ended {
            Ended::Terminated(Terminator::Done) => Ok(result),
            Ended::Terminated(Terminator::Error(message)) => {
                Err(error.unwrap_or_else(|| Failure::new(Code::Unknown, message)).into())
            }
            Ended::Terminated(Terminator::Cancelled) => {
                self.render.say("cancelled by somebody else");
                Err(KeeperError::Interrupted)
            }
            Ended::Interrupted => self.cancel(id).await,
        }
    }

    /// Reads the job's stream, taking it up again where a dropped connection left it.
    async fn watch(
        &mut self,
        id: JobId,
        see: &mut (impl FnMut(JobEvent) -> std::io::Result<()> + Send),
    ) -> Result<Ended, KeeperError> {
        let mut next = 0;
        let mut tries = TRY_PAUSES.iter();
        loop {
            let before = next;
            let read = read(self.server, id, &mut next, see);
            let broken = tokio::select! {
                read = read => match read? {
                    Ok(terminator) => return Ok(Ended::Terminated(terminator)),
                    Err(broken) => broken,
                },
                _ = self.interrupt.recv() => return Ok(Ended::Interrupted),
            };
            if next > before {
                tries = TRY_PAUSES.iter();
            }
            let Some(pause) = tries.next() else {
                return Err(Failure::new(
                    Code::ConnectionFailed,
                    format!("{broken}; the job may go on (`rbee job follow {id}`)"),
                )
                .into());
            };
            self.render.say(&format!("{broken}; connecting again"));
            tokio::time::sleep(*pause).await;
        }
    }

    /// Cancels on the server and shows the receipt. Always an `Interrupted` for the caller.
    async fn cancel(&mut self, id: JobId) -> Result<Value, KeeperError> {
        self.render.clear();
        let asked = cancel(self.server, id);
        let answer = tokio::select! {
            answer = tokio::time::timeout(RECEIPT_MAX, asked) => answer,
            _ = self.interrupt.recv() => return Err(KeeperError::Interrupted),
        };
        match answer {
            Ok(Ok(cancelled)) => self.render.receipt(cancelled.receipt.as_ref()),
            // It ended in the same moment: nothing was left to stop.
            Ok(Err(KeeperError::Refused(failure))) if failure.code == Code::Conflict => {
                self.render.say(&failure.message);
            }
            Ok(Err(error)) => self.render.error(&format!("the cancel was not answered: {}", chain(&error))),
            Err(_) => self
                .render
                .say(&format!("no receipt within {} s; see `rbee job get {id}`", RECEIPT_MAX.as_secs())),
        }
        Err(KeeperError::Interrupted)
    }
}

pub async fn cancel(server: &Server, id: JobId) -> Result<JobCancelled, KeeperError> {
    let ask = client::request("DELETE", &format!("/v1/jobs/{id}"), reply::empty())?;
    Ok(client::ask(&server.target, ask).await?)
}

/// One connection's worth of events. The outer error ends the command, the inner one is a connection that broke.
async fn read(
    server: &Server,
    id: JobId,
    next: &mut u64,
    see: &mut (impl FnMut(JobEvent) -> std::io::Result<()> + Send),
) -> Result<Result<Terminator, String>, KeeperError> {
    let ask = client::get(&format!("/v1/jobs/{id}/stream?from={next}"))?;
    let answer = match client::send(&server.target, ask).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(chain(&error))),
    };
    if !answer.status().is_success() {
        return match client::whole(answer).await {
            Err(failure) => Err(failure.into()),
            Ok(_) => Ok(Err("the job's stream is none".into())),
        };
    }
    let mut events = sse::Reader::new(answer.into_body());
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Err("the job's stream ended without a word".into())),
            Err(error) => return Ok(Err(chain(&error))),
        };
        if let Some(seq) = event.id.as_deref().and_then(|id| id.parse::<u64>().ok()) {
            *next = seq + 1;
        }
        match event.name {
            None => {
                if let Some(terminator) = Terminator::parse(&event.data) {
                    return Ok(Ok(terminator));
                }
            }
            Some(name) => {
                if let Some(event) = JobEvent::from_parts(&name, &event.data) {
                    see(event).map_err(|error| KeeperError::local("writing the answer", error))?;
                }
            }
        }
    }
}
