//! Exit codes. They are part of the interface: see the README.

/// Done. For `status --port`: the port is guarded by a server that runs.
pub(crate) const OK: u8 = 0;
/// Refused or failed; the reason is on stderr.
pub(crate) const FAILURE: u8 = 1;
/// Wrong arguments (what clap exits with).
pub(crate) const USAGE: u8 = 2;
/// `status --port`: no server (LSB: "program is not running").
pub(crate) const NOT_RUNNING: u8 = 3;
/// `status --port`: can't tell (LSB: "status is unknown").
pub(crate) const UNKNOWN: u8 = 4;
/// `status --port`: the port is guarded, and nobody serves there yet.
pub(crate) const STARTING: u8 = 5;
/// `serve --exclusive`: another server may be active, and this one was ended in time.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
pub(crate) const LEASE_LOST: u8 = 6;
/// `serve -- COMMAND`: the command exists and can't be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// `serve -- COMMAND`: there is no such command.
pub(crate) const NOT_FOUND: u8 = 127;
/// Added to the number of the signal that ended a server.
pub(crate) const SIGNALLED: u8 = 128;

/// What a command ends with when it does not end well.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl ToString) -> Self {
        Self {
            message: message.to_string(),
            code,
        }
    }
}

impl From<llmlb_lock_core::LockError> for Failure {
    fn from(e: llmlb_lock_core::LockError) -> Self {
        Self::new(FAILURE, e)
    }
}

/// The usual exit code of a process that a signal ended.
pub(crate) fn signalled(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| SIGNALLED.saturating_add(signal))
}
