//! A build from its order to a package: one phase after the other, each tree behind walls, ended whole at a cancel.
//!
//! State between phases is as makepkg has it: prepare, pkgver, build and check are functions of one shell and see each
//! other's variables, package() runs in a fresh one. Where prepare() may use the network it has a shell of its own, for
//! walls stand around processes: build() then does not see what prepare() set, which is the one difference.

use super::bridge;
use super::lint;
use super::metadata::{Metadata, RecipeError};
use super::package::{self, Built};
use super::sandbox::{Phase, Sandbox};
use super::stage;
use super::trees::{TreeEnd, Trees};
use super::work::Work;
use super::{Ended, Order};
use crate::process::{Exit, Spec};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure};
use std::path::Path;
use tokio_util::sync::CancellationToken;

pub(super) const ACTION: &str = "build";
const DRIVER: &str = include_str!("driver.sh");
/// The driver's own exit codes, which a recipe may use as well; the phase it noted decides what is said.
const EXIT_BASH_TOO_OLD: i32 = 90;
const EXIT_NOT_SOURCED: i32 = 91;
const EXIT_BAD_VERSION: i32 = 93;
/// What a phase is noted as when all are done.
const DONE: &str = "done";
/// The driver's notes are a few words.
const NOTE_BYTES_MAX: u64 = 4096;

/// Why a build did not come to a package.
#[derive(Debug)]
pub(super) enum Stop {
    Failed(Failure),
    Cancelled(Receipt),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Stop::Failed(failure)
    }
}

impl From<RecipeError> for Stop {
    fn from(error: RecipeError) -> Self {
        Stop::Failed(error.into())
    }
}

/// Builds `order` to a package that waits to be installed. `cancel` ends it with a grace of 2 s, `hurry` without; both are
/// awaited: when this returns, nothing of it runs and its folder is gone, but for what a package needs.
pub async fn build(
    order: Order,
    tell: &(dyn Fn(JobEvent) + Send + Sync),
    cancel: &CancellationToken,
    hurry: &CancellationToken,
) -> Result<Ended, Failure> {
    if cancel.is_cancelled() {
        return Ok(Ended::Cancelled(Receipt::default()));
    }
    bridge::check_text(&order.pkgbuild)?;
    let work = Work::make(&order.work)?;
    let outcome = async {
        let trees = Trees::new(&order, &work, tell, cancel, hurry)?;
        phases(&order, &work, &trees, tell, (cancel, hurry)).await
    };
    match outcome.await {
        Ok((metadata, package)) => {
            Ok(Ended::Built(Built { metadata: Box::new(metadata), package, work: Box::new(work) }))
        }
        Err(Stop::Failed(failure)) => {
            work.remove().await;
            Err(failure)
        }
        Err(Stop::Cancelled(receipt)) => Ok(Ended::Cancelled(receipt.and(work.remove().await))),
    }
}

/// What a recipe declares, by bash behind walls; nothing of it is built.
pub async fn metadata(order: &Order) -> Result<Metadata, Failure> {
    bridge::check_text(&order.pkgbuild)?;
    let work = Work::make(&order.work)?;
    let (never, quiet) = (CancellationToken::new(), |_: JobEvent| {});
    let outcome = async {
        let trees = Trees::new(order, &work, &quiet, &never, &never)?;
        declare(order, &work, &Sandbox::new(&order.env), &trees).await
    };
    let outcome = outcome.await;
    work.remove().await;
    match outcome {
        Ok(metadata) => Ok(metadata),
        Err(Stop::Failed(failure)) => Err(failure),
        Err(Stop::Cancelled(_)) => Err(Failure::new(Code::ShuttingDown, "reading the recipe was ended")),
    }
}

async fn declare(order: &Order, work: &Work, sandbox: &Sandbox, trees: &Trees<'_>) -> Result<Metadata, Stop> {
    std::fs::write(work.pkgbuild(), &order.pkgbuild)
        .map_err(|e| work.failed("writing the PKGBUILD in", &e))?;
    bridge::metadata(work, sandbox, trees, &order.pkgbuild).await
}

