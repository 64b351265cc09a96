//! One worker without a hive, on a listening socket that its test has bound: it can be asked from the first moment on.

use super::node::RBEE;
use command_fds::{CommandFdExt, FdMapping};
use rbee::http::client::{self, Target};
use rbee::http::sse::{Event, Reader};
use rbee::wire::Failure;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Nothing here takes as long, on a machine that does something else besides.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Worker {
    child: Child,
    pub target: Target,
    directory: TempDir,
}

impl Worker {
    pub fn start(model: &Path, flags: &[&str]) -> Worker {
        Worker::start_with(model, flags, &[])
    }

    pub fn start_with(model: &Path, flags: &[&str], env: &[(&str, &str)]) -> Worker {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("w.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(RBEE);
        command.args(["worker", "serve", "--listen", "fd:3", "--model"]).arg(model).args(flags);
        command.env_clear().env("HOME", directory.path()).envs(env.iter().copied());
        command.stdin(Stdio::null()).stderr(File::create(directory.path().join("log")).unwrap());
        command.fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: 3 }]).unwrap();
        println!("{command:?}");
        Worker { child: command.spawn().unwrap(), target: Target::unix(&socket), directory }
    }

    pub async fn ready(model: &Path, flags: &[&str]) -> Worker {
        Worker::start(model, flags).loaded().await
    }

    /// Waits until its model is loaded.
    pub async fn loaded(self) -> Worker {
        let events = self.events(client::get("/v1/loading/progress").unwrap()).await;
        let last = events.last().map(|event| event.data.as_str());
        assert_eq!(last, Some("[DONE]"), "{events:?} {}", self.log());
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said on stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    // ── asking

    pub async fn get(&self, path: &str) -> Value {
        let answer = client::ask(&self.target, client::get(path).unwrap());
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        let answer = client::ask(&self.target, client::post(path, body).unwrap());
        match tokio::time::timeout(PATIENCE, answer).await.unwrap() {
            Ok(value) => Ok(value),
            Err(client::AskError::Refused(failure)) => Err(failure),
            Err(error) => panic!("{path}: {error}"),
        }
    }

    pub async fn open(&self, path: &str, body: &Value) -> Reader<hyper::body::Incoming> {
        let answer = client::send(&self.target, client::post(path, body).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 200);
        Reader::new(answer.into_body())
    }

    pub async fn events(&self, request: http::Request<rbee::http::Body>) -> Vec<Event> {
        let answer = client::send(&self.target, request).await.unwrap();
        let mut reader = Reader::new(answer.into_body());
        let mut events = Vec::new();
        while let Some(event) = tokio::time::timeout(PATIENCE, reader.next()).await.unwrap().unwrap() {
            events.push(event);
        }
        events
    }

    pub async fn complete(&self, prompt: &str, max_tokens: u32) -> Value {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "rbee": {}});
        self.post("/v1/completions", &body).await.unwrap()
    }

    // ── ending

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its end, and what it said on stderr.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let waiting = tokio::task::spawn_blocking(move || (self.child.wait().unwrap(), self.log()));
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Fails only if it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
