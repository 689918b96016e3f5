//! The one record that a server has in etcd: its fields, its bounds, tolerant reading.

use chrono::{DateTime, Datelike, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

use crate::error::ClusterError;

/// The version of the record that this library writes. Later ones add fields; a record that old
/// readers could not read would be under other keys.
pub const RECORD_VERSION: u32 = 1;

/// At most this much of a value is looked at.
pub(crate) const MAX_LEN: usize = 64 * 1024;
const MAX_MODELS: usize = 512;
const MAX_TEXT: usize = 512;

/// What etcd knows of a server.
///
/// Unknown fields are tolerated on reading; what is out of bounds is not a record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The version of this format.
    pub version: u32,
    /// The service's name: letters, digits, `-`, `_` and `.`, up to 100.
    pub service: String,
    /// The host, as it calls itself: a claim, not a proof.
    pub host: String,
    /// The guarded port.
    pub port: u16,
    /// Where it is reached.
    pub url: String,
    /// The server's process id, on its host.
    pub pid: u32,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// Unique to this start.
    pub nonce: String,
    /// The fencing token, of an exclusive service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<u64>,
    /// Whether at most one is active.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub exclusive: bool,
    /// What it serves, where that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// How many requests it takes at a time, where that is known: its weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// What wrote this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub software: Option<String>,
}

impl Record {
    /// This process, started now, reached by HTTP on its host and port.
    pub fn new(service: impl Into<String>, host: impl Into<String>, port: u16) -> Self {
        let host = host.into();
        let url = if host.contains(':') {
            format!("http://[{host}]:{port}")
        } else {
            format!("http://{host}:{port}")
        };
        Self {
            version: RECORD_VERSION,
            service: service.into(),
            url,
            host,
            port,
            pid: std::process::id(),
            started_at: Utc::now().trunc_subsecs(6),
            nonce: nonce(),
            token: None,
            exclusive: false,
            models: Vec::new(),
            slots: None,
            software: Some(concat!("llmlb ", env!("CARGO_PKG_VERSION")).to_owned()),
        }
    }

    /// Of this process instead.
    #[must_use]
    pub fn with_pid(mut self, pid: u32) -> Self {
        self.pid = pid;
        self
    }

    /// Reached there instead.
    #[must_use]
    pub fn with_url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// Active by this fencing token.
    #[must_use]
    pub fn with_token(mut self, token: u64) -> Self {
        self.token = Some(token);
        self.exclusive = true;
        self
    }

    /// Serves these.
    #[must_use]
    pub fn with_models(mut self, models: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.models = models.into_iter().map(Into::into).collect();
        self
    }

    /// Takes so many requests at a time.
    #[must_use]
    pub fn with_slots(mut self, slots: u32) -> Self {
        self.slots = Some(slots);
        self
    }

    /// What a server is called among those of its service: `HOST:PORT`.
    pub fn instance(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Whether it may be kept in etcd.
    ///
    /// # Errors
    ///
    /// [`ClusterError::InvalidRecord`], which says what may not.
    pub fn validate(&self) -> Result<(), ClusterError> {
        self.to_json().map(drop)
    }

    pub(crate) fn to_json(&self) -> Result<String, ClusterError> {
        self.check()
            .map_err(|(what, reason)| ClusterError::InvalidRecord { what, reason })?;
        let json = serde_json::to_string(self).map_err(|e| ClusterError::InvalidRecord {
            what: "record",
            reason: e.to_string(),
        })?;
        if json.len() > MAX_LEN {
            return Err(ClusterError::InvalidRecord {
                what: "record",
                reason: format!("longer than {MAX_LEN} bytes"),
            });
        }
        Ok(json)
    }

    /// Reads what `service` has under `instance` (or as its holder), or says why it is none.
    pub(crate) fn read(
        bytes: &[u8],
        service: &str,
        instance: Option<&str>,
    ) -> Result<Self, String> {
        if bytes.len() > MAX_LEN {
            return Err(format!("longer than {MAX_LEN} bytes"));
        }
        let record: Self = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        record
            .check()
            .map_err(|(what, reason)| format!("{what}: {reason}"))?;
        if record.service != service {
            return Err(format!("it is for service {}", record.service));
        }
        match instance {
            Some(instance) if instance != record.instance() => {
                Err(format!("it is for {}", record.instance()))
            }
            _ => Ok(record),
        }
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        check_service(&self.service).map_err(|e| ("service name", e))?;
        check_host(&self.host).map_err(|e| ("host name", e))?;
        if self.version == 0 {
            return Err(("version", "0 is none".into()));
        }
        if self.port == 0 {
            return Err(("port", "0 names no port".into()));
        }
        if self.pid == 0 || i32::try_from(self.pid).is_err() {
            return Err(("PID", format!("{} is none", self.pid)));
        }
        // RFC 3339 goes no further, and arithmetic with the ends of time overflows.
        if !(1970..=9999).contains(&self.started_at.year()) {
            return Err(("start", format!("in the year {}", self.started_at.year())));
        }
        if self.models.len() > MAX_MODELS {
            return Err(("models", format!("more than {MAX_MODELS}")));
        }
        let texts = self.models.iter().chain(&self.software);
        for (what, text) in texts
            .map(|text| ("models", text))
            .chain([("URL", &self.url), ("nonce", &self.nonce)])
        {
            // They end up in terminals.
            if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
                return Err((
                    what,
                    format!("empty, longer than {MAX_TEXT} bytes, or with control characters"),
                ));
            }
        }
        Ok(())
    }
}

