//! What the queen knows of her hives, all of it soft: what telemetry said, and for how long the link has been silent.
//! One cell holds it; every change is published, so nobody polls. A link that closes takes its hive's workers with it.

use crate::http::link::{Caller, Hello};
use crate::http::{client, request};
use crate::model::is_name;
use crate::model::names::{self, Known};
use crate::wire::codec::{Decoder, Frame, TelemetryV1};
use crate::wire::fleet::{HiveInfo, HiveState, WorkerInfo, now_ms};
use crate::wire::{Code, Failure};
use http_body_util::BodyExt;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::watch;

/// The hive sends a frame at least once a second; after this much silence the link counts as dead.
pub const TELEMETRY_SILENCE_MAX: Duration = Duration::from_secs(5);
/// The longest name of a hive.
pub const HIVE_NAME_BYTES_MAX: usize = 100;
/// Hives of one queen.
pub const HIVES_MAX: usize = 1_024;

/// A hive and the way to ask it.
#[derive(Debug, Clone)]
pub struct Hive {
    pub info: HiveInfo,
    pub caller: Caller,
    /// Tells a hive's old link from its new one.
    link: u64,
    node: String,
}

/// Everything known at one instant.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    pub hives: BTreeMap<String, Hive>,
    links: u64,
}

impl Fleet {
    pub fn infos(&self) -> Vec<HiveInfo> {
        self.hives.values().map(|hive| hive.info.clone()).collect()
    }

    pub fn workers(&self) -> impl Iterator<Item = &WorkerInfo> {
        self.hives.values().flat_map(|hive| &hive.info.workers)
    }

    /// The models that a client may ask for, by their ids: what is loaded or lies on a node's disk.
    pub fn models(&self) -> Vec<String> {
        let on_disk = self.hives.values().flat_map(|hive| hive.info.models.iter().cloned());
        let mut models: Vec<String> =
            self.workers().map(|worker| worker.model.clone()).chain(on_disk).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// The same, and the aliases, which clients use like models.
    pub fn models_and_aliases(&self) -> Vec<String> {
        let names =
            self.hives.values().flat_map(|hive| &hive.info.model_names).flat_map(|model| &model.names);
        let aliases = names.filter(|name| is_name(name)).cloned();
        let mut models: Vec<String> = self.models().into_iter().chain(aliases).collect();
        models.sort_unstable();
        models.dedup();
        models
    }

    /// The id of the model that a client means: on the hive it names, else on any. What nobody has keeps the name it was
    /// asked for by.
    pub fn meant(&self, asked: &str, hive: Option<&str>) -> String {
        let known = |on: Option<&str>| {
            let hives = self.hives.values().filter(move |hive| on.is_none_or(|name| name == hive.info.name));
            let models = hives.clone().flat_map(|hive| &hive.info.model_names).map(Known::of);
            let loaded = hives.flat_map(|hive| &hive.info.workers);
            let loaded = loaded.map(|worker| Known { id: &worker.model, names: &[] });
            names::meant(asked, models.chain(loaded)).first().map(|id| (*id).to_owned())
        };
        hive.and_then(|hive| known(Some(hive))).or_else(|| known(None)).unwrap_or_else(|| asked.to_owned())
    }
}

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
    Broken(#[source] hyper::Error),
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

    pub fn hive(&self, name: &str) -> Result<Hive, Failure> {
        let fleet = self.fleet.borrow();
        fleet.hives.get(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = fleet.hives.keys().map(String::as_str).collect();
            let known = if names.is_empty() { "none is connected".into() } else { format!("there are: {}", names.join(", ")) };
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
                fleet.hives.remove(&hello.hive);
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
        let ask = client::get("/v1/telemetry").map_err(|e| LinkLost::Ask(e.into()))?;
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
                let Frame::V1(telemetry) = frame;
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
        telemetry: TelemetryV1,
    ) -> Result<(), LinkLost> {
        let mut outcome = Ok(());
        self.fleet.send_if_modified(|fleet| {
            if let TelemetryV1::Full(full) = telemetry {
                let info = HiveInfo {
                    name: hello.hive.clone(),
                    version: full.version,
                    state: if full.draining { HiveState::Draining } else { HiveState::Online },
                    listen: full.listen,
                    connected_at: now_ms(),
                    last_seen: now_ms(),
                    devices: full.devices.into_iter().map(Into::into).collect(),
                    workers: full.workers.into_iter().map(|worker| worker.on(&hello.hive)).collect(),
                    models: full.models.iter().map(|model| model.id.clone()).collect(),
                    model_names: full.models.into_iter().map(Into::into).collect(),
                    os: full.os,
                    arch: full.arch,
                };
                let before = fleet.hives.get(&hello.hive);
                if before.is_some_and(|hive| hive.link != link && !hive.caller.is_closed()) {
                    // A restarted hive whose old connection has not been noticed yet, or a copied state directory.
                    tracing::warn!(
                        hive = hello.hive,
                        "replacing a link that was alive; if this goes on, two machines share one node id: remove the file `node` from one's state directory"
                    );
                }
                let hive = Hive { info, caller: caller.clone(), link, node: hello.node.clone() };
                fleet.hives.insert(hello.hive.clone(), hive);
                return true;
            }
            let info = match fleet.hives.get_mut(&hello.hive) {
                Some(hive) if hive.link == link => &mut hive.info,
                Some(_) => {
                    outcome = Err(LinkLost::Superseded);
                    return false;
                }
                None => {
                    outcome = Err(LinkLost::NoState);
                    return false;
                }
            };
            info.last_seen = now_ms();
            match telemetry {
                TelemetryV1::Full(_) | TelemetryV1::Tick => return false,
                TelemetryV1::Workers(workers) => {
                    info.workers = workers.into_iter().map(|worker| worker.on(&hello.hive)).collect();
                }
                TelemetryV1::Devices(devices) => info.devices = devices.into_iter().map(Into::into).collect(),
                TelemetryV1::Models(models) => {
                    info.models = models.iter().map(|model| model.id.clone()).collect();
                    info.model_names = models.into_iter().map(Into::into).collect();
                }
                TelemetryV1::Draining(draining) => {
                    info.state = if draining { HiveState::Draining } else { HiveState::Online };
                }
            }
            true
        });
        outcome
    }
}
