//! `rbee install` and `rbee uninstall`: the program, its symlinks, a configuration and a unit, for this user or, as root, for
//! the system; and all of it away again. `rbee hive install` runs the same on the other machine, so there is one way.
//!
//! Nothing that is not ours is overwritten, what fails is undone, and a second install replaces the program and keeps the rest.

mod handover;
mod places;
mod record;
mod service;
mod undo;
mod unit;

use crate::config::{Origin, Settings};
use crate::http::client::Target;
use crate::keeper::commands::links;
use crate::keeper::render::Render;
use crate::keeper::{KeeperError, server};
use crate::keys::{JoinError, Passes};
use crate::wire::VERSION;
use places::Places;
use record::Record;
pub use record::sum;
use serde::{Deserialize, Serialize};
use service::Service;
use std::io;
use std::path::{Path, PathBuf};
use unit::Role;

#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error("`{}` exists and was not put there by `rbee install`: move it away first", path.display())]
    Taken { path: PathBuf },
    #[error("reading `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("writing `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("removing `{}`", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("`{command}` failed:\n{said}")]
    Supervisor { command: String, said: String },
    #[error("running `{command}`")]
    Run { command: String, source: io::Error },
    #[error(transparent)]
    Links(#[from] links::LinkError),
    #[error("HOME is not set")]
    NoHome,
}

impl From<InstallError> for KeeperError {
    fn from(error: InstallError) -> Self {
        KeeperError::local("installing", error)
    }
}

/// What an install has come to, as `--json` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Installed {
    pub name: Option<String>,
    pub program: PathBuf,
    pub version: String,
    pub service: String,
    pub survives_reboot: bool,
}

pub async fn install(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let places = Places::of(settings)?;
    let installed = match Record::read(&places.dirs.state)? {
        Some(record) => {
            places.make_dirs()?;
            handover::renew(settings, &places, record, render).await?
        }
        None => first(settings, &places, render).await?,
    };
    if render.is_json() {
        let value = serde_json::to_value(&installed).map_err(io::Error::from);
        return value
            .and_then(|value| render.value(&value))
            .map_err(|error| KeeperError::local("writing the answer", error));
    }
    Ok(())
}

async fn first(settings: &Settings, places: &Places, render: &Render) -> Result<Installed, KeeperError> {
    let role = settings.text("role").and_then(Role::parse).unwrap_or(Role::Serve);
    let state = &places.dirs.state;
    let lock = places.dirs.lock(role.lock());
    if crate::daemon::is_locked(&lock) {
        return Err(KeeperError::Usage(format!(
            "a {0} runs on {1} already: stop it with `rbee {0} stop`, then install",
            role.lock(),
            state.display()
        )));
    }
    may_listen(settings, state)?;
    if role == Role::Queen && matches!(settings.origin("queen"), Some(Origin::Flag(_))) {
        return Err(KeeperError::Usage("--queen is whom a hive dials: a queen dials nobody".into()));
    }
    places.make_dirs()?;
    let mut record = Record {
        role,
        service: Service::detect(places.is_system),
        version: VERSION.into(),
        program: places.program(),
        owns_program: false,
        links: None,
        files: Vec::new(),
        folders: places.missing.clone(),
        command: Vec::new(),
        had_state: places.had_state,
        lingers: false,
    };
    record.save(state)?;
    let put = async {
        put_files(settings, places, &mut record, render)?;
        join(settings, places, role, render).await?;
        start(settings, places, &mut record, render)
    };
    let outcome = put.await;
    if outcome.is_err()
        && let Err(error) = undo::undo(settings, places, &record, render, undo::State::Gone).await
    {
        render.error(&crate::wire::failure::chain(&error));
    }
    outcome?;
    Ok(told(&record, settings.text("name")))
}

