//! The key of the moment: a daemon makes one for each of its lives and leaves it in its state directory, where this user's
//! commands find it. So `rbee status` works on the daemon's machine whatever keys others need. It is worth nothing once
//! the daemon has ended: whoever then takes its port learns no secret.

use super::{KeyError, Secret};
use crate::http::client::Target;
use crate::wire::digest::Digest;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The roles that have an address.
const ROLES: [&str; 2] = ["queen", "hive"];
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Where the daemon listens: the key is shown there and nowhere else.
    addresses: Vec<SocketAddr>,
    key: String,
}

/// A daemon's key of the moment; its file goes with it.
#[derive(Debug)]
pub struct LocalKey {
    secret: Secret,
    path: PathBuf,
}

impl LocalKey {
    pub fn make(state: &Path, role: &str) -> Result<Self, KeyError> {
        Ok(LocalKey { secret: Secret::key()?, path: place(state, role) })
    }

    pub fn digest(&self) -> Digest {
        self.secret.digest()
    }

    /// Leaves it for commands on this machine.
    pub fn publish(&self, addresses: Vec<SocketAddr>) -> Result<(), KeyError> {
        let record = Record { addresses, key: self.secret.reveal().to_owned() };
        let writing = |source| KeyError::Write { path: self.path.clone(), source };
        let text = serde_json::to_vec(&record).map_err(|error| writing(error.into()))?;
        // Whole or not at all, but not synced: after a power cut it is worth nothing anyway, and a start has no time to lose.
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let put = || {
            // Made with mode 0600.
            let mut fresh = tempfile::NamedTempFile::new_in(folder)?;
            fresh.write_all(&text)?;
            fresh.persist(&self.path)?;
            Ok(())
        };
        put().map_err(writing)
    }

    /// The key for a daemon of this state directory, if `target` is one on this machine.
    pub fn find(state: &Path, target: &Target) -> Option<String> {
        let (host, port) = target.host_and_port()?;
        let found = ROLES.iter().filter_map(|role| read(&place(state, role)));
        let ours = |record: &Record| record.addresses.iter().any(|address| leads_to(host, port, *address));
        found.into_iter().find(ours).map(|record| record.key)
    }

    /// Where the daemon of a role listens, as it said itself.
    pub fn addresses(state: &Path, role: &str) -> Vec<SocketAddr> {
        read(&place(state, role)).map_or_else(Vec::new, |record| record.addresses)
    }
}

impl Drop for LocalKey {
    fn drop(&mut self) {
        // Left behind, it would open nothing either.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn place(state: &Path, role: &str) -> PathBuf {
    state.join(format!("{role}.local"))
}

fn read(path: &Path) -> Option<Record> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// Whether whoever asks for `host` and `port` on this machine reaches a daemon that listens at `address`.
pub fn leads_to(host: &str, port: u16, address: SocketAddr) -> bool {
    let listens = address.ip().to_canonical();
    let asked = match host.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical(),
        Err(_) if host.eq_ignore_ascii_case("localhost") => {
            return is_here(listens) && port == address.port();
        }
        // A name may lead anywhere.
        Err(_) => return false,
    };
    let same = asked == listens || is_here(asked) && listens.is_unspecified();
    same && port == address.port()
}

fn is_here(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_shown_to_its_own_daemon_on_this_machine_only() {
        let state = tempfile::tempdir().unwrap();
        let key = LocalKey::make(state.path(), "queen").unwrap();
        key.publish(vec!["0.0.0.0:7833".parse().unwrap(), "192.168.1.5:80".parse().unwrap()]).unwrap();
        let find = |url: &str| LocalKey::find(state.path(), &Target::parse(url).unwrap());
        for ours in ["http://127.0.0.1:7833", "http://localhost:7833", "192.168.1.5:80"] {
            assert_eq!(find(ours).as_deref(), Some(key.secret.reveal()), "{ours}");
        }
        for other in ["http://127.0.0.1:7834", "http://queen:7833", "192.168.1.6:80", "http://10.0.0.1:7833"]
        {
            assert_eq!(find(other), None, "{other}");
        }
        drop(key);
        assert_eq!(find("http://127.0.0.1:7833"), None);
    }

    #[test]
    fn what_leads_to_an_address_is_told_by_host_and_port_and_not_by_the_text() {
        let leads = |host: &str, address: &str| leads_to(host, 7833, address.parse().unwrap());
        for (host, address) in [
            ("127.0.0.1", "127.0.0.1:7833"),
            ("localhost", "127.0.0.1:7833"),
            ("LocalHost", "[::1]:7833"),
            ("[::1]", "[::1]:7833"),
            ("127.0.0.1", "0.0.0.0:7833"),
            ("0.0.0.0", "0.0.0.0:7833"),
            ("localhost", "[::]:7833"),
        ] {
            assert!(leads(host, address), "{host} {address}");
        }
        for (host, address) in
            [("127.0.0.1", "127.0.0.1:7834"), ("queen", "0.0.0.0:7833"), ("10.0.0.1", "127.0.0.1:7833")]
        {
            assert!(!leads(host, address), "{host} {address}");
        }
    }
}
