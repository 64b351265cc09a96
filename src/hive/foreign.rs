//! Engines that are not ours: another project's server on a loopback port, described by its recipe's `serve`. It tells
//! nothing by itself, so its health is looked at until it is well. Its key is random, in a file of ours and, if the
//! recipe says so, in its environment: a command line is for everybody to read.

use crate::http::client::{self, Target};
use crate::wire::catalog::Serve;
use crate::wire::{Code, Failure, random};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a port that was free a moment ago may turn out to be taken.
pub const PORT_TRIES_MAX: u32 = 4;
/// How often its health is looked at.
const HEALTH_EVERY: Duration = Duration::from_millis(100);
/// How long one look may take.
const HEALTH_ANSWER_MAX: Duration = Duration::from_secs(5);
const KEY_BYTES: usize = 32;

/// Where an engine that is not ours is reached; in the note of its shim, so that the next hive finds it, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    pub port: u16,
    pub key_file: PathBuf,
    pub health: String,
}

impl Endpoint {
    /// A port that is free now, and a fresh key in a file that only we can read.
    pub fn make(run: &Path, worker_id: &str, serve: &Serve) -> io::Result<Endpoint> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let key_file = key_file(run, worker_id);
        let mut bytes = [0u8; KEY_BYTES];
        random::fill(&mut bytes)?;
        let key: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        // One that an earlier try left is not gone on with.
        match std::fs::remove_file(&key_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key_file)?;
        writeln!(file, "{key}")?;
        Ok(Endpoint { port, key_file, health: serve.health.clone() })
    }

    /// Whether somebody else listens there by now.
    pub fn is_taken(&self) -> bool {
        TcpListener::bind((Ipv4Addr::LOCALHOST, self.port))
            .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    pub fn key(&self) -> io::Result<String> {
        Ok(std::fs::read_to_string(&self.key_file)?.trim().to_owned())
    }

    pub fn target(&self) -> io::Result<Target> {
        let target = Target::parse(&format!("http://127.0.0.1:{}", self.port)).map_err(io::Error::other)?;
        Ok(target.with_key(Some(&self.key()?)))
    }
}

/// Where a worker's key lies; it goes with the worker.
pub fn key_file(run: &Path, worker_id: &str) -> PathBuf {
    run.join(format!("{worker_id}.key"))
}

/// What fills the placeholders of a command line.
#[derive(Debug)]
pub struct Values<'v> {
    pub model: &'v Path,
    pub alias: &'v str,
    pub slots: u32,
    pub ctx: u32,
    pub endpoint: &'v Endpoint,
}

/// The engine's command line after the program, every placeholder filled in. A word the recipe got wrong is refused: an
/// engine that is started with a literal `{prot}` fails in ways that nobody understands.
pub fn command_line(serve: &Serve, values: &Values<'_>) -> Result<Vec<String>, Failure> {
    let fill = |word: &String| -> Result<String, Failure> {
        let mut filled = String::new();
        let mut rest = word.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, behind)) = after.split_once('}') else { break };
            filled.push_str(before);
            filled.push_str(&match name {
                "model" => values.model.to_string_lossy().into_owned(),
                "alias" => values.alias.to_owned(),
                "host" => Ipv4Addr::LOCALHOST.to_string(),
                "port" => values.endpoint.port.to_string(),
                "slots" => values.slots.to_string(),
                "ctx" => values.ctx.to_string(),
                "ctx_total" => (u64::from(values.slots) * u64::from(values.ctx)).to_string(),
                "key_file" => values.endpoint.key_file.to_string_lossy().into_owned(),
                other => {
                    return Err(Failure::new(
                        Code::RecipeInvalid,
                        format!("the recipe's serve.argv has `{{{other}}}`, which stands for nothing"),
                    ));
                }
            });
            rest = behind;
        }
        filled.push_str(rest);
        Ok(filled)
    };
    serve.argv.iter().map(fill).collect()
}

/// Waits until the engine is well. It says nothing while it loads, so a change of `progress` (its log, its memory)
/// stands for progress: without it for `silence`, it has hung.
pub async fn well(
    endpoint: &Endpoint,
    silence: Duration,
    mut progress: impl FnMut() -> u64,
) -> Result<(), Failure> {
    let target = endpoint.target().map_err(|error| Failure::internal(&error))?;
    let mut seen = progress();
    let mut since = tokio::time::Instant::now();
    loop {
        let ask = client::get(&endpoint.health).map_err(|error| Failure::internal(&error))?;
        let look = tokio::time::timeout(HEALTH_ANSWER_MAX, client::send(&target, ask)).await;
        if let Ok(Ok(answer)) = look
            && answer.status().is_success()
        {
            return Ok(());
        }
        let now = progress();
        if now != seen {
            (seen, since) = (now, tokio::time::Instant::now());
        } else if since.elapsed() > silence {
            return Err(Failure::new(
                Code::LoadingTimeout,
                format!("the engine was not well and made no progress for {} s", silence.as_secs()),
            ));
        }
        tokio::time::sleep(HEALTH_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(argv: &[&str]) -> Serve {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        Serve { argv, key_env: None, health: "/health".into(), api: "openai".into() }
    }

    #[test]
    fn placeholders_are_filled_and_unknown_ones_refused() {
        let endpoint = Endpoint { port: 7, key_file: "/run/k".into(), health: "/health".into() };
        let values = Values {
            model: Path::new("/m x.gguf"),
            alias: "{port}",
            slots: 2,
            ctx: 512,
            endpoint: &endpoint,
        };
        let line =
            command_line(&serve(&["-m", "{model}", "-a={alias}", "{host}:{port}", "{ctx_total}"]), &values);
        assert_eq!(line.unwrap(), ["-m", "/m x.gguf", "-a={port}", "127.0.0.1:7", "1024"]);
        let failure = command_line(&serve(&["{prot}"]), &values).unwrap_err();
        assert_eq!(failure.code, Code::RecipeInvalid);
        assert_eq!(command_line(&serve(&["a{b"]), &values).unwrap(), ["a{b"]);
    }

    #[test]
    fn a_key_is_fresh_and_for_us_alone() {
        use std::os::unix::fs::PermissionsExt;
        let run = tempfile::tempdir().unwrap();
        let one = Endpoint::make(run.path(), "w", &serve(&[])).unwrap();
        let first = one.key().unwrap();
        let two = Endpoint::make(run.path(), "w", &serve(&[])).unwrap();
        assert!(first.len() == 2 * KEY_BYTES && first != two.key().unwrap());
        assert_eq!(two.key_file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
