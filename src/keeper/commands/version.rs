//! `rbee version`. It has to work whatever is wrong with the configuration, so main.rs prints it before any is read.

use crate::wire::{PROTOCOL, VERSION};
use serde_json::json;

pub fn text(is_json: bool) -> String {
    let build = env!("RBEE_COMMIT");
    if is_json {
        let value = json!({"version": VERSION, "protocol": PROTOCOL, "build": build});
        return format!("{value}\n");
    }
    format!("rbee {VERSION} (protocol {PROTOCOL}, build {build})\n")
}
