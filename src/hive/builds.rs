//! Building engines on this node. One build of a recipe at a time: who asks for one that is being built joins it, sees
//! all it has told, and shares its end. A cancel ends the build when nobody else waits for it.
//!
//! ```text
//!  job ─┐  events, replayed                    catalog → preflight → pkgbuild::build → install by rename
//!  job ─┴─◀──────────────── Build (one a recipe) ───▶
//! ```

use crate::catalog::{Catalog, requirements, worker_id};
use crate::hive::devices;
use crate::hive::engines::{Engines, Provenance};
use crate::job::stream::{EventLog, Room, Step};
use crate::job::{Context, Outcome};
use crate::pkgbuild::{self, Declared, Ended, Places};
use crate::shutdown::Shutdown;
use crate::wire::catalog::{CatalogEntry, InstalledWorker};
use crate::wire::job::{JobEvent, JobId, Receipt, Terminator};
use crate::wire::{Code, Failure};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a build keeps for jobs that join it later; each of them keeps its own.
const SHARED: Room = Room { events: 4_096, bytes: 1 << 20 };

#[derive(Debug)]
pub struct Builds {
    places: Places,
    shutdown: Shutdown,
    running: Mutex<HashMap<String, Arc<Build>>>,
}

#[derive(Debug)]
struct Build {
    id: JobId,
    log: EventLog,
    cancel: CancellationToken,
    hurry: CancellationToken,
    end: watch::Sender<Option<End>>,
    /// Jobs that wait for it.
    wanted: Mutex<u32>,
}

#[derive(Debug, Clone)]
enum End {
    Installed(Box<InstalledWorker>),
    Failed(Failure),
    Cancelled(Receipt),
}

impl Build {
    fn wanted(&self) -> MutexGuard<'_, u32> {
        self.wanted.lock().expect("no holder of the count panics")
    }

    async fn ended(&self) -> End {
        let mut watching = self.end.subscribe();
        let end = watching.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.expect("a build's sender lives in the build, and it ends by being set")
    }
}

impl Builds {
    /// Clears away what builds of an earlier life have left.
    pub async fn new(places: Places, shutdown: Shutdown) -> Builds {
        for tree in crate::process::adopt(&places.trees).await {
            tree.stop(Duration::ZERO).await;
        }
        pkgbuild::sweep_work(&places.work);
        pkgbuild::fetch::sweep(&places.sources);
        Builds { places, shutdown, running: Mutex::default() }
    }

    /// Where the records of builds' trees are.
    pub fn trees(&self) -> &Path {
        &self.places.trees
    }

    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.running.lock().expect("no holder of the table panics")
    }

    /// Ends the build that a tree belongs to, for all who wait for it. `None` if it belongs to none.
    pub async fn stop(&self, tree: &str) -> Option<Receipt> {
        let build = self.running().values().find(|build| tree.contains(&build.id.to_string())).cloned()?;
        build.cancel.cancel();
        match build.ended().await {
            End::Cancelled(receipt) => Some(receipt),
            // It ended by itself in the same moment.
            End::Installed(_) | End::Failed(_) => Some(Receipt::default()),
        }
    }

    /// Installs an engine from its recipe; two who ask for one share one build.
    pub async fn install(
        self: &Arc<Self>,
        catalog: &Arc<Catalog>,
        engines: &Engines,
        id: &str,
        job: &Context,
    ) -> Outcome {
        // `cpu` and the recipe it stands for are one build.
        let id = worker_id(id);
        let build = loop {
            match self.enter(id, job) {
                Entered::New(build) => {
                    let work =
                        run(self.clone(), build.clone(), catalog.clone(), engines.clone(), id.to_owned());
                    self.shutdown.spawn(work);
                    break build;
                }
                Entered::Joined(build) => {
                    job.narrate("build", format!("{id} is being built already; joining that build"));
                    break build;
                }
                Entered::Ending(build) => {
                    job.waiting(format!("an earlier build of {id} is being cleared away"));
                    if job.token().run_until_cancelled(build.ended()).await.is_none() {
                        return Outcome::Cancelled(Receipt::default());
                    }
                    job.running();
                }
            }
        };
        follow(&build, job).await
    }

    /// The build of a recipe, begun now if there is none.
    fn enter(&self, id: &str, job: &Context) -> Entered {
        let mut running = self.running();
        if let Some(build) = running.get(id) {
            let mut wanted = build.wanted();
            if build.cancel.is_cancelled() {
                return Entered::Ending(build.clone());
            }
            *wanted += 1;
            return Entered::Joined(build.clone());
        }
        let build = Arc::new(Build {
            id: job.id(),
            log: EventLog::with_room(SHARED),
            cancel: CancellationToken::new(),
            hurry: CancellationToken::new(),
            end: watch::Sender::new(None),
            wanted: Mutex::new(1),
        });
        running.insert(id.to_owned(), build.clone());
        Entered::New(build)
    }
}

enum Entered {
    New(Arc<Build>),
    /// And counted among those who want it.
    Joined(Arc<Build>),
    /// On its way out, for others; its place is free in a moment.
    Ending(Arc<Build>),
}

