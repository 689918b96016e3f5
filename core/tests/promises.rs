//! What the types promise to whoever compiles against them.
#![deny(unfulfilled_lint_expectations)]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

// What is re-exported, not what these tests depend on.
use llmlb_lock_core::chrono::{DateTime, Utc};
use llmlb_lock_core::{LockDir, LockInfo, StopOptions};

#[test]
fn what_is_not_used_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let locks = LockDir::new(dir.path());
    #[expect(unused_must_use, reason = "the port is free again at once")]
    locks.acquire(8000).unwrap();
    let lock = locks.acquire(8000).unwrap();
    #[cfg(unix)]
    #[expect(unused_must_use, reason = "no child runs it")]
    lock.child_hook().unwrap();
    #[expect(unused_must_use, reason = "these options are nobody's")]
    StopOptions::default().force(true);
    #[expect(unused_must_use, reason = "it may have failed")]
    lock.release();
}

#[test]
fn the_holder_is_three_fields_that_anyone_may_write() {
    let started_at: DateTime<Utc> = "2026-01-30T12:00:00Z".parse().unwrap();
    let info = LockInfo {
        pid: 7,
        started_at,
        port: 8000,
    };
    // All there are.
    let LockInfo {
        pid,
        started_at: at,
        port,
    } = info;
    assert_eq!((pid, at, port), (7, started_at, 8000));
}

#[test]
fn options_are_made_by_methods_and_can_be_read() {
    let options = StopOptions::default()
        .timeout(Duration::from_secs(7))
        .force(true)
        .left_overs(false);
    let StopOptions {
        timeout,
        force,
        left_overs,
        ..
    } = options;
    assert_eq!(
        (timeout, force, left_overs),
        (Duration::from_secs(7), true, false)
    );
}
