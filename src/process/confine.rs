//! The walls around a tree: what it may read, write and reach, and how much it may take.
//!
//! What a node cannot do (no Landlock, no network namespaces) is not done silently: [`Walls`] says what stands.

#[cfg(target_os = "linux")]
use super::{
    capabilities,
    landlock::Ruleset,
    mounts::ReadOnly,
    refusals::{Refusals, Sockets},
    seccomp,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;

/// The walls that a tree is started behind. Paths that do not exist are left out; one that is a link stands for what it
/// leads to. Always allowed: `/dev/null`, `zero`, `full`, `random`, `urandom`, and reading `/proc`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Confine {
    /// May be read and executed, with all below.
    pub read: Vec<PathBuf>,
    /// May be read, executed and written, with all below.
    pub write: Vec<PathBuf>,
    /// Whether the network can be reached, and with it sockets of other processes that lie in the file system.
    pub network: bool,
    /// The largest file that may be written.
    pub file_bytes_max: Option<u64>,
    /// Address space of each process.
    pub memory_bytes_max: Option<u64>,
}

/// The walls that stand, as the shim found when it put them up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Walls {
    /// `open` where none was asked for, `landlock 7`, or why not: `none: this kernel has no Landlock`. With `, read-only
    /// mounts` behind it the attributes of files outside are walled off, too.
    pub filesystem: String,
    /// `open`, `namespace` (an empty one), `sockets refused`, or `none: …` where it should be closed and is not.
    pub network: String,
    /// Whether capabilities were given up, where there were any.
    pub capabilities_dropped: bool,
}

const OPEN: &str = "open";
#[cfg(not(target_os = "linux"))]
const NOT_HERE: &str = "none: only Linux has these walls";

impl Walls {
    fn open() -> Walls {
        Walls { filesystem: OPEN.into(), network: OPEN.into(), capabilities_dropped: false }
    }
}

/// Walls made before fork, where memory can be had, and put up after it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) walls: Walls,
    limits: Vec<(Resource, Rlimit)>,
    #[cfg(target_os = "linux")]
    linux: Option<Linux>,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Linux {
    mounts: Mounts,
    rules: Option<Ruleset>,
    refusals: Option<Refusals>,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
enum Mounts {
    /// Known to be possible, so told, and the tree is not started without.
    Sure(ReadOnly),
    /// Tried, since a user namespace may allow it; not told.
    Perhaps(ReadOnly),
}

impl Prepared {
    /// `namespaced`: the tree gets an empty network namespace before these walls. An error is a wall that could be put up
    /// and was not: then the tree is not to start.
    pub(super) fn new(confine: Option<&Confine>, namespaced: bool) -> io::Result<Prepared> {
        // The dump of a worker is as large as its model. An engine that wants one may raise this again.
        let core = getrlimit(Resource::Core);
        let no_core = Rlimit { current: Some(0), maximum: core.maximum };
        let Some(confine) = confine else {
            return Ok(Prepared {
                walls: Walls::open(),
                limits: vec![(Resource::Core, no_core)],
                #[cfg(target_os = "linux")]
                linux: None,
            });
        };
        let mut limits = vec![(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })];
        // macOS refuses a limit of address space that is lower than what every process has mapped from its start.
        let memory = confine.memory_bytes_max.filter(|_| cfg!(target_os = "linux"));
        let asked = [(Resource::Fsize, confine.file_bytes_max), (Resource::As, memory)];
        for (resource, most) in asked {
            let Some(most) = most else { continue };
            // A limit that stands already, and is lower, cannot be raised.
            let most = getrlimit(resource).maximum.map_or(most, |before| before.min(most));
            limits.push((resource, Rlimit { current: Some(most), maximum: Some(most) }));
        }
        Prepared::for_this_system(confine, namespaced, limits)
    }

    #[cfg(target_os = "linux")]
    fn for_this_system(
        confine: &Confine,
        namespaced: bool,
        limits: Vec<(Resource, Rlimit)>,
    ) -> io::Result<Prepared> {
        let sockets = match (confine.network, namespaced) {
            (true, _) => Sockets::All,
            (false, true) => Sockets::Namespaced,
            (false, false) => Sockets::None,
        };
        // Loopback, all that an empty namespace has, may be used.
        let rules = Ruleset::new(sockets != Sockets::None);
        if let Ok(rules) = &rules {
            rules.allow(&confine.read, &confine.write)?;
        }
        let mounts = ReadOnly::but(&confine.write);
        let mounts =
            if namespaced || mounts.is_possible() { Mounts::Sure(mounts) } else { Mounts::Perhaps(mounts) };
        let refusals = seccomp::available().then(|| Refusals::new(sockets));
        let network = match (sockets, &refusals) {
            (Sockets::All, _) => OPEN,
            (Sockets::Namespaced, _) => "namespace",
            (Sockets::None, Some(_)) => "sockets refused",
            (Sockets::None, None) => "none: this kernel filters no system calls",
        };
        let filesystem = match (&rules, &mounts) {
            (Ok(rules), Mounts::Sure(_)) => format!("landlock {}, read-only mounts", rules.version),
            (Ok(rules), Mounts::Perhaps(_)) => format!("landlock {}", rules.version),
            (Err(reason), _) => format!("none: {reason}"),
        };
        let walls =
            Walls { filesystem, network: network.to_owned(), capabilities_dropped: capabilities::any() };
        Ok(Prepared { walls, limits, linux: Some(Linux { mounts, rules: rules.ok(), refusals }) })
    }

    #[cfg(not(target_os = "linux"))]
    fn for_this_system(
        confine: &Confine,
        _namespaced: bool,
        limits: Vec<(Resource, Rlimit)>,
    ) -> io::Result<Prepared> {
        let network = if confine.network { OPEN } else { NOT_HERE };
        let walls =
            Walls { filesystem: NOT_HERE.into(), network: network.into(), capabilities_dropped: false };
        Ok(Prepared { walls, limits })
    }

    /// Between fork and exec: after the namespaces, which need capabilities and mounts, and before the pinned group, the
    /// last filter. Must not allocate.
    pub(super) fn enter(&self) -> io::Result<()> {
        for (resource, limit) in &self.limits {
            setrlimit(*resource, *limit)?;
        }
        #[cfg(target_os = "linux")]
        if let Some(linux) = &self.linux {
            match &linux.mounts {
                Mounts::Sure(mounts) => mounts.enter()?,
                Mounts::Perhaps(mounts) => drop(mounts.enter()),
            }
            rustix::thread::set_no_new_privs(true)?;
            capabilities::drop_all()?;
            if let Some(rules) = &linux.rules {
                rules.enter()?;
            }
            if let Some(refusals) = &linux.refusals {
                refusals.enter()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unconfined_tree_has_open_walls_and_says_so() {
        let prepared = Prepared::new(None, false).unwrap();
        assert_eq!((prepared.walls.filesystem.as_str(), prepared.walls.network.as_str()), (OPEN, OPEN));
        assert_eq!(prepared.limits.len(), 1);
    }

    #[test]
    fn a_closed_network_is_told_by_how_it_was_closed() {
        let (closed, open) = (Confine::default(), Confine { network: true, ..Confine::default() });
        let network = |confine, namespaced| Prepared::new(Some(confine), namespaced).unwrap().walls.network;
        assert_eq!(network(&open, false), OPEN);
        if cfg!(target_os = "linux") {
            assert_eq!(network(&closed, true), "namespace");
            assert!(
                ["sockets refused", "none: "].iter().any(|told| network(&closed, false).starts_with(told))
            );
        }
    }
}
