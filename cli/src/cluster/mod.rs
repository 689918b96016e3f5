//! Beyond this machine: what the program does with etcd. Apart from the commands, which do without
//! it where nobody asks for it. Linux alone.

#[cfg(target_os = "linux")]
mod active;
#[cfg(target_os = "linux")]
pub(crate) mod backends;
#[cfg(target_os = "linux")]
mod check;
#[cfg(target_os = "linux")]
pub(crate) mod connection;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
#[cfg(target_os = "linux")]
mod foreign;
#[cfg(target_os = "linux")]
pub(crate) mod guarded;
#[cfg(target_os = "linux")]
mod models;
pub(crate) mod options;
#[cfg(target_os = "linux")]
mod registration;
#[cfg(target_os = "linux")]
mod status;
#[cfg(target_os = "linux")]
mod stop;
#[cfg(target_os = "linux")]
pub(crate) mod told;

#[cfg(target_os = "linux")]
pub(crate) use active::{Active, hidden_subcommand};
#[cfg(not(target_os = "linux"))]
pub(crate) use elsewhere::Active;
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) use elsewhere::Hearing;
#[cfg(target_os = "linux")]
pub(crate) use registration::Membership;
#[cfg(target_os = "linux")]
pub(crate) use told::Hearing;

use std::ffi::OsString;

use crate::args::{StatusArgs, StopArgs};
use crate::exit::Failure;

/// The arguments that somebody has typed.
pub(crate) fn typed() -> Vec<OsString> {
    #[cfg(target_os = "linux")]
    let typed = guarded::typed();
    #[cfg(not(target_os = "linux"))]
    let typed = std::env::args_os().collect();
    typed
}

/// `llmlb status --cluster`.
#[cfg(target_os = "linux")]
pub(crate) fn status(url: Option<&str>, args: &StatusArgs) -> Result<u8, Failure> {
    let etcd = connection::Connection::open(url)?;
    status::run(&etcd, args.format, args.watch)
}

/// `llmlb stop --cluster`.
#[cfg(target_os = "linux")]
pub(crate) fn stop(url: Option<&str>, args: &StopArgs) -> Result<u8, Failure> {
    let etcd = connection::Connection::open(url)?;
    let which = stop::Which {
        service: args.service.as_deref().unwrap_or_default(),
        host: args.host.as_deref(),
        port: args.port,
        all: args.all,
    };
    stop::run(&etcd, which, args.timeout)
}

/// `llmlb cluster check`.
#[cfg(target_os = "linux")]
pub(crate) fn check(url: Option<&str>) -> Result<u8, Failure> {
    check::run(&connection::Connection::open(url)?)
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn check(_: Option<&str>) -> Result<u8, Failure> {
    Err(not_here())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn status(_: Option<&str>, _: &StatusArgs) -> Result<u8, Failure> {
    Err(not_here())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn stop(_: Option<&str>, args: &StopArgs) -> Result<u8, Failure> {
    let StopArgs {
        service: _,
        host: _,
        ..
    } = args;
    Err(not_here())
}

#[cfg(not(target_os = "linux"))]
fn not_here() -> Failure {
    Failure::new(
        crate::exit::USAGE,
        "--cluster is there on Linux alone, so far",
    )
}
