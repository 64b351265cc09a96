//! `rbee key create|list|revoke`, `rbee token`: who may ask this state directory's daemons, and who may join. They work on
//! the file itself, so no daemon needs to run; one that does sees the change.

use crate::config::Settings;
use crate::http::client::{self, Target};
use crate::keeper::KeeperError;
use crate::keeper::render::{Render, ago};
use crate::keeper::server::{self, Server};
use crate::keeper::start;
use crate::keys::{Book, Kind, LocalKey, Secret, TOKEN_TTL_MAX};
use crate::paths::Dirs;
use crate::wire::fleet::{Health, TokenAnswer, TokenRequest, now_ms};
use serde_json::json;
use std::path::PathBuf;

fn writing(error: std::io::Error) -> KeeperError {
    KeeperError::local("writing the answer", error)
}

fn failed(error: crate::keys::KeyError) -> KeeperError {
    KeeperError::local("keys", error)
}

/// The state directory, made where it is missing. A queen elsewhere has one of her own, which only her machine can change.
fn state(settings: &Settings) -> Result<PathBuf, KeeperError> {
    let queen = Target::parse(settings.text("queen").unwrap_or_default())?;
    if settings.is_given("queen") && !start::is_here(&queen) {
        return Err(KeeperError::Usage(format!(
            "the keys of the queen at {queen} are in her own state directory: run this on her machine"
        )));
    }
    let dirs = Dirs::of_process(settings.path("state-dir"));
    let dirs = dirs.and_then(|dirs| dirs.create().map(|()| dirs));
    dirs.map(|dirs| dirs.state).map_err(|error| KeeperError::local("finding the keys", error))
}

pub async fn create(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let state = state(settings)?;
    let queen = server::queen(settings)?;
    if !settings.is_given("state-dir")
        && LocalKey::find(&state, &queen).is_none()
        && client::ask::<Health>(&queen, client::get("/health")?).await.is_ok()
    {
        render.say(&format!(
            "warning: the queen that runs at {queen} has another state directory than {}: this key is not for her. If she is \
             root's, `sudo rbee key create`",
            state.display()
        ));
    }
    let secret = Secret::key().map_err(failed)?;
    let key = Book::edit(&state, |book| book.add(settings.text("name"), &secret)).map_err(failed)?;
    if render.is_json() {
        let value = json!({"name": key.name, "key": secret.reveal(), "created_at": key.created_at});
        return render.value(&value).map_err(writing);
    }
    render.say(&format!(
        "`{}` is made for {}; this is the only time that it is shown",
        key.name,
        state.display()
    ));
    render.answer(&format!("{}\n", secret.reveal())).map_err(writing)
}

pub fn list(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let keys = Book::read(&state(settings)?).map_err(failed)?.keys;
    if render.is_json() {
        // Without the digests, which nobody needs to carry about.
        let told = |key: &crate::keys::Key| {
            json!({
                "name": key.name, "kind": key.kind, "ends_with": key.ends_with,
                "created_at": key.created_at, "node": key.node,
            })
        };
        return render.value(&json!(keys.iter().map(told).collect::<Vec<_>>())).map_err(writing);
    }
    let row = |key: &crate::keys::Key| {
        let opens = match key.kind {
            Kind::Client => "everything",
            Kind::Hive => "its hive's link",
        };
        vec![key.name.clone(), opens.into(), format!("…{}", key.ends_with), ago(key.created_at)]
    };
    render.table(&["key", "opens", "ends with", "age"], keys.iter().map(row).collect()).map_err(writing)
}

pub fn revoke(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let name = settings.positionals().join(" ");
    let (key, is_last) = Book::edit(&state(settings)?, |book| {
        let key = book.revoke(&name)?;
        Ok((key, !book.has_client_keys()))
    })
    .map_err(failed)?;
    if render.is_json() {
        return render.value(&json!({"name": key.name, "revoked": true})).map_err(writing);
    }
    render.say(&format!("`{}` opens nothing any more", key.name));
    if is_last && key.kind == Kind::Client {
        render.say(
            "it was the last: a daemon that listens beyond loopback lets no client in until there is another; one on loopback \
             only needs none now",
        );
    }
    Ok(())
}

pub async fn token(settings: &Settings, render: &Render) -> Result<(), KeeperError> {
    let ttl = settings.duration("ttl").unwrap_or(TOKEN_TTL_MAX);
    if ttl.is_zero() || ttl > TOKEN_TTL_MAX {
        let days = TOKEN_TTL_MAX.as_secs() / (24 * 3600);
        return Err(KeeperError::Usage(format!("--ttl is more than nothing and at most {days}d")));
    }
    let server = Server::of_queen(settings)?;
    let queen = server.target.clone();
    // Asked, she enters it in her own state directory, which need not be this account's; unless one was named.
    let asked = match start::is_here(&queen) && settings.is_given("state-dir") {
        true => None,
        false if start::is_here(&queen) && server.health().await?.is_none() => None,
        false => {
            let asked = TokenRequest { ttl_ms: ttl.as_millis() as u64 };
            let made: TokenAnswer = server.ask(|| client::post("/v1/tokens", &asked), render).await?;
            Some((made.token, made.expires_at))
        }
    };
    let (token, expires_at) = match asked {
        Some(made) => made,
        None => {
            let secret = Secret::token().map_err(failed)?;
            let entry = Book::edit(&state(settings)?, |book| book.add_token(&secret, ttl)).map_err(failed)?;
            (secret.reveal().to_owned(), entry.expires_at)
        }
    };
    if render.is_json() {
        return render.value(&json!({"token": token, "expires_at": expires_at})).map_err(writing);
    }
    let minutes = expires_at.saturating_sub(now_ms()).div_ceil(60_000);
    render.say(&format!(
        "lets one hive join within {minutes} min: `rbee hive serve --queen http://QUEEN:{} --join TOKEN`",
        crate::wire::QUEEN_PORT
    ));
    render.answer(&format!("{token}\n")).map_err(writing)
}
