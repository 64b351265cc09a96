//! The worker's HTTP, in llama-server's names.

use super::engine::{EngineError, Markup, Token, Vocabulary};
use super::llama;
use super::loading::{Load, Ready};
use super::options::Options;
use super::queue::Queue;
use super::request::{self, Completion, Content, Kind};
use super::stream::{self, Header, Watched};
use crate::http::router::{self, Route};
use crate::http::server::Service;
use crate::http::{Request, Response, reply, sse};
use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use crate::wire::openai::{ChatMessage, ModelList};
use crate::wire::{API_VERSION, Code, Failure, VERSION};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

/// The longest request body.
pub const BODY_BYTES_MAX: usize = 16 << 20;
/// Prompts being rendered and tokenized at once; that work takes a thread each.
pub const PREPARING_MAX: usize = 8;
/// Tokens that /detokenize takes.
pub const DETOKENIZE_TOKENS_MAX: usize = 1 << 20;
const PROGRESS_URL: &str = "/v1/loading/progress";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    Health,
    Ready,
    Progress,
    Models,
    Props,
    Slots,
    Chat,
    Completion,
    Tokenize,
    Detokenize,
    ApplyTemplate,
}

const ROUTES: &[Route<To>] = &[
    Route { method: "GET", path: "/health", to: To::Health },
    Route { method: "GET", path: "/v1/health", to: To::Health },
    Route { method: "GET", path: "/v1/ready", to: To::Ready },
    Route { method: "GET", path: PROGRESS_URL, to: To::Progress },
    Route { method: "GET", path: "/v1/models", to: To::Models },
    Route { method: "GET", path: "/props", to: To::Props },
    Route { method: "GET", path: "/slots", to: To::Slots },
    Route { method: "POST", path: "/v1/chat/completions", to: To::Chat },
    Route { method: "POST", path: "/v1/completions", to: To::Completion },
    Route { method: "POST", path: "/tokenize", to: To::Tokenize },
    Route { method: "POST", path: "/detokenize", to: To::Detokenize },
    Route { method: "POST", path: "/apply-template", to: To::ApplyTemplate },
];

#[derive(Debug, Clone)]
pub struct Routes(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Queue,
    load: watch::Receiver<Load>,
    alias: String,
    model_path: String,
    shutdown: Shutdown,
    preparing: Arc<Semaphore>,
    /// Somebody has been told that the load failed, and why.
    failure_told: Notify,
}

impl Routes {
    pub fn new(queue: Queue, load: watch::Receiver<Load>, options: &Options, shutdown: Shutdown) -> Self {
        Routes(Arc::new(Shared {
            queue,
            load,
            alias: options.alias.clone(),
            model_path: options.model.display().to_string(),
            shutdown,
            preparing: Arc::new(Semaphore::new(PREPARING_MAX)),
            failure_told: Notify::new(),
        }))
    }

    /// Resolves when somebody has been told that the load failed.
    pub async fn failure_told(&self) {
        self.0.failure_told.notified().await;
    }
}

impl Service for Routes {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        let (to, _) = router::find(ROUTES, request.method().as_str(), request.path())?;
        let shared = &self.0;
        match to {
            To::Health => shared.health(),
            To::Ready => Ok(shared.readiness()),
            To::Progress => Ok(shared.progress()),
            To::Models => Ok(reply::json(&ModelList::of([shared.alias.clone()]))),
            To::Props => shared.props(),
            To::Slots => shared.slots(),
            To::Chat => shared.complete(Kind::Chat, request).await,
            To::Completion => shared.complete(Kind::Completion, request).await,
            To::Tokenize => shared.tokenize(request).await,
            To::Detokenize => shared.detokenize(request).await,
            To::ApplyTemplate => shared.apply_template(request).await,
        }
    }
}

impl Shared {
    /// The loaded model, or why there is none.
    fn ready(&self) -> Result<Arc<Ready>, Failure> {
        self.load.borrow().ready()
    }

