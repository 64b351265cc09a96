//! Removing what a build has left, whatever it did to it.

use std::io;
use std::path::Path;

/// Removes a folder with all below; how many bytes that gave back. One that is not there is no error.
pub fn remove_tree(path: &Path) -> io::Result<u64> {
    let bytes = bytes_below(path);
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(bytes),
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
