//! Why another machine could not be worked on, read from what ssh says. ssh tells its own failures by exit code 255 and a line in
//! English; what is not recognised is passed on as it is.

use crate::keeper::KeeperError;
use crate::wire::failure::chain;
use crate::wire::{Code, Failure};
use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("`{0}` is not USER@HOST, a host, or a name of `[hives.NAME]` in the configuration")]
    BadAddress(String),
    #[error("`binary = \"{0}\"`: give a whole path that ends in rbee, as /opt/rbee/bin/rbee")]
    BadBinary(String),
    #[error("`{0}` cannot name a hive: letters, digits, `-`, `_` and `.`; choose another with --name")]
    BadName(String),
    #[error("`ssh` was not found: install OpenSSH's client")]
    NoSsh,
    #[error("running ssh")]
    Ssh(#[source] io::Error),
    #[error(
        "{host} did not answer within {seconds} s, in {tries} tries: is it on, and is its address right?"
    )]
    Timeout { host: String, seconds: u64, tries: usize },
    #[error("{host} cannot be reached ({said}): is it on, does it run sshd, is the port right?")]
    Down { host: String, said: String },
    #[error(
        "no machine is known as `{host}`: check the name, or give it an address in ~/.ssh/config or `[hives.NAME]`"
    )]
    UnknownHost { host: String },
    #[error(
        "{host} accepts none of the keys that ssh has shown it ({said}): `ssh-copy-id {host}` puts yours there"
    )]
    KeyRefused { host: String, said: String },
    #[error(
        "the key file `{path}` is missing: `ssh-keygen -f {path}` makes one; one copied there needs `chmod 600 {path}`"
    )]
    NoKeyFile { path: String },
    #[error("the key file `{path}` is open to others, so ssh does not use it: chmod 600 {path}")]
    OpenKeyFile { path: String },
    #[error(
        "{host}'s host key is not known here: connect once with `ssh {host}` and compare the fingerprint"
    )]
    UnknownHostKey { host: String },
    #[error(
        "{host}'s host key is another than before: somebody may be in between, or the machine was set up anew; then `ssh-keygen -R` forgets the old one"
    )]
    ChangedHostKey { host: String },
    #[error("`{command}` was not found on {host}: {hint}")]
    NoCommand { host: String, command: String, hint: &'static str },
    #[error("`{path}` on {host} cannot be written: {said}")]
    NotWritable { host: String, path: String, said: String },
    #[error(
        "sudo on {host} asks for a password: let `{user}` use it without one, or install without --system"
    )]
    Sudo { host: String, user: String },
    #[error("the connection to {host} broke: {said}")]
    Broken { host: String, said: String },
    #[error("{what} on {host}: {said}")]
    Failed { what: &'static str, host: String, said: String },
    #[error(
        "what arrived on {host} is not what was sent (sha256 {there}, not {here}): its disk may be full or broken"
    )]
    Corrupt { host: String, here: String, there: String },
    /// As it was asked to be; and what was said at last over there, if that is known to have ended.
    #[error("stopped")]
    Stopped { said: Option<String> },
    #[error("reading or writing `{}`", path.display())]
    Record { path: PathBuf, source: io::Error },
}

impl From<RemoteError> for KeeperError {
    fn from(error: RemoteError) -> Self {
        let code = match error {
            RemoteError::BadAddress(_) | RemoteError::BadBinary(_) | RemoteError::BadName(_) => {
                return KeeperError::Usage(error.to_string());
            }
            RemoteError::Stopped { .. } => return KeeperError::Interrupted,
            RemoteError::NoKeyFile { .. }
            | RemoteError::OpenKeyFile { .. }
            | RemoteError::KeyRefused { .. }
            | RemoteError::Sudo { .. }
            | RemoteError::UnknownHostKey { .. }
            | RemoteError::ChangedHostKey { .. } => Code::Forbidden,
            RemoteError::NoCommand { .. } => Code::MissingDependencies,
            RemoteError::Corrupt { .. } => Code::ChecksumMismatch,
            RemoteError::Record { .. } => Code::Internal,
            _ => Code::ConnectionFailed,
        };
        Failure::new(code, chain(&error)).into()
    }
}

/// Of what ssh said with exit code 255.
pub fn of_ssh(host: &str, said: &str, seconds: u64, tries: usize) -> RemoteError {
    let host = host.to_owned();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let last = last_line(said);
    if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED"]) {
        return RemoteError::ChangedHostKey { host };
    }
    if has(&["Host key verification failed"]) {
        return RemoteError::UnknownHostKey { host };
    }
    if let Some(path) = between(said, "Permissions 0", "' are too open").and_then(|p| p.split_once('\'')) {
        return RemoteError::OpenKeyFile { path: path.1.to_owned() };
    }
    if has(&["Permission denied", "Too many authentication failures"]) {
        let missing = between(said, "Identity file ", " not accessible")
            .or_else(|| between(said, "no such identity: ", ": No such file"));
        if let Some(path) = missing {
            return RemoteError::NoKeyFile { path: path.to_owned() };
        }
        return RemoteError::KeyRefused { host, said: last };
    }
    if has(&["Could not resolve hostname"]) {
        return RemoteError::UnknownHost { host };
    }
    if has(&["timed out", "Timeout, server"]) {
        return RemoteError::Timeout { host, seconds, tries };
    }
    if has(&["Connection refused", "No route to host", "Network is unreachable", "Host is down"]) {
        return RemoteError::Down { host, said: last };
    }
    RemoteError::Broken { host, said: if last.is_empty() { "ssh did not say why".into() } else { last } }
}

/// Worth another try: what may be a moment's.
pub fn is_passing(error: &RemoteError) -> bool {
    matches!(error, RemoteError::Timeout { .. } | RemoteError::Down { .. })
}

pub fn last_line(said: &str) -> String {
    said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(said: &str) -> String {
        of_ssh("u@box", said, 10, 3).to_string()
    }

    #[test]
    fn each_failure_of_ssh_has_its_own_message() {
        let refused = "u@box: Permission denied (publickey).";
        for (said, words) in [
            (
                "ssh: connect to host box port 22: Connection timed out\n",
                "did not answer within 10 s, in 3 tries",
            ),
            ("Connection timed out during banner exchange", "did not answer"),
            ("ssh: connect to host box port 22: Connection refused\r\n", "Connection refused): is it on"),
            ("ssh: connect to host box port 22: No route to host", "cannot be reached"),
            (
                "ssh: Could not resolve hostname box: Name or service not known",
                "no machine is known as `u@box`",
            ),
            (refused, "ssh-copy-id u@box"),
            ("Host key verification failed.", "is not known here"),
            (
                "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
                "another than before",
            ),
            ("kex_exchange_identification: Connection reset by peer", "broke: kex_exchange"),
            ("", "did not say why"),
        ] {
            assert!(told(said).contains(words), "{said}: {}", told(said));
        }
        let missing =
            format!("Warning: Identity file /k not accessible: No such file or directory.\n{refused}");
        assert!(told(&missing).contains("`/k` is missing") && told(&missing).contains("chmod 600 /k"));
        let missing = format!("no such identity: /h/k: No such file or directory\n{refused}");
        assert!(told(&missing).contains("`/h/k` is missing"));
        let open = format!(
            "@ WARNING: UNPROTECTED PRIVATE KEY FILE! @\nPermissions 0644 for '/k' are too open.\n{refused}"
        );
        assert!(told(&open).ends_with("chmod 600 /k"), "{}", told(&open));
    }
}