    fn health(&self) -> Result<Response, Failure> {
        self.ready()?;
        Ok(reply::json(&json!({"status": "ok", "version": VERSION, "api_version": API_VERSION})))
    }

    fn readiness(&self) -> Response {
        let load = self.load.borrow();
        let ready = matches!(*load, Load::Ready(_));
        reply::json(&json!({"ready": ready, "state": load.state(), "progress_url": PROGRESS_URL}))
    }

    fn progress(self: &Arc<Self>) -> Response {
        let (events, response) = sse::channel();
        let shared = self.clone();
        self.shutdown.spawn(async move {
            tokio::select! {
                () = events.closed() => {}
                // A reader that left needs no more.
                _ = shared.tell_progress(&events) => {}
            }
        });
        response
    }

    /// Every step of the load until it is over.
    async fn tell_progress(&self, events: &sse::Sender) -> Result<(), sse::Gone> {
        let mut load = self.load.clone();
        loop {
            let now = load.borrow_and_update().clone();
            let step = json!({"state": now.state(), "progress": now.progress()});
            events.event("progress", &step.to_string()).await?;
            match now {
                Load::Ready(_) => return events.data("[DONE]").await,
                Load::Failed(failure) => {
                    events.event("error", &json!(failure).to_string()).await?;
                    self.failure_told.notify_one();
                    return events.data(&format!("[ERROR] {}", failure.message)).await;
                }
                Load::Loading(_) => {}
            }
            if load.changed().await.is_err() {
                return events.data("[ERROR] the worker has ended").await;
            }
        }
    }

    fn props(&self) -> Result<Response, Failure> {
        let ready = self.ready()?;
        Ok(reply::json(&json!({
            "default_generation_settings": {"n_ctx": ready.limits.context},
            "total_slots": ready.limits.sequences,
            "model_alias": self.alias,
            "model_path": self.model_path,
            "model_parameters": ready.model.parameters(),
            "model_bytes": ready.model.bytes(),
            "n_ctx_train": ready.model.context_trained(),
            "n_vocab": ready.model.size(),
            "chat_template": ready.chat.source(),
            "build_info": format!("rbee {VERSION}"),
            "kernels": llama::kernels(),
        })))
    }

    fn slots(&self) -> Result<Response, Failure> {
        let ready = self.ready()?;
        let slots: Vec<Value> = ready
            .slots
            .borrow()
            .iter()
            .enumerate()
            .map(|(id, slot)| {
                json!({
                    "id": id, "is_processing": slot.busy, "n_ctx": ready.limits.context,
                    "n_prompt_tokens": slot.prompt_tokens, "n_past": slot.held, "n_decoded": slot.new_tokens,
                })
            })
            .collect();
        Ok(reply::json(&slots))
    }

    async fn complete(&self, kind: Kind, request: Request) -> Result<Response, Failure> {
        let deadline = deadline(request.header("x-request-deadline"), now_ms())?;
        let ready = self.ready()?;
        if self.shutdown.is_draining() {
            return Err(Failure::new(Code::ShuttingDown, "this worker is shutting down"));
        }
        let request_id = request.id.clone();
        let parsed = request::parse(kind, request.json(BODY_BYTES_MAX).await?)?;
        let Completion { content, stream, include_usage, max_tokens, with_tokens, mut ask } = parsed;
        let (prompt, stops) = self.prepare(ready.clone(), content).await?;
        ask.stops.extend(stops);
        request::fit(&mut ask, prompt, max_tokens, ready.limits.context)?;
        let id = crate::wire::id::fresh().simple();
        let header = Header {
            kind,
            id: match kind {
                Kind::Chat => format!("chatcmpl-{id}"),
                Kind::Completion => format!("cmpl-{id}"),
            },
            request_id,
            created: now_ms() / 1_000,
            model: self.alias.clone(),
            include_usage,
            with_tokens,
        };
        let mut watched = Watched::new(self.queue.submit(ask)?, ready, deadline);
        watched.start().await?;
        if stream {
            Ok(stream::chunks(header, watched, &self.shutdown))
        } else {
            stream::whole(&header, watched).await
        }
    }

