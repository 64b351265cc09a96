//! `rbee version`. It has to work whatever is wrong with the configuration, so main.rs prints it before any is read.

use crate::wire::{PROTOCOL, VERSION};
use serde_json::json;

/// Before the instruction sets that the processor has and this file does not use; recipes look for these words.
const UNUSED: &str = "this processor also has: ";

/// `kernels` are the instruction sets that the engine inside uses; `unused` those of this processor that it does not.
pub fn text(is_json: bool, kernels: &[&str], unused: &[&str]) -> String {
    let build = env!("RBEE_COMMIT");
    if is_json {
        let value = json!({
            "version": VERSION, "protocol": PROTOCOL, "build": build,
            "kernels": kernels, "kernels_unused": unused,
        });
        return format!("{value}\n");
    }
    let mut text = format!("rbee {VERSION} (protocol {PROTOCOL}, build {build})\n");
    for (word, sets) in [("kernels: ", kernels), (UNUSED, unused)] {
        if !sets.is_empty() {
            text.push_str(&format!("{word}{}\n", sets.join(" ")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_stand_below_the_version_and_nothing_where_there_are_none() {
        let text = text(false, &["avx", "avx2"], &[]);
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), ["kernels: avx avx2"]);
        let more = super::text(false, &["avx"], &["avx512", "avx512_vnni"]);
        assert!(more.ends_with("\nthis processor also has: avx512 avx512_vnni\n"), "{more}");
        assert_eq!(super::text(false, &[], &[]).lines().count(), 1);
    }
}
