//! What tells a machine's own supervisor to keep a daemon running: systemd's units, launchd's property lists. Pure text.
//!
//! Only the daemon is the supervisor's to stop: a hive ends its workers itself, and one that crashed or was replaced finds
//! them again. So systemd must not kill the whole group, nor empty the directory with the sockets.

use std::path::Path;
use std::time::Duration;

/// Requests in flight have 25 s to finish, workers 5 s to end; and a little.
const STOP_MAX: Duration = Duration::from_secs(40);
/// After a crash, and between refusals to start: an address may not be there yet when the machine has just come up.
const RESTART_PAUSE: Duration = Duration::from_secs(2);

/// Which daemons a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Serve,
    Queen,
    Hive,
}

impl Role {
    /// As `--role` spells it.
    pub fn parse(text: &str) -> Option<Self> {
        [Role::Serve, Role::Queen, Role::Hive].into_iter().find(|role| role.name() == text)
    }

    pub fn name(self) -> &'static str {
        match self {
            Role::Serve => "serve",
            Role::Queen => "queen",
            Role::Hive => "hive",
        }
    }

    /// After `rbee`.
    pub fn words(self) -> &'static [&'static str] {
        match self {
            Role::Serve => &["serve"],
            Role::Queen => &["queen", "serve"],
            Role::Hive => &["hive", "serve"],
        }
    }

    /// The daemon whose lock is held while it runs.
    pub fn lock(self) -> &'static str {
        match self {
            Role::Serve | Role::Queen => "queen",
            Role::Hive => "hive",
        }
    }

    /// What its unit is called: `rbee.service`, `rbee-hive.service`.
    pub fn unit(self) -> String {
        match self {
            Role::Serve => "rbee".into(),
            other => format!("rbee-{}", other.name()),
        }
    }
}

/// A unit for the system's systemd, or a user's.
pub fn systemd(role: Role, is_system: bool, line: &[String]) -> String {
    let command: Vec<String> = line.iter().map(|word| quoted(word)).collect();
    let network = "Wants=network-online.target\nAfter=network-online.target\n";
    format!(
        "# Written by `rbee install`; `rbee uninstall` takes it away.\n\
         [Unit]\n\
         Description=rbee {name}\n\
         {network}\
         # However often it fails, it is tried again.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         ExecStart={command}\n\
         Restart=always\n\
         RestartSec={pause}\n\
         # Only the daemon is systemd's to stop: it ends its workers itself, and one that crashed finds them again.\n\
         KillMode=process\n\
         Delegate=yes\n\
         RuntimeDirectory=rbee\n\
         RuntimeDirectoryMode=0700\n\
         RuntimeDirectoryPreserve=yes\n\
         # Requests in flight may take 25 s to finish, workers 5 s to end.\n\
         TimeoutStopSec={stop}\n\
         \n\
         [Install]\n\
         WantedBy={target}\n",
        name = role.name(),
        // The user's manager knows no network target.
        network = if is_system { network } else { "" },
        command = command.join(" "),
        pause = RESTART_PAUSE.as_secs(),
        stop = STOP_MAX.as_secs(),
        target = if is_system { "multi-user.target" } else { "default.target" },
    )
}

/// A word of ExecStart that systemd reads as it stands.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.:,=@[]".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    let mut text = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            '%' | '$' => text.extend([c, c]),
            c => text.push(c),
        }
    }
    text + "\""
}

/// What launchd calls it.
pub fn launchd_label(role: Role) -> String {
    format!("rbee.{}", role.name())
}

/// A property list for launchd: an agent of a user, or a daemon of the system.
pub fn launchd(role: Role, line: &[String], log: &Path) -> String {
    let words: String =
        line.iter().map(|word| format!("        <string>{}</string>\n", escaped(word))).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!-- Written by `rbee install`; `rbee uninstall` takes it away. -->\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n    \
         <key>Label</key>\n    <string>{label}</string>\n    \
         <key>ProgramArguments</key>\n    <array>\n{words}    </array>\n    \
         <key>RunAtLoad</key>\n    <true/>\n    \
         <key>KeepAlive</key>\n    <true/>\n    \
         <!-- Also where nobody is logged in at the screen. -->\n    \
         <key>LimitLoadToSessionType</key>\n    <array>\n        <string>Aqua</string>\n        <string>Background</string>\n        <string>System</string>\n    </array>\n    \
         <key>ProcessType</key>\n    <string>Interactive</string>\n    \
         <!-- Workers are the hive's to end, and outlive one that crashed. -->\n    \
         <key>AbandonProcessGroup</key>\n    <true/>\n    \
         <key>ExitTimeOut</key>\n    <integer>{stop}</integer>\n    \
         <key>ThrottleInterval</key>\n    <integer>{pause}</integer>\n    \
         <key>StandardErrorPath</key>\n    <string>{log}</string>\n\
         </dict>\n</plist>\n",
        label = launchd_label(role),
        stop = STOP_MAX.as_secs(),
        pause = RESTART_PAUSE.as_secs(),
        log = escaped(&log.to_string_lossy()),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_unit_leaves_workers_and_sockets_to_the_hive() {
        let unit = systemd(Role::Hive, true, &line(&["/usr/local/bin/rbee", "hive", "serve"]));
        for must in [
            "\nExecStart=/usr/local/bin/rbee hive serve\n",
            "\nKillMode=process\n",
            "\nDelegate=yes\n",
            "\nRuntimeDirectoryPreserve=yes\n",
            "\nTimeoutStopSec=40\n",
            "\nWantedBy=multi-user.target\n",
            "\nAfter=network-online.target\n",
        ] {
            assert!(unit.contains(must), "{must:?} is not in {unit}");
        }
        let users = systemd(Role::Hive, false, &line(&["/home/u/.local/bin/rbee", "hive", "serve"]));
        assert!(
            users.contains("\nWantedBy=default.target\n") && !users.contains("network-online"),
            "{users}"
        );
        assert!(users.lines().all(|line| !line.starts_with(' ')), "{users}");
    }

    #[test]
    fn words_that_systemd_would_change_are_quoted() {
        let unit = systemd(Role::Serve, false, &line(&["/a b/rbee", "serve", "--name", "50%$x\"\\"]));
        assert!(unit.contains("ExecStart=\"/a b/rbee\" serve --name \"50%%$$x\\\"\\\\\"\n"), "{unit}");
    }

    #[test]
    fn a_property_list_abandons_the_group_and_escapes() {
        let list = launchd(Role::Hive, &line(&["/a&b/rbee", "hive", "serve"]), Path::new("/l/<hive>.log"));
        assert!(list.contains("<key>AbandonProcessGroup</key>\n    <true/>"), "{list}");
        assert!(
            list.contains("<string>/a&amp;b/rbee</string>") && list.contains("/l/&lt;hive&gt;.log"),
            "{list}"
        );
        assert!(list.contains("<string>rbee.hive</string>"), "{list}");
    }
}
