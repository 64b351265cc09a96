//! How a node joins: by a token that lets one in, once, and gives it a key of its own. What is entered is the state
//! directory's book of keys, on a thread that may block: others write there, too.

use crate::http::auth::{Holder, bearer};
use crate::http::link::Hello;
use crate::http::{Request, Response, reply, request};
use crate::keys::{self, Book, JoinRefused, KeyError, Kind, Secret, TOKEN_TTL_MAX};
use crate::queen::Queen;
use crate::wire::fleet::{JoinAnswer, JoinRequest, TokenAnswer, TokenRequest, TokenWithdrawal};
use crate::wire::{Code, Failure};
use serde_json::json;
use std::time::Duration;

/// Anybody may send so much.
const JOIN_BYTES_MAX: usize = 4 << 10;

impl Queen {
    /// POST /v1/tokens: a token for the next node.
    pub(super) async fn make_token(&self, request: Request) -> Result<Response, Failure> {
        let asked: TokenRequest = request.json(request::CONTROL_BYTES_MAX).await?;
        let ttl = Duration::from_millis(asked.ttl_ms);
        if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
            let most = TOKEN_TTL_MAX.as_millis();
            return Err(Failure::invalid(format!("`ttl_ms` is from 1 to {most}")));
        }
        let (token, entry) = self
            .edit(move |book| {
                let token = Secret::token()?;
                let entry = book.add_token(&token, ttl)?;
                Ok((token, entry))
            })
            .await?;
        Ok(reply::json(&TokenAnswer {
            token: token.reveal().to_owned(),
            expires_at: entry.expires_at,
            listen: self.options.listen.clone(),
        }))
    }

    /// DELETE /v1/tokens: it lets nobody in any more, and who came in by it has to go.
    pub(super) async fn withdraw_token(&self, request: Request) -> Result<Response, Failure> {
        let asked: TokenWithdrawal = request.json(JOIN_BYTES_MAX).await?;
        let revoked = self.edit(move |book| Ok(book.withdraw(&keys::digest(&asked.token)))).await?;
        if let Some(hive) = &revoked {
            tracing::info!(hive, "the token it joined by was withdrawn; its key is revoked");
        }
        Ok(reply::json(&json!({ "revoked": revoked })))
    }

    /// POST /v1/join: a node shows its token, by the header that keys have, and gets its key.
    pub(super) async fn join(&self, request: Request) -> Result<Response, Failure> {
        let Some(token) = bearer(&request).map(keys::digest) else {
            return Err(Failure::new(
                Code::MissingApiKey,
                "joining takes a token: send `Authorization: Bearer TOKEN` (`rbee token` on this machine makes one)",
            ));
        };
        let asked: JoinRequest = request.json(JOIN_BYTES_MAX).await?;
        // The name has to do for the link, too, before the token is spent on it.
        self.registry.admit(&Hello::ours(&asked.hive, &asked.node))?;
        let name = asked.hive.clone();
        let key = self
            .edit(move |book| {
                let key = Secret::key()?;
                book.join(&token, &asked.hive, &asked.node, &key)?;
                Ok(key)
            })
            .await?;
        tracing::info!(hive = name, "a node joined by a token");
        Ok(reply::json(&JoinAnswer { hive: name, key: key.reveal().to_owned() }))
    }

    /// DELETE /v1/hives/{name}: its key opens nothing any more, and its link is cut.
    pub(super) async fn forget(&self, name: &str) -> Result<Response, Failure> {
        let wanted = name.to_owned();
        self.edit(move |book| match book.keys.iter().find(|key| key.name == wanted) {
            Some(key) if key.kind == Kind::Hive => book.revoke(&wanted),
            _ => Err(KeyError::Unknown(wanted)),
        })
        .await
        .map_err(|failure| match failure.code {
            Code::NotFound => Failure::new(
                Code::HiveNotFound,
                format!("no hive has joined as `{name}`; `rbee key list` on the queen's machine shows those that have"),
            ),
            _ => failure,
        })?;
        tracing::info!(hive = name, "forgotten; its key is revoked");
        Ok(reply::json(&json!({ "name": name, "revoked": true })))
    }

    /// A hive's own key opens its own link only.
    pub(super) fn may_link(&self, hello: &Hello, holder: &Holder) -> Result<(), Failure> {
        match holder {
            Holder::Key(key) if key.kind == Kind::Hive && key.name != hello.hive => Err(Failure::new(
                Code::Forbidden,
                format!(
                    "the key was given to the hive `{}` and is not `{}`'s: join by that name with a token (`rbee token`, then `rbee hive serve --join TOKEN`)",
                    key.name, hello.hive
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Comes back when the key that opened a link is revoked.
    pub(super) async fn revoked(&self, holder: &Holder) {
        match holder {
            Holder::Key(key) => self.options.keys.revoked(&key.sha256).await,
            Holder::Nobody | Holder::Daemon => std::future::pending().await,
        }
    }

    async fn edit<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Book) -> Result<T, KeyError> + Send + 'static,
    ) -> Result<T, Failure> {
        let state = self.options.keys.state().to_owned();
        let edited = tokio::task::spawn_blocking(move || Book::edit(&state, change)).await;
        edited.map_err(|error| Failure::internal(&error))?.map_err(|error| failure(&error))
    }
}

fn failure(error: &KeyError) -> Failure {
    let code = match error {
        KeyError::Join(JoinRefused::NameTaken(_)) | KeyError::Taken(_) => Code::Conflict,
        KeyError::Join(_) => Code::InvalidApiKey,
        KeyError::BadName(_) => Code::InvalidRequest,
        KeyError::Unknown(_) => Code::NotFound,
        KeyError::TooMany | KeyError::TooManyTokens => Code::TooManyRequests,
        KeyError::Read { .. } | KeyError::Write { .. } | KeyError::Node { .. } | KeyError::Random(_) => {
            Code::Internal
        }
    };
    Failure::new(code, crate::wire::failure::chain(error))
}
