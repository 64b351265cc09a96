//! Whom ssh is to reach: as it was typed, and as `[hives.NAME]` of the configuration has it. All else is for the ssh client's own
//! configuration, so that its hosts, agents and jump hosts work here as they do there.

use super::failure::RemoteError;
use crate::config::{Machine, Settings};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// `user@host`, or a host of ssh's configuration.
    pub destination: String,
    pub port: Option<u16>,
    pub identity: Option<PathBuf>,
}

/// A machine to install on, as far as it is known before it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub address: Address,
    /// If the person has named it.
    pub name: Option<String>,
    /// Where the program goes there, if not to the usual place.
    pub bin_dir: Option<PathBuf>,
}

impl Wanted {
    /// The argument is a name of the configuration, or a destination; flags come before the configuration.
    pub fn of(settings: &Settings) -> Result<Self, RemoteError> {
        let typed = settings.positionals().join(" ");
        let (user, host) = match typed.split_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host),
            None => (None, typed.as_str()),
        };
        let named = settings.text("name");
        let entry_name = host;
        let entry = named.or(Some(host)).and_then(|name| settings.machine(name));
        let is_entry = named.is_none() && entry.is_some();
        let known = entry.cloned().unwrap_or_default();
        let bad = || RemoteError::BadAddress(typed.clone());
        let host = known.host.as_deref().unwrap_or(host);
        let user = user.or(known.user);
        // ssh would take what begins with a dash for an option.
        let is_plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && !text.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        if !is_plain(host) || user.as_deref().is_some_and(|user| !is_plain(user)) {
            return Err(bad());
        }
        let bin_dir = match &known.binary {
            None => None,
            Some(binary) if binary.is_absolute() && binary.ends_with("rbee") => {
                binary.parent().map(Path::to_owned)
            }
            Some(binary) => return Err(RemoteError::BadBinary(binary.display().to_string())),
        };
        let name = named.map(str::to_owned).or_else(|| is_entry.then(|| entry_name.to_owned()));
        if let Some(bad) = name.as_ref().filter(|name| !crate::keys::is_name(name)) {
            return Err(RemoteError::BadName(bad.clone()));
        }
        Ok(Wanted {
            address: Address {
                destination: user.map_or_else(|| host.to_owned(), |user| format!("{user}@{host}")),
                port: settings.number("port").or(known.port),
                identity: settings.path("identity").map(Path::to_owned).or(known.identity),
            },
            name,
            bin_dir,
        })
    }
}

impl Address {
    /// Found here rather than by ssh, which goes on with other keys and then tells of those.
    pub fn check_identity(&self) -> Result<(), RemoteError> {
        use std::os::unix::fs::PermissionsExt;
        let Some(identity) = &self.identity else { return Ok(()) };
        let path = identity.display().to_string();
        const OTHERS: u32 = 0o077;
        match identity.metadata() {
            Err(_) => Err(RemoteError::NoKeyFile { path }),
            Ok(meta) if meta.permissions().mode() & OTHERS != 0 => Err(RemoteError::OpenKeyFile { path }),
            Ok(_) => Ok(()),
        }
    }

    /// A record's address with what the configuration says of it by now.
    pub fn overridden(mut self, machine: Option<&Machine>) -> Self {
        let Some(machine) = machine else { return self };
        let (user, host) = match self.destination.split_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host.to_owned()),
            None => (None, self.destination.clone()),
        };
        let host = machine.host.clone().unwrap_or(host);
        let user = machine.user.clone().or(user);
        self.destination = user.map_or_else(|| host.clone(), |user| format!("{user}@{host}"));
        self.port = machine.port.or(self.port);
        self.identity = machine.identity.clone().or(self.identity);
        self
    }
}
