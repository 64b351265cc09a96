//! A new program in place of an old one: the hive is asked to hand over its workers, which go on with their models loaded, and
//! the next one adopts them. Where that cannot be asked, everything stops and starts again.

use super::places::Places;
use super::record::Record;
use super::service::Service;
use super::unit::Role;
use super::{Installed, links, place_program, told};
use crate::config::Settings;
use crate::http::client::{self, AskError, Target};
use crate::keeper::KeeperError;
use crate::keeper::commands::daemons;
use crate::keeper::render::Render;
use crate::keys::LocalKey;
use crate::process::Identity;
use crate::wire::failure::chain;
use crate::wire::{Code, VERSION};

/// The program of this process in place of that which is installed; all else stays as it is.
pub async fn renew(
    settings: &Settings,
    places: &Places,
    mut record: Record,
    render: &Render,
) -> Result<Installed, KeeperError> {
    let state = &places.dirs.state;
    let before = std::mem::replace(&mut record.version, VERSION.into());
    place_program(places, &mut record)?;
    if let Some(folder) = &record.links {
        links::make(folder, &record.program).map_err(super::InstallError::from)?;
    }
    super::put_manuals(places, &mut record, render)?;
    let (role, line) = (record.role, record.command.clone());
    if let Some(unit) = record.service.unit(role, &places.user_config, places.home.as_deref()) {
        let text = record.service.text(role, &line, &places.dirs);
        record.write(state, &unit, &text)?;
    }
    record.save(state)?;
    render.say(&format!("{} is rbee {VERSION} now, it was {before}", record.program.display()));
    if settings.on("no-start") {
        return Ok(told(&record, None));
    }
    let lock = places.dirs.lock(role.lock());
    let running = crate::daemon::holder(&lock);
    if let (Some(hive), Role::Hive) = (&running, role)
        && hand_over(places, hive, render).await?
    {
        record.service.resume(role, &line, &places.dirs)?;
        render.say("the next hive has taken over");
        return Ok(told(&record, None));
    }
    if running.is_some() && record.service == Service::Detached {
        let daemon = if role == Role::Hive { daemons::HIVE } else { daemons::QUEEN };
        daemons::stop(settings, render, daemon).await?;
    }
    record.service.restart(role, &line, &places.dirs)?;
    render.say(&format!("restarted rbee {}", role.words().join(" ")));
    Ok(told(&record, None))
}

/// Asks the hive that runs to leave its workers to the next. False if it cannot be asked, or does not know how.
async fn hand_over(places: &Places, hive: &Identity, render: &Render) -> Result<bool, KeeperError> {
    let state = &places.dirs.state;
    let addresses = LocalKey::addresses(state, Role::Hive.lock());
    let Some(address) = addresses.first().map(|address| crate::daemon::reachable(*address)) else {
        return Ok(false);
    };
    let target = Target::parse(&address.to_string())?;
    let request = client::post("/v1/handover", &serde_json::json!({}))?;
    match client::ask::<serde_json::Value>(&target.with_local(state.clone()), request).await {
        Ok(_) => {}
        Err(AskError::Refused(failure))
            if matches!(failure.code, Code::NotFound | Code::MethodNotAllowed) =>
        {
            render.say("the hive that runs takes no handover from here: its workers end and start anew");
            return Ok(false);
        }
        Err(AskError::Refused(failure)) => return Err(failure.into()),
        // Perhaps it went in the middle of its answer; its end tells.
        Err(AskError::Client(error)) if render.is_verbose() => render.say(&chain(&error)),
        Err(AskError::Client(_)) => {}
    }
    crate::daemon::gone(hive.clone())
        .await
        .map(|()| true)
        .map_err(|error| KeeperError::local("waiting for the handover", error))
}
