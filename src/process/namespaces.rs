//! The namespaces of a tree: its own process numbers, so that the kernel ends all with the first of them; its own /proc
//! for those; where the network is closed, an empty one. Without root a user namespace allows it, in which everybody
//! keeps the uid and gid that files know them by.

use super::fork::{Trial, attempt};
use rustix::fs::{Mode, OFlags, open};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd;

/// Since then a PID namespace has a `pid_max` of its own; before, writing it would limit the whole machine.
const OWN_PID_MAX_SINCE: (u32, u32) = (6, 14);
/// Numbers below are not handed out a second time, so a limit of processes is this much higher as a limit of numbers.
const PIDS_RESERVED: u32 = 300;

/// What [`Namespaces::enter`] does, as its failure is told.
const STEPS: [&str; 6] = [
    "making namespaces",
    "mapping the user",
    "mapping the group",
    "keeping mounts private",
    "mounting /proc",
    "raising the loopback",
];

/// Prepared before the fork, so that entering needs no memory.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// For clone: what is made anew.
    pub(super) flags: libc::c_int,
    /// The maps of a user namespace, if one is needed.
    maps: Option<[CString; 2]>,
    pub(super) network_is_empty: bool,
    pid_max: Option<CString>,
}

impl Namespaces {
    /// The first way that this node really allows; the reason is the last one's.
    pub(super) fn possible(empty_network: bool, processes_max: Option<u32>) -> Result<Namespaces, String> {
        let root = rustix::process::geteuid().is_root();
        let ways = if root { &[false, true][..] } else { &[true][..] };
        let mut reason = String::new();
        for own_user in ways {
            let namespaces = Namespaces::new(*own_user, empty_network, processes_max);
            match namespaces.attempt() {
                Ok(()) => return Ok(namespaces),
                Err((step, error)) => {
                    let step = STEPS.get(usize::from(step)).unwrap_or(&STEPS[0]);
                    let whose = if *own_user { " in a user namespace" } else { "" };
                    reason = format!("{step}{whose}: {error}");
                }
            }
        }
        Err(reason)
    }

    fn new(own_user: bool, empty_network: bool, processes_max: Option<u32>) -> Namespaces {
        let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
        if own_user {
            flags |= libc::CLONE_NEWUSER;
        }
        if empty_network {
            flags |= libc::CLONE_NEWNET;
        }
        let map = |id: u32| CString::new(format!("{id} {id} 1")).unwrap_or_default();
        let maps = own_user
            .then(|| [map(rustix::process::geteuid().as_raw()), map(rustix::process::getegid().as_raw())]);
        let pid_max = processes_max.filter(|_| kernel_is_since(OWN_PID_MAX_SINCE));
        let pid_max =
            pid_max.and_then(|most| CString::new(most.saturating_add(PIDS_RESERVED).to_string()).ok());
        Namespaces { flags, maps, network_is_empty: empty_network, pid_max }
    }

    fn attempt(&self) -> Trial {
        // SAFETY: `enter` makes system calls only, with what was prepared.
        unsafe { attempt(self.flags, || self.enter()) }
    }

    /// In the first process of the namespaces, made with `flags`. Must not allocate.
    pub(super) fn enter(&self) -> Trial {
        let at = |step: u8| move |error: io::Error| (step, error);
        if let Some([user, group]) = &self.maps {
            // An older kernel has no such file and needs no such word.
            let _ = write(c"/proc/self/setgroups", c"deny");
            write(c"/proc/self/uid_map", user).map_err(at(1))?;
            write(c"/proc/self/gid_map", group).map_err(at(2))?;
        }
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE).map_err(at(3))?;
        let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mount(c"proc", c"/proc", c"proc", quiet).map_err(at(4))?;
        if self.network_is_empty {
            raise_loopback().map_err(at(5))?;
        }
        if let Some(most) = &self.pid_max {
            // A limit more, not a wall: a tree that cannot have it is still ended whole.
            let _ = write(c"/proc/sys/kernel/pid_max", most);
        }
        Ok(())
    }
}

fn kernel_is_since(wanted: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse::<u32>().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= wanted)
}

fn write(path: &CStr, text: &CStr) -> io::Result<()> {
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, text.to_bytes())?;
    Ok(())
}

fn mount(what: &CStr, at: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: three C strings that live, and no data.
    match unsafe { libc::mount(what.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An empty network has a loopback, but it is down: tests of a build that talk to themselves need it.
fn raise_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zeroes is a valid value of this structure of plain integers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (into, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *into = from.cast_signed() as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open, the request is ours and of the kind that this call reads.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_the_right_says_which_step_failed() {
        // A map of an id that is not ours is refused whoever we are, unless by root outside.
        if rustix::process::geteuid().is_root() {
            return eprintln!("skipped: root is refused nothing here");
        }
        let mut namespaces = Namespaces::new(true, false, None);
        namespaces.maps = Some([c"0 0 2".into(), c"0 0 2".into()]);
        assert!(namespaces.attempt().is_err());
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert!(kernel_is_since((2, 6)) && !kernel_is_since((99, 0)));
    }
}
