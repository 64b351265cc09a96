//! Bytes that nobody can guess, for ids and keys. On Linux they come by system call: a static program cannot look
//! `getrandom` up by name, and /dev/urandom is missing in an empty root.

use std::io;

#[cfg(target_os = "linux")]
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn fill(bytes: &mut [u8]) -> io::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")?.read_exact(bytes)
}
