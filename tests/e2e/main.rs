//! The `llmlb` program, run as its users run it.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod hostile;
mod readme;
mod regressions;
mod serve;
mod status;
mod stop;
mod stories;
mod supervise;
mod terminal;
