//! Taking over what another hive started: its shims are connected to, what a dead shim left is swept.

use super::ProcessError;
use super::record::{Files, Record};
use super::remove::remove_tree;
use super::sweep::sweep;
use super::tree::Tree;
use crate::wire::job::Receipt;
use std::path::Path;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

/// Every tree recorded in `directory` that lives, its lease now ours. Call it before the first [`launch`] there and
/// with the role's lock held: a record without a living shim is removed.
///
/// [`launch`]: super::launch
pub async fn adopt(directory: &Path) -> Vec<Tree> {
    let Ok(found) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut attempts = JoinSet::new();
    for path in found.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "json") {
            attempts.spawn(async move { adopt_one(Files::beside(&path)).await });
        }
    }
    let mut trees: Vec<Tree> = attempts.join_all().await.into_iter().flatten().collect();
    trees.sort_by(|one, other| one.id().cmp(other.id()));
    trees
}

async fn adopt_one(files: Files) -> Option<Tree> {
    let record = match files.read() {
        Ok(record) => record,
        Err(error) => {
            // Perhaps a version to come wrote it, whose hive will know what to do.
            tracing::warn!(%error, path = %files.record.display(), "a process record cannot be read; left as it is");
            return None;
        }
    };
    let lease = match UnixStream::connect(&files.socket).await {
        Ok(stream) => {
            if record.shim.as_ref().is_some_and(|shim| !shim.in_this_boot()) {
                tracing::warn!(id = record.spec.id, "a tree of another PID namespace; left as it is");
                return None;
            }
            let peer = stream.peer_cred().ok().and_then(|peer| peer.pid());
            match &record.shim {
                Some(shim) if peer.is_some_and(|pid| pid != shim.pid) => {
                    Err(ProcessError::ShimLost { id: record.spec.id.clone() })
                }
                _ => Tree::take(stream, files.clone(), &record.spec, None).await,
            }
        }
        Err(source) => Err(ProcessError::Lease { id: record.spec.id.clone(), source }),
    };
    match lease {
        Ok(tree) => Some(tree),
        Err(error) => {
            let swept =
                tokio::task::spawn_blocking(move || sweep_with_scratch(&record)).await.unwrap_or_default();
            tracing::warn!(
                %error,
                processes = swept.processes_reaped,
                clean = swept.clean,
                bytes = swept.bytes_removed,
                "swept what a dead shim left"
            );
            files.remove();
            None
        }
    }
}

/// Nobody held the tree, so nobody else removes what it worked in.
fn sweep_with_scratch(record: &Record) -> Receipt {
    let mut receipt = sweep(record);
    if let Some(scratch) = &record.spec.scratch {
        match remove_tree(scratch) {
            Ok(bytes) => receipt.bytes_removed = bytes,
            Err(error) => {
                tracing::warn!(%error, path = %scratch.display(), "the folder of a tree cannot be removed")
            }
        }
    }
    receipt
}