pub(crate) fn check_service(name: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(valid) {
        return Ok(());
    }
    Err(format!(
        "{name:?} may have letters, digits, -, _ and ., and at most 100 of them"
    ))
}

pub(crate) fn check_host(name: &str) -> Result<(), String> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    if (1..=253).contains(&name.len()) && name.chars().all(valid) {
        return Ok(());
    }
    Err(format!(
        "{name:?} may have letters, digits, -, _, . and :, and at most 253 of them"
    ))
}

/// Tells apart what is otherwise the same; not a secret.
pub(crate) fn nonce() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
        let mut value = serde_json::to_value(Record::new("chat", "gpu1", 8000)).unwrap();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let record = Record::new("chat", "fe80::1", 8000)
            .with_token(7)
            .with_models(["qwen3:0.6b"])
            .with_slots(4);
        assert_eq!(record.url, "http://[fe80::1]:8000");
        let json = record.to_json().unwrap();
        assert_eq!(
            Record::read(json.as_bytes(), "chat", Some("fe80::1:8000")),
            Ok(record)
        );
    }

    #[test]
    fn the_format_is_frozen() {
        let record = r#"{"version":1,"service":"chat","host":"gpu1","port":8000,"url":"http://gpu1:8000","pid":12345,"started_at":"2026-01-30T12:00:00Z","nonce":"0123456789abcdef0123456789abcdef","token":1234,"exclusive":true,"models":["qwen3"],"slots":4,"software":"llmlb 0.1.0"}"#;
        let read = Record::read(record.as_bytes(), "chat", Some("gpu1:8000")).unwrap();
        assert_eq!(read.to_json().unwrap(), record);
    }

    #[test]
    fn newer_ones_with_more_fields_are_read() {
        let newer = json(|v| {
            v["version"] = 2.into();
            v["zone"] = "b".into();
        });
        assert_eq!(Record::read(&newer, "chat", None).unwrap().version, 2);
    }

    #[test]
    fn what_is_out_of_bounds_is_no_record() {
        let long = "x".repeat(600);
        let cases: [(&str, serde_json::Value); 15] = [
            ("version", 0.into()),
            ("service", "embed".into()),
            ("host", "".into()),
            ("host", "a/b".into()),
            ("port", 0.into()),
            ("port", 70_000.into()),
            ("pid", 0.into()),
            ("pid", u32::MAX.into()),
            ("started_at", "1969-12-31T23:59:59Z".into()),
            ("url", "".into()),
            ("url", long.as_str().into()),
            ("models", vec!["\u{1b}[2J"].into()),
            ("models", vec!["x"; 600].into()),
            ("token", "7".into()),
            ("token", (-1).into()),
        ];
        for (field, value) in cases {
            let bad = json(|v| v[field] = value.clone());
            assert!(
                Record::read(&bad, "chat", None).is_err(),
                "{field}: {value}"
            );
        }
        assert!(Record::read(&json(|_| ()), "chat", Some("gpu2:8000")).is_err());
        assert!(Record::read(&[b' '; MAX_LEN + 1], "chat", None).is_err());
    }

    #[test]
    fn a_bad_one_is_not_written() {
        for record in [
            Record::new("a/b", "gpu1", 8000),
            Record::new("", "gpu1", 8000),
            Record::new("chat", "gpu 1", 8000),
            Record::new("chat", "gpu1", 0),
            Record::new("chat", "gpu1", 1).with_pid(0),
        ] {
            assert!(matches!(
                record.to_json(),
                Err(ClusterError::InvalidRecord { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_in_etcd_never_panics(bytes: Vec<u8>) {
            let _ = Record::read(&bytes, "chat", Some("gpu1:8000"));
        }
    }
}
