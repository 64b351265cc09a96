//! Posting a job and following it to its end: across dropped connections, and through Ctrl-C (or a SIGTERM, or a terminal that is
//! closed), which cancels on the server and waits for the receipt. Before the job's id is known it cancels as soon as that is; a
//! second one leaves at once.

use crate::http::{client, reply, sse};
use crate::job::{CANCEL_ANSWER_MAX, KEY_HEADER};
use crate::keeper::KeeperError;
use crate::keeper::lines::DRAW_EVERY;
use crate::keeper::render::Render;
use crate::keeper::server::{self, Patience, Server, TRY_PAUSES};
use crate::keeper::signals::Signals;
use crate::keeper::version;
use crate::wire::failure::chain;
use crate::wire::job::{JobAccepted, JobCancelled, JobEvent, JobId, Terminator};
use crate::wire::{Code, Failure};
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// How long a cancel's answer is waited for: what the server may take, and the way there and back.
pub const RECEIPT_MAX: Duration = CANCEL_ANSWER_MAX.saturating_add(Duration::from_secs(1));
/// How long a daemon that was there may be away: a restart, a network that comes back.
pub const REATTACH_MAX: Duration = Duration::from_secs(30);
/// Between the later tries.
const REATTACH_PAUSE: Duration = Duration::from_secs(1);

/// A command's jobs on one server.
pub struct Follower<'s> {
    server: &'s Server,
    /// The jobs' address on it.
    base: String,
    render: &'s Render,
    /// Whether events are shown to a person, beside what the command does with them.
    shown: bool,
    /// Whether an answer that can no longer be written is of no use to anybody.
    is_for_us: bool,
    signals: Signals,
    patience: Patience,
}

/// What a command does with a job's events, beside showing them.
pub type Each<'e> = &'e mut (dyn FnMut(&JobEvent) -> std::io::Result<()> + Send);

enum Ended {
    Terminated(Terminator),
    Stopped(KeeperError),
}

impl<'s> Follower<'s> {
    pub fn new(server: &'s Server, render: &'s Render) -> Result<Self, KeeperError> {
        let signals = Signals::catch()?;
        Ok(Follower {
            server,
            base: "/v1/jobs".into(),
            render,
            shown: true,
            is_for_us: false,
            signals,
            patience: server.patience,
        })
    }

    /// Jobs at another address of the server, a hive's behind a queen for one.
    pub fn at(self, base: String) -> Self {
        Follower { base, ..self }
    }

    /// The command alone says what there is to say.
    pub fn unshown(self) -> Self {
        Follower { shown: false, ..self }
    }

    /// What comes is for this command's reader alone: when that one has left, it is cancelled.
    pub fn for_us(self) -> Self {
        Follower { is_for_us: true, ..self }
    }

    /// With a patience of its own, where a command has one for each of its jobs.
    pub fn within(self, patience: Patience) -> Self {
        Follower { patience, ..self }
    }

