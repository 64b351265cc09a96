//! A generation's events as OpenAI's answers: chunks while it runs, or one body at the end.
//!
//! Waiting has three limits: for a slot, for progress, and the request's own deadline. Passing one drops the
//! generation, which frees the slot.

use super::loading::Ready;
use super::queue::{Event, Finish, Generation, Outcome};
use super::request::Kind;
use crate::http::{Response, reply, sse};
use crate::shutdown::Shutdown;
use crate::wire::openai::Usage;
use crate::wire::{Code, Failure};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// B13: how long a request may wait for a slot.
pub const SLOT_WAIT_MAX: Duration = Duration::from_secs(60);
/// B14: how long a slot may show neither a token nor a piece of prompt.
pub const PROGRESS_WAIT_MAX: Duration = Duration::from_secs(60);
/// What a client is told to wait when all slots stayed busy.
const RETRY_AFTER_S: u64 = 5;

/// Who asked for what; everything an answer repeats.
#[derive(Debug, Clone)]
pub struct Header {
    pub kind: Kind,
    /// `chatcmpl-…` or `cmpl-…`.
    pub id: String,
    pub request_id: String,
    /// Seconds since the epoch.
    pub created: u64,
    pub model: String,
    pub include_usage: bool,
    pub with_tokens: bool,
}

/// A generation under its limits.
#[derive(Debug)]
pub struct Watched {
    generation: Generation,
    ready: Arc<Ready>,
    deadline: Option<Instant>,
    started: bool,
}

impl Watched {
    pub fn new(generation: Generation, ready: Arc<Ready>, deadline: Option<Instant>) -> Self {
        Watched { generation, ready, deadline, started: false }
    }

    /// Waits for a slot, so that what goes wrong before is still a status and not an event in a stream.
    pub async fn start(&mut self) -> Result<(), Failure> {
        while !self.started {
            self.next().await?;
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Event, Failure> {
        let wait = if self.started { PROGRESS_WAIT_MAX } else { SLOT_WAIT_MAX };
        let patience = Instant::now() + wait;
        let until = self.deadline.map_or(patience, |deadline| deadline.min(patience));
        let event = match tokio::time::timeout_at(until, self.generation.next()).await {
            Ok(Some(event)) => event,
            Ok(None) => return Err(Failure::new(Code::WorkerLost, "the engine has ended")),
            Err(_) => return Err(self.too_late()),
        };
        match event {
            Event::Failed(failure) => return Err(failure),
            Event::Started => self.started = true,
            _ => {}
        }
        Ok(event)
    }

    fn too_late(&self) -> Failure {
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Failure::new(Code::RequestTimeout, "the request's deadline has passed");
        }
        if self.started {
            let waited = PROGRESS_WAIT_MAX.as_secs();
            return Failure::new(Code::InferenceTimeout, format!("no token for {waited} s"));
        }
        let busy = self.ready.slots.borrow().iter().filter(|slot| slot.busy).count();
        Failure::new(Code::AllSlotsBusy, format!("no slot became free within {} s", SLOT_WAIT_MAX.as_secs())).with(
            json!({"slots_total": self.ready.limits.sequences, "slots_busy": busy, "retry_after": RETRY_AFTER_S}),
        )
    }
}

/// The whole answer at once.
pub async fn whole(header: &Header, mut watched: Watched) -> Result<Response, Failure> {
    let mut text = String::new();
    let (mut tokens, mut draws) = (Vec::new(), 0);
    let outcome = loop {
        match watched.next().await? {
            Event::Text { text: piece, tokens: more, draws: used } => {
                text.push_str(&piece);
                tokens.extend(more);
                draws = used;
            }
            Event::Done(outcome) => break outcome,
            Event::Started | Event::Prompt { .. } | Event::Failed(_) => {}
        }
    };
    let mut choice = match header.kind {
        Kind::Chat => json!({"index": 0, "message": {"role": "assistant", "content": text}}),
        Kind::Completion => json!({"index": 0, "text": text}),
    };
    choice["finish_reason"] = finish_reason(&outcome.finish).into();
    choice["logprobs"] = Value::Null;
    let object = match header.kind {
        Kind::Chat => "chat.completion",
        Kind::Completion => "text_completion",
    };
    let mut body = json!({
        "id": header.id, "object": object, "created": header.created, "model": header.model,
        "choices": [choice], "usage": usage(&outcome), "timings": timings(&outcome),
    });
    if header.with_tokens {
        body["rbee"] = json!({"token_ids": tokens, "draws": draws});
    }
    Ok(reply::json(&body))
}

/// The answer as it comes. The slot is taken already.
pub fn chunks(header: Header, mut watched: Watched, shutdown: &Shutdown) -> Response {
    let (events, response) = sse::channel();
    shutdown.spawn(async move {
        // Biased: a client that left is noticed before another chunk is made for it.
        let outcome = tokio::select! {
            biased;
            () = events.closed() => return,
            outcome = pump(&header, &mut watched, &events) => outcome,
        };
        match outcome {
            Ok(()) => {}
            Err(Ended::ClientGone) => tracing::debug!(id = header.request_id, "the client left"),
            Err(Ended::Failed(failure)) => {
                // No [DONE]: a stream that failed must not look finished. Nobody to tell if the client left meanwhile.
                let _ = events.event("error", &failure.body(&header.request_id).to_string()).await;
            }
        }
    });
    response
}

enum Ended {
    ClientGone,
    Failed(Failure),
}

impl From<sse::Gone> for Ended {
    fn from(_: sse::Gone) -> Self {
        Ended::ClientGone
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Ended::Failed(failure)
    }
}

async fn pump(header: &Header, watched: &mut Watched, events: &sse::Sender) -> Result<(), Ended> {
    // The role goes out with the first text and not before: until a byte is sent, whoever relays this can still try
    // another worker.
    let mut role = (header.kind == Kind::Chat)
        .then(|| header.chunk(json!({"role": "assistant", "content": ""}), None).to_string());
    loop {
        match watched.next().await? {
            Event::Text { text, tokens, draws } => {
                if let Some(role) = role.take() {
                    events.data(&role).await?;
                }
                let mut chunk = header.chunk(header.delta(&text), None);
                if header.with_tokens {
                    chunk["rbee"] = json!({"token_ids": tokens, "draws": draws});
                }
                events.data(&chunk.to_string()).await?;
            }
            Event::Done(outcome) => {
                if let Some(role) = role.take() {
                    events.data(&role).await?;
                }
                let mut last = header.chunk(header.last_delta(), Some(finish_reason(&outcome.finish)));
                last["timings"] = timings(&outcome);
                events.data(&last.to_string()).await?;
                if header.include_usage {
                    events.data(&header.usage_chunk(&outcome).to_string()).await?;
                }
                return Ok(events.data("[DONE]").await?);
            }
            Event::Started | Event::Prompt { .. } | Event::Failed(_) => {}
        }
    }
}

impl Header {
    fn delta(&self, text: &str) -> Value {
        match self.kind {
            Kind::Chat => json!({"content": text}),
            Kind::Completion => text.into(),
        }
    }

