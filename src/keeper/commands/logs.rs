//! `rbee logs` and `rbee workers logs`: what daemons and workers say, across the fleet.

use crate::config::Settings;
use crate::http::request::percent_encode;
use crate::http::sse;
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, printable};
use crate::keeper::server::Server;
use crate::keeper::signals::Signals;
use crate::paths::Dirs;
use crate::wire::failure::chain;
use crate::wire::job::{JobEvent, Terminator};
use crate::wire::logs::{LogLine, LogQuery, TAIL_LINES};
use crate::wire::{Code, Failure};
use serde_json::json;

pub async fn fleet(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    show(settings, render, settings.text("worker").map(str::to_owned)).await
}

pub async fn worker(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    show(settings, render, Some(settings.positionals().join(" "))).await
}

async fn show(settings: &Settings, render: &Render, worker: Option<String>) -> Result<(), KeeperError> {
    let server = Server::of(settings)?;
    let query = LogQuery {
        node: server.hive_id.clone(),
        worker: worker.as_deref().map(percent_encode),
        follow: settings.on("follow"),
        tail: settings.number("tail").unwrap_or(TAIL_LINES),
    };
    let path = match (&query.node, server.is_hive) {
        (_, true) => format!("/v1/logs?{}", query.text()),
        (None, false) => format!("/v2/logs?{}", query.text()),
        (Some(node), false) => format!("/v2/logs?node={}&{}", percent_encode(node), query.text()),
    };
    // One log needs no names before its lines.
    let is_one = worker.is_some();
    let reading = read(&server, render, &path, is_one);
    let mut signals = Signals::catch()?;
    tokio::select! {
        read = reading => {
            if let Err(KeeperError::Refused(failure)) = &read
                && failure.code == Code::ConnectionFailed
            {
                tell_of_files(settings, render);
            }
            read
        }
        stop = signals.next() => Err(stop),
        after = server.patience.end() => Err(KeeperError::TimedOut { after, hint: String::new() }),
    }
}

/// Where the logs of this machine's daemons are, when none of them answers.
fn tell_of_files(settings: &Settings, render: &Render) {
    let Ok(dirs) = Dirs::of_process(settings.path("state-dir")) else { return };
    for log in ["serve", "queen", "hive"].map(|role| dirs.log(role)).iter().filter(|log| log.exists()) {
        render.say(&format!("a log of this machine: {}", log.display()));
    }
}

async fn read(server: &Server, render: &Render, path: &str, is_one: bool) -> Result<(), KeeperError> {
    let writing = |error: std::io::Error| KeeperError::local("writing the log", error);
    let broken = |why: String| Failure::new(Code::ConnectionFailed, why);
    let answer = server.open(path, render).await?;
    let mut events = sse::Reader::new(answer.into_body());
    loop {
        let event = match events.next().await {
            Ok(Some(event)) => event,
            Ok(None) => return Err(broken("the log ended without a word".into()).into()),
            Err(error) => return Err(broken(chain(&error)).into()),
        };
        match event.name.as_deref() {
            Some("log") => {
                let Ok(line) = serde_json::from_str::<LogLine>(&event.data) else { continue };
                let written = if render.is_json() {
                    render.value(&json!(line))
                } else {
                    render.answer(&told(&line, is_one))
                };
                written.map_err(writing)?;
            }
            Some(name) => {
                if let Some(event) = JobEvent::from_parts(name, &event.data) {
                    render.event(&event).map_err(writing)?;
                }
            }
            None => match Terminator::parse(&event.data) {
                Some(Terminator::Done) => return Ok(()),
                Some(Terminator::Error(why)) => return Err(broken(why).into()),
                _ => {}
            },
        }
    }
}

fn told(line: &LogLine, is_one: bool) -> String {
    let text = printable(&line.line);
    let node = printable(&line.node);
    match (&line.worker, is_one) {
        (_, true) => format!("{text}\n"),
        (None, false) => format!("{node} {}| {text}\n", if line.stream == "queen" { "queen " } else { "" }),
        (Some(worker), false) => format!("{node} {} | {text}\n", printable(worker)),
    }
}