/// A job's share in a build: its events, its end, and a cancel that ends it for the last one.
async fn follow(build: &Build, job: &Context) -> Outcome {
    let mut events = build.log.reader(0);
    let mut is_leaving = false;
    loop {
        tokio::select! {
            step = events.next() => match step {
                Step::Event(_, event) => job.emit(event),
                Step::Missed { count, .. } => job.emit(JobEvent::warn("build", format!("{count} events of the build are no longer kept"))),
                Step::End(_) => break,
            },
            () = job.token().cancelled(), if !is_leaving => {
                let mut wanted = build.wanted();
                *wanted -= 1;
                if *wanted > 0 {
                    drop(wanted);
                    job.narrate("build", "the build goes on for somebody else who wants it");
                    return Outcome::Cancelled(Receipt::default());
                }
                // Under the same lock that counts, so that nobody joins what is about to end.
                build.cancel.cancel();
                is_leaving = true;
            }
            () = job.hurry().cancelled(), if is_leaving && !build.hurry.is_cancelled() => build.hurry.cancel(),
        }
    }
    match build.ended().await {
        End::Installed(worker) => Outcome::Done(json!(worker)),
        End::Failed(failure) => Outcome::Failed(failure),
        End::Cancelled(receipt) if is_leaving => Outcome::Cancelled(receipt),
        End::Cancelled(_) => {
            Outcome::Failed(Failure::new(Code::Conflict, "somebody ended the build's processes"))
        }
    }
}

async fn run(builds: Arc<Builds>, build: Arc<Build>, catalog: Arc<Catalog>, engines: Engines, id: String) {
    // A task of its own, so that a panic is a failed build and not one that nobody can ever ask for again.
    let work = work(builds.places.clone(), build.clone(), catalog, engines, id.clone());
    let end = tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(Failure::new(Code::Internal, format!("the build broke: {error}"))));
    let end = end.unwrap_or_else(End::Failed);
    builds.running().remove(&id);
    build.end.send_replace(Some(end));
    build.log.end(Terminator::Done);
}

async fn work(
    places: Places,
    build: Arc<Build>,
    catalog: Arc<Catalog>,
    engines: Engines,
    id: String,
) -> Result<End, Failure> {
    let tell = |event: JobEvent| build.log.push(event);
    let asked = build.cancel.run_until_cancelled(catalog.get(&id)).await;
    let Some(recipe) = asked else { return Ok(End::Cancelled(Receipt::default())) };
    let recipe = Arc::new(recipe?);
    let entry = &recipe.entry;
    preflight(entry, &places.env)?;
    for name in requirements::unknown(&entry.makedepends) {
        tell(JobEvent::warn(
            "build",
            format!("nobody here knows how to look for `{name}`, which the recipe needs; trying"),
        ));
    }
    if let Some(there) = engines.installed().into_iter().find(|worker| worker.worker_id == entry.id)
        && there.recipe_sha256 == recipe.sha256
    {
        tell(JobEvent::narrate(
            "install",
            format!("{} {} is installed already", there.worker_id, there.version),
        ));
        return Ok(End::Installed(Box::new(there)));
    }
    tell(JobEvent::narrate(
        "build",
        format!("building {} {} from {}, recipe {}", entry.id, entry.version, recipe.source, recipe.sha256),
    ));
    let origin = Arc::new(catalog.files(&entry.id));
    let run = build.id.to_string();
    let mut order = places.order(&entry.id, recipe.pkgbuild.clone(), origin, &run, catalog.trusted());
    tell_generations(&mut order.env, entry).await;
    let built = match pkgbuild::build(order, &tell, &build.cancel, &build.hurry).await? {
        Ended::Built(built) => built,
        Ended::Cancelled(receipt) => return Ok(End::Cancelled(receipt)),
    };
    let declared =
        Declared { install_path: entry.install_path.clone(), binary_name: entry.binary_name.clone() };
    let provenance = Provenance::of(entry, &recipe.source, &recipe.sha256);
    built.install(&engines.folder_of(&entry.id), &declared, provenance).await?;
    let installed = engines.find(&entry.id)?;
    tell(JobEvent::narrate(
        "install",
        format!("{} {} is installed in {}", installed.worker_id, installed.version, installed.path),
    ));
    Ok(End::Installed(Box::new(installed)))
}

/// Refused before any work (B41): another system's recipe, or tools that are not there.
fn preflight(entry: &CatalogEntry, env: &[(String, String)]) -> Result<(), Failure> {
    let os = std::env::consts::OS;
    let arch = std::env::consts::ARCH;
    let is_for = |list: &[String], word: &str| list.iter().any(|one| one == word || one == "any");
    if !is_for(&entry.platforms, os) || !is_for(&entry.architectures, arch) {
        return Err(Failure::new(
            Code::PlatformUnsupported,
            format!(
                "{} is for {} on {}; this node is {os} on {arch}",
                entry.id,
                entry.platforms.join(", "),
                entry.architectures.join(", ")
            ),
        ));
    }
    requirements::check(&entry.id, &entry.makedepends, env)
}

/// Tells the build of an engine on NVIDIA GPUs which ones there are, unless a person has said for which to build: a build
/// cannot ask the driver, whose devices are outside its walls.
async fn tell_generations(env: &mut Vec<(String, String)>, entry: &CatalogEntry) {
    const NAME: &str = "CUDAARCHS";
    if entry.worker_type != "cuda" || env.iter().any(|(name, _)| name == NAME) {
        return;
    }
    if let Some(generations) = devices::cuda_architectures(&devices::devices(0, &[]).await) {
        env.push((NAME.to_owned(), generations));
    }
}
