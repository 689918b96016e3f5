//! A daemon takes its lock along through the double fork.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Actor, PORT, Stage, done, fork, lock_file, outcome, temp_dir};
use llmlb_lock_core::{LockDir, ServerState, StopOptions, StopOutcome};

common::roles!(daemon);

/// Acquires, forks twice, and goes on in the grandchild. The others exit without their
/// destructors, as daemonizers do.
fn daemon(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO);
    let lock = &mut lock;
    fork(|| {
        nix::unistd::setsid().unwrap();
        fork(|| {
            stage.say(done(&lock.as_mut().unwrap().adopt()));
            stage.say(std::process::id());
            if stage.hear() == "release" {
                stage.say(done(&lock.take().unwrap().release()));
                stage.hear();
            }
        });
    });
    std::process::exit(0);
}

fn daemonized() -> (tempfile::TempDir, LockDir, Actor, u32) {
    let dir = temp_dir();
    let mut daemon = Actor::new("daemon", dir.path());
    assert_eq!(daemon.hear(), "won");
    assert_eq!(daemon.hear(), "ok");
    let pid = daemon.hear().parse().unwrap();
    // The process that acquired is gone.
    assert!(daemon.wait().success());
    assert_ne!(pid, daemon.pid());
    let locks = LockDir::new(dir.path());
    (dir, locks, daemon, pid)
}

#[test]
fn the_daemon_is_named_and_releases() {
    let (dir, locks, mut daemon, pid) = daemonized();
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {pid}"));
    assert_eq!(locks.servers().unwrap()[0].state, ServerState::Running);
    assert_eq!(daemon.ask("release"), "ok");
    assert!(!lock_file(dir.path()).exists());
    drop(locks.acquire(PORT).unwrap());
}

#[test]
fn the_daemon_is_stopped() {
    let (dir, locks, _daemon, pid) = daemonized();
    let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
    assert!(matches!(outcome, StopOutcome::Stopped { info, .. } if info.pid == pid));
    assert!(!lock_file(dir.path()).exists());
}

#[cfg(target_os = "linux")]
#[test]
fn a_daemon_that_closed_its_descriptors_is_neither_replaced_nor_signalled() {
    // The lock is free, but the very process that the file names lives.
    let dir = temp_dir();
    let mut daemon = Actor::new("echo", dir.path());
    assert_eq!(daemon.ask("here"), "here");
    common::plant(dir.path(), common::identified(daemon.pid()));
    let locks = LockDir::new(dir.path());
    let refused = format!("lost to {}", daemon.pid());
    assert_eq!(outcome(&locks.acquire(PORT)), refused);
    assert_eq!(locks.servers().unwrap()[0].state, ServerState::Running);
    let error = locks
        .stop_server(PORT, &StopOptions::default())
        .unwrap_err();
    assert!(
        matches!(error, llmlb_lock_core::LockError::NotHolder { .. }),
        "{error}"
    );
    assert_eq!(daemon.ask("still"), "still");
}
