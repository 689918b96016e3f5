//! The `llmlb` program, run as its users run it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(unix)] // shells
mod completion;
#[cfg(target_os = "linux")] // PID namespaces
mod container;
// FUSE, ptrace.
#[cfg(target_os = "linux")]
mod company;
#[cfg(target_os = "linux")] // `/proc`, `/dev/full`
mod detach;
mod hostile;
// Cgroups, sessions, `/proc`.
#[cfg(target_os = "linux")]
mod left_over;
mod log;
#[cfg(unix)]
mod picture;
mod readme;
#[cfg(target_os = "linux")] // whose a port is, and systemd
mod ready;
// Signals, process groups and interpreters.
#[cfg(unix)]
mod regressions;
#[cfg(target_os = "linux")] // by PIDs
mod restart;
mod serve;
#[cfg(unix)]
mod signals;
#[cfg(unix)] // what a guard tells
mod state;
mod status;
mod stop;
mod stories;
mod supervise;
#[cfg(unix)] // descriptors are passed on
mod swap;
// Pseudo-terminals.
#[cfg(unix)]
mod terminal;
#[cfg(unix)] // pipes that are full
mod unread;
#[cfg(windows)]
mod windows;
mod words;
