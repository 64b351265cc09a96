//! An engine that computes nothing: it says as many tokens as it is asked for, as fast as it is asked to, or ends over a
//! request. It is this very executable, installed like any other project's server.

use crate::builds::Shop;
use crate::support::node::{Daemon, Place};
use bytes::Bytes;
use rbee::http::auth::Guard;
use rbee::http::server::{Listener, Service, serve};
use rbee::http::{Request, Response, reply, request, sse};
use rbee::shutdown::Shutdown;
use rbee::wire::Failure;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

pub const ID: &str = "scripted-engine";
/// Where it is to listen; without it this is no engine.
const LISTEN: &str = "RBEE_SCRIPTED_LISTEN";

/// A fleet of one where it is installed, and the place's model. It starts after `first`, a line of shell.
pub fn served(place: &Place, first: &str, args: &[&str]) -> (Shop, Daemon, String) {
    let shop = Shop::open(place);
    recipe(&shop, first);
    let daemon = shop.hive(place, args);
    daemon.job(&json!({"operation": "worker_install", "worker_id": ID})).done();
    let model = daemon.register(place, None);
    (shop, daemon, model)
}

/// Puts it on a catalog's shelf.
pub fn recipe(shop: &Shop, first: &str) {
    let program = std::env::current_exe().unwrap();
    let test = "--exact scripted::engine --nocapture --test-threads=1 --include-ignored";
    let engine = format!("#!/bin/sh\n{first}\n{LISTEN}=$1 exec {} {test}\n", program.display());
    let package = format!(
        "package() {{\n  mkdir -p \"$pkgdir/bin\"\n  cat > \"$pkgdir/bin/engine\" <<'END'\n{engine}END\n  chmod 755 \"$pkgdir/bin/engine\"\n}}"
    );
    let facts = "[serve]\nargv = [\"{host}:{port}\"]\nhealth = \"/health\"\napi = \"openai\"\n";
    shop.recipe(ID, &package, facts);
}

#[derive(Deserialize)]
struct Script {
    max_tokens: u32,
    #[serde(default)]
    stream: bool,
    /// Between two tokens.
    #[serde(default)]
    pause_us: u64,
    /// The request that no engine survives.
    #[serde(default)]
    ends_you: bool,
    /// And the one that it never comes to the end of, after all its tokens.
    #[serde(default)]
    hangs: bool,
}

#[derive(Clone)]
struct Engine;

impl Service for Engine {
    async fn call(&self, request: Request) -> Result<Response, Failure> {
        if request.path() == "/health" {
            return Ok(reply::json(&json!({"status": "ok"})));
        }
        let bytes = request.json_bytes(1 << 20).await?;
        let script: Script = request::parse(&bytes)?;
        if script.ends_you {
            // It dies as one does that the kernel kills.
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        }
        if script.hangs && !script.stream {
            return std::future::pending().await;
        }
        if !script.stream {
            let usage = json!({"prompt_tokens": 1, "completion_tokens": script.max_tokens});
            return Ok(reply::json(&json!({"choices": [{"index": 0, "text": "bee"}], "usage": usage})));
        }
        let (events, response) = sse::channel();
        tokio::spawn(async move {
            let token = Bytes::from_static(
                b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" bee\"}}]}\n\n",
            );
            let mut pace = tokio::time::interval(Duration::from_micros(script.pause_us.max(1)));
            for _ in 0..script.max_tokens {
                if script.pause_us > 0 {
                    pace.tick().await;
                }
                if events.raw(token.clone()).await.is_err() {
                    return;
                }
            }
            if script.hangs {
                return events.closed().await;
            }
            let _ = events.data("[DONE]").await;
        });
        Ok(response)
    }
}

#[test]
#[ignore = "no test but an engine, started by a hive"]
fn engine() {
    let Ok(address) = std::env::var(LISTEN) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address).await.unwrap();
        let guard = Arc::new(Guard::new(Vec::new(), None));
        serve(Listener::Tcp(listener), Engine, guard, Shutdown::new()).await;
    });
}
