//! Whether two rbees understand each other, and what to do where they do not (B4). A peer of the version before is still
//! understood by the newer of the two; whatever is further apart is told, with both versions and what to run.

use super::{Code, Failure, PROTOCOL, PROTOCOL_OLDEST, VERSION};
use serde_json::json;

/// In a link's handshake, and in every answer.
pub const PROTOCOL_HEADER: &str = "rbee-protocol";
pub const VERSION_HEADER: &str = "rbee-version";

/// The other end, as it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// `the hive one`.
    pub who: String,
    pub version: String,
    pub protocol: u32,
}

impl Peer {
    /// Older than what is still understood here.
    pub fn is_too_old(&self) -> bool {
        self.protocol < PROTOCOL_OLDEST
    }

    /// Further ahead than by the one version that it still understands itself.
    pub fn is_too_new(&self) -> bool {
        self.protocol > PROTOCOL + 1
    }

    /// The mismatch, told to whoever asked. `us` is who found it, `update` what to do about it.
    pub fn mismatch(&self, us: &str, update: &str) -> Failure {
        let Peer { who, version, protocol } = self;
        let message = format!(
            "{who} is rbee {version} (protocol {protocol}), {us} is rbee {VERSION} (protocol {PROTOCOL}): {update}"
        );
        Failure::new(Code::VersionMismatch, message).with(json!({
            "theirs": {"version": version, "protocol": protocol},
            "ours": {"version": VERSION, "protocol": PROTOCOL, "protocol_oldest": PROTOCOL_OLDEST},
            "update": update,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(protocol: u32) -> Peer {
        Peer { who: "the hive one".into(), version: "9.9.9".into(), protocol }
    }

    #[test]
    fn one_version_apart_is_understood_and_more_is_not() {
        assert!(!peer(PROTOCOL).is_too_old() && !peer(PROTOCOL).is_too_new());
        assert!(!peer(PROTOCOL_OLDEST).is_too_old() && peer(PROTOCOL_OLDEST - 1).is_too_old());
        assert!(!peer(PROTOCOL + 1).is_too_new() && peer(PROTOCOL + 2).is_too_new());
    }

    #[test]
    fn a_mismatch_names_both_and_what_to_run() {
        let failure = peer(99).mismatch("this queen", "run `rbee hive update one`");
        assert_eq!(failure.code, Code::VersionMismatch);
        for words in ["the hive one", "9.9.9", "protocol 99", VERSION, "rbee hive update one"] {
            assert!(failure.message.contains(words), "{words}: {failure}");
        }
    }
}
