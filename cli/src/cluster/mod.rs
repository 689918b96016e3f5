//! Beyond this machine: what the program does with etcd. Apart from the commands, which do without
//! it where nobody asks for it. Linux alone.

#[cfg(target_os = "linux")]
mod active;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "for the commands that ask etcd")]
pub(crate) mod connection;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
pub(crate) mod options;
#[cfg(target_os = "linux")]
mod registration;

#[cfg(target_os = "linux")]
pub(crate) use active::{Active, hidden_subcommand};
#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::Active;
#[cfg(target_os = "linux")]
pub(crate) use registration::Membership;
