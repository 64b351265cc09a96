//! The link's telemetry: length-delimited postcard frames. postcard does not describe itself, so a version's structs are
//! frozen: no field is added to them, no serde attribute that hides or flattens one is used, and golden bytes in
//! the tests hold that. A new field means a new variant.

use super::fleet::{
    Device, DeviceSpeed, EngineInfo, ModelNames, ModelNeeds, ShapeNeeds, WorkerInfo, WorkerState,
};
use serde::{Deserialize, Serialize};

/// The longest frame accepted. A hive with 1,000 workers needs about 200 KiB.
pub const FRAME_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Frame {
    V1(TelemetryV1),
    V2(TelemetryV2),
}

/// Version 2 tells what placement weighs: what models need, which engines there are, how fast the devices were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TelemetryV2 {
    Full(Box<HiveV2>),
    Workers(Vec<WorkerV1>),
    Devices(Vec<DeviceV1>),
    Models(Vec<ModelV2>),
    Engines(Vec<EngineV2>),
    Speeds(Vec<SpeedV2>),
    Draining(bool),
    Tick,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveV2 {
    pub name: String,
    pub version: String,
    pub listen: String,
    pub os: String,
    pub arch: String,
    pub draining: bool,
    pub devices: Vec<DeviceV1>,
    pub workers: Vec<WorkerV1>,
    pub models: Vec<ModelV2>,
    pub engines: Vec<EngineV2>,
    pub speeds: Vec<SpeedV2>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelV2 {
    pub id: String,
    pub names: Vec<String>,
    pub weights_bytes: u64,
    /// Empty where the hive could not tell yet.
    pub shapes: Vec<ShapeV2>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShapeV2 {
    pub slots: u32,
    pub ctx: u32,
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineV2 {
    pub id: String,
    pub kind: String,
    pub version: String,
    pub foreign: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SpeedV2 {
    pub device: String,
    pub bytes_per_second: u64,
}

impl TelemetryV2 {
    /// What a queen of the version before understands of it; nothing where it knows no such thing.
    pub fn as_v1(self) -> Option<TelemetryV1> {
        let models = |models: Vec<ModelV2>| {
            models.into_iter().map(|ModelV2 { id, names, .. }| ModelV1 { id, names }).collect()
        };
        Some(match self {
            TelemetryV2::Full(hive) => {
                let HiveV2 {
                    name, version, listen, os, arch, draining, devices, workers, models: told, ..
                } = *hive;
                let models = models(told);
                TelemetryV1::Full(HiveV1 {
                    name,
                    version,
                    listen,
                    os,
                    arch,
                    draining,
                    devices,
                    workers,
                    models,
                })
            }
            TelemetryV2::Workers(workers) => TelemetryV1::Workers(workers),
            TelemetryV2::Devices(devices) => TelemetryV1::Devices(devices),
            TelemetryV2::Models(told) => TelemetryV1::Models(models(told)),
            TelemetryV2::Engines(_) | TelemetryV2::Speeds(_) => return None,
            TelemetryV2::Draining(draining) => TelemetryV1::Draining(draining),
            TelemetryV2::Tick => TelemetryV1::Tick,
        })
    }
}

impl From<TelemetryV1> for TelemetryV2 {
    /// A hive of the version before: its models' needs and its engines are not known.
    fn from(telemetry: TelemetryV1) -> Self {
        let models = |models: Vec<ModelV1>| -> Vec<ModelV2> {
            let unknown = |ModelV1 { id, names }| ModelV2 { id, names, weights_bytes: 0, shapes: Vec::new() };
            models.into_iter().map(unknown).collect()
        };
        match telemetry {
            TelemetryV1::Full(hive) => {
                let HiveV1 { name, version, listen, os, arch, draining, devices, workers, models: told } =
                    hive;
                TelemetryV2::Full(Box::new(HiveV2 {
                    name,
                    version,
                    listen,
                    os,
                    arch,
                    draining,
                    devices,
                    workers,
                    models: models(told),
                    engines: Vec::new(),
                    speeds: Vec::new(),
                }))
            }
            TelemetryV1::Workers(workers) => TelemetryV2::Workers(workers),
            TelemetryV1::Devices(devices) => TelemetryV2::Devices(devices),
            TelemetryV1::Models(told) => TelemetryV2::Models(models(told)),
            TelemetryV1::Draining(draining) => TelemetryV2::Draining(draining),
            TelemetryV1::Tick => TelemetryV2::Tick,
        }
    }
}

/// Full state first, then whatever changed; `Tick` when nothing did, at least once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum TelemetryV1 {
    Full(HiveV1),
    Workers(Vec<WorkerV1>),
    Devices(Vec<DeviceV1>),
    Models(Vec<ModelV1>),
    Draining(bool),
    Tick,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveV1 {
    pub name: String,
    pub version: String,
    pub listen: String,
    pub os: String,
    pub arch: String,
    pub draining: bool,
    pub devices: Vec<DeviceV1>,
    pub workers: Vec<WorkerV1>,
    pub models: Vec<ModelV1>,
}

/// A model that can be used, and the other names that a request may call it by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelV1 {
    pub id: String,
    pub names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceV1 {
    pub id: String,
    pub name: String,
    pub device_type: String,
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    pub compute_capability: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerV1 {
    pub worker_id: String,
    pub state: WorkerStateV1,
    pub model: String,
    pub worker: String,
    pub device: String,
    pub slots_total: u32,
    pub slots_busy: u32,
    pub ctx: u32,
    pub memory_bytes: u64,
    pub pid: Option<i32>,
    pub started_at: u64,
    pub last_used: u64,
    pub pinned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerStateV1 {
    Starting,
    Loading,
    Ready,
    Busy,
    Draining,
    Stopping,
    Failed,
}

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a telemetry frame of {0} bytes is over the limit of {FRAME_BYTES_MAX}")]
    TooLong(usize),
    #[error("a telemetry frame does not decode")]
    Malformed(#[from] postcard::Error),
}

/// A frame with its length before it (four bytes, big-endian).
pub fn encode(frame: &Frame) -> Result<Vec<u8>, CodecError> {
    let body = postcard::to_stdvec(frame)?;
    if body.len() > FRAME_BYTES_MAX {
        return Err(CodecError::TooLong(body.len()));
    }
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Takes whole frames off the front of a byte stream that arrives in arbitrary pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if one has arrived. An error ends the stream: there is no resynchronising.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, CodecError> {
        let Some(head) = self.pending.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(CodecError::TooLong(length));
        }
        let Some(body) = self.pending.get(4..4 + length) else { return Ok(None) };
        let frame = postcard::from_bytes(body)?;
        self.pending.drain(..4 + length);
        Ok(Some(frame))
    }
}

impl From<WorkerState> for WorkerStateV1 {
    fn from(state: WorkerState) -> Self {
        match state {
            WorkerState::Starting => WorkerStateV1::Starting,
            WorkerState::Loading => WorkerStateV1::Loading,
            WorkerState::Ready => WorkerStateV1::Ready,
            WorkerState::Busy => WorkerStateV1::Busy,
            WorkerState::Draining => WorkerStateV1::Draining,
            WorkerState::Stopping => WorkerStateV1::Stopping,
            WorkerState::Failed => WorkerStateV1::Failed,
        }
    }
}

impl From<WorkerStateV1> for WorkerState {
    fn from(state: WorkerStateV1) -> Self {
        match state {
            WorkerStateV1::Starting => WorkerState::Starting,
            WorkerStateV1::Loading => WorkerState::Loading,
            WorkerStateV1::Ready => WorkerState::Ready,
            WorkerStateV1::Busy => WorkerState::Busy,
            WorkerStateV1::Draining => WorkerState::Draining,
            WorkerStateV1::Stopping => WorkerState::Stopping,
            WorkerStateV1::Failed => WorkerState::Failed,
        }
    }
}

impl ModelV2 {
    /// A model with what it needs, as far as that is known.
    pub fn new(names: ModelNames, needs: Option<ModelNeeds>) -> Self {
        let ModelNames { id, names } = names;
        let (weights_bytes, shapes) =
            needs.map_or((0, Vec::new()), |needs| (needs.weights_bytes, needs.shapes));
        let shape = |ShapeNeeds { slots, ctx, bytes }| ShapeV2 { slots, ctx, bytes };
        ModelV2 { id, names, weights_bytes, shapes: shapes.into_iter().map(shape).collect() }
    }

    pub fn parts(self) -> (ModelNames, ModelNeeds) {
        let ModelV2 { id, names, weights_bytes, shapes } = self;
        let shape = |ShapeV2 { slots, ctx, bytes }| ShapeNeeds { slots, ctx, bytes };
        let shapes = shapes.into_iter().map(shape).collect();
        (ModelNames { id: id.clone(), names }, ModelNeeds { id, weights_bytes, shapes })
    }
}

impl From<EngineInfo> for EngineV2 {
    fn from(e: EngineInfo) -> Self {
        let EngineInfo { id, kind, version, foreign } = e;
        EngineV2 { id, kind, version, foreign }
    }
}

impl From<EngineV2> for EngineInfo {
    fn from(e: EngineV2) -> Self {
        let EngineV2 { id, kind, version, foreign } = e;
        EngineInfo { id, kind, version, foreign }
    }
}

impl From<DeviceSpeed> for SpeedV2 {
    fn from(s: DeviceSpeed) -> Self {
        let DeviceSpeed { device, bytes_per_second } = s;
        SpeedV2 { device, bytes_per_second }
    }
}

impl From<SpeedV2> for DeviceSpeed {
    fn from(s: SpeedV2) -> Self {
        let SpeedV2 { device, bytes_per_second } = s;
        DeviceSpeed { device, bytes_per_second }
    }
}

impl From<Device> for DeviceV1 {
    fn from(d: Device) -> Self {
        let Device { id, name, device_type, memory_bytes, memory_free_bytes, compute_capability } = d;
        DeviceV1 { id, name, device_type, memory_bytes, memory_free_bytes, compute_capability }
    }
}

impl From<DeviceV1> for Device {
    fn from(d: DeviceV1) -> Self {
        let DeviceV1 { id, name, device_type, memory_bytes, memory_free_bytes, compute_capability } = d;
        Device { id, name, device_type, memory_bytes, memory_free_bytes, compute_capability }
    }
}

impl From<WorkerInfo> for WorkerV1 {
    fn from(w: WorkerInfo) -> Self {
        WorkerV1 {
            worker_id: w.worker_id,
            state: w.state.into(),
            model: w.model,
            worker: w.worker,
            device: w.device,
            slots_total: w.slots_total,
            slots_busy: w.slots_busy,
            ctx: w.ctx,
            memory_bytes: w.memory_bytes,
            pid: w.pid,
            started_at: w.started_at,
            last_used: w.last_used,
            pinned: w.pinned,
        }
    }
}

impl WorkerV1 {
    /// The worker as the rest of the program knows it: the hive's name is the link's, not the frame's.
    pub fn on(self, hive: &str) -> WorkerInfo {
        WorkerInfo {
            url: format!("/v1/hives/{hive}/v1/workers/{}", self.worker_id),
            worker_id: self.worker_id,
            hive: hive.to_owned(),
            state: self.state.into(),
            model: self.model,
            worker: self.worker,
            device: self.device,
            slots_total: self.slots_total,
            slots_busy: self.slots_busy,
            ctx: self.ctx,
            memory_bytes: self.memory_bytes,
            pid: self.pid,
            started_at: self.started_at,
            last_used: self.last_used,
            pinned: self.pinned,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker() -> WorkerV1 {
        WorkerV1 {
            worker_id: "w1".into(),
            state: WorkerStateV1::Busy,
            model: "tiny".into(),
            worker: "cpu".into(),
            device: "CPU-0".into(),
            slots_total: 4,
            slots_busy: 1,
            ctx: 4096,
            memory_bytes: 300,
            pid: Some(7),
            started_at: 1,
            last_used: 2,
            pinned: false,
        }
    }

    #[test]
    fn version_1_keeps_its_golden_bytes() {
        let bytes = encode(&Frame::V1(TelemetryV1::Workers(vec![worker()]))).unwrap();
        let golden: &[u8] = &[
            0, 0, 0, 34, 0, 1, 1, 2, b'w', b'1', 3, 4, b't', b'i', b'n', b'y', 3, b'c', b'p', b'u', 5, b'C',
            b'P', b'U', b'-', b'0', 4, 1, 0x80, 0x20, 0xac, 0x02, 1, 14, 1, 2, 0,
        ];
        assert_eq!(bytes[..4], (bytes.len() as u32 - 4).to_be_bytes());
        assert_eq!(bytes[4..], golden[4..]);
        assert_eq!(encode(&Frame::V1(TelemetryV1::Tick)).unwrap(), [0, 0, 0, 2, 0, 5]);
        let model = ModelV1 { id: "tiny".into(), names: vec!["t".into()] };
        let golden = [0, 0, 0, 11, 0, 3, 1, 4, b't', b'i', b'n', b'y', 1, 1, b't'];
        assert_eq!(encode(&Frame::V1(TelemetryV1::Models(vec![model]))).unwrap(), golden);
    }

    #[test]
    fn version_2_keeps_its_golden_bytes_and_is_understood_by_a_queen_of_version_1() {
        let model = ModelV2 {
            id: "tiny".into(),
            names: vec!["t".into()],
            weights_bytes: 5,
            shapes: vec![ShapeV2 { slots: 4, ctx: 512, bytes: 300 }],
        };
        let engine = EngineV2 { id: "e".into(), kind: "cpu".into(), version: "1".into(), foreign: true };
        let speed = SpeedV2 { device: "CPU-0".into(), bytes_per_second: 7 };
        let golden: [(TelemetryV2, &[u8]); 5] = [
            (TelemetryV2::Tick, &[1, 7]),
            (TelemetryV2::Draining(true), &[1, 6, 1]),
            (
                TelemetryV2::Models(vec![model.clone()]),
                &[1, 3, 1, 4, b't', b'i', b'n', b'y', 1, 1, b't', 5, 1, 4, 0x80, 4, 0xac, 2],
            ),
            (TelemetryV2::Engines(vec![engine]), &[1, 4, 1, 1, b'e', 3, b'c', b'p', b'u', 1, b'1', 1]),
            (TelemetryV2::Speeds(vec![speed]), &[1, 5, 1, 5, b'C', b'P', b'U', b'-', b'0', 7]),
        ];
        for (telemetry, bytes) in golden {
            assert_eq!(encode(&Frame::V2(telemetry)).unwrap()[4..], *bytes);
        }
        let older = TelemetryV2::Models(vec![model]).as_v1();
        let known = TelemetryV1::Models(vec![ModelV1 { id: "tiny".into(), names: vec!["t".into()] }]);
        assert_eq!(older, Some(known));
        assert_eq!(TelemetryV2::Engines(Vec::new()).as_v1(), None);
    }

    #[test]
    fn frames_come_out_of_any_cut_of_the_stream() {
        let frames =
            [Frame::V1(TelemetryV1::Tick), Frame::V1(TelemetryV1::Workers(vec![worker(), worker()]))];
        let stream: Vec<u8> = frames.iter().flat_map(|f| encode(f).unwrap()).collect();
        for cut in 0..=stream.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in [&stream[..cut], &stream[cut..]] {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, frames);
        }
    }

    #[test]
    fn an_absurd_length_is_an_error_before_it_is_an_allocation() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_be_bytes());
        assert!(matches!(decoder.next_frame(), Err(CodecError::TooLong(_))));
    }
}
