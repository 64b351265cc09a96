//! The scheduler: continuous batching over any [`Engine`], owned by one thread.
//!
//! Each step decodes one batch: first a row for every slot that generates, then pieces of the prompts that are still being
//! read, shared evenly and bounded, so that neither a long prompt nor many short ones hold up a running stream. A slot
//! is a list of tokens and a count of how many of them the engine has; what is missing is decoded next, and
//! when nothing is missing the next token is chosen. Reading and generating are the same thing here.
//!
//! A client that leaves closes its channel. That is looked at before each step and, through the abort callback, between the
//! operations of a running one, so a slot is free within a step, in the middle of a prompt too.

use super::engine::{Engine, EngineError, Row, Token};
use super::queue::{Event, Finish, Outcome, Work};
use super::sampler::Sampler;
use super::text::Text;
use crate::wire::{Code, Failure};
use std::collections::VecDeque;
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Prompt tokens of one step. Larger reads prompts slightly faster and makes running streams stutter.
pub const PROMPT_TOKENS_MAX: usize = 256;

/// A slot as GET /slots tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotView {
    pub busy: bool,
    pub prompt_tokens: usize,
    /// Tokens the engine holds for it.
    pub held: usize,
    pub new_tokens: usize,
}

#[derive(Debug)]
struct Slot {
    work: Work,
    /// The prompt, then what was generated.
    tokens: Vec<Token>,
    /// How many of them the engine has.
    decoded: usize,
    new_tokens: usize,
    sampler: Sampler,
    text: Text,
    /// Tokens chosen since the last event.
    untold: Vec<Token>,
    started: Instant,
    first_token: Option<Instant>,
}

#[derive(Debug)]
pub struct Scheduler<E> {
    engine: E,
    slots: Vec<Option<Slot>>,
    waiting: VecDeque<Work>,
    views: watch::Sender<Vec<SlotView>>,
    stop: CancellationToken,
    /// The vocabulary's end tokens.
    ends: Vec<Token>,
    rows: Vec<Row>,
    /// Which slot gets the odd token of a share, so that it is not always the first.
    turn: usize,
}

impl<E: Engine> Scheduler<E> {
    pub fn new(engine: E, stop: CancellationToken) -> Self {
        let slots = engine.limits().sequences as usize;
        Scheduler {
            ends: engine.vocabulary().ends().to_vec(),
            engine,
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            waiting: VecDeque::new(),
            views: watch::Sender::new(vec![SlotView::default(); slots]),
            stop,
            rows: Vec::new(),
            turn: 0,
        }
    }

    pub fn views(&self) -> watch::Receiver<Vec<SlotView>> {
        self.views.subscribe()
    }

    /// Works until every asker is gone or it is told to stop. What is unfinished then is failed, not dropped.
    pub async fn run(mut self, mut incoming: mpsc::Receiver<Work>) {
        loop {
            if self.is_idle() {
                let work = tokio::select! {
                    () = self.stop.cancelled() => None,
                    work = incoming.recv() => work,
                };
                let Some(work) = work else { break };
                self.waiting.push_back(work);
            }
            while let Ok(work) = incoming.try_recv() {
                self.waiting.push_back(work);
            }
            if self.stop.is_cancelled() {
                break;
            }
            self.step();
        }
        let failure = Failure::new(Code::ShuttingDown, "this worker is shutting down");
        for slot in 0..self.slots.len() {
            self.fail(slot, &failure);
        }
        while let Some(work) = self.waiting.pop_front().or_else(|| incoming.try_recv().ok()) {
            work.tell(Event::Failed(failure.clone()));
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Option::is_none)
    }

    /// Frees what was cancelled, fills free slots, decodes one batch, tells the outcome.
    pub fn step(&mut self) {
        self.free_cancelled();
        self.admit();
        let planned = self.plan();
        if !planned.is_empty() {
            match self.decode(&planned) {
                Ok(()) => self.advance(&planned),
                // Whoever is left after an abort is here because of the stop; `run` tells them.
                Err(EngineError::Aborted) => {}
                Err(error) => {
                    tracing::error!(%error, "decoding failed");
                    let failure = Failure::internal(&error);
                    for piece in &planned {
                        self.fail(piece.slot, &failure);
                    }
                }
            }
            self.free_cancelled();
        }
        self.publish();
    }

