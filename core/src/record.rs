//! What core alone sees of a lock file: who holds it, and by what that process is told from all
//! others. Apart from [`LockInfo`], the frozen part, which anyone may write as a literal.

use std::io;
use std::process;

use chrono::{DateTime, Datelike, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::context;
use crate::info::LockInfo;
use crate::sys;

/// At most this much of a lock file is ever read; ours are about 190 bytes.
pub(crate) const MAX_LEN: u64 = 4096;

/// No part of JSON: what fills a file up, or all of one that is given back.
pub(crate) const BLANK: u8 = b' ';

/// A lock file that names a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) info: LockInfo,
    /// `None` from writers that know of none.
    pub(crate) identity: Option<Identity>,
}

/// Which of all processes that ever had, or elsewhere have, this PID is meant. What it is made of
/// differs by system; two are the same process if they are equal, and only then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) boot_id: Option<String>,
    /// The inode of the PID namespace.
    pub(crate) pid_ns: Option<u64>,
    /// A Windows FILETIME: 100 ns since 1601.
    pub(crate) creation_time: Option<u64>,
    /// Clock ticks from boot to start, on Linux.
    pub(crate) start_ticks: Option<u64>,
}

impl Identity {
    /// On the system's own scale; 0 at which no process starts, where it is missing.
    pub(crate) fn start(&self) -> u64 {
        self.start_ticks.or(self.creation_time).unwrap_or(0)
    }
}

impl Record {
    /// Of this process, which has just taken the lock.
    pub(crate) fn own(port: u16) -> Self {
        Self {
            info: LockInfo::now(process::id(), port),
            // Without it the holder is judged by its start: no reason not to guard.
            identity: sys::own_identity().unwrap_or_default(),
        }
    }

    /// Of a live process that was handed the lock.
    pub(crate) fn of(pid: u32, process: &sys::Process, port: u16) -> Self {
        Self {
            info: LockInfo::now(pid, port),
            identity: sys::identity(process.start).unwrap_or_default(),
        }
    }

    pub(crate) fn to_json(&self) -> io::Result<Vec<u8>> {
        let identity = self.identity.clone().unwrap_or_default();
        let text = Text {
            pid: self.info.pid,
            started_at: self.info.started_at,
            port: self.info.port,
            boot_id: identity.boot_id,
            pid_ns: identity.pid_ns,
            creation_time: identity.creation_time,
            start_ticks: identity.start_ticks,
        };
        serde_json::to_vec(&text).map_err(|e| context(e, "cannot write JSON"))
    }
}

/// What stands in the file. The start is last: in a text that is half old and half new, PID and
/// start never fit.
#[derive(Serialize, Deserialize)]
struct Text {
    pid: u32,
    started_at: DateTime<Utc>,
    port: u16,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "if_ours"
    )]
    boot_id: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "if_ours"
    )]
    pid_ns: Option<u64>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "if_ours"
    )]
    creation_time: Option<u64>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "if_ours"
    )]
    start_ticks: Option<u64>,
}

/// A field in which somebody else keeps something else is none of ours.
fn if_ours<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Option<T>, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).ok())
}

impl From<Text> for Record {
    fn from(text: Text) -> Self {
        let identity = Identity {
            boot_id: text.boot_id,
            pid_ns: text.pid_ns,
            creation_time: text.creation_time,
            start_ticks: text.start_ticks,
        };
        Self {
            info: LockInfo {
                pid: text.pid,
                started_at: text.started_at,
                port: text.port,
            },
            identity: (identity != Identity::default()).then_some(identity),
        }
    }
}

/// What a lock file says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Nothing yet: its creator has not written it, or never will.
    Empty,
    /// It is being given back, or could not be removed then.
    Blank,
    Holder(Record),
    /// Why it names nobody.
    Corrupt(String),
}

impl Content {
    pub(crate) fn holder(self) -> Option<Record> {
        match self {
            Self::Holder(record) => Some(record),
            Self::Empty | Self::Blank | Self::Corrupt(_) => None,
        }
    }

