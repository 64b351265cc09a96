//! What a worker is told, taken out of the settings and checked against each other.

use super::chat::TemplateSource;
use crate::config::Settings;
use crate::daemon;
use std::path::PathBuf;

/// Tokens a slot, if nothing else is said and the model was trained for as many.
pub const CONTEXT_DEFAULT: u32 = 4_096;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// GPUs if this build has them, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// The n-th GPU.
    Gpu(u32),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlashAttention {
    #[default]
    Auto,
    On,
    Off,
}

/// The type of the KV cache's entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CacheType {
    F32,
    #[default]
    F16,
    Bf16,
    Q8_0,
    Q5_1,
    Q5_0,
    Q4_1,
    Q4_0,
    Iq4Nl,
}

impl CacheType {
    const NAMES: [(&str, CacheType); 9] = [
        ("f32", CacheType::F32),
        ("f16", CacheType::F16),
        ("bf16", CacheType::Bf16),
        ("q8_0", CacheType::Q8_0),
        ("q5_1", CacheType::Q5_1),
        ("q5_0", CacheType::Q5_0),
        ("q4_1", CacheType::Q4_1),
        ("q4_0", CacheType::Q4_0),
        ("iq4_nl", CacheType::Iq4Nl),
    ];
}

#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    pub device: Device,
    /// `None`: all of them, if there is a GPU.
    pub gpu_layers: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct ContextOptions {
    pub sequences: u32,
    /// Tokens a sequence.
    pub context: u32,
    /// Rows of one decode.
    pub batch: u32,
    /// Rows computed at once.
    pub ubatch: u32,
    pub threads: u32,
    pub threads_batch: u32,
    pub cache_k: CacheType,
    pub cache_v: CacheType,
    pub flash_attention: FlashAttention,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(String),
    Unix(PathBuf),
    /// A listening unix socket, inherited.
    Inherited(i32),
}

#[derive(Debug, Clone)]
pub struct Options {
    pub model: PathBuf,
    /// What clients call the model.
    pub alias: String,
    pub listen: Vec<Endpoint>,
    pub api_key: Option<String>,
    /// When this pipe closes, the worker ends at once.
    pub lease_fd: Option<i32>,
    /// Tokens over all slots, as llama-server counts them.
    pub ctx_size: Option<u32>,
    pub parallel: u32,
    pub threads: u32,
    pub threads_batch: u32,
    pub batch_size: u32,
    pub ubatch_size: u32,
    pub device: Device,
    pub n_gpu_layers: Option<u32>,
    pub cache_type_k: CacheType,
    pub cache_type_v: CacheType,
    pub flash_attention: FlashAttention,
    pub chat_template: Option<TemplateSource>,
}

#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    #[error(transparent)]
    Key(#[from] daemon::DaemonError),
    #[error("`--device {0}` is not a device: give cpu, GPU-0 or a GPU's number")]
    Device(String),
    #[error("--chat-template and --chat-template-file are one too many; give one of them")]
    TwoTemplates,
    #[error("--ctx-size {ctx_size} over --parallel {parallel} slots leaves less than {least} tokens a slot")]
    ContextTooSmall { ctx_size: u32, parallel: u32, least: u32 },
}

/// Fewer tokens in a slot are of no use.
pub const CONTEXT_MIN: u32 = 16;

impl Options {
    /// An engine with the defaults for a model file, for tests and tools.
    pub fn for_model(model: impl Into<PathBuf>) -> Self {
        let model = model.into();
        let threads = cores();
        Options {
            alias: model.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            model,
            listen: Vec::new(),
            api_key: None,
            lease_fd: None,
            ctx_size: None,
            parallel: 4,
            threads,
            threads_batch: threads,
            batch_size: 2_048,
            ubatch_size: 512,
            device: Device::Auto,
            n_gpu_layers: None,
            cache_type_k: CacheType::default(),
            cache_type_v: CacheType::default(),
            flash_attention: FlashAttention::Auto,
            chat_template: None,
        }
    }