    fn free_cancelled(&mut self) {
        self.waiting.retain(|work| !work.is_cancelled());
        for at in 0..self.slots.len() {
            if self.slots[at].as_ref().is_some_and(|slot| slot.work.is_cancelled()) {
                tracing::debug!(slot = at, "the client left");
                self.free(at);
            }
        }
    }

    /// Empties a slot and what the engine holds for it, and shows it free before anybody is told that its answer has ended.
    fn free(&mut self, at: usize) -> Option<Slot> {
        let slot = self.slots[at].take()?;
        if let Err(error) = self.engine.forget(at as u32, 0) {
            tracing::error!(%error, slot = at, "forgetting a sequence failed");
        }
        self.publish();
        Some(slot)
    }

    fn fail(&mut self, at: usize, failure: &Failure) {
        if let Some(slot) = self.free(at) {
            slot.work.tell(Event::Failed(failure.clone()));
        }
    }

    /// Fills free slots, and shows them busy before anybody is told that its answer has started.
    fn admit(&mut self) {
        let mut admitted = Vec::new();
        for (at, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
            let Some(mut work) = self.waiting.pop_front() else { break };
            work.leave_queue();
            admitted.push(at);
            *slot = Some(Slot {
                tokens: work.ask.prompt.clone(),
                decoded: 0,
                new_tokens: 0,
                sampler: Sampler::new(work.ask.sampling.clone()),
                text: Text::new(work.ask.stops.clone()),
                untold: Vec::new(),
                started: Instant::now(),
                first_token: None,
                work,
            });
        }
        self.publish();
        for slot in admitted.into_iter().filter_map(|at| self.slots[at].as_ref()) {
            slot.work.tell(Event::Started);
        }
    }

    /// Which tokens of which slots go into the next batch.
    fn plan(&mut self) -> Vec<Piece> {
        let missing: Vec<usize> =
            self.slots.iter().map(|slot| slot.as_ref().map_or(0, |s| s.tokens.len() - s.decoded)).collect();
        self.turn = self.turn.wrapping_add(1);
        let shares = share(&missing, self.engine.limits().rows, self.turn);
        let mut planned = Vec::new();
        self.rows.clear();
        for (at, count) in shares.into_iter().enumerate().filter(|(_, count)| *count > 0) {
            let Some(slot) = &self.slots[at] else { continue };
            let range = slot.decoded..slot.decoded + count;
            let completes = range.end == slot.tokens.len();
            for position in range {
                self.rows.push(Row {
                    token: slot.tokens[position],
                    position: position as u32,
                    sequence: at as u32,
                    logits: completes && position + 1 == slot.tokens.len(),
                });
            }
            planned.push(Piece { slot: at, count, logits: completes.then(|| self.rows.len() - 1) });
        }
        planned
    }

    fn decode(&mut self, planned: &[Piece]) -> Result<(), EngineError> {
        let (slots, stop) = (&self.slots, &self.stop);
        let abort = || {
            stop.is_cancelled()
                || planned
                    .iter()
                    .all(|piece| slots[piece.slot].as_ref().is_none_or(|s| s.work.is_cancelled()))
        };
        self.engine.decode(&self.rows, &abort)
    }

    fn advance(&mut self, planned: &[Piece]) {
        for piece in planned {
            let Some(slot) = &mut self.slots[piece.slot] else { continue };
            slot.decoded += piece.count;
            if slot.first_token.is_none() {
                slot.work.tell(Event::Prompt { done: slot.decoded });
            }
            let Some(row) = piece.logits else { continue };
            match slot.next(&mut self.engine, &self.ends, row) {
                Ok(None) => {}
                Ok(Some(finish)) => {
                    if let Some(slot) = self.free(piece.slot) {
                        slot.finish(finish);
                    }
                }
                Err(failure) => self.fail(piece.slot, &failure),
            }
        }
    }

