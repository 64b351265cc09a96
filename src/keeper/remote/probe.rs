//! What another machine tells of itself before anything is done to it.

use super::failure::{RemoteError, last_line};
use super::ssh::Ssh;
use std::net::IpAddr;

/// Marks our lines: a login may greet with others.
const MARK: &str = "rbee:";
const SCRIPT: &str = r#"
echo "rbee:target=$(uname -sm)"
echo "rbee:node=$(uname -n)"
echo "rbee:user=$(id -u)"
echo "rbee:home=$HOME"
echo "rbee:from=$SSH_CONNECTION"
for record in "${XDG_CACHE_HOME:-$HOME/.cache}/rbee/installed.json" /var/lib/rbee/installed.json; do
    if [ -f "$record" ]; then echo "rbee:installed=$record"; fi
done
"#;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// As `uname -sm` has it: `Linux x86_64`.
    pub target: String,
    pub node: String,
    pub is_root: bool,
    pub home: String,
    /// This machine's address as that one sees it.
    pub from: Option<IpAddr>,
    /// The record of an install that is there already.
    pub installed: Option<String>,
}

pub async fn probe(ssh: &Ssh<'_>) -> Result<Facts, RemoteError> {
    let ended = ssh.first(SCRIPT).await?;
    let host = ssh.host().to_owned();
    if ended.is_not_found() {
        let hint = "its user needs a login shell that runs `sh`";
        return Err(RemoteError::NoCommand { host, command: missing(&ended.stderr), hint });
    }
    let facts = read(&ended.stdout);
    if facts.target.is_empty() || facts.home.is_empty() {
        let said = last_line(&format!("{}\n{}", ended.stdout, ended.stderr));
        let said = if said.is_empty() { format!("it said nothing, exit code {}", ended.code) } else { said };
        return Err(RemoteError::Failed { what: "commands do not run", host, said });
    }
    Ok(facts)
}

/// The command in `sh: 1: uname: not found`.
fn missing(said: &str) -> String {
    let line = last_line(said);
    let words = line.split(": ").filter(|word| !word.contains("not found") && !word.starts_with("line "));
    let name = words.last().unwrap_or("sh");
    name.to_owned()
}

fn read(stdout: &str) -> Facts {
    let mut facts = Facts::default();
    for line in stdout.lines() {
        let Some((key, value)) = line.strip_prefix(MARK).and_then(|line| line.split_once('=')) else {
            continue;
        };
        let value = value.trim().to_owned();
        match key {
            "target" => facts.target = value,
            "node" => facts.node = value,
            "user" => facts.is_root = value == "0",
            "home" => facts.home = value,
            "from" => facts.from = value.split(' ').next().and_then(|ip| ip.split('%').next()?.parse().ok()),
            "installed" => facts.installed = Some(value),
            _ => {}
        }
    }
    facts
}

/// What `uname -sm` says where this very program runs.
pub fn own_target() -> String {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("macos", "aarch64") => "Darwin arm64".into(),
        ("macos", arch) => format!("Darwin {arch}"),
        (_, arch) => format!("Linux {arch}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_among_greetings() {
        let facts = read(
            "Welcome!\nrbee:target=Linux x86_64\nrbee:node=box\nrbee:user=1000\nrbee:home=/home/u\n\
             rbee:from=192.168.1.2 50000 192.168.1.5 22\nbye=now\n",
        );
        assert_eq!((facts.target.as_str(), facts.home.as_str()), ("Linux x86_64", "/home/u"));
        assert_eq!(facts.from, Some("192.168.1.2".parse().unwrap()));
        assert!(!facts.is_root && facts.installed.is_none());
        assert_eq!(read("rbee:from=fe80::1%eth0 1 fe80::2 22").from, Some("fe80::1".parse().unwrap()));
    }

    #[test]
    fn a_missing_command_is_named() {
        assert_eq!(missing("sh: 3: uname: not found"), "uname");
        assert_eq!(missing("bash: line 1: sh: command not found"), "sh");
    }
}
