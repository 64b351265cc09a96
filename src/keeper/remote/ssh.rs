//! The system's ssh, run for one command at a time. Keys, agents, jump hosts and included files are its own affair.

use super::address::Address;
use super::failure::{self, RemoteError};
use super::work::Work;
use crate::keeper::render::printable;
use crate::keeper::server::TRY_PAUSES;
use crate::process;
use std::collections::VecDeque;
use std::fs::File;
use std::io::IsTerminal;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// B1: how long one try to connect may take.
pub const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A connection that is silent for so long, so often, is broken.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
const ALIVE_MISSED_MAX: u32 = 4;
/// How long a command may take to end that was told to by the end of what it reads.
const END_MAX: Duration = Duration::from_secs(10);
/// Of what a command says on stderr, as much is remembered.
const LINES_KEPT: usize = 50;
const LINE_BYTES_MAX: usize = 4 << 10;
/// The longest answer of a command.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// By which shells tell that there is no such command.
const NOT_FOUND: i32 = 127;
const SSH_FAILED: i32 = 255;

#[derive(Clone)]
pub struct Ssh<'a> {
    address: &'a Address,
    work: &'a Work<'a>,
    stop: CancellationToken,
}

/// What a command gets to read.
pub enum Input {
    Nothing,
    Text(String),
    /// A text whose end comes with the stop: by that it is told to end, which is then waited for. An end of the connection
    /// is the same to it.
    Leash(String),
    File(File),
}

/// How a command ended that ssh could run.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    /// The last of its lines on stderr.
    pub stderr: String,
}

impl Ended {
    pub fn is_done(&self) -> bool {
        self.code == 0
    }

    pub fn is_not_found(&self) -> bool {
        self.code == NOT_FOUND
    }
}

impl<'a> Ssh<'a> {
    pub fn new(address: &'a Address, work: &'a Work<'a>) -> Self {
        Ssh { address, work, stop: work.stop().clone() }
    }

    /// For what is to be done when the work was stopped, too.
    pub fn unstopped(&self) -> Self {
        Ssh { stop: CancellationToken::new(), ..self.clone() }
    }

    pub fn host(&self) -> &str {
        &self.address.destination
    }

    /// The first connection: with the tries that B1 promises, each told.
    pub async fn first(&self, script: &str) -> Result<Ended, RemoteError> {
        self.address.check_identity()?;
        let mut last = None;
        for (index, pause) in TRY_PAUSES.into_iter().enumerate() {
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Err(RemoteError::Stopped { said: None });
            }
            match self.script(script).await {
                Err(error) if failure::is_passing(&error) => {
                    let tries = TRY_PAUSES.len();
                    self.work.say("ssh", &format!("try {} of {tries}: {error}", index + 1)).await;
                    last = Some(error);
                }
                ended => return ended,
            }
        }
        Err(last.unwrap_or(RemoteError::NoSsh))
    }

    /// Runs a text with the other machine's `sh`, whatever its user's own shell is.
    pub async fn script(&self, script: &str) -> Result<Ended, RemoteError> {
        self.run("sh -s", Input::Text(script.to_owned()), false).await
    }

    /// Runs one command. `is_shown`: what it says on stderr is shown as it comes.
    pub async fn run(&self, command: &str, input: Input, is_shown: bool) -> Result<Ended, RemoteError> {
        let mut ssh = self.command();
        ssh.arg("--").arg(self.host()).arg(command);
        let is_leashed = matches!(input, Input::Leash(_));
        let (stdin, text) = match input {
            Input::Nothing => (Stdio::null(), None),
            Input::File(file) => (Stdio::from(file), None),
            Input::Text(text) | Input::Leash(text) => (Stdio::piped(), Some(text)),
        };
        ssh.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = ssh.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => RemoteError::NoSsh,
            _ => RemoteError::Ssh(error),
        })?;
        if self.work.is_verbose() {
            self.work.say("ssh", &format!("ssh {}: {}", self.host(), printable(command))).await;
        }
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feeding = async {
            if let (Some(mut stdin), Some(text)) = (stdin, text) {
                // A command that reads nothing is no failure of the one who writes.
                let _ = stdin.write_all(text.as_bytes()).await;
                if is_leashed {
                    self.stop.cancelled().await;
                }
            }
            // Closed with that; the command's end is another.
            std::future::pending::<()>().await;
        };
        let reading = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                // What is more is not waited for.
                let _ = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await;
            }
            String::from_utf8_lossy(&answer).into_owned()
        };
        let hearing = self.hear(stderr, is_shown);
        let running = async {
            let (stdout, stderr) = tokio::join!(reading, hearing);
            (child.wait().await, stdout, stderr)
        };
        let stopping = async {
            self.stop.cancelled().await;
            // All over there that could say something has ended when ssh has.
            tokio::time::sleep(if is_leashed { END_MAX } else { Duration::ZERO }).await;
        };
        let (status, stdout, stderr) = tokio::select! {
            ended = running => ended,
            () = feeding => return Err(RemoteError::Stopped { said: None }),
            () = stopping => return Err(RemoteError::Stopped { said: None }),
        };
        if is_leashed && self.stop.is_cancelled() {
            return Err(RemoteError::Stopped { said: Some(stdout) });
        }
        match status.map_err(RemoteError::Ssh)?.code() {
            Some(SSH_FAILED) | None => {
                let (seconds, tries) = (CONNECT_MAX.as_secs(), TRY_PAUSES.len());
                Err(failure::of_ssh(self.host(), &stderr, seconds, tries))
            }
            Some(code) => Ok(Ended { code, stdout, stderr }),
        }
    }

    fn command(&self) -> Command {
        let mut ssh = Command::new("ssh");
        // A person at a terminal asks the work to end, and it says when the connection may.
        process::leave_stops_to_us(ssh.as_std_mut());
        // Its words are read, in the language they are known in.
        ssh.env("LC_ALL", "C").arg("-T");
        let mut option = |text: String| {
            ssh.arg("-o").arg(text);
        };
        option(format!("ConnectTimeout={}", CONNECT_MAX.as_secs()));
        option(format!("ServerAliveInterval={}", ALIVE_EVERY.as_secs()));
        option(format!("ServerAliveCountMax={ALIVE_MISSED_MAX}"));
        if !std::io::stderr().is_terminal() {
            // Nobody is there to answer its questions.
            option("BatchMode=yes".into());
        }
        if let Some(port) = self.address.port {
            ssh.arg("-p").arg(port.to_string());
        }
        if let Some(identity) = &self.address.identity {
            ssh.arg("-i").arg(identity);
        }
        ssh
    }

    async fn hear(&self, stderr: Option<tokio::process::ChildStderr>, is_shown: bool) -> String {
        let Some(stderr) = stderr else { return String::new() };
        let mut reader = BufReader::new(stderr);
        let mut kept: VecDeque<String> = VecDeque::new();
        loop {
            let mut line = Vec::new();
            let read = (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await;
            if !matches!(read, Ok(count) if count > 0) {
                break;
            }
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if is_shown {
                self.work.line("  ", &line).await;
            }
            if kept.len() == LINES_KEPT {
                kept.pop_front();
            }
            kept.push_back(line);
        }
        Vec::from(kept).join("\n")
    }
}

/// A word for the other machine's shell.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A command line of such words.
pub fn line(words: &[&str]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_other_shell_as_they_are() {
        let words = ["a b", "it's", "$HOME", "`x`", "*", ""];
        let echoed = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\n' {}", line(&words))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(echoed.stdout).unwrap().lines().collect::<Vec<_>>(), words);
    }
}
