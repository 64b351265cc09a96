//! `rbee run`: one answer, streamed to stdout. Starts what is missing, fetches what is missing, asks, shows.

use crate::config::Settings;
use crate::keeper::follow::{Each, Follower};
use crate::keeper::partial::Partial;
use crate::keeper::render::Render;
use crate::keeper::server::Server;
use crate::keeper::{KeeperError, start};
use crate::model::Reference;
use crate::model::names::{self, Known};
use crate::wire::fleet::{HiveInfo, HiveState};
use crate::wire::job::JobEvent;
use crate::wire::openai::ChatMessage;
use crate::wire::operation::{HiveOperation, Infer, QueenOperation};
use crate::wire::{Code, Failure};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{IsTerminal, Read};
use std::time::Duration;

/// B13: the pauses before another try when every slot is busy.
const BUSY_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// The longest prompt read from stdin.
const STDIN_BYTES_MAX: u64 = 4 << 20;

pub async fn run(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let prompt = prompt(settings)?;
    let model = model(settings.text("model"))?;
    let server = Server::of(settings)?;
    if server.is_hive {
        return Err(KeeperError::Usage("`run` asks a queen: give --hive a name, not an address".into()));
    }
    let ephemeral = start::ensure(settings, render, &server, settings.on("ephemeral")).await?;
    let answered = answer(settings, render, &server, model, prompt).await;
    if let Some(ephemeral) = ephemeral {
        ephemeral.end().await?;
    }
    answered
}

async fn answer(
    settings: &Settings,
    render: &Render,
    server: &Server,
    model: String,
    prompt: String,
) -> Result<(), KeeperError> {
    let mut jobs = Follower::new(server, render)?.for_us();
    let (model, has_template) = provision(render, server, &mut jobs, &model).await?;
    let operation = operation(ask(settings, model, prompt, has_template));
    let (mut ends_in_newline, mut partial) = (true, Partial::default());
    let result = infer(render, &mut jobs, &operation, &mut |event| {
        let JobEvent::Token { text, .. } = event else { return Ok(()) };
        partial.take(text);
        if render.is_json() {
            return Ok(());
        }
        render.clear();
        ends_in_newline = text.ends_with('\n');
        render.answer(text)
    })
    .await;
    let writing = |error: std::io::Error| KeeperError::local("writing the answer", error);
    let ended = if ends_in_newline { Ok(()) } else { render.answer("\n") };
    partial.keep(settings, render, &result);
    let result = result?;
    ended.map_err(writing)?;
    if render.is_json() {
        return render.value(&result).map_err(writing);
    }
    told_by(render, &result);
    Ok(())
}

/// The model that was asked for, as every node knows it.
pub(super) fn model(named: Option<&str>) -> Result<String, KeeperError> {
    let reference = match named {
        Some(name) => Reference::parse(name),
        None => Ok(Reference::default_model()),
    };
    Ok(reference.map_err(|error| KeeperError::Refused(error.into()))?.to_string())
}

pub(super) fn operation(infer: Infer) -> Value {
    serde_json::to_value(QueenOperation::Infer(Box::new(infer))).unwrap_or_default()
}

/// Runs the inference, and tries again where every slot is busy.
pub(super) async fn infer(
    render: &Render,
    jobs: &mut Follower<'_>,
    operation: &Value,
    each: Each<'_>,
) -> Result<Value, KeeperError> {
    let mut pauses = BUSY_PAUSES.iter();
    loop {
        match jobs.run(operation, &mut *each).await {
            Err(KeeperError::Refused(failure)) if failure.code == Code::AllSlotsBusy => {
                let Some(pause) = pauses.next() else { return Err(failure.into()) };
                render.say(&format!("{}; trying again in {} s", failure.message, pause.as_secs()));
                jobs.pause(*pause).await?;
            }
            other => return other,
        }
    }
}

/// With -v: who answered, and what that took.
pub(super) fn told_by(render: &Render, result: &Value) {
    if render.is_verbose() {
        render.say(&format!("{} by worker {}", result["usage"], result["worker_id"].as_str().unwrap_or("")));
    }
}