/// A daemon that would refuse to start (B55) is not put under a supervisor that starts it again and again.
fn may_listen(settings: &Settings, state: &Path) -> Result<(), KeeperError> {
    let is_here = |address: &&str| {
        let host = address.rsplit_once(':').map_or(*address, |(host, _)| host).trim_matches(['[', ']']);
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    };
    let Some(beyond) = settings.texts("listen").into_iter().find(|address| !is_here(address)) else {
        return Ok(());
    };
    let book =
        crate::keys::Book::read(state).map_err(|error| KeeperError::local("reading the keys", error))?;
    // A key on this line or in this environment is none of the daemon's.
    let is_configured = |flag| matches!(settings.origin(flag), Some(Origin::File(_)));
    if book.has_client_keys() || is_configured("api-key") || is_configured("api-key-file") {
        return Ok(());
    }
    Err(KeeperError::Usage(format!(
        "{beyond} would open this machine to the network without a key: make one first with `rbee key create`"
    )))
}

fn told(record: &Record, name: Option<&str>) -> Installed {
    let service = serde_json::to_value(record.service).unwrap_or_default();
    Installed {
        name: name.map(str::to_owned),
        program: record.program.clone(),
        version: record.version.clone(),
        service: service.as_str().unwrap_or_default().to_owned(),
        survives_reboot: record.service.survives_reboot(),
    }
}

fn put_files(
    settings: &Settings,
    places: &Places,
    record: &mut Record,
    render: &Render,
) -> Result<(), KeeperError> {
    let state = &places.dirs.state;
    let folder = &places.bin;
    record.make_folder(state, folder)?;
    place_program(places, record)?;
    render.say(&format!("program: {}", record.program.display()));
    record.links = Some(folder.clone());
    record.save(state)?;
    let made = links::make(folder, &record.program).map_err(InstallError::from)?;
    render.say(&format!("symlinks: {} in {}", made.len(), folder.display()));
    put_manuals(places, record, render)?;
    let config = places.dirs.config.join("config.toml");
    if config.symlink_metadata().is_ok() {
        render.say(&format!("configuration: {} is kept as it is", config.display()));
    } else {
        record.make_folder(state, &places.dirs.config)?;
        record.write(state, &config, &places::configuration(settings, record.role))?;
        render.say(&format!("configuration: {}", config.display()));
    }
    Ok(())
}

/// Somebody else's page or completion of this name is left alone: nothing depends on ours.
fn put_manuals(places: &Places, record: &mut Record, render: &Render) -> Result<(), KeeperError> {
    for (path, text) in places.manuals() {
        if path.symlink_metadata().is_ok() && !record.owns(&path) {
            render.say(&format!("{} is kept as it is", path.display()));
            continue;
        }
        record.make_folder(&places.dirs.state, path.parent().unwrap_or(Path::new("/")))?;
        record.write(&places.dirs.state, &path, &text)?;
    }
    render.say("manual page and completions: `man rbee`; bash, zsh and fish find theirs at their next start");
    Ok(())
}

/// Copies this program, unless it is the very file already.
fn place_program(places: &Places, record: &mut Record) -> Result<(), KeeperError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |error: io::Error| KeeperError::local("finding this program", error);
    let own = crate::process::own_program().map_err(failed)?;
    let ours = own.metadata().map_err(failed)?;
    let place = record.program.clone();
    let there = match place.symlink_metadata() {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(InstallError::Read { path: place, source }.into()),
    };
    if there.as_ref().is_some_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
        return Ok(());
    }
    if there.is_some() && !record.owns_program {
        return Err(InstallError::Taken { path: place }.into());
    }
    record.owns_program = true;
    record.save(&places.dirs.state)?;
    const EXECUTABLE: u32 = 0o755;
    let copied = record::put(&place, EXECUTABLE, |file| {
        io::copy(&mut std::fs::File::open(&own)?, file)?;
        Ok(())
    });
    copied.map_err(|source| InstallError::Write { path: place, source }.into())
}

