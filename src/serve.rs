//! The daemons as processes: configuration to options, lock, addresses, then the role, then an orderly end. Here alone
//! queen and hive meet: `rbee serve` runs both, with the link between them over a pipe in memory.

mod catalog;

pub use catalog::catalog;

use crate::catalog::Catalog;
use crate::config::Settings;
use crate::daemon::{self, DaemonError, Lock, Notify, host_name, reachable};
use crate::hive::{self, Hive};
use crate::http::auth::Guard;
use crate::http::client::{ClientError, Target};
use crate::http::server::{self, Listener, Service};
use crate::http::url::{BadUrl, Url};
use crate::http::{link, resolve};
use crate::keys::{self, JoinError, KeyError, LocalKey, Passes, Ring};
use crate::model::{Hub, HubError, Settings as StoreSettings, Store, StoreError};
use crate::paths::{self, Dirs, PathError};
use crate::queen::{self, Queen, dispatch::Limits};
use crate::shutdown::{self, DRAIN_MAX, Shutdown};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
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

impl Roles {
    /// What its log is called.
    fn name(self) -> &'static str {
        match self {
            Roles::Queen => "queen",
            Roles::Hive => "hive",
            Roles::Both => "serve",
        }
    }
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
    #[error("reading --dir")]
    Recipes(#[source] crate::catalog::FolderError),
    #[error(transparent)]
    Keys(#[from] KeyError),
    #[error("`--join -`: reading the token from stdin")]
    Token(#[source] std::io::Error),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("catching signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the daemon until a signal, or its lease, ends it.
pub async fn run(settings: &Settings, roles: Roles) -> Result<(), ServeError> {
    if settings.on("detach") {
        daemon::detach()?;
    }
    daemon::raise_open_files();
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
    daemon::log::keep(&dirs.log(roles.name()), settings.on("detach"));

    let name = settings.text("name").map_or_else(host_name, str::to_owned);
    let key = daemon::api_key(settings)?;
    let ring = Arc::new(Ring::open(&dirs.state)?);
    let local = LocalKey::make(&dirs.state, if roles == Roles::Hive { "hive" } else { "queen" })?;
    let names = vec![host_name(), format!("{}.local", host_name()), name.clone()];
    let guard = Guard::new(names, key.as_deref()).with_ring(ring.clone()).with_local(local.digest());
    let guard = Arc::new(guard);
    let listeners = listen(settings, &guard).await?;
    local.publish(listeners.iter().map(|(address, _)| *address).collect())?;
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
            idle_ttl: settings.duration("idle-ttl").filter(|_| settings.is_given("idle-ttl")),
            shares_its_log: roles == Roles::Both,
            listen: listeners.iter().map(|(address, _)| address.to_string()).collect(),
            keys: ring,
        };
        Queen::new(options, shutdown.clone())
    });
    let hive = match roles {
        Roles::Queen => None,
        Roles::Hive | Roles::Both => {
            let node = keys::node_id(&dirs.state)?;
            let mut options = hive_options(settings, &dirs, name, base_url, key)?;
            if roles == Roles::Hive && !settings.is_given("idle-ttl") {
                // Its queen may have been told.
                options.workers.idle_ttl = None;
            }
            // RBEE_QUEEN may well name the queen in this very process, whom the hive has a shorter link to.
            let addresses: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
            options.queens.retain(|queen| !is_us(queen, &addresses, &host_name()));
            let models = settings.path("models-dir").unwrap_or(&dirs.models);
            let hub = hub(&dirs.state).map_err(ServeError::Hub)?;
            let mut about = StoreSettings::new(models.to_owned(), hub, options.builds.clone());
            about.trusted = trusted(settings)?;
            if let Some(silence) = settings.duration("download-silence") {
                about.limits.stall_max = silence;
            }
            let store = Store::open(about)?;
            if roles == Roles::Hive {
                use_token(settings, &mut options, &node).await?;
            }
            Some(Hive::start(options, node, store, shutdown.clone()).await)
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
    shutdown.finish(settings.duration("drain-max").unwrap_or(DRAIN_MAX)).await;
    tracing::info!("ended");
    Ok(())
}

/// Whether a queen's address is one of our own, in whatever words.
fn is_us(queen: &Target, addresses: &[SocketAddr], own_name: &str) -> bool {
    let Some((host, port)) = queen.host_and_port() else { return false };
    let bare = host.strip_suffix(".local").unwrap_or(host);
    let is_our_name = bare.eq_ignore_ascii_case(own_name);
    let is_our_address = host.trim_matches(['[', ']']).parse().is_ok_and(is_of_this_machine);
    addresses.iter().any(|address| {
        (is_our_name || is_our_address && address.ip().is_unspecified()) && port == address.port()
            || keys::leads_to(host, port, *address)
    })
}

/// Whether an address is one of this machine's: the way to such a one begins where it ends. Nothing is sent.
fn is_of_this_machine(address: IpAddr) -> bool {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let begins = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 1))?;
        socket.local_addr()
    });
    begins.is_ok_and(|begins| begins.ip() == address)
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
    shutdown.spawn(async move { attaching.attach(hello, queens_end, std::future::pending()).await });
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

