//! The process trees of one build: launched alike, told to the job alike, ended alike.

use super::Order;
use super::execute::{ACTION, Stop};
use super::work::{Work, failed};
use crate::process::{self, Exit, Output, Spec, Tree};
use crate::wire::job::{JobEvent, Receipt};
use crate::wire::{Code, Failure, failure};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From TERM to KILL when cancelled.
const GRACE: Duration = Duration::from_secs(2);
/// Processes and threads of one tree, where the node can count them: a large machine's compilers, not a fork bomb.
const PROCESSES_MAX: u32 = 8192;
/// Lines of output that an error quotes.
const TAIL_LINES_MAX: usize = 20;
/// What the driver says when it begins a phase; a recipe that says it, too, names its own lines wrongly.
const STARTING: (&str, &str) = ("==> Starting ", "()...");

/// What makepkg's word `warning` puts before a recipe's own. Told as a warning, so that it is not lost among the compilers'.
const WARNING: &str = "==> WARNING: ";
/// Of one tree; what a recipe warns of beyond that is a line of its log.
const WARNINGS_MAX: usize = 20;

pub(super) struct Trees<'a> {
    order: &'a Order,
    root: PathBuf,
    tell: &'a (dyn Fn(JobEvent) + Send + Sync),
    cancel: &'a CancellationToken,
    hurry: &'a CancellationToken,
    /// The phase whose lines come, for their names.
    phase: Mutex<String>,
    are_walls_told: AtomicBool,
}

/// How a tree came to its end by itself.
pub(super) struct TreeEnd {
    pub exit: Exit,
    pub tail: Vec<String>,
}