    /// `bytes` may be cut off after [`MAX_LEN`] + 1 bytes.
    pub(crate) fn parse(bytes: &[u8], port: u16) -> Self {
        if bytes.is_empty() {
            return Self::Empty;
        }
        if bytes.iter().all(|&byte| byte == BLANK) {
            return Self::Blank;
        }
        if bytes.len() as u64 > MAX_LEN {
            return Self::Corrupt(format!("longer than {MAX_LEN} bytes"));
        }
        let record = match serde_json::from_slice::<Text>(bytes) {
            Ok(text) => Record::from(text),
            Err(e) => return Self::Corrupt(e.to_string()),
        };
        let info = &record.info;
        if info.port != port {
            return Self::Corrupt(format!("it is for port {}, not {port}", info.port));
        }
        // RFC 3339 goes no further, and arithmetic with the ends of time overflows.
        if !(1970..=9999).contains(&info.started_at.year()) {
            return Self::Corrupt(format!("started in the year {}", info.started_at.year()));
        }
        Self::Holder(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            info: LockInfo {
                pid: 12345,
                started_at: "2026-01-30T12:00:00.123456Z".parse().unwrap(),
                port: 8000,
            },
            identity: None,
        }
    }

    #[test]
    fn the_format_is_frozen() {
        let frozen = r#"{"pid":12345,"started_at":"2026-01-30T12:00:00.123456Z","port":8000}"#;
        assert_eq!(record().to_json().unwrap(), frozen.as_bytes());
        assert_eq!(serde_json::to_string(&record().info).unwrap(), frozen);
        let parsed = Content::parse(frozen.as_bytes(), 8000);
        assert_eq!(parsed, Content::Holder(record()));
    }

    #[test]
    fn the_identity_stands_behind_it_with_the_start_last() {
        let mut identified = record();
        identified.identity = Some(Identity {
            boot_id: Some("5f0c".to_owned()),
            pid_ns: Some(4_026_531_836),
            creation_time: None,
            start_ticks: Some(77),
        });
        let text = identified.to_json().unwrap();
        let expected = r#"{"pid":12345,"started_at":"2026-01-30T12:00:00.123456Z","port":8000,"#
            .to_owned()
            + r#""boot_id":"5f0c","pid_ns":4026531836,"start_ticks":77}"#;
        assert_eq!(String::from_utf8(text.clone()).unwrap(), expected);
        assert_eq!(Content::parse(&text, 8000), Content::Holder(identified));
        // Who knows only the frozen part reads it all the same.
        let info: LockInfo = serde_json::from_slice(&text).unwrap();
        assert_eq!(info, record().info);
    }

    #[test]
    fn fields_of_our_names_that_mean_something_else_are_ignored() {
        let json = r#"{"pid":12345,"started_at":"2026-01-30T12:00:00.123456Z","port":8000,
            "boot_id":7,"pid_ns":"host","start_ticks":-1,"creation_time":{"a":null}}"#;
        assert_eq!(
            Content::parse(json.as_bytes(), 8000),
            Content::Holder(record())
        );
    }

    #[test]
    fn unknown_fields_and_other_offsets_are_read() {
        let json = r#"{"port":1,"host":"::1","started_at":"2026-01-30T14:00:00+02:00","pid":7}"#;
        let Content::Holder(record) = Content::parse(json.as_bytes(), 1) else {
            panic!("not read");
        };
        let started_at = record.info.started_at.to_rfc3339();
        assert_eq!(started_at, "2026-01-30T12:00:00+00:00");
    }

    #[test]
    fn one_that_is_given_back_is_blank() {
        for len in [1, 80, 4096, 5000] {
            assert_eq!(Content::parse(&vec![b' '; len], 8000), Content::Blank);
        }
    }

    #[test]
    fn what_names_nobody_is_corrupt() {
        let deep = "[".repeat(4000);
        for bad in [
            "\n",
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
            &"\n".repeat(5000),
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
