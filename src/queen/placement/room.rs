//! Whether a device has room for a model: as it is, with idle workers gone, with less context, or when those that are busy
//! now have ended. What is needed is the hive's own estimate, and a margin.

use super::site::{Holder, Place};
use super::{View, Want, is_asked, verdict};
use crate::wire::fleet::{Device, EngineInfo, HiveInfo, ModelNeeds, ShapeNeeds, WorkerInfo};

/// What an estimate may be wrong by, and what other programs may want meanwhile.
pub const MEMORY_MARGIN_PERCENT: u64 = 5;
/// Graphics processors, the better first.
pub const GPU_KINDS: &[&str] = &["cuda", "metal"];

#[derive(Debug, Clone, PartialEq)]
pub enum Room<'v> {
    Fits {
        bytes: u64,
        /// Idle and unpinned ones, those longest unused first; no more of them than it takes.
        evict: Vec<&'v WorkerInfo>,
        /// Fewer slots or less context than the defaults.
        is_lowered: bool,
    },
    /// There will be room when these have ended their work; if it is none of them, when what is promised to others has become
    /// workers that can end.
    AfterBusy {
        bytes: u64,
        by: Vec<&'v WorkerInfo>,
    },
    /// Not even alone with what is pinned.
    TooLittle {
        needed: u64,
        free: u64,
    },
    /// The hive is of an older version and has not said what its models need: it decides.
    Unknown,
    /// A worker of the model that is on it already will do.
    Taken,
    NoEngine,
    /// Another device was asked for, or another kind is this node's best.
    Other,
    /// A processor, while this graphics processor could do it.
    HasGpu(String),
    /// The hive would not, when it was asked.
    Refused,
}

/// How good a spawn at some place would be: nobody evicted and nothing lowered first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    LoweredByEviction,
    Lowered,
    ByEviction,
    AsWished,
}

impl Grade {
    pub fn of(evicts: bool, is_lowered: bool) -> Self {
        match (evicts, is_lowered) {
            (false, false) => Grade::AsWished,
            (true, false) => Grade::ByEviction,
            (false, true) => Grade::Lowered,
            (true, true) => Grade::LoweredByEviction,
        }
    }

    /// The best that could come of a place, by sums alone: what is under way at this queen can only make it worse.
    pub fn at_best(needs: &ModelNeeds, place: &Place) -> Option<Self> {
        let (Some(wished), Some(least)) = (needs.shapes.first(), needs.shapes.last()) else {
            return Some(Grade::Lowered);
        };
        let with_idle = place.free.saturating_add(place.idle);
        let evicts = |shape: &ShapeNeeds| {
            let bytes = with_margin(shape.bytes);
            (bytes <= with_idle).then_some(bytes > place.free)
        };
        let as_wished = evicts(wished).map(|evicts| Grade::of(evicts, false));
        as_wished.or_else(|| evicts(least).map(|evicts| Grade::of(evicts, true)))
    }
}

/// Whether there could be room when those at work have ended, by sums alone.
pub fn may_become_free(needs: &ModelNeeds, place: &Place) -> bool {
    let held = place.free.saturating_add(place.unpinned);
    needs.shapes.last().is_some_and(|least| with_margin(least.bytes) <= held)
}

/// Whether a request may be thought of at a place at all, whatever room there is.
pub fn is_eligible(
    want: &Want,
    holder: Holder<'_>,
    device: &Device,
    place: &Place,
    gpu: Option<&str>,
) -> bool {
    is_wanted(want, holder.hive, device, place)
        && has_engine(want, place)
        && (place.is_gpu || gpu.is_none() || want.device.is_some())
}

fn is_wanted(want: &Want, hive: &HiveInfo, device: &Device, place: &Place) -> bool {
    let Some(word) = want.device.as_deref() else { return place.is_best };
    (place.is_best && word.parse() == Ok(place.number)) || is_device(word, device, &hive.engines)
}

/// Another project's engine serves those who have said what they want.
fn has_engine(want: &Want, place: &Place) -> bool {
    if want.device.is_some() { place.has_engine } else { place.has_own_engine }
}

/// What a device could do for a request; `gpu` is the graphics processor for whose sake no processor is used.
pub fn room<'v>(
    want: &Want,
    view: &View<'v>,
    holder: Holder<'v>,
    device: &'v Device,
    place: &Place,
    gpu: Option<&str>,
) -> Room<'v> {
    if !is_wanted(want, holder.hive, device, place) {
        return Room::Other;
    }
    if !has_engine(want, place) {
        return Room::NoEngine;
    }
    if view.has_refused(holder.hive, device) {
        return Room::Refused;
    }
    if let Some(gpu) = gpu.filter(|_| want.device.is_none() && !place.is_gpu) {
        return Room::HasGpu(gpu.to_owned());
    }
    on_device(want, view, holder, device)
}