/// Has a node fetch the model unless one has it already; tells its id and whether it has a chat template.
pub(super) async fn provision(
    render: &Render,
    server: &Server,
    jobs: &mut Follower<'_>,
    model: &str,
) -> Result<(String, bool), KeeperError> {
    #[derive(Deserialize)]
    struct Hives {
        hives: Vec<HiveInfo>,
    }
    let mut hives = server.get::<Hives>("/v1/hives", render).await?.hives;
    hives.retain(|hive| hive.state == HiveState::Online);
    if let Some(name) = &server.hive_id {
        hives.retain(|hive| hive.name == *name);
    }
    let has = |hive: &&HiveInfo| !names::meant(model, hive.model_names.iter().map(Known::of)).is_empty();
    let roomiest =
        || hives.iter().max_by_key(|hive| hive.devices.iter().map(|device| device.memory_free_bytes).max());
    let chosen = hives.iter().find(has).or_else(roomiest).map(|hive| hive.name.clone());
    let is_there = hives.iter().any(|hive| has(&hive));
    let operation = if is_there {
        HiveOperation::ModelGet { id: model.to_owned() }
    } else {
        HiveOperation::ModelDownload { model: model.to_owned() }
    };
    let mut operation = serde_json::to_value(operation).unwrap_or_default();
    if let Some(name) = chosen.or_else(|| server.hive_id.clone()) {
        operation["hive_id"] = json!(name);
    }
    let info = jobs.run(&operation, &mut |_| Ok(())).await?;
    match (info["id"].as_str(), info["chat_template"].as_bool()) {
        (Some(id), Some(has_template)) => Ok((id.to_owned(), has_template)),
        _ => Err(Failure::new(Code::Internal, "the hive answered without the model's facts").into()),
    }
}

fn ask(settings: &Settings, model: String, prompt: String, has_template: bool) -> Infer {
    let system = settings.text("system").map(|text| ChatMessage::new("system", text));
    // A base model continues text; only one that was taught a conversation has a template for it.
    let (prompt, messages) = if has_template {
        (None, Some(system.into_iter().chain([ChatMessage::new("user", &prompt)]).collect()))
    } else {
        let start = settings.text("system").map_or_else(String::new, |system| format!("{system}\n\n"));
        (Some(start + &prompt), None)
    };
    Infer { prompt, messages, ..asked_as(settings, model) }
}

/// An inference as the flags want it, with nothing asked yet.
pub(super) fn asked_as(settings: &Settings, model: String) -> Infer {
    Infer {
        model,
        prompt: None,
        messages: None,
        max_tokens: settings.number("max-tokens"),
        temperature: settings.float("temperature").map(|value| value as f32),
        top_p: settings.float("top-p").map(|value| value as f32),
        top_k: settings.number("top-k"),
        min_p: settings.float("min-p").map(|value| value as f32),
        seed: settings.number("seed"),
        stop: settings.texts("stop").into_iter().map(str::to_owned).collect(),
        ignore_eos: None,
        device: settings.text("device").map(str::to_owned),
        worker_id: settings.text("worker").map(str::to_owned),
        hive: settings.text("hive").filter(|hive| *hive != "localhost").map(str::to_owned),
        stream: true,
    }
}

/// The prompt: -p, else the words, else stdin.
fn prompt(settings: &Settings) -> Result<String, KeeperError> {
    let words = settings.positionals().join(" ");
    let given = match settings.text("prompt") {
        Some(_) if !words.is_empty() => {
            return Err(KeeperError::Usage("give the prompt either as words or with -p, not both".into()));
        }
        Some(text) => text.to_owned(),
        None => words,
    };
    if !given.trim().is_empty() {
        return Ok(given);
    }
    let missing = || {
        KeeperError::Usage(
            "there is no prompt: give it as words, with -p, or on stdin; see `rbee help run`".into(),
        )
    };
    if std::io::stdin().is_terminal() {
        return Err(missing());
    }
    let mut text = String::new();
    let mut stdin = std::io::stdin().lock().take(STDIN_BYTES_MAX + 1);
    stdin
        .read_to_string(&mut text)
        .map_err(|error| KeeperError::local("reading the prompt from stdin", error))?;
    if text.len() as u64 > STDIN_BYTES_MAX {
        return Err(KeeperError::Usage(format!(
            "the prompt on stdin is longer than {STDIN_BYTES_MAX} bytes"
        )));
    }
    if text.trim().is_empty() { Err(missing()) } else { Ok(text) }
}