async fn phases(
    order: &Order,
    work: &Work,
    trees: &Trees<'_>,
    tell: &(dyn Fn(JobEvent) + Send + Sync),
    (cancel, hurry): (&CancellationToken, &CancellationToken),
) -> Result<(Metadata, package::Package), Stop> {
    let sandbox = Sandbox::new(&order.env);
    // Before any of the recipe's own runs.
    std::fs::write(driver(work), DRIVER).map_err(|e| work.failed("writing the driver script in", &e))?;
    work.write_owners(sandbox.tool("install").as_deref())?;
    if let Some(config) = sandbox.cargo_config() {
        let path = work.cargo.join("config.toml");
        std::fs::write(path, config).map_err(|e| work.failed("writing cargo's settings in", &e))?;
    }
    let mut metadata = declare(order, work, &sandbox, trees).await?;
    tell(JobEvent::narrate(ACTION, format!("{} {}", metadata.pkgbase, metadata.version())));
    for warning in metadata.warnings.iter().chain(sandbox.warnings()) {
        tell(JobEvent::warn(ACTION, warning));
    }
    if metadata.install.is_some() {
        tell(JobEvent::warn(ACTION, "the install= scriptlet is ignored: rbee runs none"));
    }
    stage::sources(order, &metadata, work, tell, cancel, hurry).await?;

    let mut offline = vec!["pkgver", "flags", "build", "check"];
    if metadata.network_in_prepare() && metadata.has("prepare") {
        tell(JobEvent::narrate(ACTION, "prepare() reaches the network, as the recipe asks"));
        run(Phase::Networked, &["prepare"], work, &sandbox, trees).await?;
    } else {
        offline.insert(0, "prepare");
    }
    if ["prepare", "pkgver", "build", "check"].iter().any(|function| metadata.has(function)) {
        run(Phase::Offline, &offline, work, &sandbox, trees).await?;
    }
    run(Phase::Package, &["flags", "package"], work, &sandbox, trees).await?;
    read_version(work, &mut metadata)?;

    let package = package::check(work, &metadata, order, trees).await?;
    Ok((metadata, package))
}

/// Runs some phases in one shell to their end.
async fn run(
    phase: Phase,
    names: &[&str],
    work: &Work,
    sandbox: &Sandbox,
    trees: &Trees<'_>,
) -> Result<(), Stop> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (script, control, packages) = (text(&driver(work)), text(&work.control), text(&work.packages));
    let words = ["bash", "--norc", "--noprofile", &script, &control, &packages].map(str::to_owned);
    let argv = words.into_iter().chain(names.iter().map(|name| (*name).to_owned()));
    let mut spec = Spec::new(trees.name(names[0]), argv);
    spec.program = Some(sandbox.bash()?);
    spec.env = sandbox.environment(phase, work);
    spec.cwd = Some(work.start.clone());
    spec.confine = Some(sandbox.confine(phase, work));
    // What an earlier shell noted is not about this one.
    let _ = std::fs::remove_file(note(work));
    let ended = trees.run(spec).await?;
    let reached = read_note(&note(work));
    match (ended.exit, reached.as_str()) {
        (Exit::Code(0), DONE) => Ok(()),
        _ => Err(failed(&ended, &reached, trees).into()),
    }
}

fn driver(work: &Work) -> std::path::PathBuf {
    work.ours.join("driver.sh")
}

fn note(work: &Work) -> std::path::PathBuf {
    work.control.join("phase")
}

/// Written where the recipe can write, too: it decides what is said of a failure, and nothing else.
fn read_note(path: &Path) -> String {
    let is_note = path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= NOTE_BYTES_MAX);
    let note = if is_note { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    String::from_utf8_lossy(&note).chars().filter(|c| !c.is_control()).collect()
}

fn failed(ended: &TreeEnd, phase: &str, trees: &Trees<'_>) -> Failure {
    let phase = if phase.is_empty() { "PKGBUILD" } else { phase };
    let exit = ended.exit;
    let message = match (phase, exit) {
        (_, Exit::Code(EXIT_BASH_TOO_OLD)) => "bash is too old: 4.4 or newer is needed".to_owned(),
        ("PKGBUILD", Exit::Code(EXIT_NOT_SOURCED)) => "the last command of the PKGBUILD failed".to_owned(),
        ("pkgver", Exit::Code(EXIT_BAD_VERSION)) => "pkgver() told an invalid version".to_owned(),
        (_, Exit::Code(0)) => format!("{phase}() ended the shell (exit 0) before the build was done"),
        ("PKGBUILD", _) => format!("the PKGBUILD ended with {exit}"),
        _ => format!("{phase}() failed with {exit}"),
    };
    let exit_code = match exit {
        Exit::Code(code) => Some(code),
        Exit::Signal(_) | Exit::Lost => None,
    };
    let log = trees.log();
    Failure::new(Code::BuildFailed, format!("{message}; the whole log: {}", log.display())).with(
        serde_json::json!({
            "phase": phase, "exit": exit.to_string(), "exit_code": exit_code, "last_lines": ended.tail,
            "log": log,
        }),
    )
}

/// The version as it is after pkgver().
fn read_version(work: &Work, metadata: &mut Metadata) -> Result<(), Stop> {
    let path = work.control.join("version");
    let is_file = path.symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= NOTE_BYTES_MAX);
    let bytes = if is_file { std::fs::read(&path).unwrap_or_default() } else { Vec::new() };
    let text = String::from_utf8(bytes).map_err(|_| RecipeError::Fields("the version is not UTF-8"))?;
    let words: Vec<&str> = text.split('\0').collect();
    let [pkgver, pkgrel, epoch, ""] = words[..] else {
        return Err(RecipeError::Fields("the version was not told").into());
    };
    lint::version("pkgver", pkgver)?;
    lint::release("pkgrel", pkgrel)?;
    metadata.epoch = lint::epoch("epoch", epoch)?;
    metadata.pkgver = pkgver.to_owned();
    metadata.pkgrel = pkgrel.to_owned();
    Ok(())
}
