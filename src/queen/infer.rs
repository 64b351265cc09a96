//! One answer as a job: the request goes the way of every other, and what comes back becomes events. Whoever watches
//! sees the spawn, the place in the queue, every token, and at the end the whole.

use crate::http::{request, sse};
use crate::job::{Context, Outcome};
use crate::queen::Queen;
use crate::queen::dispatch::{Deadline, Dispatch, Slot};
use crate::queen::placement::Want;
use crate::wire::fleet::InferResult;
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::openai::{
    ChatMessage, ChatRequest, CompletionRequest, SamplingFields, Stop, StreamOptions, Usage,
};
use crate::wire::operation::Infer;
use crate::wire::{Code, Failure};
use bytes::Bytes;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The longest text collected for the result; tokens go on as events.
pub const TEXT_BYTES_MAX: usize = 4 << 20;

pub async fn infer(queen: Arc<Queen>, job: Context, operation: Infer, deadline: Option<Deadline>) -> Outcome {
    let token = job.token().clone();
    let used = Mutex::new(None);
    let answered = token.run_until_cancelled(answer(&queen, &job, operation, deadline, &used)).await;
    let Some(answered) = answered else {
        // The answer was dropped with its stream: through the link and the hive that ends the worker's work on it. The
        // receipt says so only when the hive has.
        let started = Instant::now();
        let clean = match used.into_inner().unwrap_or_default() {
            Some((hive, worker)) => queen.dispatcher.freed(&hive, &worker).await,
            None => true,
        };
        return Outcome::Cancelled(Receipt {
            clean,
            ms: started.elapsed().as_millis() as u64,
            ..Receipt::default()
        });
    };
    answered.into()
}

/// Asks a worker and turns what it says into events; `used` is told its hive and it as soon as it has a slot for this.
async fn answer(
    queen: &Arc<Queen>,
    job: &Context,
    operation: Infer,
    deadline: Option<Deadline>,
    used: &Mutex<Option<(String, String)>>,
) -> Result<Value, Failure> {
    let (path, body) = request(&operation)?;
    Deadline::keep(deadline.as_ref(), queen.settled()).await?;
    let want = Want {
        model: queen.registry.meant(&operation.model, operation.hive.as_deref()),
        hive: operation.hive.clone(),
        worker_id: operation.worker_id.clone(),
        device: operation.device.clone(),
    };
    // A place in the dispatcher's queue is what makes a job `queued`.
    let tell = |event| match event {
        JobEvent::Narration { action, message, .. } if action == "queue" => job.waiting(message),
        event => {
            job.running();
            job.emit(event);
        }
    };
    let id = job.id().to_string();
    let placed = |slot: &Slot| {
        if let Ok(mut used) = used.lock() {
            *used = Some((slot.hive.clone(), slot.worker_id.clone()));
        }
    };
    let ask = Dispatch { want: &want, path, body, request_id: &id, deadline, placed: &placed };
    let begun = Instant::now();
    let answer = queen.dispatcher.send(ask, &tell).await;
    job.running();
    let answer = answer?;
    queen.tally.first_piece.observe(begun.elapsed());
    let status = answer.response.status();
    let mut collected = Collected { worker_id: answer.slot.worker_id.clone(), ..Collected::default() };
    if !status.is_success() {
        let body = request::read(answer.response.into_body(), request::CONTROL_BYTES_MAX).await;
        let bytes = body.unwrap_or_default();
        return Err(Failure::from_body(status.as_u16(), &bytes));
    }
    let mut events = sse::Reader::new(answer.response.into_body());
    loop {
        let event = events.next().await.map_err(|error| collected.lost(&error.to_string()))?;
        let Some(event) = event else { return Err(collected.lost("its stream ended without a word")) };
        if event.data == "[DONE]" {
            break;
        }
        let chunk: Value = serde_json::from_str(&event.data)
            .map_err(|error| collected.lost(&format!("it sent what is no chunk: {error}")))?;
        if chunk.get("error").is_some() {
            return Err(Failure::from_body(500, event.data.as_bytes()));
        }
        if let Some(text) = collected.take(&chunk)? {
            job.emit(JobEvent::Token { index: collected.tokens, text });
            collected.tokens += 1;
            queen.tally.tokens.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(collected.result(want.model))
}

/// The worker's request for an operation, and its path.
fn request(operation: &Infer) -> Result<(&'static str, Bytes), Failure> {
    let stop = operation.stop.clone();
    let sampling = SamplingFields {
        temperature: operation.temperature,
        top_p: operation.top_p,
        top_k: operation.top_k,
        min_p: operation.min_p,
        seed: operation.seed,
        stop: (!stop.is_empty()).then_some(Stop::Many(stop)),
        ignore_eos: operation.ignore_eos,
        ..SamplingFields::default()
    };
    let max_tokens = operation.max_tokens.map(i64::from);
    let stream_options = Some(StreamOptions { include_usage: true });
    let model = operation.model.clone();
    let (path, body) = match (&operation.messages, &operation.prompt) {
        (Some(messages), None) => {
            let messages: Vec<ChatMessage> = messages.clone();
            let chat = ChatRequest {
                model,
                messages,
                max_tokens,
                stream: true,
                stream_options,
                sampling,
                ..ChatRequest::default()
            };
            ("/v1/chat/completions", serde_json::to_vec(&chat))
        }
        (None, Some(prompt)) => {
            let prompt = Value::from(prompt.as_str());
            let plain = CompletionRequest {
                model,
                prompt,
                max_tokens,
                stream: true,
                stream_options,
                sampling,
                ..CompletionRequest::default()
            };
            ("/v1/completions", serde_json::to_vec(&plain))
        }
        _ => return Err(Failure::invalid("an infer operation has either a `prompt` or `messages`")),
    };
    let body =
        body.map_err(|error| Failure::invalid(format!("the request has a number that is none: {error}")))?;
    Ok((path, Bytes::from(body)))
}

#[derive(Default)]
struct Collected {
    worker_id: String,
    text: String,
    tokens: u64,
    finish_reason: Option<String>,
    usage: Usage,
    timings: Value,
}

impl Collected {
    /// The text of a chunk, and whatever else it tells.
    fn take(&mut self, chunk: &Value) -> Result<Option<String>, Failure> {
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.usage = serde_json::from_value(usage.clone()).unwrap_or_default();
        }
        if let Some(timings) = chunk.get("timings") {
            self.timings = timings.clone();
        }
        let Some(choice) = chunk.pointer("/choices/0") else { return Ok(None) };
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish_reason = Some(reason.to_owned());
        }
        let text = choice.pointer("/delta/content").or_else(|| choice.get("text")).and_then(Value::as_str);
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
        if self.text.len() + text.len() > TEXT_BYTES_MAX {
            return Err(Failure::new(
                Code::BodyTooLarge,
                format!("the answer is longer than the {TEXT_BYTES_MAX} bytes that a job keeps"),
            ));
        }
        self.text.push_str(text);
        Ok(Some(text.to_owned()))
    }

    fn lost(&self, why: &str) -> Failure {
        Failure::new(
            Code::WorkerLost,
            format!("worker {} was lost after {} tokens: {why}", self.worker_id, self.tokens),
        )
        .with(json!({"tokens": self.tokens, "worker_id": self.worker_id}))
    }

    fn result(self, model: String) -> Value {
        let result = InferResult {
            text: self.text,
            finish_reason: self.finish_reason.unwrap_or_else(|| "stop".into()),
            usage: self.usage,
            worker_id: self.worker_id,
            model,
            timings: self.timings,
        };
        serde_json::to_value(result).unwrap_or_default()
    }
}