/// Exchanges a join token for this machine's own key, before anything starts: a queen that cannot be reached from here, or
/// that refuses, is the commonest reason why a node does not come up.
async fn join(settings: &Settings, places: &Places, role: Role, render: &Render) -> Result<(), KeeperError> {
    let Some(token) = settings.text("join") else { return Ok(()) };
    let queen = settings.texts("queen").first().map(|url| Target::parse(url)).transpose()?;
    let (Role::Hive, Some(queen)) = (role, queen) else {
        return Err(KeeperError::Usage("--join is for --role hive, with the --queen to join".into()));
    };
    let failed = |error: JoinError| KeeperError::local(format!("joining the queen at {queen}"), error);
    let reading = |error: io::Error| KeeperError::local("reading the token", error);
    let token = crate::keys::read_token(token).map_err(reading)?;
    let node = crate::keys::node_id(&places.dirs.state).map_err(|error| failed(error.into()))?;
    let name = settings.text("name").map_or_else(crate::daemon::host_name, str::to_owned);
    let mut passes = Passes::new(places.dirs.state.clone(), None);
    passes.join_with(&queen, token);
    let joining = async {
        let mut last = None;
        for pause in server::TRY_PAUSES {
            tokio::time::sleep(pause).await;
            match passes.exchange(&queen, &name, &node).await {
                Ok(()) => return Ok(()),
                Err(error @ JoinError::Unreachable(_)) => last = Some(error),
                Err(error) => return Err(failed(error)),
            }
        }
        Err(last.map_or(KeeperError::Down, failed))
    };
    // A queen that does not answer is waited for no longer than somebody wants it who cannot interrupt.
    tokio::select! {
        joined = joining => joined?,
        () = let_go(settings.on("leash")) => return Err(KeeperError::Terminated),
    }
    render.say(&format!("joined the queen at {queen} as `{name}`"));
    Ok(())
}

/// The end of what is read on stdin, behind the token: whoever asked for this over ssh has gone, or wants it undone.
async fn let_go(is_leashed: bool) {
    let (end, ended) = tokio::sync::oneshot::channel();
    if is_leashed {
        // A thread that nobody waits for: what holds the other end may never let go.
        std::thread::spawn(move || {
            // However it ends: nobody holds it any more.
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            let _ = end.send(());
        });
        let _ = ended.await;
    } else {
        std::future::pending().await
    }
}

fn start(
    settings: &Settings,
    places: &Places,
    record: &mut Record,
    render: &Render,
) -> Result<(), KeeperError> {
    let state = &places.dirs.state;
    let (role, service) = (record.role, record.service);
    let line = places.command(settings, record);
    record.command.clone_from(&line);
    record.save(state)?;
    let unit = service.unit(role, &places.user_config, places.home.as_deref());
    if let Some(unit) = &unit {
        record.make_folder(state, unit.parent().unwrap_or(Path::new("/")))?;
        record.write(state, unit, &service.text(role, &line, &places.dirs))?;
        render.say(&format!("unit: {}", unit.display()));
    }
    if settings.on("no-start") {
        return Ok(());
    }
    let lingers = service.start(role, &line, unit.as_deref().unwrap_or(Path::new("")), &places.dirs)?;
    if lingers {
        record.lingers = true;
        record.save(state)?;
    }
    render.say(&format!("started rbee {}", role.words().join(" ")));
    match service {
        Service::Detached => render.say(
            "warning: neither systemd nor launchd runs here: nothing starts it again after a crash or a reboot",
        ),
        Service::LaunchdUser => render.say("it starts when you log in; with the machine: `sudo rbee install --system`"),
        _ => {}
    }
    Ok(())
}

pub async fn uninstall(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let places = Places::of(settings)?;
    let Some(record) = Record::read(&places.dirs.state)? else {
        return Err(KeeperError::Usage(format!(
            "nothing was installed by `rbee install` with the state directory {}",
            places.dirs.state.display()
        )));
    };
    let state = if settings.on("keep-state") { undo::State::Kept } else { undo::State::Gone };
    undo::undo(settings, &places, &record, render, state).await?;
    if render.is_json() {
        return render
            .value(&serde_json::json!({"uninstalled": true, "program": record.program}))
            .map_err(|error| KeeperError::local("writing the answer", error));
    }
    Ok(())
}
