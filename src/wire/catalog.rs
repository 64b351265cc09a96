//! Recipes and what they become, as catalogs serve them and hives tell of them.

use serde::{Deserialize, Serialize};

/// One recipe of a catalog: the 21 fields that every client knows, and ours beside them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogEntry {
    pub id: String,
    /// Whose engine it is: `rbee` for our own, else the project's name.
    pub implementation: String,
    /// `cpu`, `cuda` or `metal`; `model` for a recipe that brings a model.
    pub worker_type: String,
    pub version: String,
    /// `linux`, `macos`.
    pub platforms: Vec<String>,
    /// As PKGBUILDs name them: `x86_64`, `aarch64`, `any`.
    pub architectures: Vec<String>,
    pub name: String,
    pub description: String,
    pub license: String,
    /// Where the PKGBUILD is, from the catalog's root.
    pub pkgbuild_url: String,
    /// `cargo`, `cmake`, `none`.
    pub build_system: String,
    pub source: RecipeSource,
    pub build: RecipeBuild,
    #[serde(default)]
    pub depends: Vec<String>,
    #[serde(default)]
    pub makedepends: Vec<String>,
    pub binary_name: String,
    /// Where the binary lies below the package's directory.
    pub install_path: String,
    pub supported_formats: Vec<String>,
    pub max_context_length: Option<u32>,
    pub supports_streaming: bool,
    pub supports_batching: bool,
    /// How an engine that is not ours is started and asked; none for our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<Serve>,
    /// What the recipe asks of a node beyond the default, and a person should see: `network=prepare`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecipeSource {
    /// `archive` or `git`.
    #[serde(rename = "type")]
    pub kind: String,
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecipeBuild {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flags: Option<Vec<String>>,
}

/// How an engine that is not ours is run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Serve {
    /// Words of its command line after the program. `{model}`, `{alias}`, `{host}`, `{port}`, `{slots}`, `{ctx}`,
    /// `{ctx_total}`, `{key_file}` are filled in.
    pub argv: Vec<String>,
    /// The environment variable that carries the key, where the engine reads it from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// The path that answers 200 once the model is loaded.
    pub health: String,
    /// What it speaks: `openai`.
    pub api: String,
}

/// A worker that a recipe has put on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InstalledWorker {
    pub worker_id: String,
    pub version: String,
    pub path: String,
    pub size_bytes: u64,
    /// Milliseconds since the epoch.
    pub installed_at: u64,
    /// The catalog it came from, or `built-in`.
    pub source: String,
    pub recipe_sha256: String,
    /// `cpu`, `cuda` or `metal`.
    pub backend: String,
}

/// A process that a hive has started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessInfo {
    pub pid: i32,
    pub worker_id: String,
    pub command: String,
    pub memory_kb: u64,
    pub cpu_percent: f64,
    /// Seconds.
    pub elapsed: u64,
}
