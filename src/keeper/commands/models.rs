//! `rbee model …`: what lies on a node's disk.

use crate::config::Settings;
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, size};
use crate::keeper::server::Server;
use crate::keeper::{KeeperError, start};
use crate::model::Reference;
use crate::wire::fleet::ModelInfo;
use crate::wire::operation::HiveOperation;
use serde::Deserialize;
use serde_json::{Value, json};

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

fn named(settings: &Settings) -> Result<String, KeeperError> {
    let reference = Reference::parse(&settings.positionals().join(" "));
    Ok(reference.map_err(|error| KeeperError::Refused(error.into()))?.to_string())
}

/// Runs one operation on a hive; its result.
pub(super) async fn ask(
    settings: &Settings,
    render: &Render,
    operation: HiveOperation,
) -> Result<Value, KeeperError> {
    let server = Server::of(settings)?;
    let mut jobs = Follower::new(&server, render, settings.duration("timeout"))?;
    jobs.run(&json!(operation), &mut |_| Ok(())).await
}

/// Starts what is missing, as `run` does: fetching a model is how many people begin.
pub async fn download(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let operation = HiveOperation::ModelDownload { model: named(settings)? };
    start::ensure(settings, render, &Server::of(settings)?, false).await?;
    let model = ask(settings, render, operation).await?;
    show(render, &model)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let operation = HiveOperation::ModelGet { id: named(settings)? };
    let model = ask(settings, render, operation).await?;
    show(render, &model)
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Models {
        models: Vec<ModelInfo>,
    }
    let answer = ask(settings, render, HiveOperation::ModelList).await?;
    let models = serde_json::from_value::<Models>(answer)
        .map_err(|error| KeeperError::local("reading the models", error))?
        .models;
    if render.is_json() {
        return render.value(&json!(models)).map_err(writing);
    }
    let row = |model: &ModelInfo| {
        vec![
            model.id.clone(),
            model.architecture.clone(),
            model.quantization.clone(),
            size(model.size_bytes),
            model.context_length.to_string(),
            model.in_use_by.join(", "),
        ]
    };
    let columns = &["model", "architecture", "quantisation", "size", "context", "in use by"];
    render.table(columns, models.iter().map(row).collect()).map_err(writing)
}

/// B33: all facts of one model.
fn show(render: &Render, model: &Value) -> Result<(), KeeperError> {
    if render.is_json() {
        return render.value(model).map_err(writing);
    }
    let model: ModelInfo = serde_json::from_value(model.clone())
        .map_err(|error| KeeperError::local("reading the model", error))?;
    let mut facts = vec![
        ("model", model.id),
        ("architecture", model.architecture),
        ("parameters", format!("{:.1} M", model.parameters as f64 / 1e6)),
        ("quantisation", model.quantization),
        ("context length", model.context_length.to_string()),
        ("vocabulary", model.vocabulary.to_string()),
        ("chat template", if model.chat_template { "yes" } else { "no" }.to_owned()),
        ("size", size(model.size_bytes)),
        ("path", model.path),
    ];
    facts.extend(model.revision.map(|revision| ("revision", revision)));
    facts.extend(model.files.into_iter().filter_map(|file| Some(("sha256", file.sha256?))));
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let text: String = facts.iter().map(|(name, fact)| format!("{name:width$}  {fact}\n")).collect();
    render.answer(&text).map_err(writing)
}
