//! The keeper: the person's command line. It has no state: it asks a queen or a hive, starts them where the command says so,
//! and shows what comes back. Results go to stdout, everything else to stderr.

mod bars;
pub mod commands;
mod editor;
mod follow;
mod install;
mod lines;
mod partial;
mod remote;
mod render;
mod server;
mod signals;
mod start;
mod turns;
mod version;

use crate::cli::Action;
use crate::config::Settings;
use crate::exit::Exit;
use crate::http::client::{AskError, ClientError};
use crate::wire::failure::chain;
use crate::wire::operation::ReportedOperation;
use crate::wire::{Code, Failure};
use render::Render;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Refused(#[from] Failure),
    #[error("{what}")]
    Local {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("gave up after {} s, as --timeout says{hint}", after.as_secs_f32())]
    TimedOut { after: std::time::Duration, hint: String },
    /// Said already: the exit code is all that is left.
    #[error("interrupted")]
    Interrupted,
    #[error("terminated")]
    Terminated,
    #[error("down")]
    Down,
}

impl KeeperError {
    fn local(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        KeeperError::Local { what: what.into(), source: source.into() }
    }

    /// Whether somebody has asked the command to end.
    fn is_stop(&self) -> bool {
        matches!(self, KeeperError::Interrupted | KeeperError::Terminated)
    }

    /// Whether who reads our answer has had enough of it, as `head` has.
    fn is_unread(&self) -> bool {
        let KeeperError::Local { source, .. } = self else { return false };
        source
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<AskError> for KeeperError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Refused(failure) => KeeperError::Refused(failure),
            AskError::Client(error) => error.into(),
        }
    }
}

impl From<ClientError> for KeeperError {
    fn from(error: ClientError) -> Self {
        KeeperError::Refused(Failure::new(Code::ConnectionFailed, chain(&error)))
    }
}

/// Runs a keeper's command to its exit code.
pub async fn run(settings: &Settings) -> Exit {
    let render = Render::new(settings);
    match dispatch(settings, &render).await {
        Ok(()) => Exit::Done,
        Err(KeeperError::Interrupted) => Exit::Interrupted,
        Err(KeeperError::Terminated) => Exit::Terminated,
        Err(KeeperError::Down) => Exit::Failed,
        // As other commands end in a pipe: without a word.
        Err(error) if error.is_unread() => Exit::Failed,
        Err(error @ KeeperError::Usage(_)) => {
            render.error(&error.to_string());
            Exit::Usage
        }
        Err(KeeperError::Refused(failure)) => {
            render.failure(&failure);
            Exit::Failed
        }
        Err(error) => {
            render.error(&chain(&error));
            Exit::Failed
        }
    }
}

async fn dispatch(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    use commands::{
        aliases, chat, daemons, hives, jobs, keys, links, logs, models, run, status, unload, why, worker,
        worker_processes, workers,
    };
    match settings.command().action {
        Action::Run => run::run(settings, render).await,
        Action::Chat => chat::chat(settings, render).await,
        Action::Why => why::why(settings, render).await,
        Action::Status => status::status(settings, render).await,
        Action::QueenStart => daemons::start(settings, render, daemons::QUEEN).await,
        Action::QueenStatus => daemons::status(settings, render, daemons::QUEEN).await,
        Action::QueenStop => daemons::stop(settings, render, daemons::QUEEN).await,
        Action::HiveStart => daemons::start(settings, render, daemons::HIVE).await,
        Action::HiveStatus => daemons::status(settings, render, daemons::HIVE).await,
        Action::HiveStop => daemons::stop(settings, render, daemons::HIVE).await,
        Action::HiveInstall => remote::run(ReportedOperation::HiveInstall, settings, render).await,
        Action::HiveUpdate => remote::run(ReportedOperation::HiveUpdate, settings, render).await,
        Action::HiveUninstall => remote::run(ReportedOperation::HiveUninstall, settings, render).await,
        Action::HiveList => hives::list(settings, render).await,
        Action::HiveGet => hives::get(settings, render).await,
        Action::HiveDrain => hives::drain(settings, render).await,
        Action::WorkerSpawn => workers::spawn(settings, render).await,
        Action::WorkerAvailable => worker::available(settings, render).await,
        Action::WorkerInstalled => worker::list(settings, render).await,
        Action::WorkerGet => worker::get(settings, render).await,
        Action::WorkerDownload => worker::download(settings, render).await,
        Action::WorkerRemove => worker::remove(settings, render).await,
        Action::WorkerProcessList => worker_processes::list(settings, render).await,
        Action::WorkerProcessGet => worker_processes::get(settings, render).await,
        Action::WorkerProcessDelete => worker_processes::delete(settings, render).await,
        Action::WorkersList => workers::list(settings, render).await,
        Action::WorkersHealth => unload::health(settings, render).await,
        Action::WorkersRetire => unload::retire(settings, render).await,
        Action::WorkersShutdown => unload::shutdown(settings, render).await,
        Action::Stop => unload::stop(settings, render).await,
        Action::WorkersGet => workers::get(settings, render).await,
        Action::WorkersLogs => logs::worker(settings, render).await,
        Action::Logs => logs::fleet(settings, render).await,
        Action::ModelDownload => models::download(settings, render).await,
        Action::ModelList => models::list(settings, render).await,
        Action::ModelGet => models::get(settings, render).await,
        Action::ModelRemove => models::remove(settings, render).await,
        Action::ModelVerify => models::verify(settings, render).await,
        Action::ModelPrune => models::prune(settings, render).await,
        Action::ModelAlias => aliases::alias(settings, render).await,
        Action::ModelUnalias => aliases::remove(settings, render).await,
        Action::JobList => jobs::list(settings, render).await,
        Action::JobGet => jobs::get(settings, render).await,
        Action::JobFollow => jobs::follow(settings, render).await,
        Action::JobCancel => jobs::cancel(settings, render).await,
        Action::KeyCreate => keys::create(settings, render).await,
        Action::KeyList => keys::list(settings, render),
        Action::KeyRevoke => keys::revoke(settings, render),
        Action::Token => keys::token(settings, render).await,
        Action::Install => install::install(settings, render).await,
        Action::Uninstall => install::uninstall(settings, render).await,
        Action::Links => links::links(settings, render),
        // Daemons, the worker, the shim, help, what is printed from the table and version are main's.
        Action::Serve
        | Action::QueenServe
        | Action::HiveServe
        | Action::WorkerServe
        | Action::CatalogServe
        | Action::Completions
        | Action::Man
        | Action::Help
        | Action::Version
        | Action::Shim
        | Action::Unpack => Err(KeeperError::Usage("this command is not the keeper's".into())),
    }
}
