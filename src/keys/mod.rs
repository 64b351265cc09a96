//! Who may ask: keys and join tokens of a state directory, the key of the moment for commands on the same machine, and the
//! keys that a node was given by its queens.
//!
//! A state directory has one [`Book`] (`keys.json`). It holds digests and nothing that opens anything: a secret is shown once,
//! when it is made. Commands write it, and so does the queen when a node joins; each takes the lock, reads, changes and
//! replaces the file as a whole. A running daemon sees it through a [`Ring`], which looks whether the file is another one
//! when somebody asks, never by itself.

mod book;
mod local;
mod node;
mod passes;
mod queens;
mod ring;
mod secret;

pub use book::{Book, FILE_BYTES_MAX, KEYS_MAX, Key, Kind, NAME_BYTES_MAX, TOKEN_TTL_MAX, Token, is_name};
pub use local::{LocalKey, leads_to};
pub use node::node_id;
pub use passes::{JoinError, Passes, read_token};
pub use queens::QueenKeys;
pub use ring::{LOOK_EVERY, Ring};
pub use secret::{Secret, digest};

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("reading the keys `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("writing the keys `{}`", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("reading or writing the node's id `{}`", path.display())]
    Node { path: PathBuf, source: io::Error },
    #[error("making a secret")]
    Random(#[source] io::Error),
    #[error("`{0}` cannot name a key: letters, digits, `-`, `_` and `.`, at most {NAME_BYTES_MAX}")]
    BadName(String),
    #[error("a key is already called `{0}`: choose another name, or `rbee key revoke {0}` first")]
    Taken(String),
    #[error("no key is called `{0}`; see `rbee key list`")]
    Unknown(String),
    #[error("there are {KEYS_MAX} keys already: revoke those that nobody needs")]
    TooMany,
    #[error("there are {max} join tokens that nobody has used: wait until some expire", max = book::TOKENS_MAX)]
    TooManyTokens,
    #[error(transparent)]
    Join(#[from] JoinRefused),
}

/// Why a join token does not let a node in.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    #[error("this join token is not one of this queen's: make one on her machine with `rbee token`")]
    Unknown,
    #[error(
        "this join token was used already, by the hive `{by}`: each lets one node in; make another with `rbee token`"
    )]
    Used { by: String },
    #[error("this join token expired {minutes} min ago: make another with `rbee token`")]
    Expired { minutes: u64 },
    #[error(
        "another machine has joined as `{0}`: give this one a name with --name, or forget that one with `rbee key revoke {0}` on the queen's machine"
    )]
    NameTaken(String),
}
