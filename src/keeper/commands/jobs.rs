//! `rbee job …`: jobs of the queen, or of the hive that --hive names by address.

use crate::config::Settings;
use crate::keeper::KeeperError;
use crate::keeper::follow::{self, Follower};
use crate::keeper::render::{Render, ago};
use crate::keeper::server::Server;
use crate::wire::Failure;
use crate::wire::job::{JobEvent, JobId, JobRecord};
use serde::Deserialize;
use serde_json::json;

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the list", error)
}

fn named(settings: &Settings) -> Result<JobId, KeeperError> {
    let text = settings.positionals().join(" ");
    text.parse().map_err(|_| KeeperError::Usage(format!("`{text}` is no job's id; see `rbee job list`")))
}

pub async fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    #[derive(Deserialize)]
    struct Jobs {
        jobs: Vec<JobRecord>,
    }
    let jobs = Server::of(settings)?.get::<Jobs>("/v1/jobs", render).await?.jobs;
    if render.is_json() {
        return render.value(&json!(jobs)).map_err(writing);
    }
    let row = |job: &JobRecord| {
        let state = serde_json::to_value(job.state).unwrap_or_default();
        vec![
            job.job_id.to_string(),
            job.operation.clone(),
            state.as_str().unwrap_or_default().to_owned(),
            format!("{} ago", ago(job.created_at)),
        ]
    };
    render.table(&["job", "operation", "state", "started"], jobs.iter().map(row).collect()).map_err(writing)
}

pub async fn get(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let job: JobRecord = Server::of(settings)?.get(&format!("/v1/jobs/{}", named(settings)?), render).await?;
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
    let mut jobs = Follower::new(&server, render, settings.duration("timeout"))?;
    let mut tokens = false;
    let result = jobs
        .follow(id, &mut |event| {
            if render.is_json() {
                return render.value(&json!(event));
            }
            if let JobEvent::Token { text, .. } = event {
                tokens = true;
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
    let cancelled = follow::cancel(&server, named(settings)?).await?;
    if render.is_json() {
        return render.value(&json!(cancelled)).map_err(writing);
    }
    render.receipt(cancelled.receipt.as_ref());
    match cancelled.receipt {
        Some(receipt) if !receipt.clean => {
            Err(Failure::new(crate::wire::Code::Internal, "the cleanup left something behind").into())
        }
        _ => Ok(()),
    }
}
