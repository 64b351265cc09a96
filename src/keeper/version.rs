//! The keeper's questions, with a look at who answers: a daemon of another version than this program is told apart before
//! its answer is read (B4).

use crate::http::client::{self, AskError, Target};
use crate::http::{Body, request};
use crate::wire::Failure;
use crate::wire::version::{PROTOCOL_HEADER, Peer, VERSION_HEADER};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

/// Sends a request and reads its answer whole, as JSON.
pub async fn ask<T: DeserializeOwned>(target: &Target, ask: http::Request<Body>) -> Result<T, AskError> {
    let answer = client::send(target, ask).await?;
    check(target, &answer)?;
    Ok(request::parse(&client::whole(answer).await?)?)
}

/// Refuses an answer of a daemon that does not understand us, or that we do not. What says nothing is no daemon of ours, or
/// one from before it was said.
pub fn check(target: &Target, answer: &http::Response<Incoming>) -> Result<(), Failure> {
    let header = |name: &str| answer.headers().get(name)?.to_str().ok();
    let Some(protocol) = header(PROTOCOL_HEADER).and_then(|text| text.parse().ok()) else { return Ok(()) };
    let version = header(VERSION_HEADER).unwrap_or("unknown").to_owned();
    let peer = Peer { who: format!("the daemon at {target}"), version, protocol };
    if peer.is_too_old() {
        return Err(peer.mismatch(
            "this program",
            "start it again from this file, on its machine: `rbee queen stop; rbee queen start` (or hive); a hive elsewhere: `rbee hive update NAME`",
        ));
    }
    if peer.is_too_new() {
        let here = std::env::current_exe().map_or_else(|_| "rbee".into(), |path| path.display().to_string());
        let whole = target.to_string();
        let authority = whole.split_once("://").map_or(whole.as_str(), |(_, authority)| authority);
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let update =
            format!("copy the newer file over this one: `scp {host}:$(ssh {host} command -v rbee) {here}`");
        return Err(peer.mismatch("this program", &update));
    }
    Ok(())
}
