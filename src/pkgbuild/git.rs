//! Sources under git: a mirror a repository in the cache, what is wanted resolved to a commit, a working copy of that.
//!
//! The system's git, behind walls and with nobody's configuration: no hooks, no helpers, no prompt, one protocol, no
//! replaced objects (a remote could send `refs/replace/` for the very commit that the recipe pins). Redirects are
//! followed by our own client, by the rules for everything that a recipe names; git is told the end of them and the
//! address that was looked at.

use super::checksum::Verdict;
use super::fetch::{ACTION, FetchOrder, Fetched, Kept, Stop, cancelled, key, turn, verify, writing};
use super::source::{Git, Reference, Remote, Source};
use crate::download::{self, DownloadError, Visit, refusal};
use crate::http::url::Url;
use crate::http::{public, resolve};
use crate::job::progress::Events;
use crate::process::{Confine, Spec, remove_tree};
use crate::wire::job::JobEvent;
use crate::wire::{Code, Failure, failure};
use http::HeaderMap;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The extension of a mirror that is being made.
pub(super) const UNFINISHED: &str = "unfinished";
const MIRROR: &str = "git";
/// How a remote's references are asked for.
const REFERENCES: &str = "/info/refs?service=git-upload-pack";
/// Lines of output that an error quotes.
const TAIL_LINES_MAX: usize = 5;
/// What a program of the system is made of, and what it looks up.
const SYSTEM: [&str; 11] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/opt",
    "/nix",
    "/run/systemd/resolve",
    "/dev/null",
];
/// Of the environment, what git needs to find itself and to know certificates.
const ENVIRONMENT: [&str; 3] = ["PATH", "SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Switches that hold for every command.
const SETTINGS: [&str; 12] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "credential.helper=",
    "http.followRedirects=false",
    // Slower than a byte a second for a minute is a stall.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=60",
    "gc.auto=0",
    "maintenance.auto=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
    "init.templateDir=",
    // Names of a commit that are shortened depend on what else a mirror holds; makepkg's sums are made so, too.
    "core.abbrev=no",
];

/// Brings the repository here and tells the commit.
pub(super) async fn fetch(
    wanted: &Git,
    source: &Source,
    order: &FetchOrder<'_>,
    events: Events<'_>,
) -> Result<Kept, Stop> {
    let address = wanted.remote.address();
    let mirror = order.cache.join(format!("{}.{MIRROR}", key([address.clone()])));
    let tell = |message: String| events(JobEvent::narrate(ACTION, message));
    let turn = turn(&mirror, order, || tell(format!("{address} is being fetched already; waiting for it")));
    let _turn = turn.await?;
    let errand = GitErrand { order, events, program: find_git(order.env)?, name: &source.name };
    errand.update(wanted, source, &mirror, &address).await?;
    let commit = errand.resolve(&mirror, &wanted.reference).await?.ok_or_else(|| missing(wanted, source))?;
    if !source.sums.is_empty() {
        errand.verify(source, &mirror, &commit).await?;
    }
    tell(format!("{} is at commit {commit}", source.name));
    Ok(Kept::Git { mirror, commit })
}

/// Puts a working copy of the commit into `srcdir`, one that needs nothing of the mirror any more.
pub(super) async fn check_out(
    fetched: &Fetched,
    mirror: &Path,
    commit: &str,
    srcdir: &Path,
    order: &FetchOrder<'_>,
    events: Events<'_>,
) -> Result<(), Stop> {
    let copy = srcdir.join(&fetched.name);
    let errand = GitErrand { order, events, program: find_git(order.env)?, name: &fetched.name };
    let (from, to) = (text(mirror)?, text(&copy)?);
    let access = Access { protocol: "file", network: false, read: &[mirror], write: &[srcdir] };
    let clone = ["clone", "--quiet", "--no-hardlinks", "--no-checkout", "--template=", "--", &from, &to];
    errand.must(&clone, &[], &access).await?;
    let switch = ["-C", &to, "checkout", "--quiet", "--force", "--no-track", "-B", "makepkg", commit, "--"];
    errand.must(&switch, &[], &Access { read: &[], ..access }).await?;
    Ok(())
}

fn text(path: &Path) -> Result<String, Failure> {
    let unreadable = || Failure::invalid(format!("`{}` is not valid UTF-8", path.display()));
    path.to_str().map(str::to_owned).ok_or_else(unreadable)
}

fn missing(wanted: &Git, source: &Source) -> Failure {
    let what = match &wanted.reference {
        Reference::Head => "default branch".to_owned(),
        Reference::Branch(name) => format!("branch {name}"),
        Reference::Tag(name) => format!("tag {name}"),
        Reference::Commit(id) => format!("commit {id}"),
    };
    let message = format!("fetching {}: {} has no {what}", source.name, wanted.remote.address());
    Failure::new(Code::NotFound, message)
}

