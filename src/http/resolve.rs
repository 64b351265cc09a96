//! Names to addresses without getaddrinfo, which in a static program loads NSS modules and dies of those of another
//! glibc. In this order: literal addresses, `localhost`, /etc/hosts, DNS as /etc/resolv.conf says, and last the
//! system's own `getent`, a separate program that may load what it likes (mDNS, mymachines, LDAP). macOS has none, but no
//! static programs either: there the system is asked itself, which knows `.local`.
//!
//! Nothing is cached: a name is looked up once a connection, and a laptop's resolv.conf changes under us.

#[cfg(not(target_os = "macos"))]
mod getent;

#[cfg(not(target_os = "macos"))]
use getent::lookup as system;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// One DNS question to one server.
pub const QUESTION_MAX: Duration = Duration::from_secs(2);
pub const QUESTION_ATTEMPTS: usize = 2;
/// All of DNS: several servers, search domains, both families.
pub const DNS_MAX: Duration = Duration::from_secs(5);
pub const SYSTEM_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are worth trying.
pub const ADDRESSES_MAX: usize = 16;
const NAME_BYTES_MAX: usize = 253;

#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("`{0}` is not a host name")]
    BadName(String),
    #[error("no address is known for `{host}`; asked {asked}")]
    Unknown { host: String, asked: String },
}

/// The addresses of `host`, IPv4 first: where both exist, it is the family that works more often.
pub async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, ResolveError> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let with_port = |mut addresses: Vec<IpAddr>| -> Vec<SocketAddr> {
        addresses.sort_by_key(IpAddr::is_ipv6);
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
    };
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(with_port(vec![ip]));
    }
    if !is_name(bare) {
        return Err(ResolveError::BadName(host.to_owned()));
    }
    if is_localhost(bare) {
        return Ok(with_port(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
    }
    let from_hosts = hosts_file(bare);
    if !from_hosts.is_empty() {
        return Ok(with_port(from_hosts));
    }
    let mut asked = vec!["/etc/hosts".to_owned()];
    for source in [Source::Dns, Source::System] {
        let found = match source {
            Source::Dns => dns(bare).await,
            Source::System => system(bare).await,
        };
        match found {
            Ok(addresses) if !addresses.is_empty() => return Ok(with_port(addresses)),
            Ok(_) => asked.push(source.name().to_owned()),
            Err(why) => asked.push(format!("{} ({why})", source.name())),
        }
    }
    Err(ResolveError::Unknown { host: host.to_owned(), asked: asked.join(", ") })
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Dns,
    System,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Source::Dns => "DNS",
            Source::System if cfg!(target_os = "macos") => "the system",
            Source::System => "getent",
        }
    }
}

/// Letters, digits, `-`, `_` and dots, not starting with what a program would take for an option.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let without_root = text.strip_suffix('.').unwrap_or(text);
    without_root.len() <= NAME_BYTES_MAX && without_root.split('.').all(is_label)
}

/// RFC 6761: these never leave the machine, whatever a name server says.
fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn hosts_file(host: &str) -> Vec<IpAddr> {
    let (Ok(hosts), Ok(name)) = (Hosts::from_system(), Name::from_str_relaxed(host)) else {
        return Vec::new();
    };
    let found = [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|family| hosts.lookup_static_host(&Query::query(name.clone(), family)));
    found
        .flat_map(|lookup| lookup.answers().iter().filter_map(|r| r.data.ip_addr()).collect::<Vec<_>>())
        .collect()
}

async fn dns(host: &str) -> Result<Vec<IpAddr>, String> {
    // Fails where there is no resolv.conf or no server in it.
    let mut builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
    let options = builder.options_mut();
    options.timeout = options.timeout.min(QUESTION_MAX);
    options.attempts = options.attempts.min(QUESTION_ATTEMPTS);
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.use_hosts_file = ResolveHosts::Never;
    options.cache_size = 0;
    let resolver = builder.build().map_err(|e| e.to_string())?;
    match tokio::time::timeout(DNS_MAX, resolver.lookup_ip(host)).await {
        Ok(Ok(found)) => Ok(found.iter().collect()),
        Ok(Err(error)) if error.is_no_records_found() => Ok(Vec::new()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", DNS_MAX.as_secs())),
    }
}

#[cfg(target_os = "macos")]
async fn system(host: &str) -> Result<Vec<IpAddr>, String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "no static program, and nobody else knows all names of a Mac"
    )]
    let asked = tokio::net::lookup_host((host, 0));
    match tokio::time::timeout(SYSTEM_MAX, asked).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer in {} s", SYSTEM_MAX.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_and_localhost_need_nobody() {
        let printed =
            |list: Vec<SocketAddr>| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(printed(lookup("127.0.0.2", 80).await.unwrap()), "127.0.0.2:80");
        assert_eq!(printed(lookup("[::1]", 80).await.unwrap()), "[::1]:80");
        for name in ["localhost", "LocalHost.", "hub.localhost"] {
            assert_eq!(printed(lookup(name, 1).await.unwrap()), "127.0.0.1:1 [::1]:1");
        }
    }

    #[tokio::test]
    async fn what_is_no_name_is_never_asked_about() {
        for bad in ["", "-v", "a b", "a..b", "x/../y", "hüb.test", "a\0b", "a.-b"] {
            assert!(matches!(lookup(bad, 1).await, Err(ResolveError::BadName(_))), "{bad:?}");
        }
    }
}
