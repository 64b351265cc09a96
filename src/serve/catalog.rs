//! `rbee catalog serve`: a daemon without state. Its port is its lock.

use super::{ServeError, listen, serve};
use crate::catalog::{Folder, server::Routes};
use crate::config::Settings;
use crate::daemon::{self, Notify, host_name};
use crate::http::auth::Guard;
use crate::keys::Ring;
use crate::paths::Dirs;
use crate::shutdown::{self, DRAIN_MAX, Shutdown};
use std::sync::Arc;

/// Runs the catalog until a signal, or its lease, ends it.
pub async fn catalog(settings: &Settings) -> Result<(), ServeError> {
    if settings.on("detach") {
        daemon::detach()?;
    }
    let mut notify = Notify::of(settings)?;
    let shutdown = Shutdown::new();
    shutdown::on_signals(&shutdown).map_err(ServeError::Signals)?;
    daemon::end_with_lease(settings, &shutdown)?;
    let folder = settings.path("dir").map(Folder::open).transpose().map_err(ServeError::Recipes)?;
    let key = daemon::api_key(settings)?;
    let names = vec![host_name(), format!("{}.local", host_name())];
    // It has no state, but the keys of a state directory open it like any other daemon.
    let dirs = Dirs::of_process(settings.path("state-dir"))?;
    let ring = Arc::new(Ring::open(&dirs.state)?);
    let guard = Arc::new(Guard::new(names, key.as_deref()).with_ring(ring));
    let listeners = listen(settings, &guard).await?;
    let routes = Routes::new(folder);
    for (address, listener) in listeners {
        tracing::info!(%address, version = crate::wire::VERSION, "listening");
        serve(listener, routes.clone(), guard.clone(), shutdown.clone());
    }
    notify.ready();
    shutdown.drained().await;
    tracing::info!("shutting down");
    shutdown.finish(DRAIN_MAX).await;
    tracing::info!("ended");
    Ok(())
}