fn find_git(env: &[(String, String)]) -> Result<PathBuf, Failure> {
    let path =
        env.iter().find(|(name, _)| name == "PATH").map_or("/usr/local/bin:/usr/bin:/bin", |(_, path)| path);
    let found =
        std::env::split_paths(path).filter(|folder| folder.is_absolute()).map(|folder| folder.join("git"));
    let is_program =
        |path: &PathBuf| rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file();
    found.into_iter().find(is_program).ok_or_else(|| {
        let message = "this recipe has a source under git, and git is not installed: install it (Debian, Ubuntu: \
                       `apt install git`; Fedora: `dnf install git`; Arch: `pacman -S git`; macOS: `xcode-select --install`)";
        Failure::new(Code::MissingDependencies, message).with(json!({"missing": ["git"]}))
    })
}

/// What one command may reach.
#[derive(Clone, Copy)]
struct Access<'a> {
    protocol: &'a str,
    network: bool,
    read: &'a [&'a Path],
    write: &'a [&'a Path],
}

/// A remote as git is told it.
struct Route {
    address: String,
    settings: Vec<String>,
}

struct GitErrand<'a> {
    order: &'a FetchOrder<'a>,
    events: Events<'a>,
    program: PathBuf,
    name: &'a str,
}

impl GitErrand<'_> {
    /// Makes the mirror hold what is wanted, as far as the remote has it.
    async fn update(&self, wanted: &Git, source: &Source, mirror: &Path, address: &str) -> Result<(), Stop> {
        let is_there = mirror.is_dir();
        if is_there
            && let Reference::Commit(_) = &wanted.reference
            && self.resolve(mirror, &wanted.reference).await?.is_some()
        {
            (self.events)(JobEvent::narrate(ACTION, format!("{} is there already", self.name)));
            return Ok(());
        }
        let failed = match self.renew(wanted, mirror, is_there, address).await {
            Err(Stop::Failed(failure)) => failure,
            other => return other,
        };
        // What is pinned is the same today as it was then.
        if is_there && source.is_pinned() && self.resolve(mirror, &wanted.reference).await?.is_some() {
            let message = format!("{}; what was fetched earlier is used", failed.message);
            (self.events)(JobEvent::warn(ACTION, message));
            return Ok(());
        }
        Err(failed.into())
    }

    async fn renew(&self, wanted: &Git, mirror: &Path, is_there: bool, address: &str) -> Result<(), Stop> {
        let route = self.route(&wanted.remote).await?;
        (self.events)(JobEvent::narrate(ACTION, format!("fetching {} from {address}", self.name)));
        let folder = wanted.remote.folder();
        let access = Access {
            protocol: wanted.remote.protocol(),
            network: folder.is_none(),
            read: folder.as_slice(),
            write: &[mirror],
        };
        if is_there {
            let update = ["fetch", "--quiet", "--prune", "--force", "--", &route.address, "+refs/*:refs/*"];
            let repository = self.in_mirror(mirror)?;
            match self.must(&[&[repository.as_str()], &update[..]].concat(), &route.settings, &access).await {
                Err(Stop::Failed(failure)) => {
                    // A mirror may have been damaged, by a power cut for one.
                    (self.events)(JobEvent::warn(ACTION, format!("{}; cloning it anew", failure.message)));
                }
                other => return other,
            }
        }
        let fresh = mirror.with_extension(UNFINISHED);
        remove_tree(&fresh)
            .and_then(|_| std::fs::create_dir(&fresh))
            .map_err(|error| writing(&fresh, &error))?;
        let to = text(&fresh)?;
        let clone = ["clone", "--quiet", "--mirror", "--template=", "--", &route.address, &to];
        let cloned = self.must(&clone, &route.settings, &Access { write: &[&fresh], ..access }).await;
        let placed = cloned.and_then(|()| {
            remove_tree(mirror)
                .and_then(|_| std::fs::rename(&fresh, mirror))
                .map_err(|error| writing(mirror, &error).into())
        });
        if placed.is_err()
            && let Err(error) = remove_tree(&fresh)
        {
            tracing::warn!(%error, "an unfinished mirror could not be removed");
        }
        placed
    }

    /// Where the remote leads, and how git gets there without looking for itself.
    async fn route(&self, remote: &Remote) -> Result<Route, Stop> {
        let Remote::Http(url) = remote else {
            return Ok(Route { address: remote.address(), settings: Vec::new() });
        };
        let failed = |error: DownloadError| match error {
            DownloadError::Cancelled => cancelled(),
            error => error.failure(self.name).into(),
        };
        let asked = Url::parse(&format!("{}{}{REFERENCES}", url.origin(), url.path().trim_end_matches('/')))
            .map_err(|error| Failure::invalid(failure::chain(&error)))?;
        let visit = Visit {
            url: asked,
            access: download::Access::Open,
            reach: Arc::new(self.order.trusted.reach()),
            may_be_plain: !url.is_encrypted(),
            cancel: self.order.errands.cancel.clone(),
        };
        let patience = self.order.limits.download.head_max;
        let answer = visit.ask("GET", |_| patience, |_| HeaderMap::new()).await.map_err(failed)?;
        let (end, status) = (answer.url, answer.response.status().as_u16());
        let shown = format!("{}{}", url.origin(), url.path());
        if status != 200 {
            return Err(failed(refusal(url, &visit.access, status, answer.response.headers())));
        }
        let Some(path) = end.path().strip_suffix(REFERENCES) else {
            let message =
                format!("fetching {}: {shown} redirects to {end}, which is no repository", self.name);
            return Err(Failure::new(Code::DownloadFailed, message).into());
        };
        let settings = self.pin(&end).await?;
        Ok(Route { address: format!("{}{path}", end.origin()), settings })
    }

    /// The address of the name, so that what is connected to is what was looked at.
    async fn pin(&self, url: &Url) -> Result<Vec<String>, Failure> {
        let Some((host, port)) = host_and_port(url) else { return Ok(Vec::new()) };
        if self.order.trusted.origin(url.origin()) || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
        {
            return Ok(Vec::new());
        }
        let refused = |why: String| Failure::new(Code::Forbidden, format!("fetching {}: {why}", self.name));
        let mut found = resolve::lookup(host, port).await.map_err(|error| refused(failure::chain(&error)))?;
        found.retain(|address| public::is_public(address.ip()));
        if found.is_empty() {
            return Err(refused(format!("{} is of a private network", url.origin())));
        }
        let shown = |address: &SocketAddr| match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let list: Vec<String> = found.iter().map(shown).collect();
        Ok(vec![format!("http.curloptResolve={host}:{port}:{}", list.join(","))])
    }

    /// The commit that is wanted, if the mirror has it.
    async fn resolve(&self, mirror: &Path, reference: &Reference) -> Result<Option<String>, Stop> {
        let name = match reference {
            Reference::Head => "HEAD".to_owned(),
            Reference::Branch(name) => format!("refs/heads/{name}"),
            Reference::Tag(name) => format!("refs/tags/{name}"),
            Reference::Commit(id) => id.clone(),
        };
        if let Reference::Tag(tag) = reference {
            self.check_tag(mirror, &name, tag).await?;
        }
        let here = self.in_mirror(mirror)?;
        let lines = self
            .ask(&[&here, "rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")], mirror)
            .await?;
        let commit =
            lines.into_iter().find(|line| line.len() >= 40 && line.bytes().all(|b| b.is_ascii_hexdigit()));
        Ok(commit)
    }

    /// An annotated tag carries its own name: another name on it is an old release in a new one's place.
    async fn check_tag(&self, mirror: &Path, reference: &str, tag: &str) -> Result<(), Stop> {
        const MARK: &str = "rbee-tag ";
        let here = self.in_mirror(mirror)?;
        let format = format!("--format={MARK}%(tag)");
        let lines = self.ask(&[&here, "for-each-ref", "--count=1", &format, "--", reference], mirror).await?;
        match lines.iter().find_map(|line| line.strip_prefix(MARK)) {
            Some(own) if !own.is_empty() && own != tag => {
                let message = format!(
                    "fetching {}: the tag {tag} is forged: it was made as {}",
                    self.name,
                    own.escape_debug()
                );
                Err(Failure::new(Code::ChecksumMismatch, message).into())
            }
            _ => Ok(()),
        }
    }

    /// The sums are those of `git archive` of the commit, as makepkg has them since 6.1.
    async fn verify(&self, source: &Source, mirror: &Path, commit: &str) -> Result<(), Stop> {
        let (here, work) = (self.in_mirror(mirror)?, self.order.fetched());
        let archive = work.join(format!("{}.tar", key([here.clone(), commit.to_owned()])));
        let output = format!("--output={}", text(&archive)?);
        let access = Access { protocol: "none", network: false, read: &[mirror], write: &[&work] };
        self.must(&[&here, "archive", "--format=tar", &output, commit], &[], &access).await?;
        let verdict = verify(source, &archive, self.order).await;
        std::fs::remove_file(&archive).map_err(|error| writing(&archive, &error))?;
        match verdict? {
            Verdict::Right => Ok(()),
            Verdict::Cancelled => Err(cancelled()),
            Verdict::Wrong(mismatch) => Err(Failure::from(mismatch).into()),
        }
    }

    /// Asks the mirror; no answer is an empty one.
    async fn ask(&self, arguments: &[&str], mirror: &Path) -> Result<Vec<String>, Stop> {
        let access = Access { protocol: "none", network: false, read: &[mirror], write: &[] };
        let (_, lines) = self.run(arguments, &[], &access, false).await?;
        Ok(lines)
    }

    async fn must(&self, arguments: &[&str], settings: &[String], access: &Access<'_>) -> Result<(), Stop> {
        let (exit, lines) = self.run(arguments, settings, access, true).await?;
        if exit.success() {
            return Ok(());
        }
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES_MAX)..];
        let message = format!("fetching {}: git ended with {exit}: {}", self.name, tail.join("; "));
        Err(Failure::new(Code::DownloadFailed, message).into())
    }

    async fn run(
        &self,
        arguments: &[&str],
        settings: &[String],
        access: &Access<'_>,
        is_told: bool,
    ) -> Result<(crate::process::Exit, Vec<String>), Stop> {
        if self.order.cancelled() {
            return Err(cancelled());
        }
        let home = self.order.work.join("git-home");
        std::fs::create_dir_all(&home).map_err(|error| writing(&home, &error))?;
        // makepkg's umask, whatever the daemon's is.
        let shell = ["sh", "-c", "umask 022 && exec \"$0\" \"$@\""].map(str::to_owned);
        let program = text(&self.program)?;
        let switches = SETTINGS.into_iter().map(str::to_owned).chain(settings.iter().cloned());
        let switches = switches.flat_map(|setting| ["-c".to_owned(), setting]);
        let words = arguments.iter().map(|word| (*word).to_owned());
        let id = format!("git-{}-{}", self.order.id, crate::wire::id::fresh());
        let mut spec = Spec::new(id, shell.into_iter().chain([program]).chain(switches).chain(words));
        spec.program = Some("/bin/sh".into());
        spec.env = self.environment(&home, access.protocol)?;
        spec.cwd = Some(home.clone());
        spec.scratch = Some(self.order.work.to_owned());
        spec.confine = Some(self.walls(&home, access));
        let mut lines = Vec::new();
        let hear = |line: String| {
            if is_told {
                (self.events)(JobEvent::Log { stream: ACTION.into(), line: line.clone() });
            }
            if lines.len() == 2 * TAIL_LINES_MAX {
                lines.remove(0);
            }
            lines.push(line);
        };
        let exit = self.order.errands.run(spec, hear).await?;
        Ok((exit, lines))
    }

    /// Said, not found: git looks for a repository in the folders above what is none.
    fn in_mirror(&self, mirror: &Path) -> Result<String, Failure> {
        Ok(format!("--git-dir={}", text(mirror)?))
    }

    fn environment(&self, home: &Path, protocol: &str) -> Result<Vec<(String, String)>, Failure> {
        let ours = self.order.env.iter().filter(|(name, _)| ENVIRONMENT.contains(&name.as_str())).cloned();
        let fixed = [
            ("HOME", text(home)?.as_str()),
            ("TMPDIR", text(home)?.as_str()),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "/bin/false"),
            ("GIT_SSH_COMMAND", "/bin/false"),
            ("GIT_ALLOW_PROTOCOL", protocol),
            ("GIT_OPTIONAL_LOCKS", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(ours.chain(fixed).collect())
    }

    fn walls(&self, home: &Path, access: &Access<'_>) -> Confine {
        // git may be installed anywhere: what it is made of lies beside its folder.
        let real = self.program.canonicalize().unwrap_or_else(|_| self.program.clone());
        let prefix = real.parent().and_then(Path::parent).filter(|prefix| *prefix != Path::new("/"));
        let certificates = self.order.env.iter().filter(|(name, _)| name.starts_with("SSL_CERT_"));
        let read = SYSTEM.iter().map(PathBuf::from).chain(prefix.map(Path::to_owned));
        let read = read.chain(certificates.map(|(_, value)| value.into()));
        Confine {
            read: read.chain(access.read.iter().map(|path| (*path).to_owned())).collect(),
            write: access.write.iter().map(|path| (*path).to_owned()).chain([home.to_owned()]).collect(),
            network: access.network,
            file_bytes_max: Some(self.order.limits.download.bytes_max),
            memory_bytes_max: None,
        }
    }
}

impl Remote {
    fn protocol(&self) -> &'static str {
        match self {
            Remote::Http(url) if url.is_encrypted() => "https",
            Remote::Http(_) => "http",
            Remote::File(_) => "file",
            Remote::Git { .. } => "git",
        }
    }

    fn folder(&self) -> Option<&Path> {
        match self {
            Remote::File(path) => Some(path),
            _ => None,
        }
    }
}

fn host_and_port(url: &Url) -> Option<(&str, u16)> {
    let (scheme, authority) = url.origin().split_once("://")?;
    let default = if scheme == "https" { 443 } else { 80 };
    match authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        Some((host, port)) => Some((host, port.parse().ok()?)),
        None => Some((authority, default)),
    }
}
