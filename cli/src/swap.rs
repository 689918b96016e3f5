//! One built-in server takes the place of another without closing the port for an instant: the
//! listener and the lock go from the one to the other through a socket beside the lock file.
//!
//! Whoever dies on the way leaves the other in charge: both have both, and the lock file names the
//! one that serves. The holder goes on accepting until its successor says that it serves; for a
//! little while longer it keeps lock and listener, and takes over again should the successor be
//! gone.

mod door;
mod holder;
mod successor;
mod wire;

pub(crate) use door::{Door, sweep};
pub(crate) use holder::{Fate, Knock, Successor};
pub(crate) use successor::{Predecessor, Succession, succeed};
