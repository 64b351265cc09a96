//! The hive's end of its links: one to each queen it was told of, dialled again whenever it is lost, and what goes over it
//! unasked: telemetry, the whole state first, then what changed, at least one frame a second.

use crate::hive::{Hive, Routes, models};
use crate::http::client::Target;
use crate::http::link::{self, Hello, LinkError, Welcome};
use crate::http::{BoxError, Request, Response};
use crate::keys::JoinError;
use crate::wire::codec::{self, Frame, HiveV2, ModelV2, TelemetryV2, WorkerV1};
use crate::wire::fleet::{Device, WorkerInfo};
use crate::wire::{Code, Failure, PROTOCOL_OLDEST};
use bytes::Bytes;
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// Between two tries to reach a queen: doubling from the first to the last (B52).
pub const REDIAL_MIN: Duration = Duration::from_millis(100);
pub const REDIAL_MAX: Duration = Duration::from_secs(2);
/// A link that lasted this long was a good one: after it dialling starts again with the shortest pause. Two hives that take
/// one name from each other never get there.
pub const LINK_SETTLED: Duration = Duration::from_secs(10);
/// The longest silence of telemetry; the queen gives up after five of them.
pub const TICK: Duration = Duration::from_secs(1);
/// How often free memory is looked at again.
pub const DEVICES_EVERY: Duration = Duration::from_secs(10);
/// How often a queen hears of nothing but how busy workers are, in the long run: she counts her own requests herself, and
/// hundreds of them a second would cost two frames each.
pub const BUSY_TOLD_EVERY: Duration = Duration::from_millis(10);
/// And what may be told at once before that: as much as she would hear in this time.
pub const BUSY_TOLD_BURST: Duration = Duration::from_millis(200);
/// How long the first word waits for headers of models that nobody has read yet: some milliseconds each, but a disk may hang.
const FIRST_LOOK_MAX: Duration = Duration::from_millis(500);
/// What a queen asks for telemetry with, by the versions that she understands; the first had no such word.
const VERSION_PARAMETER: &str = "version";
/// Frames that wait for a queen who reads slowly.
const FRAMES_PENDING_MAX: usize = 64;

