//! What the queen knows of her hives, all of it soft: what telemetry said, and for how long the link has been silent.
//! One cell holds it; every change is published, so nobody polls. A link that closes takes its hive's workers with it.

use crate::http::link::{Caller, Hello};
use crate::http::{client, request};
use crate::queen::fleet::{Fleet, Hive};
use crate::wire::codec::{Decoder, Frame, HiveV2, ModelV2, TelemetryV2};
use crate::wire::failure::listed;
use crate::wire::fleet::{HiveInfo, HiveState, ModelNames, ModelNeeds, now_ms};
use crate::wire::{Code, Failure};
use http_body_util::BodyExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The hive sends a frame at least once a second; after this much silence the link counts as dead.
pub const TELEMETRY_SILENCE_MAX: Duration = Duration::from_secs(5);
/// The longest name of a hive.
pub const HIVE_NAME_BYTES_MAX: usize = 100;
/// Hives of one queen.
pub const HIVES_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub enum LinkLost {
    #[error("its telemetry could not be asked for")]
    Ask(#[source] crate::http::link::LinkError),
    #[error("it refused its telemetry: {0}")]
    Refused(#[source] Failure),
    #[error("its telemetry did not begin with its whole state")]
    NoState,
    #[error("nothing came from it for {} s", TELEMETRY_SILENCE_MAX.as_secs())]
    Silent,
    #[error("its telemetry broke off")]
    Broken(#[source] h2::Error),
    #[error("its telemetry does not decode")]
    Codec(#[from] crate::wire::codec::CodecError),
    #[error("it closed the link")]
    Closed,
    #[error("its key was revoked")]
    Revoked,
    #[error("a newer link of the same hive took over")]
    Superseded,
}

#[derive(Debug)]
pub struct Registry {
    fleet: watch::Sender<Fleet>,
}

impl Default for Registry {
    fn default() -> Self {
        Registry { fleet: watch::Sender::new(Fleet::default()) }
    }
}

impl Registry {
    pub fn fleet(&self) -> Fleet {
        self.fleet.borrow().clone()
    }

    /// See [`Fleet::meant`].
    pub fn meant(&self, asked: &str, hive: Option<&str>) -> String {
        self.fleet.borrow().meant(asked, hive)
    }

    /// Wakes on every change.
    pub fn watch(&self) -> watch::Receiver<Fleet> {
        self.fleet.subscribe()
    }

    pub fn hive(&self, name: &str) -> Result<Arc<Hive>, Failure> {
        let fleet = self.fleet.borrow();
        fleet.hives.get(name).cloned().ok_or_else(|| {
            let names = listed(fleet.hives.keys());
            let known = if names.is_empty() { "none is connected".into() } else { format!("there are: {names}") };
            Failure::new(
                Code::HiveNotFound,
                format!("no hive is called `{name}`; {known}. Start one with `rbee hive serve --queen URL` on its machine"),
            )
        })
    }

    /// Whether a dialling hive may have the name it asks for: free, or its own from before.
    pub fn admit(&self, hello: &Hello) -> Result<(), Failure> {
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if hello.hive.is_empty() || hello.hive.len() > HIVE_NAME_BYTES_MAX || !plain(&hello.hive) {
            return Err(Failure::invalid(format!(
                "`{}` cannot name a hive: letters, digits, `-`, `_` and `.`, at most {HIVE_NAME_BYTES_MAX}",
                hello.hive
            )));
        }
        let fleet = self.fleet.borrow();
        match fleet.hives.get(&hello.hive) {
            Some(hive) if hive.node != hello.node && !hive.caller.is_closed() => Err(Failure::new(
                Code::Conflict,
                format!(
                    "another machine is already called `{}`: give this one a name with --name",
                    hello.hive
                ),
            )),
            None if fleet.hives.len() >= HIVES_MAX => {
                Err(Failure::new(Code::TooManyRequests, format!("this queen already has {HIVES_MAX} hives")))
            }
            _ => Ok(()),
        }
    }

    /// Follows one hive's telemetry until its link is lost or its key revoked, and takes the hive out then.
    pub async fn follow(&self, hello: &Hello, caller: Caller, revoked: impl Future<Output = ()>) -> LinkLost {
        let link = self.next_link();
        let lost = tokio::select! {
            listened = self.listen(hello, caller, link) => match listened {
                Ok(never) => match never {},
                Err(lost) => lost,
            },
            () = revoked => LinkLost::Revoked,
        };
        self.fleet.send_if_modified(|fleet| {
            let ours = fleet.hives.get(&hello.hive).is_some_and(|hive| hive.link == link);
            if ours {
                fleet.remove(&hello.hive);
            }
            ours
        });
        lost
    }

    fn next_link(&self) -> u64 {
        let mut link = 0;
        self.fleet.send_if_modified(|fleet| {
            fleet.links += 1;
            link = fleet.links;
            false
        });
        link
    }

    async fn listen(
        &self,
        hello: &Hello,
        caller: Caller,
        link: u64,
    ) -> Result<std::convert::Infallible, LinkLost> {
        // A hive of the version before does not read what is asked here, and tells what it knows.
        let ask = client::get("/v1/telemetry?version=2").map_err(|e| LinkLost::Ask(e.into()))?;
        let answer = caller.send(ask).await.map_err(LinkLost::Ask)?;
        if !answer.status().is_success() {
            let status = answer.status().as_u16();
            let body =
                request::read(answer.into_body(), request::CONTROL_BYTES_MAX).await.unwrap_or_default();
            return Err(LinkLost::Refused(Failure::from_body(status, &body)));
        }
        let mut body = answer.into_body();
        let mut decoder = Decoder::default();
        loop {
            while let Some(frame) = decoder.next_frame()? {
                let telemetry = match frame {
                    Frame::V1(telemetry) => telemetry.into(),
                    Frame::V2(telemetry) => telemetry,
                };
                self.apply(hello, &caller, link, telemetry)?;
            }
            let frame = tokio::time::timeout(TELEMETRY_SILENCE_MAX, body.frame()).await;
            match frame.map_err(|_| LinkLost::Silent)? {
                None => return Err(LinkLost::Closed),
                Some(Err(error)) => return Err(LinkLost::Broken(error)),
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        decoder.push(&bytes);
                    }
                }
            }
        }
    }

    fn apply(
        &self,
        hello: &Hello,
        caller: &Caller,
        link: u64,
        telemetry: TelemetryV2,
    ) -> Result<(), LinkLost> {
        let mut outcome = Ok(());
        self.fleet.send_if_modified(|fleet| {
            let before = fleet.hives.get(&hello.hive);
            if let TelemetryV2::Full(full) = telemetry {
                if before.is_some_and(|hive| hive.link != link && !hive.caller.is_closed()) {
                    // A restarted hive whose old connection has not been noticed yet, or a copied state directory.
                    tracing::warn!(
                        hive = hello.hive,
                        "replacing a link that was alive; if this goes on, two machines share one node id: remove the file `node` from one's state directory"
                    );
                }
                let hive = Hive::new(about(&hello.hive, *full), caller.clone(), link, hello.node.clone());
                fleet.insert(&hello.hive, hive);
                return true;
            }
            match before {
                Some(hive) if hive.link == link => {}
                Some(_) => {
                    outcome = Err(LinkLost::Superseded);
                    return false;
                }
                None => {
                    outcome = Err(LinkLost::NoState);
                    return false;
                }
            }
            let is_news = !matches!(telemetry, TelemetryV2::Tick);
            fleet.change(&hello.hive, |hive| {
                hive.info.last_seen = now_ms();
                take_in(hive, telemetry);
            });
            is_news
        });
        outcome
    }
}

/// What a hive says of itself when its link begins.
fn about(name: &str, full: HiveV2) -> HiveInfo {
    let (model_names, model_needs) = named_and_needed(full.models);
    HiveInfo {
        name: name.to_owned(),
        version: full.version,
        state: state(full.draining),
        listen: full.listen,
        connected_at: now_ms(),
        last_seen: now_ms(),
        devices: full.devices.into_iter().map(Into::into).collect(),
        workers: full.workers.into_iter().map(|worker| worker.on(name)).collect(),
        models: model_names.iter().map(|model| model.id.clone()).collect(),
        model_names,
        model_needs,
        engines: full.engines.into_iter().map(Into::into).collect(),
        speeds: full.speeds.into_iter().map(Into::into).collect(),
        os: full.os,
        arch: full.arch,
    }
}

/// What has changed since.
fn take_in(hive: &mut Hive, telemetry: TelemetryV2) {
    match telemetry {
        TelemetryV2::Full(_) | TelemetryV2::Tick => {}
        TelemetryV2::Workers(workers) => {
            let name = hive.info.name.clone();
            hive.set_workers(workers.into_iter().map(|worker| worker.on(&name)).collect());
        }
        TelemetryV2::Devices(devices) => hive.set_devices(devices.into_iter().map(Into::into).collect()),
        TelemetryV2::Models(models) => {
            let (model_names, model_needs) = named_and_needed(models);
            hive.info.models = model_names.iter().map(|model| model.id.clone()).collect();
            hive.info.model_names = model_names;
            hive.info.model_needs = model_needs;
        }
        TelemetryV2::Engines(engines) => hive.info.engines = engines.into_iter().map(Into::into).collect(),
        TelemetryV2::Speeds(speeds) => hive.info.speeds = speeds.into_iter().map(Into::into).collect(),
        TelemetryV2::Draining(draining) => hive.info.state = state(draining),
    }
}

fn state(draining: bool) -> HiveState {
    if draining { HiveState::Draining } else { HiveState::Online }
}

fn named_and_needed(models: Vec<ModelV2>) -> (Vec<ModelNames>, Vec<ModelNeeds>) {
    let (names, mut needs): (Vec<_>, Vec<ModelNeeds>) = models.into_iter().map(ModelV2::parts).unzip();
    needs.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    (names, needs)
}
