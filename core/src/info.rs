//! Who guards a port: the frozen part of a lock file, and what the API shows.

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::error::LockError;

/// Who guards a port: the content of a lock file.
///
/// On disk it is one JSON object with exactly these fields, `started_at` in RFC 3339, UTC:
///
/// ```
/// # use llmlb_lock_core::LockInfo;
/// let json = r#"{"pid":12345,"started_at":"2026-01-30T12:00:00Z","port":8000}"#;
/// let info: LockInfo = serde_json::from_str(json)?;
/// assert_eq!((info.pid, info.port), (12345, 8000));
/// assert_eq!(serde_json::to_string(&info)?, json);
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// Unknown fields are tolerated on reading, so that a newer version may add optional ones.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockInfo {
    /// The process id of the server.
    pub pid: u32,
    /// When the server took the lock, or was handed it; microsecond precision.
    pub started_at: DateTime<Utc>,
    /// The guarded port.
    pub port: u16,
}

impl LockInfo {
    pub(crate) fn now(pid: u32, port: u16) -> Self {
        // Microseconds are what every binding can represent without loss.
        let started_at = Utc::now().trunc_subsecs(6);
        Self {
            pid,
            started_at,
            port,
        }
    }
}

impl LockError {
    pub(crate) fn already_running(holder: LockInfo) -> Self {
        Self::AlreadyRunning {
            port: holder.port,
            pid: holder.pid,
            started_at: holder.started_at,
        }
    }
}
