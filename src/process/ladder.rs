//! Which rungs this node has: each is really made once, because what a system says of itself and what it then refuses
//! (a container, a profile, a limit) are two things.

use super::cgroup::{Cgroup, Limits};
use super::contain::{Rung, name};
use super::shim::VERIFY_MAX;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What trees on this node are held by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ladder {
    /// For what must see the pids that a GPU's driver tells, so without a PID namespace.
    pub best_for_workers: String,
    pub best_for_builds: String,
    pub unavailable: Vec<Unavailable>,
}

/// A rung that this node does not have, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unavailable {
    pub rung: &'static str,
    pub reason: String,
}

/// Tries every rung, once in the life of this process. Forks a few short-lived children the first time and waits for
/// them: some milliseconds.
pub fn ladder() -> &'static Ladder {
    static LADDER: OnceLock<Ladder> = OnceLock::new();
    LADDER.get_or_init(|| climb(try_cgroup(), try_pid_namespace(), try_pinned_group()))
}

fn climb(
    cgroup: Result<(), String>,
    pid_namespace: Result<(), String>,
    pinned_group: Result<(), String>,
) -> Ladder {
    let for_workers = if pinned_group.is_ok() { Rung::PinnedGroup } else { Rung::Group };
    let for_builds = if pid_namespace.is_ok() { Rung::PidNamespace } else { for_workers };
    let tried =
        [(Rung::Cgroup, &cgroup), (Rung::PidNamespace, &pid_namespace), (Rung::PinnedGroup, &pinned_group)];
    let refused = tried.into_iter().filter_map(|(rung, result)| Some((rung, result.as_ref().err()?)));
    Ladder {
        best_for_workers: name(for_workers, cgroup.is_ok()),
        best_for_builds: name(for_builds, cgroup.is_ok()),
        unavailable: refused
            .map(|(rung, reason)| Unavailable { rung: rung.name(), reason: reason.clone() })
            .collect(),
    }
}

fn try_cgroup() -> Result<(), String> {
    let nobodys = PathBuf::from(format!("/trial of {}", std::process::id()));
    let cgroup = Cgroup::make(&nobodys, Limits::default())?;
    match cgroup.remove(VERIFY_MAX) {
        true => Ok(()),
        false => Err(format!("removing {} after use", cgroup.path.display())),
    }
}

#[cfg(target_os = "linux")]
fn try_pid_namespace() -> Result<(), String> {
    super::namespaces::Namespaces::possible(false, None).map(drop)
}

#[cfg(target_os = "linux")]
fn try_pinned_group() -> Result<(), String> {
    super::seccomp::attempt()
}

#[cfg(not(target_os = "linux"))]
fn try_pid_namespace() -> Result<(), String> {
    Err("only Linux has PID namespaces".into())
}

#[cfg(not(target_os = "linux"))]
fn try_pinned_group() -> Result<(), String> {
    Err("only Linux filters system calls".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_offers_the_strongest_that_it_has_and_says_what_it_has_not() {
        let no = || Err("because".to_owned());
        let all = climb(Ok(()), Ok(()), Ok(()));
        assert_eq!(
            (all.best_for_workers.as_str(), all.best_for_builds.as_str()),
            ("pinned group + cgroup", "pid namespace + cgroup")
        );
        assert!(all.unavailable.is_empty());
        let some = climb(no(), no(), Ok(()));
        assert_eq!(some.best_for_builds, "pinned group");
        let told: Vec<_> = some.unavailable.iter().map(|one| (one.rung, one.reason.as_str())).collect();
        assert_eq!(told, [("cgroup", "because"), ("pid namespace", "because")]);
        assert_eq!(climb(no(), no(), no()).best_for_builds, "group");
    }

    #[test]
    fn the_ladder_of_this_node_is_the_same_twice() {
        assert_eq!(ladder(), ladder());
        assert!(!ladder().best_for_builds.is_empty());
    }
}
