//! Root without its powers: a build that runs as uid 0 owns root's files and is else like anybody.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_capabilities_secure_bits,
};
use std::io;

/// Set and locked: uid 0 brings no capability by exec, and none can be raised for it.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Whether this process has any to give up.
pub(super) fn any() -> bool {
    capabilities(None).is_ok_and(|sets| !sets.permitted.union(sets.inheritable).is_empty())
}

/// Between fork and exec, with `no_new_privs` set: gives up every capability, for good.
pub(super) fn drop_all() -> io::Result<()> {
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(Errno::INVAL) => break,
            // Without CAP_SETPCAP this bound and the bits below stay; the empty sets and `no_new_privs` hold alone.
            Err(Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match set_capabilities_secure_bits(SECURE_BITS) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    Ok(set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?)
}
