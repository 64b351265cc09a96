//! `rbee model alias` and `rbee model unalias`: names that a person has given to models.

use super::models::ask;
use super::worker::read;
use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, printable};
use crate::model::Reference;
use crate::wire::fleet::ModelAlias;
use crate::wire::operation::HiveOperation;
use crate::wire::{Code, Failure};
use serde::Deserialize;
use serde_json::json;

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

/// Sets, shows, lists or, with --remove, takes away.
pub async fn alias(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    match (settings.positionals(), settings.on("remove")) {
        ([], true) => {
            Err(KeeperError::Usage("say which alias to remove; see `rbee help model alias`".into()))
        }
        ([_, _, ..], true) => {
            Err(KeeperError::Usage("--remove takes the alias alone; see `rbee help model alias`".into()))
        }
        ([_], true) => remove(settings, render).await,
        ([], false) => list(settings, render, None).await,
        ([name], false) => list(settings, render, Some(name)).await,
        ([name, model, ..], false) => set(settings, render, name, model).await,
    }
}

pub async fn remove(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let name = settings.positionals().join(" ");
    let removed = ask(settings, render, HiveOperation::ModelAliasRemove { name }).await?;
    if render.is_json() {
        return render.value(&removed).map_err(writing);
    }
    let ModelAlias { name, model, .. } = read("the alias", &removed)?;
    render.answer(&printable(&format!("{name} no longer stands for {model}"))).map_err(writing)?;
    render.answer("\n").map_err(writing)
}

async fn set(settings: &Settings, render: &Render, name: &str, model: &str) -> Result<(), KeeperError> {
    let reference = Reference::parse(model).map_err(|error| KeeperError::Refused(error.into()))?;
    let operation = HiveOperation::ModelAliasSet { name: name.to_owned(), model: reference.to_string() };
    let set = ask(settings, render, operation).await?;
    if render.is_json() {
        return render.value(&set).map_err(writing);
    }
    let ModelAlias { name, model, id } = read("the alias", &set)?;
    render.answer(&printable(&format!("{name} stands for {model}"))).map_err(writing)?;
    render.answer("\n").map_err(writing)?;
    if id.is_none() {
        render.say(&format!("it is not there yet: `rbee model download {}` fetches it", printable(&name)));
    }
    Ok(())
}

/// All, or one.
async fn list(settings: &Settings, render: &Render, wanted: Option<&str>) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Answer {
        aliases: Vec<ModelAlias>,
    }
    let answer = ask(settings, render, HiveOperation::ModelAliasList).await?;
    let mut aliases = read::<Answer>("the aliases", &answer)?.aliases;
    if let Some(wanted) = wanted {
        aliases.retain(|alias| alias.name.eq_ignore_ascii_case(wanted));
        let Some(alias) = aliases.first() else {
            let message = format!("no alias is called `{wanted}`; `rbee model alias {wanted} REF` makes one");
            return Err(Failure::new(Code::NotFound, message).into());
        };
        if render.is_json() {
            return render.value(&json!(alias)).map_err(writing);
        }
    }
    if render.is_json() {
        return render.value(&json!(aliases)).map_err(writing);
    }
    let row = |alias: &ModelAlias| {
        let here = alias.id.clone().unwrap_or_else(|| "not there yet".into());
        vec![alias.name.clone(), alias.model.clone(), here]
    };
    render.table(&["alias", "stands for", "model"], aliases.iter().map(row).collect()).map_err(writing)
}
