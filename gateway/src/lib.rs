//! A load balancer for servers that speak OpenAI's API.
#![forbid(unsafe_code)]

mod admission;
mod auth;
mod backend;
mod body;
mod catalog;
mod choose;
mod error;
mod follow;
mod gateway;
mod life;
mod limits;
mod listen;
mod live;
mod made;
mod metrics;
mod model;
mod options;
mod pages;
mod peer;
mod probe;
mod protocol;
mod proxy;
mod report;
mod roster;
mod set;
mod shared;

#[cfg(fuzzing)]
#[doc(hidden)]
pub use model::fuzzing;

pub use auth::{ApiKey, ApiKeyError};
pub use backend::{BackendUrl, BackendUrlError};
pub use gateway::Gateway;
pub use limits::raise_descriptor_limit;
pub use options::Options;
pub use peer::ClientAddress;
pub use set::{BackendSet, BackendSpec};
