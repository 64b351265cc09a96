//! A helper program of ours (git, the unpacking) run once in a process tree, what it says told as it comes.

use super::fetch::Stop;
use crate::process::{self, Exit, Output, Spec, Tree};
use crate::wire::job::Receipt;
use crate::wire::{Code, Failure, failure};
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// From TERM to KILL when cancelled.
const GRACE: Duration = Duration::from_secs(2);

/// Where trees are kept, and what ends them.
#[derive(Clone, Copy)]
pub struct Errands<'a> {
    /// Records of trees.
    pub processes: &'a Path,
    /// Another program to be the shim, as tests have it.
    pub shim: Option<&'a Path>,
    pub cancel: &'a CancellationToken,
    /// Cancelled when there is no time for grace.
    pub hurry: &'a CancellationToken,
}

impl Errands<'_> {
    /// Runs it to its end, each line given to `hear`. Its walls are in the spec; its grace is ours.
    pub(super) async fn run(&self, mut spec: Spec, hear: impl FnMut(String)) -> Result<Exit, Stop> {
        spec.grace_ms = GRACE.as_millis() as u64;
        spec.pid_namespace = true;
        let name = spec.argv.first().cloned().unwrap_or_default();
        let launched = match self.shim {
            Some(program) => process::launch_by(program, self.processes, spec, None).await,
            None => process::launch(self.processes, spec, None).await,
        };
        let tree = launched.map_err(|error| {
            Failure::new(Code::Internal, format!("running {name}: {}", failure::chain(&error)))
        })?;
        if self.cancel.run_until_cancelled(listen(&tree, hear)).await.is_none() {
            return Err(Stop::Cancelled(self.stop(&tree).await));
        }
        let exit = tree.exited().await;
        tree.ended().await;
        Ok(exit)
    }

    async fn stop(&self, tree: &Tree) -> Receipt {
        let grace = if self.hurry.is_cancelled() { Duration::ZERO } else { GRACE };
        let stopping = tree.stop(grace);
        tokio::pin!(stopping);
        tokio::select! {
            receipt = &mut stopping => receipt,
            () = self.hurry.cancelled(), if !grace.is_zero() => tree.stop(Duration::ZERO).await,
        }
    }
}

async fn listen(tree: &Tree, mut hear: impl FnMut(String)) {
    let Some(mut lines) = tree.lines() else { return };
    while let Some(output) = lines.next().await {
        hear(match output {
            Output::Line(line) => line,
            Output::Dropped(count) => format!("({count} lines left out)"),
        });
    }
}
