//! Whether a device has room for a model: as it is, with idle workers gone, with less context, or when those that are busy
//! now have ended. What is needed is the hive's own estimate, and a margin.

use super::{View, Want, is_asked, is_open};
use crate::wire::fleet::{Device, EngineInfo, HiveInfo, ShapeNeeds, WorkerInfo};

/// What an estimate may be wrong by, and what other programs may want meanwhile.
pub const MEMORY_MARGIN_PERCENT: u64 = 5;
/// Graphics processors, the better first.
const GPU_KINDS: &[&str] = &["cuda", "metal"];

#[derive(Debug, Clone, PartialEq)]
pub enum Room<'v> {
    Fits {
        bytes: u64,
        /// Idle and unpinned ones, those longest unused first; no more of them than it takes.
        evict: Vec<&'v WorkerInfo>,
        /// Fewer slots or less context than the defaults.
        is_lowered: bool,
    },
    /// There will be room when these have ended their work.
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
    /// A worker of the model is on it already.
    Taken,
    NoEngine,
    /// Another device was asked for, or another kind is this node's best.
    Other,
    /// A processor, while this graphics processor could do it.
    HasGpu(String),
    /// The hive would not, when it was asked.
    Refused,
}

/// The devices of a hive with what they could do for a request.
pub fn rooms<'v>(
    want: &Want,
    view: &View<'v>,
    hive: &'v HiveInfo,
    gpu: Option<&str>,
) -> Vec<(&'v Device, Room<'v>)> {
    let best = best_kind(hive);
    let mut of_best = 0;
    let mut rooms = Vec::with_capacity(hive.devices.len());
    for device in &hive.devices {
        let number = of_best;
        of_best += usize::from(device.device_type == best);
        let is_wanted = match want.device.as_deref() {
            None => device.device_type == best,
            Some(word) => {
                let is_number = device.device_type == best && word.parse() == Ok(number);
                is_number || is_device(word, device, &hive.engines)
            }
        };
        let room = if !is_wanted {
            Room::Other
        } else if !has_engine(want, hive, device) {
            Room::NoEngine
        } else if view.has_refused(hive, device) {
            Room::Refused
        } else if let Some(gpu) = gpu.filter(|_| want.device.is_none() && !is_gpu(device)) {
            Room::HasGpu(gpu.to_owned())
        } else {
            on_device(want, view, hive, device)
        };
        rooms.push((device, room));
    }
    rooms
}

fn on_device<'v>(want: &Want, view: &View<'v>, hive: &'v HiveInfo, device: &'v Device) -> Room<'v> {
    let here = || hive.workers.iter().filter(|worker| worker.device == device.id);
    let is_alive = |worker: &WorkerInfo| worker.state.serves() || worker.state.is_coming();
    if here().any(|worker| worker.model == want.model && is_alive(worker)) {
        return Room::Taken;
    }
    let shapes = hive.needs(&want.model).map_or(&[][..], |needs| needs.shapes.as_slice());
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
    match least_of(&ending, least, free) {
        Some(by) => Room::AfterBusy { bytes: least.bytes, by },
        None => Room::TooLittle {
            needed: least.bytes,
            free: free + ending.iter().map(|worker| worker.memory_bytes).sum::<u64>(),
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

/// The graphics processor that could hold the model if it were empty, of all nodes that have it: as long as there is
/// one, no processor is used unasked.
pub fn capable_gpu(want: &Want, view: &View<'_>) -> Option<String> {
    if want.device.is_some() {
        return None;
    }
    let asked = view.holders.iter().filter(|hive| is_asked(want, hive) && is_open(hive));
    asked.flat_map(|hive| hive.devices.iter().map(move |device| (hive, device))).find_map(|(hive, device)| {
        let least = hive.needs(&want.model)?.shapes.last()?;
        let can = is_gpu(device)
            && has_engine(want, hive, device)
            && with_margin(least.bytes) <= device.memory_bytes;
        can.then(|| format!("{} of {}", device.id, hive.name))
    })
}

fn is_gpu(device: &Device) -> bool {
    GPU_KINDS.contains(&device.device_type.as_str())
}

/// A GPU's, where there are both the GPU and an engine of ours for it.
fn best_kind(hive: &HiveInfo) -> &str {
    let is_ready = |kind: &&&str| {
        hive.devices.iter().any(|device| device.device_type == **kind)
            && hive.engines.iter().any(|engine| engine.kind == **kind && !engine.foreign)
    };
    GPU_KINDS.iter().find(is_ready).map_or("cpu", |kind| kind)
}

/// By the device's name, or its kind, or an engine's name, whose kind it then is.
pub fn is_device(word: &str, device: &Device, engines: &[EngineInfo]) -> bool {
    let is_engines =
        |engine: &EngineInfo| engine.id.eq_ignore_ascii_case(word) && engine.kind == device.device_type;
    word.eq_ignore_ascii_case(&device.id)
        || word.eq_ignore_ascii_case(&device.device_type)
        || engines.iter().any(is_engines)
}

fn has_engine(want: &Want, hive: &HiveInfo, device: &Device) -> bool {
    // A hive of the version before does not say; it refuses by itself.
    let serves = |engine: &EngineInfo| {
        let is_named = want.device.as_ref().is_some_and(|word| word.eq_ignore_ascii_case(&engine.id));
        engine.kind == device.device_type && (!engine.foreign || is_named || want.device.is_some())
    };
    hive.engines.is_empty() || hive.engines.iter().any(serves)
}