    /// Renders and tokenizes, on a thread where that may take its time.
    async fn prepare(
        &self,
        ready: Arc<Ready>,
        content: Content,
    ) -> Result<(Vec<Token>, Vec<String>), Failure> {
        self.blocking(move || {
            let (prompt, stops) = match content {
                Content::Messages(messages) => {
                    let rendered = ready.chat.render(&messages)?;
                    (rendered.prompt, rendered.stops)
                }
                Content::Prompt(prompt) => (prompt, Vec::new()),
            };
            Ok((ready.model.tokenize(&prompt, Markup::PROMPT).map_err(refused)?, stops))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.preparing.clone().acquire_owned().await.expect("the semaphore is never closed");
        let work = move || {
            let _place = place;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| Failure::internal(&error))?
    }

    async fn tokenize(&self, request: Request) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Given {
            content: String,
            #[serde(default)]
            add_special: bool,
            parse_special: Option<bool>,
        }
        let ready = self.ready()?;
        let given: Given = request.json(BODY_BYTES_MAX).await?;
        let markup = Markup { framed: given.add_special, control: given.parse_special.unwrap_or(true) };
        let tokens =
            self.blocking(move || ready.model.tokenize(&given.content, markup).map_err(refused)).await?;
        Ok(reply::json(&json!({ "tokens": tokens })))
    }

    async fn detokenize(&self, request: Request) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Given {
            tokens: Vec<Token>,
        }
        let ready = self.ready()?;
        let Given { tokens } = request.json(BODY_BYTES_MAX).await?;
        if tokens.len() > DETOKENIZE_TOKENS_MAX {
            return Err(Failure::invalid(format!(
                "{} tokens are more than {DETOKENIZE_TOKENS_MAX}",
                tokens.len()
            )));
        }
        if let Some(token) =
            tokens.iter().find(|t| usize::try_from(**t).map_or(true, |t| t >= ready.model.size()))
        {
            return Err(Failure::invalid(format!("{token} is not in the model's vocabulary")));
        }
        let mut bytes = Vec::new();
        for token in tokens {
            ready.model.piece(token, true, &mut bytes);
        }
        Ok(reply::json(&json!({"content": String::from_utf8_lossy(&bytes)})))
    }

    async fn apply_template(&self, request: Request) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Given {
            messages: Vec<ChatMessage>,
        }
        let ready = self.ready()?;
        let Given { messages } = request.json(BODY_BYTES_MAX).await?;
        let rendered = self.blocking(move || ready.chat.render(&messages)).await?;
        Ok(reply::json(&json!({"prompt": rendered.prompt})))
    }
}

/// A request's deadline in milliseconds since the epoch, so that it can be passed on unchanged.
fn deadline(header: Option<&str>, now: u64) -> Result<Option<Instant>, Failure> {
    let Some(text) = header else { return Ok(None) };
    let at: u64 = text.trim().parse().map_err(|_| {
        Failure::invalid(format!(
            "`X-Request-Deadline: {text}` is not a time in milliseconds since the epoch"
        ))
    })?;
    if at <= now {
        return Err(Failure::new(Code::RequestTimeout, "the request's deadline has passed"));
    }
    Ok(Instant::now().checked_add(Duration::from_millis(at - now)))
}

fn refused(error: EngineError) -> Failure {
    Failure::invalid(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_time_and_one_that_has_passed_is_told_so() {
        assert!(deadline(None, 5).unwrap().is_none());
        assert!(deadline(Some("2000"), 1_000).unwrap().is_some());
        assert_eq!(deadline(Some("999"), 1_000).unwrap_err().code, Code::RequestTimeout);
        assert_eq!(deadline(Some("soon"), 1_000).unwrap_err().code, Code::InvalidRequest);
        assert!(deadline(Some(&u64::MAX.to_string()), 1).is_ok());
    }
}
