//! What a job can be asked to do: one operation a job, tagged by `operation`.

use super::openai::ChatMessage;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// The longest id, name or reference in an operation. Errors repeat them, and an event has a limit of its own.
pub const NAMED_BYTES_MAX: usize = 8 << 10;

fn named<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    if text.len() > NAMED_BYTES_MAX {
        let what = format!("an id, a name or a reference has at most {NAMED_BYTES_MAX} bytes");
        return Err(D::Error::custom(what));
    }
    Ok(text)
}

fn perhaps_named<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    struct Named(#[serde(deserialize_with = "named")] String);
    Ok(Option::<Named>::deserialize(from)?.map(|Named(text)| text))
}

/// Operations a hive runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum HiveOperation {
    WorkerCatalogList,
    WorkerCatalogGet {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    #[serde(alias = "worker_binary_list")]
    WorkerListInstalled,
    #[serde(alias = "worker_binary_get")]
    WorkerInstalledGet {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    #[serde(alias = "worker_download")]
    WorkerInstall {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    #[serde(alias = "worker_binary_delete")]
    WorkerRemove {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    WorkerSpawn(WorkerSpawn),
    WorkerStop {
        #[serde(deserialize_with = "named")]
        worker_id: String,
        /// Refused while it is at work or pinned: what makes room must not cost anybody an answer.
        #[serde(default)]
        if_idle: bool,
    },
    /// No new requests; it stops when those at work are done, or with `now` at once.
    WorkerRetire {
        #[serde(deserialize_with = "named")]
        worker_id: String,
        #[serde(default)]
        now: bool,
    },
    WorkerProcessList,
    WorkerProcessGet {
        pid: i32,
    },
    WorkerProcessDelete {
        pid: i32,
    },
    ModelDownload {
        #[serde(deserialize_with = "named")]
        model: String,
    },
    ModelList,
    ModelGet {
        #[serde(deserialize_with = "named")]
        id: String,
    },
    #[serde(alias = "model_delete")]
    ModelRemove {
        #[serde(deserialize_with = "named")]
        id: String,
    },
    /// All of them where none is named.
    ModelVerify {
        #[serde(default, deserialize_with = "perhaps_named")]
        id: Option<String>,
    },
    /// Only looks where `apply` is not said.
    ModelPrune {
        #[serde(default)]
        apply: bool,
    },
    ModelAliasList,
    ModelAliasSet {
        #[serde(deserialize_with = "named")]
        name: String,
        #[serde(deserialize_with = "named")]
        model: String,
    },
    ModelAliasRemove {
        #[serde(deserialize_with = "named")]
        name: String,
    },
    /// Takes the hive out of service, or puts it back.
    HiveDrain {
        #[serde(default)]
        undo: bool,
    },
    Status,
    HiveCheck,
}

impl HiveOperation {
    pub const NAMES: &[&str] = &[
        "worker_catalog_list",
        "worker_catalog_get",
        "worker_list_installed",
        "worker_installed_get",
        "worker_install",
        "worker_remove",
        "worker_spawn",
        "worker_stop",
        "worker_retire",
        "worker_process_list",
        "worker_process_get",
        "worker_process_delete",
        "model_download",
        "model_list",
        "model_get",
        "model_remove",
        "model_verify",
        "model_prune",
        "model_alias_list",
        "model_alias_set",
        "model_alias_remove",
        "hive_drain",
        "status",
        "hive_check",
    ];

    /// What older clients say, each with its name of today.
    const OLDER_NAMES: &[(&str, &str)] = &[
        ("worker_binary_list", "worker_list_installed"),
        ("worker_binary_get", "worker_installed_get"),
        ("worker_binary_delete", "worker_remove"),
        ("worker_download", "worker_install"),
        ("model_delete", "model_remove"),
    ];

    /// Whether this word names an operation of a hive, today or in older clients.
    pub fn is_name(word: &str) -> bool {
        Self::NAMES.contains(&word) || Self::OLDER_NAMES.iter().any(|(older, _)| *older == word)
    }

    pub fn name(&self) -> &'static str {
        match self {
            HiveOperation::WorkerCatalogList => "worker_catalog_list",
            HiveOperation::WorkerCatalogGet { .. } => "worker_catalog_get",
            HiveOperation::WorkerListInstalled => "worker_list_installed",
            HiveOperation::WorkerInstalledGet { .. } => "worker_installed_get",
            HiveOperation::WorkerInstall { .. } => "worker_install",
            HiveOperation::WorkerRemove { .. } => "worker_remove",
            HiveOperation::WorkerSpawn(_) => "worker_spawn",
            HiveOperation::WorkerStop { .. } => "worker_stop",
            HiveOperation::WorkerRetire { .. } => "worker_retire",
            HiveOperation::WorkerProcessList => "worker_process_list",
            HiveOperation::WorkerProcessGet { .. } => "worker_process_get",
            HiveOperation::WorkerProcessDelete { .. } => "worker_process_delete",
            HiveOperation::ModelDownload { .. } => "model_download",
            HiveOperation::ModelList => "model_list",
            HiveOperation::ModelGet { .. } => "model_get",
            HiveOperation::ModelRemove { .. } => "model_remove",
            HiveOperation::ModelVerify { .. } => "model_verify",
            HiveOperation::ModelPrune { .. } => "model_prune",
            HiveOperation::ModelAliasList => "model_alias_list",
            HiveOperation::ModelAliasSet { .. } => "model_alias_set",
            HiveOperation::ModelAliasRemove { .. } => "model_alias_remove",
            HiveOperation::HiveDrain { .. } => "hive_drain",
            HiveOperation::Status => "status",
            HiveOperation::HiveCheck => "hive_check",
        }
    }
}

/// A worker that is wanted. Asking twice for the same model, worker and device gives the same worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerSpawn {
    #[serde(deserialize_with = "named")]
    pub model: String,
    /// `cpu`, `cuda`, `metal` or an installed worker's id; the node's best when absent.
    #[serde(default, deserialize_with = "perhaps_named")]
    pub worker: Option<String>,
    #[serde(default, deserialize_with = "perhaps_named")]
    pub device: Option<String>,
    #[serde(default)]
    pub slots: Option<u32>,
    /// Tokens a slot.
    #[serde(default)]
    pub ctx: Option<u32>,
    #[serde(default)]
    pub pin: bool,
}

impl WorkerSpawn {
    /// A worker for a model, all else as the node thinks best.
    pub fn of(model: impl Into<String>) -> Self {
        WorkerSpawn { model: model.into(), worker: None, device: None, slots: None, ctx: None, pin: false }
    }
}

/// Operations the queen runs herself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
pub enum QueenOperation {
    Infer(Box<Infer>),
    ActiveWorkerList,
    ActiveWorkerGet {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    ActiveWorkerRetire {
        #[serde(deserialize_with = "named")]
        worker_id: String,
    },
    HiveList,
    HiveGet {
        #[serde(deserialize_with = "named")]
        name: String,
    },
    HiveDrain {
        #[serde(deserialize_with = "named")]
        name: String,
        #[serde(default)]
        undo: bool,
    },
    Status,
    QueenCheck,
}

impl QueenOperation {
    pub const NAMES: &[&str] = &[
        "infer",
        "active_worker_list",
        "active_worker_get",
        "active_worker_retire",
        "hive_list",
        "hive_get",
        "hive_drain",
        "status",
        "queen_check",
    ];

    pub fn name(&self) -> &'static str {
        match self {
            QueenOperation::Infer(_) => "infer",
            QueenOperation::ActiveWorkerList => "active_worker_list",
            QueenOperation::ActiveWorkerGet { .. } => "active_worker_get",
            QueenOperation::ActiveWorkerRetire { .. } => "active_worker_retire",
            QueenOperation::HiveList => "hive_list",
            QueenOperation::HiveGet { .. } => "hive_get",
            QueenOperation::HiveDrain { .. } => "hive_drain",
            QueenOperation::Status => "status",
            QueenOperation::QueenCheck => "queen_check",
        }
    }
}

/// What a keeper does with its own hands, its person's ssh for one, and reports to the queen: her job of it is watched and cancelled
/// like any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportedOperation {
    HiveInstall,
    HiveUpdate,
    HiveUninstall,
}

