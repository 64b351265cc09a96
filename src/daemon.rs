//! What every long-running role does at its start: leave the terminal, take its lock, bind its addresses, say that it is
//! ready. Each refusal says what to do about it.

pub mod lines;
mod lock;
pub mod log;

pub use lock::{Lock, gone, holder, holders_pid, is_locked};

use crate::config::Settings;
use crate::shutdown::Shutdown;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::net::TcpListener;

/// Connections the kernel keeps for us before they are accepted.
const BACKLOG: i32 = 1_024;
/// More than all connections that are served at once; a Mac refuses a larger number.
const OPEN_FILES: u64 = 10_240;

#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("opening the lock `{}`", path.display())]
    OpenLock { path: PathBuf, source: std::io::Error },
    #[error(
        "another {role}{holder} already runs on this state directory (`{}`); stop it, or give this one its own with --state-dir DIR",
        path.display()
    )]
    Locked { role: &'static str, holder: String, path: PathBuf },
    #[error("{address} is in use{by}; choose another with --listen HOST:PORT")]
    PortInUse { address: SocketAddr, by: String },
    #[error("listening on {address}; choose another with --listen HOST:PORT")]
    Bind { address: SocketAddr, source: std::io::Error },
    #[error("`{0}` is not an address to listen on: give HOST:PORT with a host of this machine")]
    BadAddress(String),
    #[error(transparent)]
    OpenToTheNetwork(#[from] crate::http::auth::OpenToTheNetwork),
    #[error("leaving the terminal's session")]
    Detach(#[source] std::io::Error),
    #[error("reading the key's file `{}`", path.display())]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error("the key's file `{}` is empty", path.display())]
    EmptyKey { path: PathBuf },
    #[error("the descriptor of --{flag}, which another rbee passes on")]
    Descriptor { flag: &'static str, source: std::io::Error },
}

/// The key that is asked of clients and shown to servers: from the flag, or the first line of the key's file.
pub fn api_key(settings: &Settings) -> Result<Option<String>, DaemonError> {
    if let Some(key) = settings.text("api-key") {
        return Ok(Some(key.to_owned()));
    }
    key_file(settings, "api-key-file")
}

/// The key on the first line of the file that a flag names.
pub fn key_file(settings: &Settings, flag: &str) -> Result<Option<String>, DaemonError> {
    let Some(path) = settings.path(flag) else { return Ok(None) };
    let text = std::fs::read_to_string(path)
        .map_err(|source| DaemonError::KeyFile { path: path.to_owned(), source })?;
    match text.lines().next().map(str::trim) {
        Some(key) if !key.is_empty() => Ok(Some(key.to_owned())),
        _ => Err(DaemonError::EmptyKey { path: path.to_owned() }),
    }
}

/// Where a starter waits for the word that we are ready (s6's way): one line, then it is closed.
#[derive(Debug)]
pub struct Notify(Option<File>);

impl Notify {
    pub fn of(settings: &Settings) -> Result<Self, DaemonError> {
        Ok(Notify(inherited(settings, "notify-fd")?.map(File::from)))
    }

    pub fn ready(&mut self) {
        if let Some(mut file) = self.0.take()
            && let Err(error) = file.write_all(READY)
        {
            tracing::debug!(%error, "the one who started us has not waited");
        }
    }
}

/// The word of readiness.
pub const READY: &[u8] = b"ready\n";

/// Ends everything at once when the other end of an inherited pipe closes: the one we work for has gone, perhaps by
/// kill -9.
pub fn end_with_lease(settings: &Settings, shutdown: &Shutdown) -> Result<(), DaemonError> {
    let Some(pipe) = inherited(settings, "lease-fd")? else { return Ok(()) };
    let failed = |source| DaemonError::Descriptor { flag: "lease-fd", source };
    let mut pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe).map_err(failed)?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut nothing = [0];
        // Nothing is ever sent: whatever comes back, the other end is closed.
        let _ = tokio::io::AsyncReadExt::read(&mut pipe, &mut nothing).await;
        tracing::info!("the lease was closed; stopping");
        shutdown.stop();
    });
    Ok(())
}