    fn last_delta(&self) -> Value {
        match self.kind {
            Kind::Chat => json!({}),
            Kind::Completion => "".into(),
        }
    }

    fn chunk(&self, delta: Value, finish: Option<&str>) -> Value {
        let (object, field) = match self.kind {
            Kind::Chat => ("chat.completion.chunk", "delta"),
            Kind::Completion => ("text_completion", "text"),
        };
        let mut choice = json!({"index": 0, "finish_reason": finish});
        choice[field] = delta;
        let mut chunk = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": [choice],
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn usage_chunk(&self, outcome: &Outcome) -> Value {
        let mut chunk = self.chunk(Value::Null, None);
        chunk["choices"] = json!([]);
        chunk["usage"] = json!(usage(outcome));
        chunk
    }
}

fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop(_) => "stop",
        Finish::Length => "length",
    }
}

fn usage(outcome: &Outcome) -> Usage {
    let (prompt_tokens, completion_tokens) = (outcome.prompt_tokens as u64, outcome.new_tokens as u64);
    Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
}

/// llama-server's figures. The first token counts as the prompt's, so a rate over one token alone means little.
fn timings(outcome: &Outcome) -> Value {
    let figures = |count: usize, time: Duration| {
        let ms = time.as_secs_f64() * 1_000.0;
        let (each, rate) = if count == 0 || ms == 0.0 {
            (0.0, 0.0)
        } else {
            (ms / count as f64, count as f64 / ms * 1_000.0)
        };
        (ms, each, rate)
    };
    let (prompt_ms, prompt_each, prompt_rate) = figures(outcome.prompt_tokens, outcome.prompt_time);
    let (predicted_ms, predicted_each, predicted_rate) = figures(outcome.new_tokens, outcome.generation_time);
    json!({
        "prompt_n": outcome.prompt_tokens, "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_each, "prompt_per_second": prompt_rate,
        "predicted_n": outcome.new_tokens, "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_each, "predicted_per_second": predicted_rate,
    })
}
