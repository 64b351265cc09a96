//! The guard before every route: deny unless listed. A browser tab must not be able to start a build, so the Host header
//! has to be ours and a foreign Origin is refused on every method; a key, where one is set, is compared in constant time.

use crate::http::{Peer, Request};
use crate::keys::{self, Key, Kind, Ring};
use crate::wire::digest::Digest;
use crate::wire::{Code, Failure};
use http::header::{AUTHORIZATION, AsHeaderName, HOST, HeaderName, ORIGIN};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use subtle::ConstantTimeEq;

/// Paths that need no key: they say that the daemon lives, and no more.
const OPEN_PATHS: &[&str] = &["/health", "/v1/health"];
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Where a node shows a join token; the route itself looks at it.
pub const JOIN_PATH: &str = "/v1/join";
/// All that a hive's key opens.
pub const LINK_PATH: &str = "/v1/link";

/// Whose key a request showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Nobody's: none was asked for, or the way it came needs none.
    Nobody,
    /// The key that the daemon was started with, or that of its moment.
    Daemon,
    /// One of the state directory's.
    Key(Key),
}

#[derive(Debug, Default)]
pub struct Guard {
    /// Names this daemon answers to, beside `localhost`, loopback addresses and the address a client reached it by.
    names: Vec<String>,
    /// The key the daemon was started with.
    fixed: Option<Digest>,
    /// The key of the moment. It opens, but does not close: where no other key is, nobody needs one.
    local: Option<Digest>,
    /// The state directory's keys.
    ring: Option<Arc<Ring>>,
    /// Beyond loopback a key is needed, even when the last one has been revoked.
    is_exposed: AtomicBool,
}

/// What a request shows of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shown {
    None,
    Ours(Holder),
    Other,
}

/// Why a daemon may not listen as it was told to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "listening on {address} would open this daemon to the network without a key: {make}give your own with `--api-key-file` or RBEE_API_KEY (for instance the output of `openssl rand -hex 32`), or listen on 127.0.0.1"
)]
pub struct OpenToTheNetwork {
    address: SocketAddr,
    make: &'static str,
}

impl Guard {
    pub fn new(names: Vec<String>, key: Option<&str>) -> Self {
        Guard { names, fixed: key.map(keys::digest), ..Guard::default() }
    }

    /// Lets in who holds a key of a state directory, too.
    pub fn with_ring(mut self, ring: Arc<Ring>) -> Self {
        self.ring = Some(ring);
        self
    }

    pub fn with_local(mut self, key: Digest) -> Self {
        self.local = Some(key);
        self
    }

    /// B55: beyond loopback only with a key.
    pub fn may_listen(&self, address: SocketAddr) -> Result<(), OpenToTheNetwork> {
        if address.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        if !self.has_keys() {
            let make = if self.ring.is_some() { "make one with `rbee key create`, " } else { "" };
            return Err(OpenToTheNetwork { address, make });
        }
        self.is_exposed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether anybody could show one.
    fn has_keys(&self) -> bool {
        self.fixed.is_some() || self.ring.as_ref().is_some_and(|ring| ring.book().has_client_keys())
    }

    pub fn check(&self, request: &Request) -> Result<Holder, Failure> {
        let Peer::Tcp { local, .. } = request.peer else { return Ok(Holder::Nobody) };
        once(request, &HOST)?;
        once(request, &AUTHORIZATION)?;
        once(request, &ORIGIN)?;
        let key = self.key_of(request);
        let named = request.headers().get(HOST).map(|host| host.to_str().unwrap_or(""));
        // Of a request that was written for a proxy both are looked at: who stands before us may go by either.
        let target = request.inner.uri().authority().map(|authority| authority.as_str());
        let host = named.or(target);
        let is_joining = request.path() == JOIN_PATH && key != Shown::None;
        let asks = self.is_exposed.load(Ordering::Relaxed) || self.has_keys();
        // A node by its old key: it has to hear that the key is what is wrong.
        let is_linking = request.path() == LINK_PATH && key == Shown::Other && asks;
        // Who shows the key is no page that a name was bent for, and may know this machine by names that we don't. So may a
        // node with a join token; without a good one it learns nothing.
        let is_known = matches!(key, Shown::Ours(_)) || is_joining || is_linking;
        let foreign = [host.or(Some("")), target]
            .into_iter()
            .flatten()
            .find(|host| !is_known && !self.is_ours(host, local.ip()));
        if let Some(foreign) = foreign {
            return Err(Failure::new(
                Code::Forbidden,
                format!("this daemon does not answer to the host `{foreign}`"),
            ));
        }
        if let Some(origin) = request.headers().get(ORIGIN) {
            let same = origin
                .to_str()
                .ok()
                .and_then(|origin| origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")))
                .is_some_and(|authority| Some(authority) == host);
            if !same {
                return Err(Failure::new(Code::Forbidden, "requests from another origin are refused"));
            }
        }
        if request.header(SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "same-origin" | "none")) {
            return Err(Failure::new(Code::Forbidden, "requests from another site are refused"));
        }
        if OPEN_PATHS.contains(&request.path()) || is_joining {
            return Ok(Holder::Nobody);
        }
        match key {
            Shown::Ours(Holder::Key(key)) if key.kind == Kind::Hive && request.path() != LINK_PATH => {
                Err(Failure::new(
                    Code::Forbidden,
                    format!(
                        "`{}` is a hive's key, which opens its link and nothing else: make one for clients with `rbee key create`",
                        key.name
                    ),
                ))
            }
            Shown::Ours(holder) => Ok(holder),
            _ if !asks => Ok(Holder::Nobody),
            Shown::None => Err(Failure::new(
                Code::MissingApiKey,
                "this daemon needs a key: send `Authorization: Bearer KEY` (rbee: --api-key or RBEE_API_KEY; `rbee key create` on its machine makes one)",
            )),
            Shown::Other => Err(Failure::new(Code::InvalidApiKey, "the key is not one of this daemon's")),
        }
    }

    fn key_of(&self, request: &Request) -> Shown {
        let Some(secret) = bearer(request) else { return Shown::None };
        let shown = keys::digest(secret);
        // Digests of all that could match are compared whole, so that the answer's time does not tell which came close.
        let same = |known: &Option<Digest>| {
            known.is_some_and(|known| bool::from(known.as_bytes().ct_eq(shown.as_bytes())))
        };
        let is_daemons = same(&self.fixed) | same(&self.local);
        if is_daemons {
            return Shown::Ours(Holder::Daemon);
        }
        match self.ring.as_ref().and_then(|ring| ring.find(&shown)) {
            Some(key) => Shown::Ours(Holder::Key(key)),
            None => Shown::Other,
        }
    }

    fn is_ours(&self, host: &str, local: IpAddr) -> bool {
        match host_of(host) {
            // A rebinding attack needs a name; an address is ours when the client really reached us by it.
            Some(Host::Address(ip)) => {
                ip.to_canonical().is_loopback() || ip.to_canonical() == local.to_canonical()
            }
            Some(Host::Name(name)) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                let ours = |ours: &str| !name.is_empty() && ours.eq_ignore_ascii_case(name);
                ours("localhost") || self.names.iter().any(|name| ours(name))
            }
            None => false,
        }
    }
}

