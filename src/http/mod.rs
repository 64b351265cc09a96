//! HTTP as every role uses it: one server loop, one small client, the link's HTTP/2, event streams, the guard.
//! Nothing here knows a role's routes; a role brings a table of them and a [`server::Service`].

pub mod auth;
pub mod client;
pub mod heartbeats;
pub mod link;
pub mod metrics;
pub mod pool;
pub mod public;
pub mod range;
pub mod relay;
pub mod reply;
pub mod request;
pub mod resolve;
pub mod router;
pub mod server;
pub mod sse;
pub mod tls;
pub mod url;

pub use reply::{Body, BoxError, Response};
pub use request::{Peer, Request};
