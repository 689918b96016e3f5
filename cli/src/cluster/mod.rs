//! Beyond this machine: what the program does with etcd. Apart from the commands, which do without
//! it where nobody asks for it. Linux alone.

#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "for the commands that ask etcd")]
pub(crate) mod connection;
pub(crate) mod options;
#[cfg(target_os = "linux")]
mod registration;

#[cfg(target_os = "linux")]
pub(crate) use registration::Membership;
