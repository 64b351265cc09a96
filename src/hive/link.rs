//! The hive's end of its links: one to each queen it was told of, dialled again whenever it is lost, and what goes over it
//! unasked: telemetry, the whole state first, then what changed, at least one frame a second.

use crate::hive::{Hive, Routes, devices, models};
use crate::http::client::Target;
use crate::http::link::{self, Hello, LinkError};
use crate::http::{BoxError, Response};
use crate::wire::codec::{self, Frame, HiveV1, TelemetryV1};
use crate::wire::fleet::Device;
use bytes::Bytes;
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

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
/// Frames that wait for a queen who reads slowly.
const FRAMES_PENDING_MAX: usize = 64;

/// Keeps one link up until the hive drains.
pub async fn keep(hive: Arc<Hive>, queen: Target) {
    let hello = Hello::ours(&hive.options.name, &hive.node);
    let mut pause = REDIAL_MIN;
    let mut told = String::new();
    loop {
        let dialled = tokio::select! {
            () = hive.shutdown.drained() => return,
            dialled = dial(&hive, &queen, &hello) => dialled,
        };
        match dialled {
            Ok(io) => {
                tracing::info!(%queen, "linked");
                let begun = tokio::time::Instant::now();
                told.clear();
                let ended = link::serve(io, Routes(hive.clone()), hive.shutdown.clone()).await;
                if begun.elapsed() >= LINK_SETTLED {
                    pause = REDIAL_MIN;
                }
                tracing::info!(%queen, reason = ended.err().map(|error| crate::wire::failure::chain(&error)), "link ended");
            }
            Err(error) => {
                // Said once, not every two seconds: a queen may be down for days.
                let reason = crate::wire::failure::chain(&error);
                if reason != told {
                    tracing::info!(%queen, reason, "no link yet; trying on");
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

/// With the key that this queen is to be shown now, a token exchanged for it first.
async fn dial(hive: &Hive, queen: &Target, hello: &Hello) -> Result<hyper::upgrade::Upgraded, LinkError> {
    hive.options.passes.join_or_tell(queen, &hello.hive, &hello.node).await;
    let keyed = hive.options.passes.target(queen).map_err(LinkError::Keys)?;
    link::dial(&keyed, hello).await
}

/// GET /v1/telemetry: a body that never ends as long as the hive works.
pub fn telemetry(hive: &Arc<Hive>) -> Response {
    let (frames, stream) = mpsc::channel(FRAMES_PENDING_MAX);
    let hive = hive.clone();
    tokio::spawn(async move {
        // An error is the queen's leaving, or a frame too large, which the queen would refuse as well.
        if let Err(error) = tell(&hive, &frames).await {
            tracing::debug!(%error, "telemetry ended");
        }
    });
    Response::new(Stream { frames: stream }.boxed_unsync())
}

#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error("the queen has gone")]
    Gone,
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

async fn tell(hive: &Hive, frames: &mpsc::Sender<Bytes>) -> Result<(), TellError> {
    let send = async |telemetry: TelemetryV1| {
        let bytes = codec::encode(&Frame::V1(telemetry))?;
        frames.send(Bytes::from(bytes)).await.map_err(|_| TellError::Gone)
    };
    let mut workers = hive.workers.watch();
    let mut changed = hive.models_changed.subscribe();
    workers.borrow_and_update();
    changed.borrow_and_update();
    let mut known_devices = devices::devices().await;
    send(TelemetryV1::Full(HiveV1 {
        name: hive.options.name.clone(),
        version: crate::wire::VERSION.into(),
        listen: hive.options.base_url.clone(),
        os: std::env::consts::OS.into(),
        arch: std::env::consts::ARCH.into(),
        draining: hive.shutdown.is_draining(),
        devices: known_devices.iter().cloned().map(Into::into).collect(),
        workers: hive.workers.infos().into_iter().map(Into::into).collect(),
        models: models::names(hive).into_iter().map(Into::into).collect(),
    }))
    .await?;
    let mut look = tokio::time::interval_at(tokio::time::Instant::now() + DEVICES_EVERY, DEVICES_EVERY);
    let mut draining = hive.shutdown.is_draining();
    loop {
        if draining && hive.workers.infos().is_empty() {
            return Ok(());
        }
        tokio::select! {
            () = frames.closed() => return Err(TellError::Gone),
            () = hive.shutdown.stopped() => return Ok(()),
            () = hive.shutdown.drained(), if !draining => {
                draining = true;
                send(TelemetryV1::Draining(true)).await?;
            }
            _ = workers.changed() => {
                workers.borrow_and_update();
                send(TelemetryV1::Workers(hive.workers.infos().into_iter().map(Into::into).collect())).await?;
            }
            _ = changed.changed() => {
                changed.borrow_and_update();
                send(TelemetryV1::Models(models::names(hive).into_iter().map(Into::into).collect())).await?;
            }
            _ = look.tick() => {
                let now: Vec<Device> = devices::devices().await;
                if now != known_devices {
                    known_devices = now;
                    send(TelemetryV1::Devices(known_devices.iter().cloned().map(Into::into).collect())).await?;
                }
            }
            () = tokio::time::sleep(TICK) => send(TelemetryV1::Tick).await?,
        }
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