/// Keeps one link up until the hive drains. What the first of the queens has to say on idle workers counts.
pub async fn keep(hive: Arc<Hive>, queen: Target, is_first: bool) {
    let mut hello = Hello::ours(&hive.options.name, &hive.node);
    let mut pause = REDIAL_MIN;
    let mut told = String::new();
    loop {
        let dialled = tokio::select! {
            () = hive.shutdown.drained() => return,
            dialled = dial(&hive, &queen, &hello) => dialled,
        };
        match dialled {
            Ok(Welcome { io, idle_ttl }) => {
                tracing::info!(%queen, "linked");
                if is_first {
                    hive.workers.tell_idle_ttl(idle_ttl);
                }
                let begun = tokio::time::Instant::now();
                told.clear();
                let ended = link::serve(io, Routes(hive.clone()), hive.shutdown.clone()).await;
                if begun.elapsed() >= LINK_SETTLED {
                    pause = REDIAL_MIN;
                }
                tracing::info!(%queen, reason = ended.err().map(|error| crate::wire::failure::chain(&error)), "link ended");
            }
            // A queen of the version before refuses what she does not know; she asks for telemetry that she understands.
            Err(LinkError::Refused(failure))
                if failure.code == Code::VersionMismatch && hello.protocol > PROTOCOL_OLDEST =>
            {
                hello.protocol -= 1;
                continue;
            }
            Err(error) => {
                // She may have been replaced by a newer one meanwhile.
                hello.protocol = crate::wire::PROTOCOL;
                // Said once, not every two seconds: a queen may be down for days.
                let reason = crate::wire::failure::chain(&error);
                if reason != told {
                    let is_mismatch = matches!(&error, LinkError::Refused(failure) if failure.code == Code::VersionMismatch);
                    if is_mismatch {
                        tracing::error!(%queen, reason, "VERSION_MISMATCH: no link until one of the two is updated; trying on");
                    } else {
                        tracing::info!(%queen, reason, "no link yet; trying on");
                    }
                    told = reason;
                }
            }
        }
        tokio::select! {
            () = hive.shutdown.drained() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// With the key that this queen is to be shown now, a token exchanged for it first. A token serves once more when she refuses the
/// key: it may have been revoked, and the token made to join again.
async fn dial(hive: &Hive, queen: &Target, hello: &Hello) -> Result<Welcome, LinkError> {
    let passes = &hive.options.passes;
    passes.join(queen, &hello.hive, &hello.node).await?;
    match link::dial(&passes.target(queen).map_err(JoinError::from)?, hello).await {
        Err(LinkError::Refused(failure)) if failure.code == Code::InvalidApiKey => {
            passes.exchange(queen, &hello.hive, &hello.node).await?;
            Err(LinkError::Refused(failure))
        }
        dialled => dialled,
    }
}

/// GET /v1/telemetry: a body that never ends as long as the hive works, in the version that the queen asks for.
pub fn telemetry(hive: &Arc<Hive>, request: &Request) -> Result<Response, Failure> {
    let version = match request.query(VERSION_PARAMETER).as_deref() {
        None => 1,
        Some("2") => 2,
        Some(other) => {
            return Err(Failure::new(
                Code::VersionMismatch,
                format!("this hive tells telemetry in the versions 1 and 2, not `{other}`"),
            ));
        }
    };
    let (frames, stream) = mpsc::channel(FRAMES_PENDING_MAX);
    let teller = Teller { hive: hive.clone(), frames, version };
    tokio::spawn(async move {
        // An error is the queen's leaving, or a frame too large, which the queen would refuse as well.
        if let Err(error) = teller.tell().await {
            tracing::debug!(%error, "telemetry ended");
        }
    });
    Ok(Response::new(Stream { frames: stream }.boxed_unsync()))
}

#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error("the queen has gone")]
    Gone,
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

struct Teller {
    hive: Arc<Hive>,
    frames: mpsc::Sender<Bytes>,
    version: u32,
}

impl Teller {
    async fn send(&self, telemetry: TelemetryV2) -> Result<(), TellError> {
        let frame = match self.version {
            1 => match telemetry.as_v1() {
                Some(telemetry) => Frame::V1(telemetry),
                None => return Ok(()),
            },
            _ => Frame::V2(telemetry),
        };
        let bytes = codec::encode(&frame)?;
        self.frames.send(Bytes::from(bytes)).await.map_err(|_| TellError::Gone)
    }

    async fn tell(&self) -> Result<(), TellError> {
        let hive = &self.hive;
        let mut workers = hive.workers.watch();
        let mut models = hive.models_changed.subscribe();
        let mut engines = hive.engines_changed.subscribe();
        let mut drained = hive.drained.subscribe();
        workers.borrow_and_update();
        let mut speeds = Box::pin(hive.speeds.changed());
        // She places by what models need from the first word on.
        let mut looking = Some(self.look());
        if let Some(look) = &mut looking
            && timeout(FIRST_LOOK_MAX, look).await.is_ok()
        {
            looking = None;
        }
        let mut known_devices = hive.devices_seen();
        let mut holders = self.holders();
        self.send(TelemetryV2::Full(Box::new(HiveV2 {
            name: hive.options.name.clone(),
            version: crate::wire::VERSION.into(),
            listen: hive.options.base_url.clone(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            draining: hive.is_draining(),
            devices: known_devices.iter().cloned().map(Into::into).collect(),
            workers: self.workers(),
            models: self.models(),
            engines: hive.engine_infos().into_iter().map(Into::into).collect(),
            speeds: hive.speeds.all().into_iter().map(Into::into).collect(),
        })))
        .await?;
        let mut look_again = tokio::time::interval_at(Instant::now() + DEVICES_EVERY, DEVICES_EVERY);
        // On its own, too: a vendor's tool may take longer than a queen bears silence.
        let mut asking: Option<JoinHandle<Vec<Device>>> = None;
        let mut draining = hive.shutdown.is_draining();
        let mut told_essence = hive.workers.essence();
        // Up to when the frames on how busy workers are have been paid for.
        let mut paid = Instant::now();
        let mut is_untold = false;
        loop {
            if draining && hive.workers.infos().is_empty() {
                return Ok(());
            }
            tokio::select! {
                () = self.frames.closed() => return Err(TellError::Gone),
                () = hive.shutdown.stopped() => return Ok(()),
                () = hive.shutdown.drained(), if !draining => {
                    draining = true;
                    self.send(TelemetryV2::Draining(true)).await?;
                }
                _ = drained.changed() => self.send(TelemetryV2::Draining(hive.is_draining())).await?,
                // What has to wait waits for no more than this, and until then nothing else is of interest.
                is_due = async {
                    match is_untold {
                        true => tokio::time::sleep_until(paid - BUSY_TOLD_BURST).await,
                        false => drop(workers.changed().await),
                    }
                    is_untold
                } => {
                    workers.mark_unchanged();
                    let (essence, now) = (hive.workers.essence(), Instant::now());
                    is_untold = !is_due && essence == told_essence && paid > now + BUSY_TOLD_BURST;
                    if is_untold {
                        continue;
                    }
                    told_essence = essence;
                    paid = paid.max(now) + BUSY_TOLD_EVERY;
                    self.send(TelemetryV2::Workers(self.workers())).await?;
                    // Who came or went has taken or given memory.
                    if holders != self.holders() {
                        holders = self.holders();
                        look_again.reset_immediately();
                    }
                }
                _ = models.changed() => {
                    self.send(TelemetryV2::Models(self.models())).await?;
                    looking = Some(self.look());
                }
                is_new = async { looking.as_mut().expect("guarded by the condition").await }, if looking.is_some() => {
                    looking = None;
                    // A reader that panicked has told nothing; the next change of the models looks again.
                    if is_new.unwrap_or(false) {
                        self.send(TelemetryV2::Models(self.models())).await?;
                    }
                }
                _ = engines.changed() => {
                    let engines = hive.engine_infos().into_iter().map(Into::into).collect();
                    self.send(TelemetryV2::Engines(engines)).await?;
                }
                () = speeds.as_mut() => {
                    speeds = Box::pin(hive.speeds.changed());
                    let speeds = hive.speeds.all().into_iter().map(Into::into).collect();
                    self.send(TelemetryV2::Speeds(speeds)).await?;
                }
                _ = look_again.tick(), if asking.is_none() => {
                    let hive = hive.clone();
                    asking = Some(tokio::spawn(async move { hive.devices().await }));
                }
                seen = async { asking.as_mut().expect("guarded by the condition").await }, if asking.is_some() => {
                    asking = None;
                    let seen = seen.unwrap_or_else(|_| hive.devices_seen());
                    if seen != known_devices {
                        known_devices = seen;
                        let devices = known_devices.iter().cloned().map(Into::into).collect();
                        self.send(TelemetryV2::Devices(devices)).await?;
                    }
                }
                () = tokio::time::sleep(TICK) => self.send(TelemetryV2::Tick).await?,
            }
        }
    }

    fn workers(&self) -> Vec<WorkerV1> {
        self.hive.workers.infos().into_iter().map(Into::into).collect()
    }

    /// The models, each with its needs as far as they are known.
    fn models(&self) -> Vec<ModelV2> {
        let names = models::names(&self.hive).into_iter();
        names
            .map(|names| {
                let needs = self.hive.needs.known(&names.id);
                ModelV2::new(names, needs)
            })
            .collect()
    }

    fn look(&self) -> JoinHandle<bool> {
        let hive = self.hive.clone();
        tokio::task::spawn_blocking(move || hive.needs.look(&hive.store))
    }

    /// Who holds memory, or has let it go.
    fn holders(&self) -> Vec<(String, bool)> {
        let held = |worker: WorkerInfo| (worker.worker_id, worker.state.is_coming());
        self.hive.workers.infos().into_iter().map(held).collect()
    }
}

struct Stream {
    frames: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Stream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        self.frames.poll_recv(cx).map(|frame| frame.map(|bytes| Ok(http_body::Frame::data(bytes))))
    }
}