impl<'a> Trees<'a> {
    /// A fresh log, too: the trees of a build go on with one.
    pub(super) fn new(
        order: &'a Order,
        work: &Work,
        tell: &'a (dyn Fn(JobEvent) + Send + Sync),
        cancel: &'a CancellationToken,
        hurry: &'a CancellationToken,
    ) -> Result<Trees<'a>, Failure> {
        if let Some(folder) = order.log.parent() {
            std::fs::create_dir_all(folder).map_err(|error| failed("making", folder, &error))?;
        }
        match std::fs::remove_file(&order.log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("removing the old log", &order.log, &error));
            }
            _ => {}
        }
        let phase = Mutex::new(ACTION.to_owned());
        let root = work.root.clone();
        Ok(Trees { order, root, tell, cancel, hurry, phase, are_walls_told: AtomicBool::new(false) })
    }

    /// A tree's name among those of the node: the work folder's, by which a build knows its own, and the step.
    pub(super) fn name(&self, step: &str) -> String {
        format!("{}-{step}", self.order.name())
    }

    pub(super) fn log(&self) -> &Path {
        &self.order.log
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }

    pub(super) fn cancel_token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Runs a tree whose output belongs to the build's log, to its end or the cancel.
    pub(super) async fn run(&self, mut spec: Spec) -> Result<TreeEnd, Stop> {
        spec.log = Some(self.order.log.clone());
        spec.log_append = true;
        spec.tell = true;
        let tree = self.launch(spec).await?;
        self.tell_walls(&tree);
        let told = self.cancel.run_until_cancelled(self.follow(&tree, true)).await;
        match told {
            Some(tail) => self.end(&tree, tail).await,
            None => Err(Stop::Cancelled(self.stop(&tree).await)),
        }
    }

    /// Runs a tree of which nobody is told; `None` when the time was over and it was ended.
    pub(super) async fn run_for(&self, spec: Spec, limit: Duration) -> Result<Option<TreeEnd>, Stop> {
        let tree = self.launch(spec).await?;
        let followed = tokio::time::timeout(limit, self.follow(&tree, false));
        match self.cancel.run_until_cancelled(followed).await {
            Some(Ok(tail)) => self.end(&tree, tail).await.map(Some),
            Some(Err(_)) => {
                tree.stop(Duration::ZERO).await;
                Ok(None)
            }
            None => Err(Stop::Cancelled(self.stop(&tree).await)),
        }
    }

    async fn launch(&self, mut spec: Spec) -> Result<Tree, Stop> {
        if self.cancel.is_cancelled() {
            return Err(Stop::Cancelled(Receipt::default()));
        }
        spec.grace_ms = GRACE.as_millis() as u64;
        spec.scratch = Some(self.root.clone());
        spec.pid_namespace = true;
        spec.processes_max = Some(PROCESSES_MAX);
        spec.rung_max = self.order.rung_max.clone();
        let directory = &self.order.processes;
        let tree = match &self.order.shim {
            Some(program) => process::launch_by(program, directory, spec, None).await,
            None => process::launch(directory, spec, None).await,
        };
        tree.map_err(|error| Failure::new(Code::Internal, failure::chain(&error)).into())
    }

    /// The end that came by itself, and the sweep after it.
    async fn end(&self, tree: &Tree, tail: Vec<String>) -> Result<TreeEnd, Stop> {
        let exit = tree.exited().await;
        let receipt = tree.ended().await;
        if !receipt.clean {
            let left: Vec<String> =
                receipt.survivors.iter().map(|left| format!("{} ({})", left.pid, left.command)).collect();
            let left = left.join(", ");
            (self.tell)(JobEvent::warn(ACTION, format!("processes that could not be ended: {left}")));
        }
        Ok(TreeEnd { exit, tail })
    }

    async fn stop(&self, tree: &Tree) -> Receipt {
        if self.hurry.is_cancelled() {
            return tree.stop(Duration::ZERO).await;
        }
        tokio::select! {
            receipt = tree.stop(GRACE) => receipt,
            // A second stop with less grace cuts the first short.
            () = self.hurry.cancelled() => tree.stop(Duration::ZERO).await,
        }
    }

    /// Passes on what the tree writes until it ends; the last lines.
    async fn follow(&self, tree: &Tree, is_told: bool) -> Vec<String> {
        let mut tail = VecDeque::new();
        let mut warnings = 0;
        let Some(mut lines) = tree.lines() else { return Vec::new() };
        while let Some(output) = lines.next().await {
            let line = match output {
                Output::Line(line) => line,
                Output::Dropped(count) => format!("({count} lines left out)"),
            };
            if is_told {
                let stream = self.stream(&line);
                (self.tell)(match line.strip_prefix(WARNING).filter(|_| warnings < WARNINGS_MAX) {
                    Some(warning) => {
                        warnings += 1;
                        JobEvent::warn(ACTION, format!("{stream}(): {warning}"))
                    }
                    None => JobEvent::Log { stream, line: line.clone() },
                });
            }
            tail.push_back(line);
            if tail.len() > TAIL_LINES_MAX {
                tail.pop_front();
            }
        }
        tail.into()
    }

    /// The name of the stream that a line belongs to: the phase.
    fn stream(&self, line: &str) -> String {
        let mut phase = self.phase.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let begun = line.strip_prefix(STARTING.0).and_then(|rest| rest.strip_suffix(STARTING.1));
        if let Some(begun) = begun.filter(|name| name.len() <= 64) {
            *phase = begun.to_owned();
        }
        phase.clone()
    }

    /// What holds the recipe, once a build.
    fn tell_walls(&self, tree: &Tree) {
        if !self.are_walls_told.swap(true, Ordering::Relaxed) {
            let walls = tree.walls();
            let network = match walls.network.as_str() {
                "namespace" => "network namespace",
                "open" => "network open",
                other => other,
            };
            let mut told = vec![walls.filesystem.as_str(), network, tree.containment()];
            if walls.capabilities_dropped {
                told.push("no capabilities");
            }
            (self.tell)(JobEvent::narrate(ACTION, format!("walls: {}", told.join(", "))));
        }
    }
}
