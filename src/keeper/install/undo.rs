//! Taking away what an install has put somewhere, in the reverse order.

use super::places::Places;
use super::record::{self, Record};
use super::service::Service;
use super::unit::Role;
use super::{InstallError, links};
use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::commands::daemons;
use crate::keeper::render::Render;

/// What becomes of the state directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Kept,
    /// Unless it is older than the install.
    Gone,
}

pub async fn undo(
    settings: &Settings,
    places: &Places,
    installed: &Record,
    render: &Render,
    state: State,
) -> Result<(), KeeperError> {
    stop(settings, places, installed, render).await?;
    for kept in installed.remove_files()? {
        render.say(&format!("{} was changed since; it stays", kept.display()));
    }
    installed.service.forget(installed.lingers);
    if let (Some(folder), Ok(program)) = (&installed.links, installed.program.canonicalize())
        && folder.is_dir()
    {
        links::remove(folder, &program).map_err(InstallError::from)?;
    }
    if installed.owns_program {
        record::remove(&installed.program)?;
    }
    let dirs = &places.dirs;
    if state == State::Gone && !installed.had_state {
        for folder in [&dirs.run, &dirs.logs, &dirs.state] {
            let gone = crate::process::remove_tree(folder);
            gone.map_err(|source| InstallError::Remove { path: folder.clone(), source })?;
        }
        render.say(&format!("removed, with all state in {}", dirs.state.display()));
    } else {
        record::remove(&Record::path(&dirs.state))?;
        let why = if state == State::Gone { "is older than the install and stays" } else { "stays" };
        render.say(&format!("removed; {} {why}", dirs.state.display()));
    }
    installed.remove_folders();
    Ok(())
}

async fn stop(
    settings: &Settings,
    places: &Places,
    installed: &Record,
    render: &Render,
) -> Result<(), KeeperError> {
    let role = installed.role;
    let lock = places.dirs.lock(role.lock());
    let running = crate::daemon::holder(&lock);
    if installed.service == Service::Detached {
        let daemon = if role == Role::Hive { daemons::HIVE } else { daemons::QUEEN };
        return if running.is_some() { daemons::stop(settings, render, daemon).await } else { Ok(()) };
    }
    let has_unit = installed.files.iter().any(|written| {
        let name = written.path.extension().and_then(|extension| extension.to_str());
        matches!(name, Some("service" | "plist"))
    });
    if has_unit && let Err(error) = installed.service.stop(role) {
        // Not loaded, perhaps, after an install that failed before that. What runs is seen by its lock.
        if running.is_some() {
            return Err(error.into());
        }
    }
    let Some(daemon) = running else { return Ok(()) };
    crate::daemon::gone(daemon).await.map_err(|error| KeeperError::local("waiting for its end", error))
}
