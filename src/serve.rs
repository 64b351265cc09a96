//! The daemons as processes: configuration to options, lock, addresses, then the role, then an orderly end. Here alone
//! queen and hive meet: `rbee serve` runs both, with the link between them over a pipe in memory.

mod catalog;

pub use catalog::catalog;

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::daemon::{self, DaemonError, Lock, Notify};
use crate::hive::{self, Hive};
use crate::http::auth::Guard;
use crate::http::client::{ClientError, Target};
use crate::http::server::{self, Listener, Service};
use crate::http::url::{BadUrl, Url};
use crate::http::{link, resolve};
use crate::model::{Hub, HubError, Settings as StoreSettings, Store, StoreError};
use crate::paths::{Dirs, PathError};
use crate::queen::{self, Queen, dispatch::Limits};
use crate::shutdown::{self, DRAIN_MAX, Shutdown};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Which of the two this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Roles {
    Queen,
    Hive,
    Both,
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    #[error(transparent)]
    Paths(#[from] PathError),
    #[error("opening the model store")]
    Store(#[from] StoreError),
    #[error("reading --catalog")]
    Catalog(#[source] ClientError),
    #[error("finding the hub's cache")]
    Hub(#[source] HubError),
    #[error("reading --trust")]
    Trust(#[source] BadUrl),
    #[error("reading --queen")]
    Queen(#[source] ClientError),
    #[error("reading or writing the node's id `{}`", path.display())]
    Node { path: std::path::PathBuf, source: std::io::Error },
    #[error("reading --dir")]
    Recipes(#[source] crate::catalog::FolderError),
    #[error("catching signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the daemon until a signal, or its lease, ends it.
pub async fn run(settings: &Settings, roles: Roles) -> Result<(), ServeError> {
    if settings.on("detach") {
        daemon::detach()?;
    }
    let mut notify = Notify::of(settings)?;
    let shutdown = Shutdown::new();
    shutdown::on_signals(&shutdown).map_err(ServeError::Signals)?;
    daemon::end_with_lease(settings, &shutdown)?;
    let dirs = Dirs::of_process(settings.path("state-dir"))?;
    dirs.create()?;
    for (role, is_ours) in [("queen", roles != Roles::Hive), ("hive", roles != Roles::Queen)] {
        if is_ours {
            Lock::take(&dirs.lock(role), role)?.for_life();
        }
    }

    let name = settings.text("name").map_or_else(host_name, str::to_owned);
    let key = daemon::api_key(settings)?;
    let guard = Arc::new(Guard::new(
        vec![host_name(), format!("{}.local", host_name()), name.clone()],
        key.as_deref(),
    ));
    let listeners = listen(settings, &guard).await?;
    let base_url =
        listeners.first().map_or_else(String::new, |(address, _)| format!("http://{}", reachable(*address)));

    let queen = (roles != Roles::Hive).then(|| {
        let limits = Limits {
            queue: settings.number("queue").unwrap_or(512),
            queue_wait: settings.duration("queue-wait").unwrap_or(Duration::from_secs(60)),
        };
        let options = queen::Options {
            name: name.clone(),
            base_url: base_url.clone(),
            journals: dirs.jobs.join("queen"),
            limits,
        };
        Queen::new(options, shutdown.clone())
    });
    let hive = match roles {
        Roles::Queen => None,
        Roles::Hive | Roles::Both => {
            let mut options = hive_options(settings, &dirs, name, base_url, key.as_deref())?;
            // RBEE_QUEEN may well name the queen in this very process, whom the hive has a shorter link to.
            let is_us = |queen: &Target| {
                listeners.iter().any(|(address, _)| queen.to_string() == format!("http://{address}"))
            };
            options.queens.retain(|queen| !is_us(queen));
            let models = settings.path("models-dir").unwrap_or(&dirs.models);
            let hub = hub(&dirs.state).map_err(ServeError::Hub)?;
            let mut about = StoreSettings::new(models.to_owned(), hub, options.builds.clone());
            about.trusted = trusted(settings)?;
            let store = Store::open(about)?;
            Some(Hive::start(options, node_id(&dirs.state)?, store, shutdown.clone()).await)
        }
    };
    if let (Some(queen), Some(hive)) = (&queen, &hive) {
        join(queen, hive, &shutdown).await;
    }
    for (address, listener) in listeners {
        tracing::info!(%address, version = crate::wire::VERSION, "listening");
        let (guard, shutdown) = (guard.clone(), shutdown.clone());
        match (&queen, &hive) {
            (Some(queen), _) => serve(listener, queen::Routes(queen.clone()), guard, shutdown),
            (None, Some(hive)) => serve(listener, hive::Routes(hive.clone()), guard, shutdown),
            (None, None) => {}
        }
    }
    notify.ready();
    shutdown.drained().await;
    tracing::info!("shutting down");
    shutdown.finish(DRAIN_MAX).await;
    tracing::info!("ended");
    Ok(())
}

fn serve(listener: Listener, service: impl Service, guard: Arc<Guard>, shutdown: Shutdown) {
    let accepting = server::serve(listener, service, guard, shutdown.clone());
    shutdown.spawn(accepting);
}

/// The link of `rbee serve`: the same as between machines, over memory. Ready when the queen knows the hive.
async fn join(queen: &Arc<Queen>, hive: &Arc<Hive>, shutdown: &Shutdown) {
    let (hives_end, queens_end) = link::pipe();
    let hello = hive.hello();
    let name = hello.hive.clone();
    let (serving, attaching) = (hive.clone(), queen.clone());
    shutdown.spawn(async move { serving.serve_link(hives_end).await });
    shutdown.spawn(async move { attaching.attach(hello, queens_end).await });
    let mut fleet = queen.registry.watch();
    tokio::select! {
        _ = fleet.wait_for(|fleet| fleet.hives.contains_key(&name)) => {}
        () = shutdown.drained() => {}
    }
}

async fn listen(settings: &Settings, guard: &Guard) -> Result<Vec<(SocketAddr, Listener)>, DaemonError> {
    let mut listeners = Vec::new();
    for text in settings.texts("listen") {
        let bad = || DaemonError::BadAddress(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let port = port.parse::<u16>().map_err(|_| bad())?;
        let addresses = resolve::lookup(host.trim_matches(['[', ']']), port).await.map_err(|_| bad())?;
        let address = *addresses.first().ok_or_else(bad)?;
        guard.may_listen(address)?;
        let listener = daemon::bind(address)?;
        let address = listener.local_addr().unwrap_or(address);
        listeners.push((address, Listener::Tcp(listener)));
    }
    Ok(listeners)
}

/// An address that a client on this machine can use, where we listen on all of them.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    reachable
}

fn hive_options(
    settings: &Settings,
    dirs: &Dirs,
    name: String,
    base_url: String,
    key: Option<&str>,
) -> Result<hive::Options, ServeError> {
    let queens: Result<Vec<Target>, ClientError> =
        settings.texts("queen").into_iter().map(|url| Ok(Target::parse(url)?.with_key(key))).collect();
    let rung_max = settings.text("containment").map(|rung| rung.replace('-', " "));
    let catalog_key = daemon::key_file(settings, "catalog-key-file")?;
    Ok(hive::Options {
        name,
        base_url,
        journals: dirs.jobs.join("hive"),
        queens: queens.map_err(ServeError::Queen)?,
        workers: hive::WorkerSettings {
            shims: dirs.run.join("shims"),
            run: dirs.run.clone(),
            logs: dirs.logs.clone(),
            orphan_ttl: settings.duration("orphan-ttl").unwrap_or(Duration::from_secs(60)),
            idle_ttl: settings.duration("idle-ttl").unwrap_or(Duration::from_secs(300)),
            rung_max: rung_max.clone(),
            env: hive::worker_environment(|name| std::env::var(name).ok()),
        },
        memory_max: settings.number::<u64>("memory").map(|mebibytes| mebibytes << 20),
        engines: dirs.workers.clone(),
        builds: crate::pkgbuild::Places {
            work: dirs.builds.clone(),
            sources: dirs.sources.clone(),
            logs: dirs.logs.clone(),
            trees: dirs.run.join("builds"),
            env: variables(),
            rung_max,
            shim: None,
        },
        catalog: Catalog::new(settings.text("catalog"), catalog_key.as_deref())
            .map_err(ServeError::Catalog)?,
    })
}

/// This process's environment, as far as it is text.
fn variables() -> Vec<(String, String)> {
    let text = |value: std::ffi::OsString| value.into_string().ok();
    std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
}

/// Origins that models may come from whatever their addresses are.
fn trusted(settings: &Settings) -> Result<Vec<String>, ServeError> {
    let origin = |text: &str| Ok(Url::parse(text).map_err(ServeError::Trust)?.origin().to_owned());
    settings.texts("trust").into_iter().map(origin).collect()
}

/// The hub's cache as the environment says. A system service has no HOME: its cache is then beside its state.
fn hub(state: &Path) -> Result<Hub, HubError> {
    let has_home = std::env::var_os("HOME").is_some_and(|home| !home.is_empty());
    Hub::find(|name| match std::env::var_os(name) {
        None if name == "XDG_CACHE_HOME" && !has_home => Some(state.into()),
        value => value,
    })
}

/// This machine's id: made once, kept with its state.
fn node_id(state: &Path) -> Result<String, ServeError> {
    let path = state.join("node");
    let failed = |source| ServeError::Node { path: path.clone(), source };
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Ok(_) => fresh_node_id(state, &path).map_err(failed),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            fresh_node_id(state, &path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

fn fresh_node_id(state: &Path, path: &Path) -> std::io::Result<String> {
    use std::io::Write;
    let id = crate::wire::id::fresh().to_string();
    let mut file = tempfile::NamedTempFile::new_in(state)?;
    writeln!(file, "{id}")?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(state)?.sync_all()?;
    Ok(id)
}

/// The machine's own name, without its domain.
fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    match name.split('.').next() {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => "localhost".into(),
    }
}
