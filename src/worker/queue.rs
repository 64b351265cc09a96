//! The way from requests to the engine thread and back: a bounded queue there, a bounded stream of events here.
//!
//! Dropping the [`Generation`] is the cancel: the scheduler sees its closed channel before, during and after a decode.

use super::engine::Token;
use super::sampler::Sampling;
use crate::wire::{Code, Failure};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Requests that may wait for a slot; the next one is told so.
pub const WAITING_MAX: usize = 512;
/// What a client is told to wait before it tries again.
const RETRY_AFTER_S: u64 = 1;
/// Events beside tokens and pieces of prompt: started, done.
const EVENTS_EXTRA: usize = 4;

/// What a generation is asked for.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    pub prompt: Vec<Token>,
    pub sampling: Sampling,
    pub new_tokens_max: u32,
    pub stops: Vec<String>,
    /// Go on past the end-of-generation token.
    pub ignore_end: bool,
    /// An event for every token, whether or not it gives text yet: what a stream that may move elsewhere needs.
    pub every_token: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A slot has been taken.
    Started,
    /// So much of the prompt has been processed.
    Prompt {
        done: usize,
    },
    Text {
        text: String,
        /// Tokens chosen since the last such event.
        tokens: Vec<Token>,
        /// Random numbers used so far.
        draws: u64,
    },
    Done(Outcome),
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub new_tokens: usize,
    pub prompt_time: Duration,
    pub generation_time: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its answer.
    End,
    /// A stop string came.
    Stop(String),
    /// The limit of new tokens.
    Length,
}

/// A request on its way to a slot.
#[derive(Debug)]
pub struct Work {
    pub ask: Ask,
    pub events: mpsc::Sender<Event>,
    /// Its place in the queue, given back when it gets a slot.
    place: Option<OwnedSemaphorePermit>,
}

impl Work {
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    pub fn leave_queue(&mut self) {
        self.place = None;
    }

    /// The channel holds everything a request can say, so this never waits for a slow client and never loses an event.
    pub fn tell(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            unreachable!("the channel was made for all events of its request, but {event:?} found it full");
        }
    }
}

/// The asking end, shared by all connections.
#[derive(Debug, Clone)]
pub struct Queue {
    work: mpsc::Sender<Work>,
    places: Arc<Semaphore>,
}

/// A request at work. Dropping it cancels.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::Receiver<Event>,
}

impl Generation {
    /// The next event; `None` only if the engine died.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event if there is one already.
    #[cfg(test)]
    pub fn now(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

pub fn queue() -> (Queue, mpsc::Receiver<Work>) {
    let (work, incoming) = mpsc::channel(WAITING_MAX);
    (Queue { work, places: Arc::new(Semaphore::new(WAITING_MAX)) }, incoming)
}

impl Queue {
    pub fn submit(&self, ask: Ask) -> Result<Generation, Failure> {
        let full = || {
            Failure::new(
                Code::AllSlotsBusy,
                format!("every slot is busy and {WAITING_MAX} requests wait already"),
            )
            .with(serde_json::json!({"waiting": WAITING_MAX, "retry_after": RETRY_AFTER_S}))
        };
        let place = self.places.clone().try_acquire_owned().map_err(|_| full())?;
        let room = ask.prompt.len() + ask.new_tokens_max as usize + EVENTS_EXTRA;
        let (events, receiver) = mpsc::channel(room);
        self.work.try_send(Work { ask, events, place: Some(place) }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => full(),
            mpsc::error::TrySendError::Closed(_) => Failure::new(Code::Internal, "the engine has ended"),
        })?;
        Ok(Generation { events: receiver })
    }
}
