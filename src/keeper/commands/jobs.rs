//! `rbee job …`: jobs of the queen, or of the hive that --hive names: by its address, or by its name behind the queen.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::http::{client, reply};
use crate::keeper::KeeperError;
use crate::keeper::follow::Follower;
use crate::keeper::render::{Render, ago};
use crate::keeper::server::Server;
use crate::wire::Failure;
use crate::wire::job::{JobCancelled, JobEvent, JobId, JobRecord};
use serde::Deserialize;
use serde_json::json;

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

fn named(settings: &Settings) -> Result<JobId, KeeperError> {
    let text = settings.positionals().join(" ");
    text.parse().map_err(|_| KeeperError::Usage(format!("`{text}` is no job's id; see `rbee job list`")))
}

/// Where the jobs are that a command is about.
fn base(server: &Server) -> String {
    match &server.hive_id {
        Some(hive) => format!("/v1/hives/{}/v1/jobs", percent_encode(hive)),
        None => "/v1/jobs".into(),
    }
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Jobs {
        jobs: Vec<JobRecord>,
    }
    let server = Server::of(settings)?;
    let jobs = server.get::<Jobs>(&base(&server), render).await?.jobs;
    if render.is_json() {
        return render.value(&json!(jobs)).map_err(writing);
    }
    let row = |job: &JobRecord| {
        vec![
            job.job_id.to_string(),
            job.operation.clone(),
            job.state.name().to_owned(),
            format!("{} ago", ago(job.created_at)),
        ]
    };
    render.table(&["job", "operation", "state", "started"], jobs.iter().map(row).collect()).map_err(writing)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let job: JobRecord = server.get(&format!("{}/{}", base(&server), named(settings)?), render).await?;
    if render.is_json() {
        return render.value(&json!(job)).map_err(writing);
    }
    let text = serde_json::to_string_pretty(&job).unwrap_or_default();
    render.answer(&format!("{text}\n")).map_err(writing)
}

/// Shows a job from its first event on. With --json every event is a line. Ctrl-C cancels the job, as it does for the
/// command that started it.
pub async fn follow(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let id = named(settings)?;
    let server = Server::of(settings)?;
    let mut jobs = Follower::new(&server, render)?.at(base(&server));
    if render.is_json() {
        jobs = jobs.unshown();
    }
    let mut tokens = false;
    let result = jobs
        .follow(id, &mut |event| {
            if render.is_json() {
                return render.value(&json!(event));
            }
            if let JobEvent::Token { text, .. } = event {
                tokens = true;
                render.clear();
                return render.answer(text);
            }
            Ok(())
        })
        .await?;
    if render.is_json() {
        return Ok(());
    }
    let text = if tokens { "\n".to_owned() } else { format!("{result}\n") };
    render.answer(&text).map_err(writing)
}

pub async fn cancel(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let id = named(settings)?;
    let path = format!("{}/{id}", base(&server));
    let ask = || client::request("DELETE", &path, reply::empty());
    let cancelled: JobCancelled = server.ask(ask, render).await?;
    if render.is_json() {
        return render.value(&json!(cancelled)).map_err(writing);
    }
    render.cancelled(id, cancelled.receipt.as_ref());
    match cancelled.receipt {
        Some(receipt) if !receipt.clean => {
            Err(Failure::new(crate::wire::Code::Internal, "the cleanup left something behind").into())
        }
        _ => Ok(()),
    }
}
