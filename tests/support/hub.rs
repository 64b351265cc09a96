//! A hub on loopback, as the real one as far as a client can tell: repositories with commits and files, what the API says
//! of them, redirects to signed links on another origin; or only a server of files, over HTTP or TLS. It misbehaves by
//! script, one fault a request in order, or by rules for requests of a kind. It remembers what it was asked and what it sent.

mod connection;
pub mod content;
mod fault;
mod repo;
mod site;

pub use content::Content;
pub use fault::{Fault, Site, When};
pub use repo::Repo;

use connection::Connection;
use fault::Script;
use rbee::model::{Digest, HubFile, Kind, Recipe};
use rbee::pkgbuild::Places;
use sha2::Digest as _;
use site::{Links, World};
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Of the server that has one model and no more.
pub const REPO: &str = "org/tiny";
pub const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";
pub const FILE: &str = "tiny.gguf";

/// The recipe of its model.
pub fn recipe(bytes: &[u8]) -> Recipe {
    Recipe {
        id: "tiny".into(),
        kind: Kind::Model,
        name: "Tiny".into(),
        description: "noise".into(),
        license: "CC0-1.0".into(),
        context: 2048,
        size: bytes.len() as u64,
        sha256: Digest::of(sha2::Sha256::new_with_prefix(bytes)),
        file: FILE.into(),
        makedepends: Vec::new(),
        hub: Some(HubFile { repo: REPO.into(), revision: REVISION.into(), file: FILE.into() }),
        pkgbuild: "pkgname=tiny\npkgver=1\npkgrel=1\narch=(any)\npackage() { echo nothing here; false; }\n"
            .into(),
    }
}

/// Where a store below this folder builds what a recipe says.
pub fn places(root: &Path) -> Places {
    Places {
        work: root.join("builds"),
        sources: root.join("sources"),
        logs: root.join("logs"),
        trees: root.join("run"),
        env: Vec::new(),
        rung_max: None,
        shim: None,
    }
}

const ANYWHERE: &str = "127.0.0.1:0";
/// Nothing that a test waits for takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of its own, so that plain functions can have a hub, too, and no test's own work slows it down.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub site: Site,
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Bytes of a file that were sent in one answer, the end excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

/// What the connections share.
struct State {
    world: World,
    script: Mutex<Script>,
    asked: watch::Sender<Vec<Asked>>,
    /// Of files, over all requests.
    bytes_sent: watch::Sender<u64>,
    spans: Mutex<Vec<Span>>,
    /// Places in the file where the one connection that comes by is cut, once.
    cuts: Mutex<Vec<u64>>,
    /// Bytes a second for each connection.
    rate: Option<u64>,
    sending: AtomicUsize,
    sending_most: AtomicUsize,
}

struct Sending<'a>(&'a State);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.sending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn sending(&self) -> Sending<'_> {
        let now = self.sending.fetch_add(1, Ordering::SeqCst) + 1;
        self.sending_most.fetch_max(now, Ordering::SeqCst);
        Sending(self)
    }

    /// Takes the first place to cut that is after `from` and not after `to`.
    fn cut_within(&self, from: u64, to: u64) -> Option<u64> {
        let mut cuts = self.cuts.lock().unwrap();
        let found = cuts.iter().copied().filter(|cut| *cut > from && *cut <= to).min()?;
        cuts.retain(|cut| *cut != found);
        Some(found)
    }
}

/// What a hub is to be like.
pub struct Plan {
    repos: Vec<Repo>,
    plain: Vec<(String, Arc<Content>)>,
    script: Script,
    listen: String,
    tls: Option<TlsAcceptor>,
    has_cdn: bool,
    token: Option<String>,
    rate: Option<u64>,
    link_uses: usize,
    send_buffer_bytes: Option<usize>,
}

impl Plan {
    fn new(repos: Vec<Repo>) -> Plan {
        Plan {
            repos,
            plain: Vec::new(),
            script: Script::default(),
            listen: ANYWHERE.into(),
            tls: None,
            has_cdn: false,
            token: None,
            rate: None,
            link_uses: usize::MAX,
            send_buffer_bytes: None,
        }
    }

    /// Large files are sent by another origin, which the hub redirects to.
    pub fn cdn(mut self) -> Plan {
        self.has_cdn = true;
        self
    }

    /// A file of no repository, by the end of its path.
    pub fn file(mut self, path: &str, content: &Arc<Content>) -> Plan {
        self.plain.push((path.to_owned(), content.clone()));
        self
    }

    /// The key that opens what is gated or private; any other is refused.
    pub fn token(mut self, token: &str) -> Plan {
        self.token = Some(token.to_owned());
        self
    }

    /// Not on loopback, or on a port of its own.
    pub fn listen(mut self, address: &str) -> Plan {
        address.clone_into(&mut self.listen);
        self
    }

    pub fn bytes_per_second(mut self, rate: u64) -> Plan {
        self.rate = Some(rate);
        self
    }

    /// A signed link is refused after so many requests.
    pub fn link_uses(mut self, uses: usize) -> Plan {
        self.link_uses = uses;
        self
    }

    /// What a connection that breaks has sent and nobody received is at most this, and what the receiver buffers.
    pub fn send_buffer(mut self, bytes: usize) -> Plan {
        self.send_buffer_bytes = Some(bytes);
        self
    }

