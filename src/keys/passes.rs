//! What a node shows its queens. A join token lets it in once and is exchanged for a key of the node's own, kept in its state;
//! afterwards it needs no token. Keys are looked up at each dial: this machine's queen makes a new one in each of her lives.

use super::{KeyError, QueenKeys};
use crate::http::client::{self, AskError, ClientError, Target};
use crate::wire::Failure;
use crate::wire::fleet::{JoinAnswer, JoinRequest};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("joining the fleet: {0}")]
    Refused(#[source] Failure),
    #[error("joining the fleet")]
    Unreachable(#[from] ClientError),
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// As `--join` has it: the token, or `-` for the first line of stdin, which `ps` does not show.
pub fn read_token(text: &str) -> std::io::Result<String> {
    use std::io::BufRead;
    if text != "-" {
        return Ok(text.to_owned());
    }
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// A token that waits to be used, and the queen it is for.
struct Waiting {
    queen: String,
    token: String,
}

/// The keys of a node for its queens.
pub struct Passes {
    state: PathBuf,
    /// What --api-key says, for queens that gave no key of their own.
    explicit: Option<String>,
    own: QueenKeys,
    waiting: Mutex<Option<Waiting>>,
}

impl Passes {
    pub fn new(state: PathBuf, explicit: Option<String>) -> Self {
        Passes { own: QueenKeys::of(&state), state, explicit, waiting: Mutex::new(None) }
    }

    /// Keeps a token for a queen until it is used.
    pub fn join_with(&mut self, queen: &Target, token: String) {
        *self.waiting() = Some(Waiting { queen: queen.to_string(), token });
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn token_for(&self, queen: &Target) -> Option<String> {
        let waiting = self.waiting();
        waiting.as_ref().filter(|waiting| waiting.queen == queen.to_string()).map(|w| w.token.clone())
    }

    /// A queen with the key that she is to be shown: her own for this node, else the one we were started with, else that of
    /// her moment, if she is on this machine.
    pub fn target(&self, queen: &Target) -> Result<Target, KeyError> {
        let own = self.own.find(&queen.to_string())?;
        let key = own.or_else(|| self.explicit.clone());
        Ok(queen.clone().with_key(key.as_deref()).with_local(self.state.clone()))
    }

    /// Exchanges the token for a key, if one waits for this queen and she has not given us one before. A token that she refuses
    /// is given up.
    pub async fn join(&self, queen: &Target, hive: &str, node: &str) -> Result<(), JoinError> {
        if self.own.find(&queen.to_string())?.is_some() {
            return Ok(());
        }
        self.exchange(queen, hive, node).await
    }

    /// The same, whatever key we have: it is refused by now, or of a node that was here before.
    pub async fn exchange(&self, queen: &Target, hive: &str, node: &str) -> Result<(), JoinError> {
        let Some(token) = self.token_for(queen) else { return Ok(()) };
        let asked = JoinRequest { hive: hive.to_owned(), node: node.to_owned() };
        let request = client::post(crate::http::auth::JOIN_PATH, &asked)?;
        let answer = client::ask::<JoinAnswer>(&queen.clone().with_key(Some(&token)), request).await;
        match answer {
            Ok(joined) => {
                self.own.keep(&queen.to_string(), &joined.hive, &joined.key)?;
                *self.waiting() = None;
                tracing::info!(%queen, hive = joined.hive, "joined; the node has its own key now");
                Ok(())
            }
            Err(AskError::Refused(failure)) => {
                *self.waiting() = None;
                Err(JoinError::Refused(failure))
            }
            Err(AskError::Client(error)) => Err(error.into()),
        }
    }
}

impl std::fmt::Debug for Passes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passes").field("state", &self.state).finish_non_exhaustive()
    }
}