fn on_device<'v>(want: &Want, view: &View<'v>, holder: Holder<'v>, device: &'v Device) -> Room<'v> {
    let hive = holder.hive;
    let here = || hive.workers.iter().filter(|worker| worker.device == device.id);
    let is_alive = |worker: &WorkerInfo| worker.state.serves() || worker.state.is_coming();
    if here().any(|worker| is_alive(worker) && verdict::suits(want, hive, worker)) {
        return Room::Taken;
    }
    let shapes = holder.needs.map_or(&[][..], |needs| needs.shapes.as_slice());
    let (Some(wished), Some(least)) = (shapes.first(), shapes.last()) else { return Room::Unknown };
    let free = device.memory_free_bytes.saturating_sub(view.promised(hive, device));
    let is_idle = |worker: &&WorkerInfo| {
        worker.state.serves() && view.busy(worker) == 0 && !worker.pinned && !view.is_claimed(worker)
    };
    if with_margin(wished.bytes) <= free {
        return Room::Fits { bytes: wished.bytes, evict: Vec::new(), is_lowered: false };
    }
    let mut idle: Vec<&WorkerInfo> = here().filter(is_idle).collect();
    idle.sort_by_key(|worker| worker.last_used);
    if let Some(evict) = least_of(&idle, wished, free) {
        return Room::Fits { bytes: wished.bytes, evict, is_lowered: false };
    }
    let lowered = shapes.iter().skip(1);
    if let Some(shape) = lowered.clone().find(|shape| with_margin(shape.bytes) <= free) {
        return Room::Fits { bytes: shape.bytes, evict: Vec::new(), is_lowered: true };
    }
    for shape in lowered {
        if let Some(evict) = least_of(&idle, shape, free) {
            return Room::Fits { bytes: shape.bytes, evict, is_lowered: true };
        }
    }
    // Those at work last: an idle one costs nobody time. What is ending gives its memory back by itself.
    let mut ending: Vec<&WorkerInfo> = here().filter(|worker| !worker.pinned).collect();
    ending.sort_by_key(|worker| (view.busy(worker) > 0, worker.last_used));
    // What is promised to others is only a reason to wait: theirs will be workers that end, too.
    let unpromised = device.memory_free_bytes;
    match least_of(&ending, least, free).or_else(|| least_of(&ending, least, unpromised)) {
        Some(by) => Room::AfterBusy { bytes: least.bytes, by },
        None => Room::TooLittle {
            needed: least.bytes,
            free: unpromised + ending.iter().map(|worker| worker.memory_bytes).sum::<u64>(),
        },
    }
}

/// The first of these workers whose memory, with what is free, is enough for a shape.
fn least_of<'v>(workers: &[&'v WorkerInfo], shape: &ShapeNeeds, free: u64) -> Option<Vec<&'v WorkerInfo>> {
    let mut sum = free;
    let mut taken = Vec::new();
    for worker in workers {
        if with_margin(shape.bytes) <= sum {
            break;
        }
        sum = sum.saturating_add(worker.memory_bytes);
        taken.push(*worker);
    }
    (with_margin(shape.bytes) <= sum).then_some(taken)
}

fn with_margin(bytes: u64) -> u64 {
    bytes.saturating_add(bytes / 100 * MEMORY_MARGIN_PERCENT)
}

/// The most that fits into so much memory and leaves the margin.
pub fn without_margin(bytes: u64) -> u64 {
    bytes / (100 + MEMORY_MARGIN_PERCENT) * 100
}

/// The graphics processor that could hold the model if it were empty, of all nodes that have it: as long as there is
/// one, no processor is used unasked.
pub fn capable_gpu(want: &Want, view: &View<'_>) -> Option<String> {
    if want.device.is_some() {
        return None;
    }
    let asked = view.holders.iter().filter(|holder| is_asked(want, holder.hive) && holder.site.is_open);
    asked.filter(|holder| holder.site.has_gpu).find_map(|holder| {
        let least = holder.needs?.shapes.last()?;
        let can =
            |place: &Place| place.is_gpu && place.has_own_engine && with_margin(least.bytes) <= place.total;
        let at = holder.site.places.iter().position(can)?;
        Some(format!("{} of {}", holder.hive.devices.get(at)?.id, holder.hive.name))
    })
}

/// A GPU's, where there are both the GPU and an engine of ours for it.
pub fn best_kind(hive: &HiveInfo) -> &str {
    let is_ready = |kind: &&&str| {
        hive.devices.iter().any(|device| device.device_type == **kind)
            && hive.engines.iter().any(|engine| engine.kind == **kind && !engine.foreign)
    };
    GPU_KINDS.iter().find(is_ready).map_or("cpu", |kind| kind)
}

/// The device that a number means: of those that this node's work goes to.
pub fn numbered(hive: &HiveInfo, number: usize) -> Option<&str> {
    let best = best_kind(hive);
    let of_best = hive.devices.iter().filter(|device| device.device_type == best);
    of_best.map(|device| device.id.as_str()).nth(number)
}

/// By the device's name, or its kind, or an engine's name, whose kind it then is.
pub fn is_device(word: &str, device: &Device, engines: &[EngineInfo]) -> bool {
    let is_engines =
        |engine: &EngineInfo| engine.id.eq_ignore_ascii_case(word) && engine.kind == device.device_type;
    word.eq_ignore_ascii_case(&device.id)
        || word.eq_ignore_ascii_case(&device.device_type)
        || engines.iter().any(is_engines)
}
