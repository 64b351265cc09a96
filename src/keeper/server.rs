//! Where a command's questions go: the queen, or a hive by its own address, with the tries that B5 promises.

use crate::config::Settings;
use crate::http::Body;
use crate::http::client::{self, AskError, ClientError, Target};
use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::keeper::version;
use crate::paths::Dirs;
use crate::wire::failure::chain;
use crate::wire::fleet::Health;
use crate::wire::{Code, Failure};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::Instant;

/// B5: three tries, with these pauses before them.
pub const TRY_PAUSES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(200), Duration::from_millis(400)];

/// The server a command talks to.
#[derive(Debug, Clone)]
pub struct Server {
    pub target: Target,
    /// Set when the command named a hive by its address: then there is no queen between.
    pub is_hive: bool,
    /// The hive a queen should relay to.
    pub hive_id: Option<String>,
    pub patience: Patience,
}

/// What --timeout leaves a command: the end of it, and how long it was. Without a limit unless one is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience(Option<(Instant, Duration)>);

impl Patience {
    /// Counted from now.
    pub fn of(settings: &Settings) -> Self {
        let limit = settings.duration("timeout");
        Patience(limit.and_then(|after| Some((Instant::now().checked_add(after)?, after))))
    }

    /// The time when it ends; never without a limit.
    pub async fn end(self) -> Duration {
        match self.0 {
            Some((at, after)) => {
                tokio::time::sleep_until(at).await;
                after
            }
            None => std::future::pending().await,
        }
    }

    /// What takes no longer than that.
    async fn bounds<T>(self, asking: impl Future<Output = Result<T, KeeperError>>) -> Result<T, KeeperError> {
        tokio::select! {
            asked = asking => asked,
            after = self.end() => Err(KeeperError::TimedOut { after, hint: String::new() }),
        }
    }
}

impl Server {
    /// As the flags say: `--hive URL` goes straight to that hive, anything else to the queen.
    pub fn of(settings: &Settings) -> Result<Self, KeeperError> {
        let patience = Patience::of(settings);
        if let Some(hive) = settings.text("hive") {
            if hive.contains("://") || hive.contains(':') {
                let target = keyed(settings, Target::parse(hive)?)?;
                return Ok(Server { target, is_hive: true, hive_id: None, patience });
            }
            let hive_id = (hive != "localhost").then(|| hive.to_owned());
            return Ok(Server { target: queen(settings)?, is_hive: false, hive_id, patience });
        }
        Ok(Server { target: queen(settings)?, is_hive: false, hive_id: None, patience })
    }

    /// The queen, whatever hive is named by habit.
    pub fn of_queen(settings: &Settings) -> Result<Self, KeeperError> {
        let patience = Patience::of(settings);
        Ok(Server { target: queen(settings)?, is_hive: false, hive_id: None, patience })
    }

    /// GET, as JSON.
    pub async fn get<T: DeserializeOwned>(&self, path: &str, render: &Render) -> Result<T, KeeperError> {
        self.ask(|| client::get(path), render).await
    }

    /// A question that may be asked again, as JSON.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        question: impl Fn() -> Result<http::Request<Body>, ClientError>,
        render: &Render,
    ) -> Result<T, KeeperError> {
        let asking = async {
            let mut last = None;
            for (before, pause) in TRY_PAUSES.into_iter().enumerate() {
                told(render, before, last.as_ref());
                tokio::time::sleep(pause).await;
                match version::ask(&self.target, question()?).await {
                    Ok(value) => return Ok(value),
                    Err(AskError::Refused(failure)) => return Err(failure.into()),
                    Err(AskError::Client(error)) => last = Some(error),
                }
            }
            Err(self.unreachable(last))
        };
        self.patience.bounds(asking).await
    }

    /// GET, for an answer that comes piece by piece.
    pub async fn open(&self, path: &str, render: &Render) -> Result<http::Response<Incoming>, KeeperError> {
        self.patience.bounds(self.opened(path, render)).await
    }

    async fn opened(&self, path: &str, render: &Render) -> Result<http::Response<Incoming>, KeeperError> {
        let mut last = None;
        for (before, pause) in TRY_PAUSES.into_iter().enumerate() {
            told(render, before, last.as_ref());
            tokio::time::sleep(pause).await;
            match client::send(&self.target, client::get(path)?).await {
                Ok(answer) if answer.status().is_success() => {
                    version::check(&self.target, &answer)?;
                    return Ok(answer);
                }
                Ok(answer) => {
                    version::check(&self.target, &answer)?;
                    client::whole(answer).await?;
                    let odd = "the answer is neither a stream nor a failure";
                    return Err(Failure::new(Code::Internal, odd).into());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(self.unreachable(last))
    }

    /// One question, one try: is anybody there? Nobody, where nobody can be reached.
    pub async fn health(&self) -> Result<Option<Health>, KeeperError> {
        let asking = async {
            match version::ask(&self.target, client::get("/health")?).await {
                Ok(health) => Ok(Some(health)),
                Err(AskError::Refused(failure)) => Err(failure.into()),
                Err(AskError::Client(_)) => Ok(None),
            }
        };
        self.patience.bounds(asking).await
    }

    pub fn unreachable(&self, error: Option<ClientError>) -> KeeperError {
        let what = if self.is_hive { "hive" } else { "queen" };
        let why = error.map_or_else(String::new, |error| format!(": {}", chain(&error)));
        KeeperError::Refused(Failure::new(
            Code::ConnectionFailed,
            format!(
                "the {what} at {} does not answer{why}. Is it running (`rbee {what} status`)? Is the address right (--{what}, RBEE_{})?",
                self.target,
                what.to_uppercase()
            ),
        ))
    }
}

/// Says what another try follows on.
pub fn told(render: &Render, before: usize, error: Option<&ClientError>) {
    if let Some(error) = error {
        let (pause, number) = (TRY_PAUSES[before].as_millis(), before + 1);
        render.say(&format!("{}; try {number} of {} in {pause} ms", chain(error), TRY_PAUSES.len()));
    }
}

pub fn queen(settings: &Settings) -> Result<Target, KeeperError> {
    keyed(settings, Target::parse(settings.text("queen").unwrap_or_default())?)
}

/// A server with the key to show it: the flag's, its file's first line, else that of a daemon of ours on this machine.
pub fn keyed(settings: &Settings, target: Target) -> Result<Target, KeeperError> {
    let given =
        crate::daemon::api_key(settings).map_err(|error| KeeperError::local("reading the key", error))?;
    let target = target.with_key(given.as_deref());
    // An account without a home has no daemons either.
    Ok(match Dirs::of_process(settings.path("state-dir")) {
        Ok(dirs) => target.with_local(dirs.state),
        Err(_) => target,
    })
}
