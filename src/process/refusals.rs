//! The system calls that a confined tree is refused, because they lead around its other walls.
//!
//! | refused | because |
//! |---|---|
//! | `socket`, where the network is closed | UDP and raw sockets pass Landlock; so do the sockets that lie in the file system: a container daemon's, an agent's, our own workers' and shims' |
//! | `io_uring_setup` | a ring makes sockets without a call that a filter sees |
//! | user namespaces (`clone`, `clone3`, `unshare`), `setns` | there a process has every capability again |
//! | `chmod` and its like, where they would set setuid or setgid | a file of the build would lend its owner to whoever runs it |
//! | `openat2` | its mode, too, lies where a filter does not see it |
//! | `add_key`, `request_key`, `keyctl` | the user's keys are not files |
//!
//! Socket pairs stay, but for those that could be connected anew. In an empty network namespace the families that end at
//! its edge stay too. With an open network every socket does, the ones in the file system among them.

use super::seccomp::{
    ARCHITECTURE, IF_AT_LEAST, IF_EQUAL, LOAD, OFFSET_ARCHITECTURE, OFFSET_NUMBER, RETURN, X32_FIRST,
    install, step,
};
use std::io;

const IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const MASK: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;

/// The lower half of an argument, which is all of what is looked at here: the kernel reads these as 32 bits, too.
const fn offset_argument(index: usize) -> u32 {
    let lower = if cfg!(target_endian = "big") { 4 } else { 0 };
    (std::mem::offset_of!(libc::seccomp_data, args) + index * 8 + lower) as u32
}

const fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// What a socket's type is, without the flags that share its number.
const SOCKET_TYPE_BITS: u32 = 0xf;

/// Everything that gives a file a mode, and which argument that is. Without O_CREAT it is none, and zero in practice.
const MODES: &[(libc::c_long, usize)] = &[
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_chmod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_mknod, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_creat, 1),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, 2),
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (libc::SYS_fchmodat2, 2),
    (libc::SYS_mknodat, 2),
    (libc::SYS_openat, 3),
];

/// How far the network is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sockets {
    All,
    /// In a network namespace with nothing in it.
    Namespaced,
    None,
}

/// A filter, made before fork.
#[derive(Debug)]
pub(super) struct Refusals(Vec<libc::sock_filter>);

impl Refusals {
    pub(super) fn new(sockets: Sockets) -> Refusals {
        let mut filter = vec![
            step(LOAD, OFFSET_ARCHITECTURE, 0, 0),
            step(IF_EQUAL, ARCHITECTURE, 1, 0),
            step(RETURN, refuse(libc::ENOSYS), 0, 0),
            step(LOAD, OFFSET_NUMBER, 0, 0),
            step(IF_AT_LEAST, X32_FIRST, 0, 1),
            step(RETURN, refuse(libc::ENOSYS), 0, 0),
        ];
        // Not there, as on an older kernel: then programs have another way. clone3 and openat2 hide their flags from a filter.
        for call in [
            libc::SYS_clone3,
            libc::SYS_io_uring_setup,
            libc::SYS_openat2,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_keyctl,
        ] {
            of_call(&mut filter, call, &[step(RETURN, refuse(libc::ENOSYS), 0, 0)]);
        }
        let user_namespace = libc::CLONE_NEWUSER as u32;
        let flags =
            [(libc::SYS_clone, 0), (libc::SYS_unshare, 0)].map(|(call, index)| (call, index, user_namespace));
        let modes = MODES.iter().map(|(call, index)| (*call, *index, libc::S_ISUID | libc::S_ISGID));
        for (call, index, bits) in flags.into_iter().chain(modes) {
            of_call(
                &mut filter,
                call,
                &[
                    step(LOAD, offset_argument(index), 0, 0),
                    step(IF_ANY_BIT, bits, 0, 1),
                    step(RETURN, refuse(libc::EPERM), 0, 0),
                ],
            );
        }
        of_call(&mut filter, libc::SYS_setns, &[step(RETURN, refuse(libc::EPERM), 0, 0)]);
        if sockets != Sockets::All {
            of_call(&mut filter, libc::SYS_socket, &socket(sockets));
            of_call(
                &mut filter,
                libc::SYS_socketpair,
                &[
                    step(LOAD, offset_argument(1), 0, 0),
                    step(MASK, SOCKET_TYPE_BITS, 0, 0),
                    step(IF_EQUAL, libc::SOCK_DGRAM as u32, 0, 1),
                    step(RETURN, refuse(libc::EACCES), 0, 0),
                ],
            );
        }
        filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
        Refusals(filter)
    }

