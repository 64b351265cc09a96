//! The guard before every route: deny unless listed. A browser tab must not be able to start a build, so the Host header
//! has to be ours and a foreign Origin is refused on every method; a key, where one is set, is compared in constant time.

use crate::http::{Peer, Request};
use crate::wire::{Code, Failure};
use sha2::{Digest, Sha256};
use std::net::{IpAddr, SocketAddr};
use subtle::ConstantTimeEq;

/// Paths that need no key: they say that the daemon lives, and no more.
const OPEN_PATHS: &[&str] = &["/health", "/v1/health"];

/// A key, kept as its digest so that it can be neither logged nor compared early.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    pub fn new(secret: &str) -> Self {
        Key(Sha256::digest(secret.as_bytes()).into())
    }

    fn opens(&self, secret: &str) -> bool {
        self.0.ct_eq(&Key::new(secret).0).into()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Names this daemon answers to, beside `localhost`, loopback addresses and the address a client reached it by.
    pub names: Vec<String>,
    pub keys: Vec<Key>,
}

/// What a request shows of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    None,
    Ours,
    Other,
}

/// Why a daemon may not listen as it was told to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "listening on {0} would open this daemon to the network without a key; set one with `--api-key` or RBEE_API_KEY (for instance the output of `openssl rand -hex 32`), or listen on 127.0.0.1"
)]
pub struct OpenToTheNetwork(pub SocketAddr);

impl Guard {
    pub fn new(names: Vec<String>, key: Option<&str>) -> Self {
        Guard { names, keys: key.map(Key::new).into_iter().collect() }
    }

    /// B55: beyond loopback only with a key.
    pub fn may_listen(&self, address: SocketAddr) -> Result<(), OpenToTheNetwork> {
        if address.ip().to_canonical().is_loopback() || !self.keys.is_empty() {
            return Ok(());
        }
        Err(OpenToTheNetwork(address))
    }

    pub fn check(&self, request: &Request) -> Result<(), Failure> {
        let Peer::Tcp { local, .. } = request.peer else { return Ok(()) };
        let key = self.key_of(request);
        let host = request.header("host").or_else(|| request.inner.uri().authority().map(|a| a.as_str()));
        // Who shows the key is no page that a name was bent for, and may know this machine by names that we don't.
        if key != Shown::Ours && !host.is_some_and(|host| self.is_ours(host, local.ip())) {
            return Err(Failure::new(
                Code::Forbidden,
                format!("this daemon does not answer to the host `{}`", host.unwrap_or("")),
            ));
        }
        if let Some(origin) = request.headers().get("origin") {
            let same = origin
                .to_str()
                .ok()
                .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")))
                .is_some_and(|authority| Some(authority) == host);
            if !same {
                return Err(Failure::new(Code::Forbidden, "requests from another origin are refused"));
            }
        }
        if request.header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(Failure::new(Code::Forbidden, "requests from another site are refused"));
        }
        if self.keys.is_empty() || OPEN_PATHS.contains(&request.path()) {
            return Ok(());
        }
        match key {
            Shown::Ours => Ok(()),
            Shown::None => Err(Failure::new(
                Code::MissingApiKey,
                "this daemon needs a key: send `Authorization: Bearer KEY` (rbee: --api-key or RBEE_API_KEY)",
            )),
            Shown::Other => Err(Failure::new(Code::InvalidApiKey, "the key is not one of this daemon's")),
        }
    }

    fn key_of(&self, request: &Request) -> Shown {
        let secret = request.header("authorization").and_then(|value| {
            let (scheme, secret) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
        });
        match secret {
            None => Shown::None,
            // Every key is compared, so that the answer's time does not tell which one came close.
            Some(secret) if self.keys.iter().fold(false, |open, key| key.opens(secret) | open) => Shown::Ours,
            Some(_) => Shown::Other,
        }
    }

    fn is_ours(&self, host: &str, local: IpAddr) -> bool {
        let name = host_name(host);
        if let Ok(ip) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            // A rebinding attack needs a name; an address is ours when the client really reached us by it.
            return ip.to_canonical().is_loopback() || ip.to_canonical() == local.to_canonical();
        }
        let name = name.trim_end_matches('.');
        name.eq_ignore_ascii_case("localhost")
            || self.names.iter().any(|ours| ours.eq_ignore_ascii_case(name))
    }
}

/// A Host header without its port.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.contains(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_ours_and_hosts_that_are_not() {
        let guard = Guard::new(vec!["box".into(), "box.local".into()], None);
        let local = "192.168.1.5".parse().unwrap();
        for ours in [
            "localhost",
            "LOCALHOST:7833",
            "127.0.0.1:7833",
            "127.9.9.9",
            "[::1]:7833",
            "192.168.1.5:1",
            "box",
            "Box.local:7833",
        ] {
            assert!(guard.is_ours(ours, local), "{ours}");
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example:7833",
            "192.168.1.6",
            "0.0.0.0:7833",
            "[::]:7833",
            "",
            "box.evil",
            "169.254.169.254",
        ] {
            assert!(!guard.is_ours(foreign, local), "{foreign}");
        }
    }

    #[test]
    fn beyond_loopback_only_with_a_key() {
        let open = Guard::default();
        assert!(open.may_listen("127.0.0.2:7833".parse().unwrap()).is_ok());
        assert!(open.may_listen("[::1]:7833".parse().unwrap()).is_ok());
        for address in ["0.0.0.0:7833", "[::]:7833", "192.168.1.5:7833", "[::ffff:10.0.0.1]:1"] {
            assert!(open.may_listen(address.parse().unwrap()).is_err(), "{address}");
            assert!(Guard::new(vec![], Some("k")).may_listen(address.parse().unwrap()).is_ok());
        }
    }

    #[test]
    fn a_key_opens_only_for_itself_and_never_prints() {
        let key = Key::new("s3cret");
        assert!(key.opens("s3cret") && !key.opens("s3cre") && !key.opens(""));
        assert_eq!(format!("{key:?}"), "Key(…)");
    }
}