    pub fn open(self) -> TestHub {
        let bind = |address: &str| {
            let listener = std::net::TcpListener::bind(address.parse::<SocketAddr>().unwrap()).unwrap();
            if let Some(bytes) = self.send_buffer_bytes {
                socket2::SockRef::from(&listener).set_send_buffer_size(bytes).unwrap();
            }
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            (listener, address)
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let (listener, address) = bind(&self.listen);
        let cdn = self.has_cdn.then(|| bind(ANYWHERE));
        let cdn_endpoint = cdn.as_ref().map(|(_, address)| format!("{scheme}://{address}"));
        let world = World {
            repos: self.repos,
            plain: self.plain,
            token: self.token,
            cdn: cdn_endpoint,
            links: Links::new(self.link_uses, u64::from(address.port()) << 16),
        };
        let state = Arc::new(State {
            world,
            script: Mutex::new(self.script),
            asked: watch::Sender::default(),
            bytes_sent: watch::Sender::default(),
            spans: Mutex::default(),
            cuts: Mutex::default(),
            rate: self.rate,
            sending: AtomicUsize::new(0),
            sending_most: AtomicUsize::new(0),
        });
        let mut servers = vec![RUNTIME.spawn(accept(listener, self.tls.clone(), Site::Hub, state.clone()))];
        if let Some((listener, _)) = cdn {
            servers.push(RUNTIME.spawn(accept(listener, self.tls, Site::Cdn, state.clone())));
        }
        TestHub { address, scheme, state, servers }
    }
}

async fn accept(listener: std::net::TcpListener, tls: Option<TlsAcceptor>, site: Site, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).unwrap();
    // They end with the hub.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { return };
                let (state, tls) = (state.clone(), tls.clone());
                connections.spawn(async move {
                    // A client that leaves is no failure of the hub.
                    let _ = serve(stream, tls, site, &state).await;
                });
            }
            Some(ended) = connections.join_next() => {
                ended.expect("a connection does not panic");
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    site: Site,
    state: &State,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = stream.as_fd().try_clone_to_owned()?;
    match tls {
        None => Connection::new(stream, socket, site).serve(state).await,
        Some(tls) => Connection::new(tls.accept(stream).await?, socket, site).serve(state).await,
    }
}

pub struct TestHub {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<State>,
    servers: Vec<JoinHandle<()>>,
}

impl Drop for TestHub {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl TestHub {
    /// A hub with these repositories; [`Plan::open`] opens it.
    pub fn of(repos: impl IntoIterator<Item = Repo>) -> Plan {
        Plan::new(repos.into_iter().collect())
    }

    /// One model and no API.
    pub async fn start(bytes: Vec<u8>, script: impl IntoIterator<Item = Fault>) -> TestHub {
        TestHub::serve(ANYWHERE, None, bytes, script).await
    }

    pub async fn serve(
        listen: &str,
        tls: Option<TlsAcceptor>,
        bytes: Vec<u8>,
        script: impl IntoIterator<Item = Fault>,
    ) -> TestHub {
        let files = vec![(format!("/{REPO}/resolve/{REVISION}/{FILE}"), bytes)];
        TestHub::serve_files(listen, tls, files, script).await
    }

    /// Files by the end of their path.
    pub async fn serve_files(
        listen: &str,
        tls: Option<TlsAcceptor>,
        files: Vec<(String, Vec<u8>)>,
        script: impl IntoIterator<Item = Fault>,
    ) -> TestHub {
        let plain = files.into_iter().map(|(path, bytes)| (path, Content::of(bytes))).collect();
        let script = Script::in_order(script);
        Plan { plain, script, tls, listen: listen.to_owned(), ..Plan::new(Vec::new()) }.open()
    }

    /// What HF_ENDPOINT should say.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The rules made first have the first say.
    pub fn fail(&self, when: When, fault: Fault) {
        self.state.script.lock().unwrap().add(when, fault);
    }

    /// Behaves from now on.
    pub fn behave(&self) {
        self.state.script.lock().unwrap().clear();
    }

    /// Cuts, once each, the connection that is about to go beyond one of these places in a file.
    pub fn cut_at(&self, places: impl IntoIterator<Item = u64>) {
        self.state.cuts.lock().unwrap().extend(places);
    }

    pub fn cuts_left(&self) -> usize {
        self.state.cuts.lock().unwrap().len()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.borrow().clone()
    }

    pub fn asked_of(&self, site: Site) -> Vec<Asked> {
        self.asked().into_iter().filter(|asked| asked.site == site).collect()
    }

    /// Waits until somebody has asked for something.
    pub async fn first_asked(&self) {
        self.state.asked.subscribe().wait_for(|all| !all.is_empty()).await.unwrap();
    }

    /// Of bodies, over all requests.
    pub fn bytes_sent(&self) -> u64 {
        *self.state.bytes_sent.borrow()
    }

    /// Waits until so many bytes of files have been sent.
    #[track_caller]
    pub fn has_sent(&self, bytes: u64) {
        let mut sent = self.state.bytes_sent.subscribe();
        patiently("the hub sends", async move { sent.wait_for(|sent| *sent >= bytes).await.map(|_| ()) });
    }

    /// What was sent, answer by answer.
    pub fn spans(&self) -> Vec<Span> {
        self.state.spans.lock().unwrap().clone()
    }

    /// How many answers with bytes were under way at once, at most.
    pub fn sending_most(&self) -> usize {
        self.state.sending_most.load(Ordering::SeqCst)
    }
}

#[track_caller]
fn patiently<E: std::fmt::Debug>(what: &str, future: impl Future<Output = Result<(), E>>) {
    let done = RUNTIME.block_on(async { tokio::time::timeout(PATIENCE, future).await });
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}")).unwrap();
}
