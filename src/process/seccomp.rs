//! The pinned group: a filter under which `setsid` and `setpgid` answer 0 and do nothing, so that one `killpg` reaches
//! every process of the tree, whatever it forked, whoever its parent is. Needs no privilege and no configuration.

use std::io;

#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: u32 = 0xc000_00b7;

pub(super) const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
pub(super) const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(super) const IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;

pub(super) const OFFSET_NUMBER: u32 = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
pub(super) const OFFSET_ARCHITECTURE: u32 = std::mem::offset_of!(libc::seccomp_data, arch) as u32;
/// x86_64 kernels know every call a second time, from this number on (x32): the way around a filter by number.
pub(super) const X32_FIRST: u32 = 0x4000_0000;

/// What the kernel calls these, so that a wrong table is no program: the ABI's number and two calls of each.
#[cfg(target_arch = "x86_64")]
const _: () =
    assert!(libc::SYS_setsid == 112 && libc::SYS_setpgid == 109 && ARCHITECTURE == 62 | AUDIT_64_LITTLE);
#[cfg(target_arch = "aarch64")]
const _: () =
    assert!(libc::SYS_setsid == 157 && libc::SYS_setpgid == 154 && ARCHITECTURE == 183 | AUDIT_64_LITTLE);
/// An audit architecture is the ELF machine with these bits.
const AUDIT_64_LITTLE: u32 = 0xc000_0000;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const PRETEND: u32 = libc::SECCOMP_RET_ERRNO;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

pub(super) const fn step(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Jumps count from the next instruction; the three answers stand at the end.
const FILTER: [libc::sock_filter; 9] = [
    step(LOAD, OFFSET_ARCHITECTURE, 0, 0),
    step(IF_EQUAL, ARCHITECTURE, 0, 6), // a foreign ABI numbers its calls otherwise: refuse
    step(LOAD, OFFSET_NUMBER, 0, 0),
    step(IF_AT_LEAST, X32_FIRST, 4, 0),
    step(IF_EQUAL, libc::SYS_setsid as u32, 2, 0),
    step(IF_EQUAL, libc::SYS_setpgid as u32, 1, 0),
    step(RETURN, ALLOW, 0, 0),
    step(RETURN, PRETEND, 0, 0),
    step(RETURN, REFUSE, 0, 0),
];

/// Whether this kernel filters system calls and lets us ask for it.
pub(super) fn available() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: asks a question; the pointer is to a live u32 as the call wants.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Pins a child, and sees that it can no longer leave; the reason, if it could or must not be pinned.
pub(super) fn attempt() -> Result<(), String> {
    let trial = || {
        let at = |step: u8| move |error: io::Error| (step, error);
        // Not rustix's, which knows no session 0: that of a leader outside of this PID namespace.
        // SAFETY: plain system calls. A fresh child leads no group, so that unpinned it would lead a session then.
        let session = unsafe { libc::getsid(0) };
        pin_group().map_err(at(2))?;
        // SAFETY: as above.
        let still = unsafe {
            libc::syscall(libc::SYS_setsid);
            libc::getsid(0)
        };
        if still == session { Ok(()) } else { Err((3, io::Error::from_raw_os_error(libc::EINVAL))) }
    };
    // SAFETY: the trial makes system calls only.
    unsafe { super::fork::attempt(0, trial) }.map_err(|(step, error)| match step {
        2 => format!("installing the filter: {error}"),
        3 => "a process left its group in spite of the filter".to_owned(),
        _ => error.to_string(),
    })
}

/// Between fork and exec: pins this process and all it will ever start into its present group.
pub(super) fn pin_group() -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    install(&FILTER)
}

/// Between fork and exec, with `no_new_privs` set. Filters add up: the strictest answer of all counts.
pub(super) fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut() };
    // Without this flag kernels before 5.16 also switch speculation off, which would cost a worker its speed.
    for flags in [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0] {
        // SAFETY: the program and its instructions outlive the call, which copies them.
        let refused = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        };
        if refused == 0 {
            return Ok(());
        }
    }
    Err(io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filter, interpreted: what it answers a call of this ABI and number.
    fn answer(architecture: u32, number: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let instruction = FILTER[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { instruction.jt } else { instruction.jf });
            match instruction.code {
                LOAD if instruction.k == OFFSET_NUMBER => loaded = number,
                LOAD => loaded = architecture,
                IF_EQUAL => at += jump(loaded == instruction.k),
                IF_AT_LEAST => at += jump(loaded >= instruction.k),
                RETURN => return instruction.k,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    #[test]
    fn the_filter_pretends_for_two_calls_refuses_foreign_ones_and_allows_the_rest() {
        assert_eq!(answer(ARCHITECTURE, libc::SYS_setsid as u32), PRETEND);
        assert_eq!(answer(ARCHITECTURE, libc::SYS_setpgid as u32), PRETEND);
        assert_eq!(answer(ARCHITECTURE, libc::SYS_read as u32), ALLOW);
        assert_eq!(answer(ARCHITECTURE, X32_FIRST + libc::SYS_setsid as u32), REFUSE);
        assert_eq!(answer(0x4000_0003, libc::SYS_setsid as u32), REFUSE);
    }
}