    /// Waits before another try; Ctrl-C ends the waiting.
    pub async fn pause(&mut self, pause: Duration) -> Result<(), KeeperError> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            stop = self.signals.next() => Err(stop),
        }
    }

    /// Posts an operation and follows its job; gives its result.
    pub async fn run(&mut self, operation: &Value, each: Each<'_>) -> Result<Value, KeeperError> {
        let job = self.post(operation).await?;
        self.follow(job, each).await
    }

    /// Posts an operation. A stop meanwhile cancels its job as soon as there is one.
    pub async fn post(&mut self, operation: &Value) -> Result<JobId, KeeperError> {
        let mut operation = operation.clone();
        if let (Some(hive), Some(fields)) = (&self.server.hive_id, operation.as_object_mut()) {
            fields.entry("hive_id").or_insert_with(|| Value::from(hive.as_str()));
        }
        let mut stopped = None;
        let accepted = {
            let patience = self.patience;
            let mut posted = std::pin::pin!(post(self.server, self.render, &self.base, &operation));
            loop {
                tokio::select! {
                    accepted = &mut posted => break accepted?,
                    stop = self.signals.next() => {
                        if stopped.is_some() {
                            return Err(stop);
                        }
                        stopped = Some(stop);
                    }
                    after = patience.end() => {
                        let hint = "; whether the job was taken is not known".into();
                        return Err(KeeperError::TimedOut { after, hint });
                    }
                }
            }
        };
        match stopped {
            Some(stop) => Err(self.cancel(accepted.job_id, stop).await),
            None => Ok(accepted.job_id),
        }
    }

    /// Cancels jobs that were begun and are not followed; gives what the command ends with.
    pub async fn undo(
        &mut self,
        jobs: impl IntoIterator<Item = JobId>,
        mut error: KeeperError,
    ) -> KeeperError {
        for job in jobs {
            error = self.cancel(job, error).await;
        }
        error
    }

    /// Follows a job from its first event to its end.
    pub async fn follow(&mut self, id: JobId, each: Each<'_>) -> Result<Value, KeeperError> {
        let (mut result, mut error) = (Value::Null, None);
        let (render, shown) = (self.render, self.shown);
        let mut see = |event: JobEvent| {
            each(&event)?;
            if shown {
                render.event(&event)?;
            }
            match event {
                JobEvent::Result(value) => result = value,
                JobEvent::Error(failure) => error = Some(failure),
                _ => {}
            }
            Ok(())
        };
        let patience = self.patience;
        let ended = tokio::select! {
            ended = self.watch(id, &mut see) => ended,
            after = patience.end() => {
                render.clear();
                let hint = format!("; the job goes on (`rbee job follow {id}`, `rbee job cancel {id}`)");
                return Err(KeeperError::TimedOut { after, hint });
            }
        };
        self.render.clear();
        let ended = match ended {
            Err(unread @ KeeperError::Local { .. }) if self.is_for_us => {
                return Err(self.left(id, unread).await);
            }
            ended => ended?,
        };
        match ended {
            Ended::Terminated(Terminator::Done) => Ok(result),
            Ended::Terminated(Terminator::Error(message)) => {
                Err(error.unwrap_or_else(|| Failure::new(Code::Unknown, message)).into())
            }
            Ended::Terminated(Terminator::Cancelled) => {
                self.render.say("cancelled by somebody else");
                Err(KeeperError::Interrupted)
            }
            Ended::Stopped(stop) => Err(self.cancel(id, stop).await),
        }
    }

    /// Reads the job's stream, taking it up again where a dropped connection, or a daemon that was restarted, left it.
    async fn watch(
        &mut self,
        id: JobId,
        see: &mut (impl FnMut(JobEvent) -> std::io::Result<()> + Send),
    ) -> Result<Ended, KeeperError> {
        let mut stream = Stream {
            server: self.server,
            render: self.render,
            base: &self.base,
            id,
            next: 0,
            is_heard: false,
        };
        // A server that was never there has three tries, one that was there has the time of a restart.
        let mut pauses = TRY_PAUSES[1..].iter();
        let mut lost: Option<Instant> = None;
        loop {
            let (before, begun) = (stream.next, Instant::now());
            let broken = tokio::select! {
                read = stream.read(see) => match read? {
                    Ok(terminator) => return Ok(Ended::Terminated(terminator)),
                    Err(broken) => broken,
                },
                stop = self.signals.next() => return Ok(Ended::Stopped(stop)),
            };
            // A silent job's connection has no events to show for itself, but lasts.
            if stream.next > before || stream.is_heard && begun.elapsed() > REATTACH_PAUSE {
                pauses = TRY_PAUSES.iter();
                lost = None;
            }
            let lost = *lost.get_or_insert_with(Instant::now);
            let pause = pauses.next().copied();
            let may_return = stream.is_heard && lost.elapsed() < REATTACH_MAX;
            if pause.is_some() {
                self.render.say(&format!("{broken}; connecting again"));
            } else if !may_return {
                let message = format!("{broken}; the job may go on (`rbee job follow {id}`)");
                return Err(Failure::new(Code::ConnectionFailed, message).into());
            }
            tokio::select! {
                () = tokio::time::sleep(pause.unwrap_or(REATTACH_PAUSE)) => {}
                stop = self.signals.next() => return Ok(Ended::Stopped(stop)),
            }
        }
    }

    /// Cancels on the server and shows the receipt; gives what the command ends with.
    async fn cancel(&mut self, id: JobId, stop: KeeperError) -> KeeperError {
        self.render.clear();
        let asked = cancel(self.server, &self.base, id);
        let answer = tokio::select! {
            answer = tokio::time::timeout(RECEIPT_MAX, asked) => answer,
            second = self.signals.next() => return second,
        };
        match answer {
            Ok(Ok(cancelled)) => self.render.cancelled(id, cancelled.receipt.as_ref()),
            // It ended in the same moment: nothing was left to stop.
            Ok(Err(KeeperError::Refused(failure))) if failure.code == Code::Conflict => {
                self.render.say(&failure.message);
            }
            Ok(Err(error)) => self.render.error(&format!("the cancel was not answered: {}", chain(&error))),
            Err(_) => self
                .render
                .say(&format!("no receipt within {} s; see `rbee job get {id}`", RECEIPT_MAX.as_secs())),
        }
        stop
    }

    /// Cancels what nobody reads any more. A terminal that is closed is noticed by a write, too, before its signal comes.
    async fn left(&mut self, id: JobId, unread: KeeperError) -> KeeperError {
        // Nobody is there to be told how that went.
        let _ = tokio::time::timeout(RECEIPT_MAX, cancel(self.server, &self.base, id)).await;
        tokio::select! {
            // In this order: a signal that has come says more.
            biased;
            stop = self.signals.next() => stop,
            () = std::future::ready(()) => unread,
        }
    }
}

