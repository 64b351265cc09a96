//! GET /metrics at the queen: what went through her, and what her fleet has.

use crate::http::Response;
use crate::http::metrics::{Histogram, Page, Requests};
use crate::queen::Queen;
use crate::wire::VERSION;
use crate::wire::fleet::{HiveState, WorkerInfo, WorkerState};
use std::sync::atomic::{AtomicU64, Ordering};

/// What is counted as it happens; the rest is looked up when it is asked for.
#[derive(Debug, Default)]
pub struct Tally {
    pub requests: Requests,
    pub tokens: AtomicU64,
    /// From a request's coming to the first piece of its answer.
    pub first_piece: Histogram,
}

pub fn page(queen: &Queen) -> Response {
    let fleet = queen.registry.fleet();
    let mut page = Page::default();
    page.gauge("rbee_build_info", "What this is.").with(&[("version", VERSION), ("role", "queen")], 1);
    page.gauge("rbee_start_time_seconds", "When it was started, since the epoch.")
        .is(queen.started_at as f64 / 1e3);
    queen.tally.requests.write(&mut page);
    page.counter("rbee_tokens_total", "Tokens of streamed answers, counted by pieces.")
        .is(queen.tally.tokens.load(Ordering::Relaxed));
    page.histogram(
        "rbee_first_piece_seconds",
        "From a request to the first piece of its answer.",
        &queen.tally.first_piece,
    );
    page.histogram("rbee_queue_wait_seconds", "How long those waited who had to.", &queen.dispatcher.waits);
    page.gauge("rbee_queue_length", "Requests that wait for a slot.").is(queen.dispatcher.queued());
    page.gauge("rbee_requests_in_flight", "Requests that are at workers.").is(queen.dispatcher.in_flight());
    let mut hives = page.gauge("rbee_hives", "Hives, by state.");
    for (state, name) in
        [(HiveState::Online, "online"), (HiveState::Draining, "draining"), (HiveState::Lost, "lost")]
    {
        let count = fleet.hives.values().filter(|hive| hive.info.state == state).count();
        hives.with(&[("state", name)], count);
    }
    workers(&mut page, fleet.workers());
    page.gauge("rbee_models", "Models that can be asked for.").is(fleet.models().len());
    queen.jobs.write(&mut page);
    page.answer()
}

fn workers<'w>(page: &mut Page, workers: impl Iterator<Item = &'w WorkerInfo>) {
    let workers: Vec<&WorkerInfo> = workers.collect();
    let mut states = page.gauge("rbee_workers", "Workers, by state.");
    for state in WorkerState::ALL {
        let count = workers.iter().filter(|worker| worker.state == state).count();
        states.with(&[("state", state.name())], count);
    }
    let sum = |count: fn(&WorkerInfo) -> u32| workers.iter().map(|worker| count(worker)).sum::<u32>();
    page.gauge("rbee_slots", "Slots of all workers.").is(sum(|worker| worker.slots_total));
    page.gauge("rbee_slots_busy", "Slots that are busy.").is(sum(|worker| worker.slots_busy));
}
