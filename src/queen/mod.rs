//! The queen: one address for the fleet. Her state is soft, what hives tell her over their links; she places, queues,
//! relays and tries again. She needs no GPU and no disk.

pub mod dispatch;
pub mod fleet;
mod heartbeats;
mod hive_job;
mod infer;
mod join;
mod logs;
mod metrics;
mod openai;
pub mod placement;
pub mod registry;
mod reported;
mod retire;
mod routes;
mod v2;
mod worker_facts;

use crate::http::link::{self, Hello};
use crate::job::Jobs;
use crate::keys::Ring;
use crate::shutdown::Shutdown;
use crate::wire::fleet::now_ms;
use dispatch::{Dispatcher, Limits};
use registry::{LinkLost, Registry};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long after the queen's start a request may wait for a first hive to dial.
pub const JOIN_MAX: Duration = Duration::from_secs(10);

pub use routes::{Routes, TABLE};

/// What a queen is told at her start.
#[derive(Debug, Clone)]
pub struct Options {
    pub name: String,
    /// Where people and clients reach her.
    pub base_url: String,
    /// Where her jobs' journals lie.
    pub journals: std::path::PathBuf,
    pub limits: Limits,
    /// Where she listens, as nodes are told.
    pub listen: Vec<String>,
    /// Who may ask, and who may join.
    pub keys: Arc<Ring>,
    /// How long workers may be idle at hives that were not told themselves.
    pub idle_ttl: Option<Duration>,
    /// A hive of the same process tells the lines of both.
    pub shares_its_log: bool,
}

#[derive(Debug)]
pub struct Queen {
    pub registry: Arc<Registry>,
    pub dispatcher: Arc<Dispatcher>,
    pub jobs: Jobs,
    tally: Arc<metrics::Tally>,
    options: Options,
    started_at: u64,
    born: Instant,
    shutdown: Shutdown,
}

impl Queen {
    pub fn new(options: Options, shutdown: Shutdown) -> Arc<Self> {
        let registry = Arc::new(Registry::default());
        Arc::new(Queen {
            dispatcher: Dispatcher::new(registry.clone(), options.limits),
            registry,
            jobs: Jobs::open(options.journals.clone(), shutdown.clone()),
            tally: Arc::default(),
            options,
            started_at: now_ms(),
            born: Instant::now(),
            shutdown,
        })
    }

    /// Right after her start her hives are still dialling: a request that comes then waits for the first of them.
    pub async fn settled(&self) {
        let left = JOIN_MAX.saturating_sub(self.born.elapsed());
        let mut fleet = self.registry.watch();
        // None in time is an answer, too: placement will say it.
        let _ = tokio::time::timeout(left, fleet.wait_for(|fleet| !fleet.hives.is_empty())).await;
    }

    /// Her end of a link that has been turned round: asks for telemetry and keeps the hive registered as long as it lasts,
    /// and its key is not `revoked`.
    pub async fn attach(
        &self,
        hello: Hello,
        io: impl hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
        revoked: impl Future<Output = ()>,
    ) {
        let (caller, running) = match link::call(io).await {
            Ok(linked) => linked,
            Err(error) => {
                tracing::warn!(hive = hello.hive, %error, "a link did not start");
                return;
            }
        };
        tracing::info!(hive = hello.hive, version = hello.version, "hive connected");
        // The connection runs on its own: what is under way on it when telemetry ends may still finish or fail by itself.
        let name = hello.hive.clone();
        let running = tokio::spawn(async move {
            if let Err(error) = running.await {
                tracing::info!(hive = name, reason = crate::wire::failure::chain(&error), "a link broke");
            }
        });
        let mut following = std::pin::pin!(self.registry.follow(&hello, caller, revoked));
        let lost = tokio::select! {
            lost = following.as_mut() => lost,
            () = self.shutdown.stopped() => {
                // Cut first: the follower takes the hive out then, and nobody waits for word from it any more.
                running.abort();
                following.await
            }
        };
        // A hive that leaves in order still ends what it has begun: the link closes with the last of it.
        if !matches!(lost, LinkLost::Superseded | LinkLost::Closed) {
            running.abort();
        }
        tracing::info!(hive = hello.hive, reason = crate::wire::failure::chain(&lost), "hive disconnected");
    }
}