fn hive_options(
    settings: &Settings,
    dirs: &Dirs,
    name: String,
    base_url: String,
    key: Option<String>,
) -> Result<hive::Options, ServeError> {
    let queens: Result<Vec<Target>, ClientError> =
        settings.texts("queen").into_iter().map(Target::parse).collect();
    let rung_max = settings.text("containment").map(|rung| rung.replace('-', " "));
    let catalog_key = daemon::key_file(settings, "catalog-key-file")?;
    Ok(hive::Options {
        name,
        base_url,
        journals: dirs.jobs.join("hive"),
        queens: queens.map_err(ServeError::Queen)?,
        passes: Arc::new(Passes::new(dirs.state.clone(), key)),
        workers: hive::WorkerSettings {
            shims: dirs.run.join("shims"),
            run: dirs.run.clone(),
            logs: dirs.logs.clone(),
            orphan_ttl: settings.duration("orphan-ttl").unwrap_or(Duration::from_secs(60)),
            idle_ttl: settings.duration("idle-ttl"),
            restart_pause: settings.duration("restart-pause").unwrap_or(hive::restarts::RESTART_PAUSE),
            loading_silence: settings.duration("loading-silence").unwrap_or(hive::LOADING_SILENCE_MAX),
            worker_silence: settings.duration("worker-silence").unwrap_or(hive::WORKER_SILENCE_MAX),
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

/// `--join`: exchanges the token before anything else starts, so that one that is refused is told at once. A queen who cannot be
/// reached yet is asked again whenever she is dialled.
async fn use_token(settings: &Settings, options: &mut hive::Options, node: &str) -> Result<(), ServeError> {
    let Some(token) = settings.text("join").map(keys::read_token).transpose().map_err(ServeError::Token)?
    else {
        return Ok(());
    };
    let Some(queen) = options.queens.first().cloned() else { return Ok(()) };
    let passes = Arc::get_mut(&mut options.passes).expect("nobody else has these options yet");
    passes.join_with(&queen, token);
    match options.passes.join(&queen, &options.name, node).await {
        Err(JoinError::Unreachable(error)) => {
            let reason = crate::wire::failure::chain(&error);
            tracing::warn!(%queen, reason, "not joined yet; trying on");
            Ok(())
        }
        joined => Ok(joined?),
    }
}

/// This process's environment, as far as it is text, for builds. A system service has no HOME, where rustup puts its tools.
fn variables() -> Vec<(String, String)> {
    let text = |value: std::ffi::OsString| value.into_string().ok();
    let mut all: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect();
    if all.iter().all(|(name, _)| name != "HOME") {
        let home = paths::home_of(rustix::process::geteuid().as_raw());
        all.extend(home.and_then(|home| Some(("HOME".to_owned(), text(home.into())?))));
    }
    all
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queen_who_is_this_process_is_known_by_whatever_name_she_was_given() {
        let us = |queen: &str, listen: &str| {
            is_us(&Target::parse(queen).unwrap(), &[listen.parse().unwrap()], "box")
        };
        assert!(us("http://127.0.0.1:80", "127.0.0.1:80") && us("http://localhost:80", "127.0.0.1:80"));
        assert!(us("http://localhost:80", "0.0.0.0:80") && us("http://[::1]:80", "[::]:80"));
        assert!(us("http://box:80", "0.0.0.0:80") && us("http://Box.local:80", "0.0.0.0:80"));
        assert!(is_of_this_machine(Ipv4Addr::LOCALHOST.into()) && !is_of_this_machine([192, 0, 2, 1].into()));
        assert!(!us("http://192.0.2.1:80", "0.0.0.0:80"), "another machine's");
        assert!(!us("http://localhost:81", "0.0.0.0:80") && !us("http://other:80", "0.0.0.0:80"));
    }
}
