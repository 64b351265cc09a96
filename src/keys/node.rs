//! A node's id: made once and kept with its state, so that a machine is known for itself whatever it is called.

use super::KeyError;
use super::book::replace;
use std::io;
use std::path::Path;

const FILE: &str = "node";

pub fn node_id(state: &Path) -> Result<String, KeyError> {
    let path = state.join(FILE);
    let read = match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            let id = crate::wire::id::fresh().to_string();
            replace(&path, format!("{id}\n").as_bytes()).map(|()| id)
        }
    };
    read.map_err(|source| KeyError::Node { path, source })
}
