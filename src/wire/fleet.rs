//! What is known of hives, workers, devices and models, in the shapes of contract/http.md.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Starting,
    Loading,
    Ready,
    Busy,
    Draining,
    Stopping,
    Failed,
}

impl WorkerState {
    pub const ALL: [WorkerState; 7] = [
        WorkerState::Starting,
        WorkerState::Loading,
        WorkerState::Ready,
        WorkerState::Busy,
        WorkerState::Draining,
        WorkerState::Stopping,
        WorkerState::Failed,
    ];

    /// Whether a request may be sent to it now.
    pub fn serves(self) -> bool {
        matches!(self, WorkerState::Ready | WorkerState::Busy)
    }

    /// Whether it will serve soon, so that waiting beats spawning another.
    pub fn is_coming(self) -> bool {
        matches!(self, WorkerState::Starting | WorkerState::Loading)
    }

    pub fn name(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Loading => "loading",
            WorkerState::Ready => "ready",
            WorkerState::Busy => "busy",
            WorkerState::Draining => "draining",
            WorkerState::Stopping => "stopping",
            WorkerState::Failed => "failed",
        }
    }
}

/// A live worker. Times are milliseconds since the epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerInfo {
    pub worker_id: String,
    pub hive: String,
    pub state: WorkerState,
    /// The model's canonical name: what /v1/models lists and requests name.
    pub model: String,
    /// The kind of engine: `cpu`, `cuda`, `metal` or an installed worker's id.
    pub worker: String,
    pub device: String,
    pub slots_total: u32,
    pub slots_busy: u32,
    /// Tokens a slot.
    pub ctx: u32,
    pub memory_bytes: u64,
    pub pid: Option<i32>,
    pub started_at: u64,
    pub last_used: u64,
    pub pinned: bool,
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// `CPU-0`, `GPU-0`, …
    pub id: String,
    pub name: String,
    /// `cpu`, `cuda` or `metal`.
    pub device_type: String,
    pub memory_bytes: u64,
    pub memory_free_bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compute_capability: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    pub devices: Vec<Device>,
    pub os: String,
    pub arch: String,
    pub cpu_features: Vec<String>,
    /// What can run a model here: the engine inside the binary first, then those installed.
    #[serde(default)]
    pub engines: Vec<EngineInfo>,
    /// How process trees are held together.
    #[serde(default)]
    pub containment: Containment,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    pub id: String,
    /// `cpu`, `cuda` or `metal`.
    pub kind: String,
    pub version: String,
    /// Another project's: it serves those who name it, or a kind that nothing else on its node can do.
    #[serde(default)]
    pub foreign: bool,
}

/// The rungs of the containment ladder that this node uses, and why not stronger ones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Containment {
    pub workers: String,
    pub builds: String,
    pub unavailable: Vec<String>,
}

/// A hive as the queen knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HiveInfo {
    pub name: String,
    pub version: String,
    pub state: HiveState,
    /// The hive's own listen address, for people; the queen talks over the link.
    pub listen: String,
    pub connected_at: u64,
    pub last_seen: u64,
    pub devices: Vec<Device>,
    pub workers: Vec<WorkerInfo>,
    /// Models on that node's disk.
    pub models: Vec<String>,
    /// The same models with their other names.
    #[serde(default)]
    pub model_names: Vec<ModelNames>,
    /// What they take in memory, in order of their ids.
    #[serde(default)]
    pub model_needs: Vec<ModelNeeds>,
    #[serde(default)]
    pub engines: Vec<EngineInfo>,
    /// Of those devices that have generated something yet.
    #[serde(default)]
    pub speeds: Vec<DeviceSpeed>,
    pub os: String,
    pub arch: String,
}

impl HiveInfo {
    pub fn device(&self, id: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    pub fn needs(&self, model: &str) -> Option<&ModelNeeds> {
        let place = self.model_needs.binary_search_by(|needs| needs.id.as_str().cmp(model)).ok()?;
        self.model_needs.get(place)
    }
}

/// What a model takes on a node: the shapes that its hive tries in turn, the one it wishes for first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNeeds {
    pub id: String,
    /// What is read for each token, about.
    pub weights_bytes: u64,
    pub shapes: Vec<ShapeNeeds>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapeNeeds {
    pub slots: u32,
    /// Tokens a slot.
    pub ctx: u32,
    pub bytes: u64,
}

/// How fast a device was seen to generate, as the bytes of weights it gets through in a second: that hardly depends on the
/// model, where tokens a second do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSpeed {
    pub device: String,
    pub bytes_per_second: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiveState {
    Online,
    Draining,
    Lost,
}

/// A file of a model on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelFile {
    pub name: String,
    pub size: u64,
    pub sha256: Option<String>,
    /// When its bytes last had this sum; none if they were changed since.
    #[serde(default)]
    pub verified_at: Option<u64>,
    /// The sum is the node's own, of the file as it was found: nobody has published one.
    #[serde(default)]
    pub recorded: bool,
}

/// A model on a node's disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    pub id: String,
    pub reference: String,
    pub revision: Option<String>,
    pub files: Vec<ModelFile>,
    pub size_bytes: u64,
    pub architecture: String,
    pub parameters: u64,
    pub quantization: String,
    pub context_length: u32,
    pub vocabulary: u32,
    pub chat_template: bool,
    pub path: String,
    pub added_at: u64,
    pub in_use_by: Vec<String>,
    #[serde(default)]
    pub aliases: Vec<String>,
    /// Its bytes are not those that were verified: it is not used until it was fetched again.
    #[serde(default)]
    pub damaged: bool,
}

/// A model that a node can use, and what else it may be asked for by: aliases first, then the hub's names of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNames {
    pub id: String,
    pub names: Vec<String>,
}

/// A name that a person has given to a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelAlias {
    pub name: String,
    /// What it stands for.
    pub model: String,
    /// The model of the node that this means now, if one does.
    pub id: Option<String>,
}

/// GET /health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    pub status: String,
    pub version: String,
    pub api_version: String,
}

/// GET /v1/info.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Info {
    /// `queen` or `hive`.
    pub role: String,
    pub name: String,
    pub base_url: String,
    pub version: String,
    pub protocol: u32,
    pub features: Vec<String>,
    pub build: String,
    pub pid: u32,
    pub started_at: u64,
}

/// POST /v1/tokens: a join token for the next node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRequest {
    pub ttl_ms: u64,
}

/// DELETE /v1/tokens: a token that is to let nobody in any more, nor whoever it has let in.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenWithdrawal {
    pub token: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenAnswer {
    pub token: String,
    pub expires_at: u64,
    /// Where the queen listens, so that a node can be told whom to dial.
    pub listen: Vec<String>,
}

/// POST /v1/join: who wants to be let in by a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    pub hive: String,
    pub node: String,
}

#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinAnswer {
    pub hive: String,
    /// The node's own from now on.
    pub key: String,
}

/// What an infer job answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InferResult {
    pub text: String,
    pub finish_reason: String,
    pub usage: super::openai::Usage,
    pub worker_id: String,
    pub model: String,
    pub timings: Value,
}

/// Milliseconds since the epoch, for records that people and other machines read.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
