//! `POST /v1/handover`: this hive ends and leaves its workers, models loaded, to the next one, an updated one for instance.
//! Their shims hold them for `orphan_ttl`; the next hive takes their leases and goes on.

use crate::hive::Hive;
use crate::http::{Peer, Request, Response, reply};
use crate::wire::{Code, Failure};
use serde_json::json;

/// Only somebody on this machine, or a queen that this hive has dialled: it ends the hive.
pub fn hand_over(hive: &Hive, request: &Request) -> Result<Response, Failure> {
    let is_near = match request.peer {
        Peer::Tcp { remote, .. } => remote.ip().to_canonical().is_loopback(),
        Peer::Unix | Peer::Link => true,
    };
    if !is_near {
        return Err(Failure::new(
            Code::Forbidden,
            "a handover is asked for on the hive's own machine, or through its queen",
        ));
    }
    if hive.shutdown.is_draining() {
        return Err(Failure::new(Code::ShuttingDown, "this hive is ending already, and its workers with it"));
    }
    let workers: Vec<String> = hive.workers.infos().into_iter().map(|worker| worker.worker_id).collect();
    let orphan_ttl = hive.workers.settings().orphan_ttl.as_secs();
    tracing::info!(workers = workers.len(), orphan_ttl, "handing over to the next hive");
    // Said before the drain, which is what the workers' tasks wait for.
    hive.workers.hand_over();
    hive.shutdown.drain();
    Ok(reply::json(&json!({
        "status": "handing_over", "pid": std::process::id(), "workers": workers, "orphan_ttl_seconds": orphan_ttl,
    })))
}
