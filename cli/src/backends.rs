//! Where the balancer's backends come from: the command line, files, names in DNS. Whatever changes,
//! one whole set goes into one channel.

mod document;
mod entry;
mod file;
mod follow;
mod names;
mod repeated;

pub(crate) use document::{Document, Problem, Setting};
pub(crate) use entry::{Backend, Place};
pub(crate) use file::BackendsFile;
pub(crate) use follow::{Follower, Sources};