    fn publish(&self) {
        self.views.send_modify(|views| {
            for (view, slot) in views.iter_mut().zip(&self.slots) {
                *view = slot.as_ref().map_or_else(SlotView::default, |slot| SlotView {
                    busy: true,
                    prompt_tokens: slot.work.ask.prompt.len(),
                    held: slot.decoded,
                    new_tokens: slot.new_tokens,
                });
            }
        });
    }
}

/// A slot's part of a batch.
#[derive(Debug, Clone, Copy)]
struct Piece {
    slot: usize,
    count: usize,
    /// The row whose logits choose the slot's next token, if its last token is in the batch.
    logits: Option<usize>,
}

impl Slot {
    /// Chooses the next token and tells what became certain of the text. `Some` if that was the last.
    fn next<E: Engine>(
        &mut self,
        engine: &mut E,
        ends: &[Token],
        row: usize,
    ) -> Result<Option<Finish>, Failure> {
        let logits = engine.logits(row).map_err(|error| Failure::internal(&error))?;
        if self.work.ask.ignore_end {
            for end in ends {
                if let Some(logit) = usize::try_from(*end).ok().and_then(|at| logits.get_mut(at)) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let Some(token) = self.sampler.choose(logits, &self.tokens) else {
            return Err(Failure::new(
                Code::InvalidModel,
                "the model's output is not a number; its file is broken",
            ));
        };
        self.first_token.get_or_insert_with(Instant::now);
        self.new_tokens += 1;
        self.untold.push(token);
        if ends.binary_search(&token).is_ok() {
            return Ok(Some(Finish::End));
        }
        let mut bytes = Vec::new();
        engine.vocabulary().piece(token, false, &mut bytes);
        let emitted = self.text.push(&bytes);
        if !emitted.text.is_empty() || self.work.ask.every_token {
            self.tell_text(emitted.text);
        }
        self.tokens.push(token);
        if let Some(stop) = emitted.stopped {
            return Ok(Some(Finish::Stop(stop)));
        }
        let full = self.tokens.len() >= engine.limits().context as usize;
        if full || self.new_tokens >= self.work.ask.new_tokens_max as usize {
            return Ok(Some(Finish::Length));
        }
        Ok(None)
    }

    fn tell_text(&mut self, text: String) {
        let tokens = std::mem::take(&mut self.untold);
        self.work.tell(Event::Text { text, tokens, draws: self.sampler.draws() });
    }

    fn finish(mut self, finish: Finish) {
        let mut finish = finish;
        if !matches!(finish, Finish::Stop(_)) {
            let rest = self.text.finish();
            if let Some(stop) = rest.stopped {
                finish = Finish::Stop(stop);
            }
            if !rest.text.is_empty() || (self.work.ask.every_token && !self.untold.is_empty()) {
                self.tell_text(rest.text);
            }
        }
        let first_token = self.first_token.unwrap_or(self.started);
        self.work.tell(Event::Done(Outcome {
            finish,
            prompt_tokens: self.work.ask.prompt.len(),
            new_tokens: self.new_tokens,
            prompt_time: first_token - self.started,
            generation_time: first_token.elapsed(),
        }));
    }
}

/// Shares a batch: one row for whoever misses one token, the rest of the room evenly among those who miss more. What one
/// does not need the others get; the odd tokens go round.
fn share(missing: &[usize], rows_max: usize, turn: usize) -> Vec<usize> {
    let mut shares = vec![0; missing.len()];
    let mut room = rows_max;
    for (share, _) in shares.iter_mut().zip(missing).filter(|(_, missing)| **missing == 1) {
        if room > 0 {
            *share = 1;
            room -= 1;
        }
    }
    let mut room = room.min(PROMPT_TOKENS_MAX);
    let mut reading: Vec<usize> = (0..missing.len()).filter(|at| missing[*at] > 1).collect();
    if reading.is_empty() {
        return shares;
    }
    let first = turn % reading.len();
    reading.rotate_left(first);
    while room > 0 && !reading.is_empty() {
        let each = (room / reading.len()).max(1);
        for at in &reading {
            let take = each.min(missing[*at] - shares[*at]).min(room);
            shares[*at] += take;
            room -= take;
        }
        reading.retain(|at| shares[*at] < missing[*at]);
    }
    shares
}

#[cfg(test)]
mod tests;