impl ReportedOperation {
    pub const ALL: &[ReportedOperation] =
        &[ReportedOperation::HiveInstall, ReportedOperation::HiveUpdate, ReportedOperation::HiveUninstall];

    pub fn name(self) -> &'static str {
        match self {
            ReportedOperation::HiveInstall => "hive_install",
            ReportedOperation::HiveUpdate => "hive_update",
            ReportedOperation::HiveUninstall => "hive_uninstall",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|operation| operation.name() == name).copied()
    }
}

/// One answer, as a job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Infer {
    #[serde(deserialize_with = "named")]
    pub model: String,
    /// Either a prompt, continued as it stands, or messages, put through the model's own template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<ChatMessage>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// llama-server's: go on past the end-of-generation token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    #[serde(default, deserialize_with = "perhaps_named", skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    #[serde(default, deserialize_with = "perhaps_named", skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    #[serde(default, deserialize_with = "perhaps_named", skip_serializing_if = "Option::is_none")]
    pub hive: Option<String>,
    #[serde(default)]
    pub stream: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_names_mean_what_todays_mean() {
        for (older, today) in HiveOperation::OLDER_NAMES {
            let read = |name: &str| {
                let value = serde_json::json!({"operation": name, "worker_id": "w", "id": "m"});
                serde_json::from_value::<HiveOperation>(value).unwrap()
            };
            assert_eq!(read(older), read(today));
            assert!(HiveOperation::is_name(older) && read(older).name() == *today);
        }
    }

    #[test]
    fn what_an_operation_names_is_short() {
        let long = "x".repeat(NAMED_BYTES_MAX + 1);
        let reads = |value: serde_json::Value| serde_json::from_value::<HiveOperation>(value).is_ok();
        for (operation, field) in [
            ("worker_stop", "worker_id"),
            ("worker_spawn", "model"),
            ("worker_spawn", "device"),
            ("model_get", "id"),
            ("model_verify", "id"),
            ("model_alias_remove", "name"),
        ] {
            let with = |text: &str| {
                let mut value = serde_json::json!({"operation": operation, "model": "m"});
                value[field] = text.into();
                value
            };
            assert!(reads(with(&long[1..])) && !reads(with(&long)), "{operation} {field}");
        }
        assert!(reads(serde_json::json!({"operation": "model_verify", "id": null})));
        let infer = serde_json::json!({"operation": "infer", "model": long, "prompt": "p"});
        assert!(serde_json::from_value::<QueenOperation>(infer).is_err());
        let talkative = serde_json::json!({"operation": "infer", "model": "m", "prompt": long});
        assert!(serde_json::from_value::<QueenOperation>(talkative).is_ok());
    }

    #[test]
    fn operations_are_tagged_in_snake_case() {
        let op: HiveOperation =
            serde_json::from_str(r#"{"operation":"worker_spawn","model":"m","worker":"cpu"}"#).unwrap();
        assert_eq!(op.name(), "worker_spawn");
        let op: QueenOperation =
            serde_json::from_str(r#"{"operation":"infer","model":"m","prompt":"p","max_tokens":4}"#).unwrap();
        assert_eq!(op.name(), "infer");
    }
}
