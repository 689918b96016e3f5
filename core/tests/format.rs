//! What is read of a lock file, whatever is in it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use chrono::{DateTime, SecondsFormat, Utc};
use llmlb_lock_core::{LockDir, LockError, LockInfo};
use proptest::collection::vec;
use proptest::prelude::*;

/// What reading makes of a file with this content.
fn read(port: u16, bytes: &[u8]) -> Result<Option<LockInfo>, LockError> {
    let dir = tempfile::tempdir().unwrap();
    let locks = LockDir::new(dir.path());
    fs::write(locks.lock_path(port), bytes).unwrap();
    locks.read_lock_info(port)
}

fn time() -> impl Strategy<Value = DateTime<Utc>> {
    // From 1970 to 9999, in microseconds.
    (0..253_402_300_799_999_999_i64).prop_map(|us| DateTime::from_timestamp_micros(us).unwrap())
}

fn info() -> impl Strategy<Value = LockInfo> {
    (any::<u32>(), time(), 1..=u16::MAX).prop_map(|(pid, started_at, port)| LockInfo {
        pid,
        started_at,
        port,
    })
}

proptest! {
    // Reading looks at a corrupt file for 20 ms, as it may be one that is being written.
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(info in info()) {
        let json = serde_json::to_string(&info).unwrap();
        prop_assert_eq!(read(info.port, json.as_bytes()).unwrap(), Some(info));
    }

    #[test]
    fn any_order_spacing_and_unknown_fields(
        info in info(),
        order in Just(["pid", "started_at", "port", "later"]).prop_shuffle(),
        blank in "[ \t\r\n]{0,4}",
    ) {
        let fields: Vec<_> = order
            .iter()
            .map(|&name| match name {
                "pid" => format!("{blank}\"pid\":{blank}{}", info.pid),
                "port" => format!("\"port\"{blank}:{}", info.port),
                "later" => format!("\"later\":{{\"a\":[{blank}null]}}"),
                _ => {
                    let time = info.started_at.to_rfc3339_opts(SecondsFormat::Micros, false);
                    format!("\"started_at\":\"{time}\"")
                }
            })
            .collect();
        let json = format!("{blank}{{{}}}{blank}", fields.join(","));
        prop_assert_eq!(read(info.port, json.as_bytes()).unwrap(), Some(info));
    }

    #[test]
    fn anything_else_is_corrupt_and_never_a_panic(bytes in vec(any::<u8>(), 1..6000)) {
        prop_assert!(matches!(read(8000, &bytes), Err(LockError::Corrupted(_))));
    }

    #[test]
    fn a_cut_off_text_names_nobody(info in info(), cut in any::<prop::sample::Index>()) {
        let json = serde_json::to_string(&info).unwrap();
        let cut = &json[..cut.index(json.len())];
        let named = read(info.port, cut.as_bytes());
        prop_assert!(
            matches!(named, Err(LockError::Corrupted(_)))
        );
    }

    #[test]
    fn a_changed_byte_names_nobody_or_a_whole_holder(
        info in info(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut json = serde_json::to_vec(&info).unwrap();
        let at = at.index(json.len());
        json[at] = byte;
        if let Ok(Some(read)) = read(info.port, &json) {
            prop_assert_eq!(read.port, info.port);
        }
    }

    #[test]
    fn another_ports_text_is_corrupt(info in info(), port in 1..=u16::MAX) {
        prop_assume!(port != info.port);
        let json = serde_json::to_string(&info).unwrap();
        prop_assert!(matches!(read(port, json.as_bytes()), Err(LockError::Corrupted(_))));
    }
}
