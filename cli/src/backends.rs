//! Where the balancer's backends come from: the command line, a file, names in DNS. Whatever changes,
//! one whole set goes into one channel.

mod entry;
mod file;
mod follow;
mod names;

pub(crate) use entry::{Backend, Place};
pub(crate) use follow::{Follower, Sources};
