//! The content of a lock file: frozen format, tolerant and bounded reading.

use std::io;

use chrono::{DateTime, Datelike, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{LockError, context};

/// At most this much of a lock file is ever read; ours are about 80 bytes.
pub(crate) const MAX_LEN: u64 = 4096;

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

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| context(e, "cannot write JSON"))
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

/// What a lock file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing yet: its creator has not written it, or never will.
    Empty,
    Holder(LockInfo),
    /// Why it names nobody.
    Corrupt(String),
}

impl Content {
    pub(crate) fn holder(self) -> Option<LockInfo> {
        match self {
            Self::Holder(info) => Some(info),
            Self::Empty | Self::Corrupt(_) => None,
        }
    }

    /// `bytes` may be cut off after [`MAX_LEN`] + 1 bytes.
    pub(crate) fn parse(bytes: &[u8], port: u16) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        if bytes.len() as u64 > MAX_LEN {
            return Self::Corrupt(format!("longer than {MAX_LEN} bytes"));
        }
        match serde_json::from_slice::<LockInfo>(bytes) {
            Ok(info) if info.port != port => {
                Self::Corrupt(format!("it is for port {}, not {port}", info.port))
            }
            // RFC 3339 goes no further, and arithmetic with the ends of time overflows.
            Ok(info) if !(1970..=9999).contains(&info.started_at.year()) => {
                Self::Corrupt(format!("started in the year {}", info.started_at.year()))
            }
            Ok(info) => Self::Holder(info),
            Err(e) => Self::Corrupt(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_frozen() {
        let info = LockInfo {
            pid: 12345,
            started_at: "2026-01-30T12:00:00.123456Z".parse().unwrap(),
            port: 8000,
        };
        let frozen = r#"{"pid":12345,"started_at":"2026-01-30T12:00:00.123456Z","port":8000}"#;
        assert_eq!(serde_json::to_string(&info).unwrap(), frozen);
        assert_eq!(
            Content::parse(frozen.as_bytes(), 8000),
            Content::Holder(info)
        );
    }

    #[test]
    fn unknown_fields_and_other_offsets_are_read() {
        let json = r#"{"port":1,"host":"::1","started_at":"2026-01-30T14:00:00+02:00","pid":7}"#;
        let Content::Holder(info) = Content::parse(json.as_bytes(), 1) else {
            panic!("not read");
        };
        assert_eq!(info.started_at.to_rfc3339(), "2026-01-30T12:00:00+00:00");
    }

    #[test]
    fn what_names_nobody_is_corrupt() {
        let deep = "[".repeat(4000);
        for bad in [
            " ",
            "{",
            "null",
            "[]",
            "12345",
            r#"{"pid":1}"#,
            r#"{"pid":-1,"started_at":"2026-01-30T12:00:00Z","port":8000}"#,
            r#"{"pid":4294967296,"started_at":"2026-01-30T12:00:00Z","port":8000}"#,
            r#"{"pid":"1","started_at":"2026-01-30T12:00:00Z","port":8000}"#,
            r#"{"pid":1,"started_at":"yesterday","port":8000}"#,
            r#"{"pid":1,"started_at":"+262142-12-31T23:59:59Z","port":8000}"#,
            r#"{"pid":1,"started_at":"-262143-01-01T00:00:00Z","port":8000}"#,
            r#"{"pid":1,"started_at":"1969-12-31T23:59:59Z","port":8000}"#,
            r#"{"pid":1,"started_at":"2026-01-30T12:00:00Z","port":8001}"#,
            r#"{"pid":1,"pid":2,"started_at":"2026-01-30T12:00:00Z","port":8000}"#,
            r#"{"pid":1,"started_at":"2026-01-30T12:00:00Z","port":8000} junk"#,
            &deep,
            &" ".repeat(5000),
        ] {
            let parsed = Content::parse(bad.as_bytes(), 8000);
            assert!(
                matches!(parsed, Content::Corrupt(_)),
                "{bad:.60}: {parsed:?}"
            );
        }
        assert!(matches!(
            Content::parse(b"\xff\xfe\0", 8000),
            Content::Corrupt(_)
        ));
    }
}