/// What decides who is let in may stand in a request once: of two, another server on the way may have looked at the other.
pub(super) fn once(request: &Request, header: impl AsHeaderName + Display + Copy) -> Result<(), Failure> {
    if request.headers().get_all(header).iter().nth(1).is_some() {
        return Err(Failure::invalid(format!("a request has one `{header}` header, not several")));
    }
    Ok(())
}

/// The secret that a request shows.
pub fn bearer(request: &Request) -> Option<&str> {
    let (scheme, secret) = request.header(AUTHORIZATION)?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

/// Whom a Host header names.
#[derive(Debug, PartialEq, Eq)]
enum Host<'h> {
    Address(IpAddr),
    Name(&'h str),
}

/// Reads `NAME[:PORT]`, `1.2.3.4[:PORT]` or `[::1][:PORT]`, and nothing that is only nearly so.
fn host_of(host: &str) -> Option<Host<'_>> {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']')?;
        let is_whole = after.is_empty() || after.strip_prefix(':').is_some_and(is_port);
        return address.parse::<Ipv6Addr>().ok().filter(|_| is_whole).map(|ip| Host::Address(ip.into()));
    }
    let name = match host.split_once(':') {
        Some((name, port)) => Some(name).filter(|_| is_port(port))?,
        None => host,
    };
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        return Some(Host::Address(ip.into()));
    }
    let is_of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) || !byte.is_ascii();
    (!name.is_empty() && name.bytes().all(is_of_a_name)).then_some(Host::Name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_ours_and_hosts_that_are_not() {
        // A daemon may be called nothing, or what no host can be.
        let guard = Guard::new(vec!["box".into(), "box.local".into(), "".into(), ".".into()], None);
        let local = "192.168.1.5".parse().unwrap();
        for ours in [
            "localhost",
            "LOCALHOST:7833",
            "127.0.0.1:7833",
            "127.9.9.9",
            "[::1]:7833",
            "192.168.1.5:1",
            "[::ffff:127.0.0.1]:7833",
            "localhost.:7833",
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
            // Nearly, and by some readings, one of ours.
            ":7833",
            ".",
            "localhost..",
            "localhost:",
            "localhost:78x",
            "localhost:80:80",
            "localhost@evil.example",
            "evil.example@localhost",
            "evil.example:80@localhost:7833",
            "localhost,evil.example",
            "localhost evil.example",
            "localhost/evil.example",
            "localhost%00.evil.example",
            "[::1].evil.example",
            "[::1]7833",
            "[::1",
            "::1",
            "[127.0.0.1]",
            "]127.0.0.1[",
            "[::1%25lo]:7833",
            "127.1",
            "0x7f.0.0.1",
            "2130706433",
            "017700000001",
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
    fn a_hives_key_does_not_open_the_network_and_a_persons_does() {
        let state = tempfile::tempdir().unwrap();
        let guard = || {
            let ring = Ring::open(state.path()).unwrap();
            Guard::new(vec![], None).with_ring(Arc::new(ring))
        };
        let address = "0.0.0.0:7833".parse().unwrap();
        let token = keys::Secret::token().unwrap();
        keys::Book::edit(state.path(), |book| {
            book.add_token(&token, std::time::Duration::from_secs(60))?;
            book.join(&token.digest(), "one", "n", &keys::Secret::key()?)
        })
        .unwrap();
        let refused = guard().may_listen(address).unwrap_err().to_string();
        assert!(refused.contains("rbee key create"), "{refused}");
        keys::Book::edit(state.path(), |book| book.add(None, &keys::Secret::key()?)).unwrap();
        assert!(guard().may_listen(address).is_ok());
    }
}