/// Posts an operation, with the tries that B5 promises: under one key a repeated POST is no second job.
async fn post(
    server: &Server,
    render: &Render,
    base: &str,
    operation: &Value,
) -> Result<JobAccepted, KeeperError> {
    let key = http::HeaderValue::from_str(&crate::wire::id::fresh().to_string())
        .expect("an id is of letters, digits and dashes");
    let mut last = None;
    for (before, pause) in TRY_PAUSES.into_iter().enumerate() {
        server::told(render, before, last.as_ref());
        tokio::time::sleep(pause).await;
        let mut post = client::post(base, operation)?;
        post.headers_mut().insert(KEY_HEADER, key.clone());
        match version::ask(&server.target, post).await {
            Ok(accepted) => return Ok(accepted),
            Err(client::AskError::Refused(failure)) => return Err(failure.into()),
            Err(client::AskError::Client(error)) => last = Some(error),
        }
    }
    Err(server.unreachable(last))
}

async fn cancel(server: &Server, base: &str, id: JobId) -> Result<JobCancelled, KeeperError> {
    let ask = client::request("DELETE", &format!("{base}/{id}"), reply::empty())?;
    Ok(version::ask(&server.target, ask).await?)
}

/// A job's events, over as many connections as it takes.
struct Stream<'s> {
    server: &'s Server,
    render: &'s Render,
    base: &'s str,
    id: JobId,
    /// The number of the next event wanted.
    next: u64,
    /// Whether the server has ever answered.
    is_heard: bool,
}

impl Stream<'_> {
    /// One connection's worth of events. The outer error ends the command, the inner one is a connection that broke.
    async fn read(
        &mut self,
        see: &mut (impl FnMut(JobEvent) -> std::io::Result<()> + Send),
    ) -> Result<Result<Terminator, String>, KeeperError> {
        let ask = client::get(&format!("{}/{}/stream?from={}", self.base, self.id, self.next))?;
        let answer = match client::send(&self.server.target, ask).await {
            Ok(answer) => answer,
            Err(error) => return Ok(Err(chain(&error))),
        };
        if !answer.status().is_success() {
            return match client::whole(answer).await {
                // A daemon that is going, or a queen whose hive is away: it may come back.
                Err(failure) if failure.code.status() >= 500 => Ok(Err(failure.message)),
                Err(failure) => Err(failure.into()),
                Ok(_) => Ok(Err("the job's stream is none".into())),
            };
        }
        let mut events = sse::Reader::new(answer.into_body());
        self.is_heard = true;
        loop {
            let event = if self.render.is_behind() {
                match tokio::time::timeout(DRAW_EVERY, events.next()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.render.catch_up();
                        continue;
                    }
                }
            } else {
                events.next().await
            };
            let event = match event {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Err("the job's stream ended without a word".into())),
                Err(error) => return Ok(Err(chain(&error))),
            };
            if let Some(seq) = event.id.as_deref().and_then(|id| id.parse::<u64>().ok()) {
                self.next = seq.saturating_add(1);
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
}
