//! Beyond this machine: what the program does with etcd. Apart from the commands, which do without
//! it where nobody asks for it. Linux alone.

#[allow(dead_code, reason = "for the commands that ask etcd")]
pub(crate) mod connection;
