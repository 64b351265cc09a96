//! `rbee version`.

use crate::keeper::KeeperError;
use crate::keeper::render::Render;
use crate::wire::{PROTOCOL, VERSION};
use serde_json::json;

pub fn version(render: &Render) -> Result<(), KeeperError> {
    let commit = env!("RBEE_COMMIT");
    let written = if render.is_json() {
        render.value(&json!({"version": VERSION, "protocol": PROTOCOL, "build": commit}))
    } else {
        render.answer(&format!("rbee {VERSION} (protocol {PROTOCOL}, build {commit})\n"))
    };
    written.map_err(|error| KeeperError::local("writing the version", error))
}
