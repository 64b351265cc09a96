//! `rbee model …`: what lies on a node's disk.

use super::worker::{facts, read};
use crate::config::Settings;
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, ago, printable, size};
use crate::keeper::server::Server;
use crate::keeper::signals::Signals;
use crate::keeper::{KeeperError, start};
use crate::model::{FileVerdict, Leftover, Pruned, Reference, Removal, Verified};
use crate::wire::fleet::{ModelFile, ModelInfo};
use crate::wire::operation::HiveOperation;
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::IsTerminal;

/// A sum's digits in a table; `get` shows all.
const SUM_DIGITS: usize = 12;

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
    let mut jobs = Follower::new(&server, render)?;
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
    let models = read::<Models>("the models", &answer)?.models;
    if render.is_json() {
        return render.value(&json!(models)).map_err(writing);
    }
    let row = |model: &ModelInfo| {
        vec![
            model.id.clone(),
            model.aliases.join(", "),
            model.architecture.clone(),
            model.quantization.clone(),
            size(model.size_bytes),
            model.context_length.to_string(),
            model.in_use_by.join(", "),
        ]
    };
    let columns = &["model", "alias", "architecture", "quantisation", "size", "context", "in use by"];
    render.table(columns, models.iter().map(row).collect()).map_err(writing)?;
    for model in models.iter().filter(|model| model.damaged) {
        let id = printable(&model.id);
        render.say(&format!("warning: {id} is damaged; `rbee model download {id}` mends it"));
    }
    Ok(())
}

/// B32: says how many bytes came free.
pub async fn remove(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let removal = ask(settings, render, HiveOperation::ModelRemove { id: named(settings)? }).await?;
    if render.is_json() {
        return render.value(&removal).map_err(writing);
    }
    let Removal { id, bytes_freed, .. } = read("the removal", &removal)?;
    render.answer(&format!("removed {}, {} freed\n", printable(&id), size(bytes_freed))).map_err(writing)
}

/// One model, or all. What differs is shown with the rest, then said.
pub async fn verify(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let id = if settings.positionals().is_empty() { None } else { Some(named(settings)?) };
    let (verified, wrong) = match ask(settings, render, HiveOperation::ModelVerify { id }).await {
        Ok(verified) => (verified, None),
        Err(KeeperError::Refused(failure)) if failure.details.get("models").is_some() => {
            (failure.details.clone(), Some(failure))
        }
        Err(error) => return Err(error),
    };
    if render.is_json() {
        render.value(&verified).map_err(writing)?;
    } else {
        let Verified { models, .. } = read("the verification", &verified)?;
        let row = |id: &str, file: &FileVerdict| {
            let sum: String = file.sha256.iter().flat_map(|sum| sum.chars()).take(SUM_DIGITS).collect();
            vec![id.to_owned(), file.name.clone(), file.state.name().to_owned(), sum]
        };
        let rows = models.iter().flat_map(|model| model.files.iter().map(|file| row(&model.id, file)));
        render.table(&["model", "file", "state", "sha256"], rows.collect()).map_err(writing)?;
    }
    wrong.map_or(Ok(()), |failure| Err(failure.into()))
}

/// Shows what was left behind; removes it if a person agrees, or --yes says so.
pub async fn prune(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let look = ask(settings, render, HiveOperation::ModelPrune { apply: false }).await?;
    let found: Pruned = read("what was left", &look)?;
    if !render.is_json() {
        if found.items.is_empty() {
            return render.answer("nothing was left behind\n").map_err(writing);
        }
        let row = |item: &Leftover| vec![item.kind.told().to_owned(), size(item.bytes), item.name.clone()];
        render.table(&["what", "size", "where"], found.items.iter().map(row).collect()).map_err(writing)?;
    }
    let total = size(found.bytes);
    let is_wanted = settings.on("yes")
        || !render.is_json() && is_agreed(render, &format!("Remove these and free {total}? [y/N] ")).await?;
    if !is_wanted {
        if render.is_json() {
            return render.value(&look).map_err(writing);
        }
        let text = format!("nothing was removed; `rbee model prune --yes` frees {total}\n");
        return render.answer(&text).map_err(writing);
    }
    let done = ask(settings, render, HiveOperation::ModelPrune { apply: true }).await?;
    if render.is_json() {
        return render.value(&done).map_err(writing);
    }
    let done: Pruned = read("what was removed", &done)?;
    render.answer(&format!("{} removed, {} freed\n", done.items.len(), size(done.bytes))).map_err(writing)
}

/// Asks the person at the terminal; where there is none, nobody agrees.
async fn is_agreed(render: &Render, question: &str) -> Result<bool, KeeperError> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(false);
    }
    render.question(question);
    // A thread of its own: Ctrl-C ends the command although the read goes on.
    let (told, answer) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = std::io::stdin().read_line(&mut line).map(|_| line);
        // Nobody waits for it after Ctrl-C.
        let _ = told.send(read);
    });
    let mut signals = Signals::catch()?;
    let line = tokio::select! {
        line = answer => line.map_err(|error| KeeperError::local("asking", error))?,
        stop = signals.next() => return Err(stop),
    };
    let line = line.map_err(|error| KeeperError::local("reading the answer", error))?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// B33: all facts of one model.
fn show(render: &Render, model: &Value) -> Result<(), KeeperError> {
    if render.is_json() {
        return render.value(model).map_err(writing);
    }
    let model: ModelInfo = read("the model", model)?;
    let mut told = vec![("model", model.id.clone())];
    let asked = Some(model.reference).filter(|reference| *reference != model.id);
    told.extend(asked.map(|reference| ("asked for as", reference)));
    told.extend((!model.aliases.is_empty()).then(|| ("alias", model.aliases.join(", "))));
    told.extend([
        ("architecture", model.architecture),
        ("parameters", format!("{:.1} M", model.parameters as f64 / 1e6)),
        ("quantisation", model.quantization),
        ("context length", model.context_length.to_string()),
        ("vocabulary", model.vocabulary.to_string()),
        ("chat template", if model.chat_template { "yes" } else { "no" }.to_owned()),
        ("size", size(model.size_bytes)),
        ("path", model.path),
    ]);
    told.extend(model.revision.map(|revision| ("revision", revision)));
    let parts = model.files.len();
    for (at, file) in model.files.iter().enumerate() {
        if parts > 1 {
            told.push(("file", format!("{} of {parts}: {}, {}", at + 1, file.name, size(file.size))));
        }
        if let Some(sum) = &file.sha256 {
            told.push(("sha256", sum.clone()));
            told.push(("verified", verified(file)));
        }
    }
    told.extend(model.damaged.then(|| ("damaged", format!("`rbee model download {}` mends it", model.id))));
    told.extend((!model.in_use_by.is_empty()).then(|| ("in use by", model.in_use_by.join(", "))));
    facts(render, told)
}

fn verified(file: &ModelFile) -> String {
    match (file.verified_at, file.recorded) {
        (Some(at), false) => format!("{} ago", ago(at)),
        (Some(at), true) => format!("{} ago, against the sum that was recorded here", ago(at)),
        (None, _) => "not since it was changed".to_owned(),
    }
}