    pub fn from_settings(settings: &Settings) -> Result<Self, OptionsError> {
        let defaults = Options::for_model(settings.path("model").map(PathBuf::from).unwrap_or_default());
        let number = |name: &str| settings.number::<u32>(name);
        let threads = number("threads").unwrap_or(defaults.threads);
        let chat_template = match (settings.text("chat-template"), settings.path("chat-template-file")) {
            (Some(_), Some(_)) => return Err(OptionsError::TwoTemplates),
            (Some(text), None) => Some(TemplateSource::Text(text.to_owned())),
            (None, file) => file.map(|file| TemplateSource::File(file.to_owned())),
        };
        let options = Options {
            alias: settings.text("alias").map_or(defaults.alias.clone(), str::to_owned),
            listen: endpoints(settings),
            api_key: daemon::api_key(settings)?,
            lease_fd: settings.number("lease-fd"),
            ctx_size: number("ctx-size").filter(|n| *n > 0),
            parallel: number("parallel").unwrap_or(defaults.parallel),
            threads,
            threads_batch: number("threads-batch").unwrap_or(threads),
            batch_size: number("batch-size").unwrap_or(defaults.batch_size),
            ubatch_size: number("ubatch-size").unwrap_or(defaults.ubatch_size),
            device: settings.text("device").map_or(Ok(Device::Auto), device)?,
            n_gpu_layers: number("n-gpu-layers"),
            cache_type_k: settings.text("cache-type-k").map_or(CacheType::default(), cache_type),
            cache_type_v: settings.text("cache-type-v").map_or(CacheType::default(), cache_type),
            flash_attention: match settings.text("flash-attn") {
                Some("on") => FlashAttention::On,
                Some("off") => FlashAttention::Off,
                _ => FlashAttention::Auto,
            },
            chat_template,
            ..defaults
        };
        match options.ctx_size {
            Some(ctx_size) if ctx_size / options.parallel < CONTEXT_MIN => {
                Err(OptionsError::ContextTooSmall {
                    ctx_size,
                    parallel: options.parallel,
                    least: CONTEXT_MIN,
                })
            }
            _ => Ok(options),
        }
    }

    /// Tokens a slot for a model that was trained for so many.
    pub fn context_per_slot(&self, trained: u32) -> u32 {
        match self.ctx_size {
            Some(total) => total / self.parallel.max(1),
            None => CONTEXT_DEFAULT.min(trained.max(CONTEXT_MIN)),
        }
    }
}

/// `--listen` where it is given, else `--host` and `--port`.
fn endpoints(settings: &Settings) -> Vec<Endpoint> {
    let given = settings.texts("listen");
    if given.is_empty() {
        let host = settings.text("host").unwrap_or("127.0.0.1");
        let port = settings.number::<u16>("port").unwrap_or(0);
        let host =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.into() };
        return vec![Endpoint::Tcp(format!("{host}:{port}"))];
    }
    given.into_iter().map(endpoint).collect()
}

fn endpoint(text: &str) -> Endpoint {
    if let Some(path) = text.strip_prefix("unix:") {
        return Endpoint::Unix(path.into());
    }
    match text.strip_prefix("fd:").and_then(|fd| fd.parse().ok()) {
        Some(fd) => Endpoint::Inherited(fd),
        None => Endpoint::Tcp(text.to_owned()),
    }
}

fn device(text: &str) -> Result<Device, OptionsError> {
    let lower = text.to_ascii_lowercase();
    if lower == "auto" {
        return Ok(Device::Auto);
    }
    if matches!(lower.as_str(), "cpu" | "cpu-0" | "none") {
        return Ok(Device::Cpu);
    }
    let number = ["gpu-", "cuda", "metal", "mtl"].iter().find_map(|prefix| lower.strip_prefix(prefix));
    let number = number.map(|n| n.trim_start_matches(['-', ':'])).unwrap_or(&lower);
    let number = if number.is_empty() { "0" } else { number };
    number.parse().map(Device::Gpu).map_err(|_| OptionsError::Device(text.to_owned()))
}

fn cache_type(text: &str) -> CacheType {
    CacheType::NAMES.iter().find(|(name, _)| *name == text).map_or(CacheType::default(), |(_, kind)| *kind)
}

/// The machine's share that this process may use.
fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1)).min(512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_several_ways() {
        for (text, expected) in [
            ("cpu", Device::Cpu),
            ("CPU-0", Device::Cpu),
            ("0", Device::Gpu(0)),
            ("GPU-1", Device::Gpu(1)),
            ("cuda", Device::Gpu(0)),
            ("CUDA1", Device::Gpu(1)),
            ("cuda:2", Device::Gpu(2)),
        ] {
            assert_eq!(device(text).unwrap(), expected, "{text}");
        }
        assert!(device("tpu").is_err());
    }

    #[test]
    fn the_context_is_shared_by_the_slots_and_bounded_by_the_model() {
        let mut options = Options::for_model("/m.gguf");
        assert_eq!(options.context_per_slot(32_768), CONTEXT_DEFAULT);
        assert_eq!(options.context_per_slot(2_048), 2_048);
        options.ctx_size = Some(8_192);
        assert_eq!(options.context_per_slot(2_048), 2_048);
        assert_eq!(endpoint("unix:/run/w.sock"), Endpoint::Unix("/run/w.sock".into()));
        assert_eq!(endpoint("fd:3"), Endpoint::Inherited(3));
        assert_eq!(endpoint("127.0.0.1:0"), Endpoint::Tcp("127.0.0.1:0".into()));
    }
}
