//! What both ends of a connection share: identifiers, job events, fleet facts, errors. JSON at public edges;
//! `codec` has the postcard frames of the link, `openai` the shapes OpenAI's clients know. No IO here but the kernel's
//! random bytes.

pub mod catalog;
pub mod codec;
pub mod digest;
pub mod failure;
pub mod fleet;
pub mod id;
pub mod job;
pub mod logs;
pub mod openai;
pub mod operation;
pub mod random;
pub mod version;

pub use failure::{Code, Failure};

/// The link's protocol. A peer of the version before is still understood; anything else is VERSION_MISMATCH.
pub const PROTOCOL: u32 = 2;
/// The oldest protocol this build still speaks.
pub const PROTOCOL_OLDEST: u32 = 1;
pub const API_VERSION: &str = "v1";
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub const QUEEN_PORT: u16 = 7833;
pub const HIVE_PORT: u16 = 7835;