fn inherited(settings: &Settings, flag: &'static str) -> Result<Option<OwnedFd>, DaemonError> {
    let Some(number) = settings.number::<i32>(flag) else { return Ok(None) };
    let pipe = crate::process::inherited_pipe(number);
    pipe.map(Some).map_err(|source| DaemonError::Descriptor { flag, source })
}

/// Listens, and says who is there already if the port is taken.
pub fn bind(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    let failed = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::AddrInUse {
            return DaemonError::PortInUse { address, by: holder_of(address).unwrap_or_default() };
        }
        DaemonError::Bind { address, source }
    };
    let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket =
        socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP)).map_err(failed)?;
    // Without it a restart would have to wait for the last life's connections to be forgotten.
    socket.set_reuse_address(true).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    socket.bind(&address.into()).map_err(failed)?;
    socket.listen(BACKLOG).map_err(failed)?;
    TcpListener::from_std(socket.into()).map_err(failed)
}

/// The process that listens on an address, as far as this user may see: ` by NAME (pid N)`.
fn holder_of(address: SocketAddr) -> Option<String> {
    let port = address.port();
    // As the kernel prints it: the address's bytes as a number of this machine. Of IPv6 the port has to do.
    let ours = match address.ip() {
        IpAddr::V4(ip) if !ip.is_unspecified() => Some(format!("{:08X}", u32::from_ne_bytes(ip.octets()))),
        _ => None,
    };
    let is_there = |text: &str| {
        let is_any = text.bytes().all(|byte| byte == b'0');
        ours.as_ref().is_none_or(|ours| text == ours || is_any || text.len() != ours.len())
    };
    let listening = ["/proc/net/tcp", "/proc/net/tcp6"].iter().flat_map(|table| {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        let inodes = text.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (local, at) = fields.get(1)?.rsplit_once(':')?;
            const LISTEN: &str = "0A";
            let is_ours = u16::from_str_radix(at, 16) == Ok(port) && fields.get(3) == Some(&LISTEN);
            (is_ours && is_there(local))
                .then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))
                .flatten()
        });
        inodes.collect::<Vec<String>>()
    });
    let inodes: Vec<String> = listening.collect();
    let processes = std::fs::read_dir("/proc").ok()?;
    for process in processes.flatten() {
        // Beside the processes there are names like `self`.
        if process.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        let Ok(open) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let holds = |fd: std::fs::DirEntry| {
            std::fs::read_link(fd.path())
                .is_ok_and(|to| inodes.iter().any(|inode| to.as_os_str() == inode.as_str()))
        };
        if open.flatten().any(holds) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!(" by {} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// Leaves the terminal's session, so that its hang-up and Ctrl-C are not for us, and the directory we were started in, which
/// the person may want to unmount. Settings come first: relative paths in them are relative to that directory.
pub fn detach() -> Result<(), DaemonError> {
    std::env::set_current_dir("/").map_err(DaemonError::Detach)?;
    match rustix::process::setsid() {
        // Already the leader of a session or group: nothing to leave.
        Ok(_) | Err(rustix::io::Errno::PERM) => Ok(()),
        Err(error) => Err(DaemonError::Detach(error.into())),
    }
}

/// Lets this process have as many connections as it takes: a shell's limit is a thousand files, a Mac's 256.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_none_or(|now| now >= most) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit }) {
        tracing::warn!(most, %error, "the limit of open files stays as it is");
    }
}

/// An address that a client on this machine can use, where we listen on all of them.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        reachable.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    reachable
}

/// The machine's own name, without its domain.
pub fn host_name() -> String {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy().into_owned();
    match name.split('.').next() {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => "localhost".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_says_by_what_and_names_the_flag() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let refused = bind(first.local_addr().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("--listen"), "{refused}");
        if cfg!(target_os = "linux") {
            assert!(refused.contains(&format!("pid {}", std::process::id())), "{refused}");
        }
    }
}