    /// Between fork and exec, with `no_new_privs` set.
    pub(super) fn enter(&self) -> io::Result<()> {
        install(&self.0)
    }
}

/// `steps` for this call alone; a call that falls through them is looked at no further.
fn of_call(filter: &mut Vec<libc::sock_filter>, call: libc::c_long, steps: &[libc::sock_filter]) {
    let skipped = u8::try_from(steps.len() + 1).expect("a handful of steps");
    filter.push(step(IF_EQUAL, call as u32, 0, skipped));
    filter.extend_from_slice(steps);
    filter.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
}

fn socket(sockets: Sockets) -> Vec<libc::sock_filter> {
    let families: &[i32] = match sockets {
        Sockets::Namespaced => &[libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK],
        Sockets::All | Sockets::None => &[],
    };
    let mut steps = vec![step(LOAD, offset_argument(0), 0, 0)];
    for family in families {
        steps.push(step(IF_EQUAL, family.unsigned_abs(), 0, 1));
        steps.push(step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    // As the file system's wall answers.
    steps.push(step(RETURN, refuse(libc::EACCES), 0, 0));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a filter answers this call.
    fn answer<const N: usize>(filter: &Refusals, number: libc::c_long, arguments: [u32; N]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let instruction = filter.0[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
            match instruction.code {
                LOAD if instruction.k == OFFSET_NUMBER => loaded = number as u32,
                LOAD if instruction.k == OFFSET_ARCHITECTURE => loaded = ARCHITECTURE,
                LOAD => {
                    let index = (0..N).find(|index| instruction.k == offset_argument(*index));
                    loaded = arguments[index.expect("an argument of the call")];
                }
                MASK => loaded &= instruction.k,
                IF_EQUAL => at += jump(loaded == instruction.k),
                IF_AT_LEAST => at += jump(loaded >= instruction.k),
                IF_ANY_BIT => at += jump(loaded & instruction.k != 0),
                RETURN => return instruction.k,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    #[test]
    fn sockets_are_refused_by_how_far_the_network_is_closed() {
        let (inet, unix, vsock) = (libc::AF_INET as u32, libc::AF_UNIX as u32, libc::AF_VSOCK as u32);
        let dgram = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as u32;
        let stream = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC) as u32;
        let (allowed, refused) = (libc::SECCOMP_RET_ALLOW, refuse(libc::EACCES));
        let told = |sockets| {
            let filter = Refusals::new(sockets);
            let socket = |family| answer(&filter, libc::SYS_socket, [family, stream]);
            let pair = |kind| answer(&filter, libc::SYS_socketpair, [unix, kind]);
            [socket(inet), socket(unix), socket(vsock), pair(stream), pair(dgram)]
        };
        assert_eq!(told(Sockets::All), [allowed; 5]);
        assert_eq!(told(Sockets::Namespaced), [allowed, refused, refused, allowed, refused]);
        assert_eq!(told(Sockets::None), [refused, refused, refused, allowed, refused]);
    }

    #[test]
    fn ways_around_are_closed_and_ordinary_calls_are_not() {
        for sockets in [Sockets::All, Sockets::Namespaced, Sockets::None] {
            let filter = Refusals::new(sockets);
            let user = libc::CLONE_NEWUSER as u32;
            let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u32;
            assert_eq!(answer(&filter, libc::SYS_clone, [user | 17, 0]), refuse(libc::EPERM));
            assert_eq!(answer(&filter, libc::SYS_unshare, [user, 0]), refuse(libc::EPERM));
            assert_eq!(answer(&filter, libc::SYS_setns, [0, 0]), refuse(libc::EPERM));
            for call in [libc::SYS_clone3, libc::SYS_io_uring_setup, libc::SYS_keyctl] {
                assert_eq!(answer(&filter, call, [0, 0]), refuse(libc::ENOSYS));
            }
            assert_eq!(answer(&filter, libc::SYS_clone, [thread, 0]), libc::SECCOMP_RET_ALLOW);
            for (call, index) in MODES {
                let of_mode = |mode| {
                    let mut arguments = [0o7777_7777, 0, 0, 0];
                    arguments[*index] = mode;
                    answer(&filter, *call, arguments)
                };
                assert_eq!(of_mode(0o1777), libc::SECCOMP_RET_ALLOW);
                assert_eq!([of_mode(0o4755), of_mode(0o2755)], [refuse(libc::EPERM); 2]);
            }
            assert_eq!(answer(&filter, libc::SYS_read, [user, user]), libc::SECCOMP_RET_ALLOW);
            let x32 = libc::c_long::from(X32_FIRST) + libc::SYS_socket;
            assert_eq!(answer(&filter, x32, [0, 0]), refuse(libc::ENOSYS));
        }
    }
}
