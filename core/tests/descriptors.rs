//! The descriptors that carry a lock: which numbers they get, who else has them, and what that
//! means when the lock is given back.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use common::{Actor, PORT, Stage, fork, holder, lock_file, logged, outcome, temp_dir};
use llmlb_lock_core::{LockDir, LockError, ServerState};
use nix::sys::wait::{WaitStatus, waitpid};

common::roles!(holder, bare, sharer);

/// A daemon that has closed its standard descriptors, and prints all the same.
fn bare(stage: &Stage) {
    let child = fork(|| {
        for fd in 0..3 {
            // SAFETY: nothing here uses them any more, but what is tested.
            unsafe { nix::libc::close(fd) };
        }
        let lock = stage
            .locks
            .acquire(PORT)
            .unwrap_or_else(|_| std::process::exit(1));
        if lock.as_fd().as_raw_fd() < 3 || lock.directory_fd().as_raw_fd() < 3 {
            std::process::exit(2);
        }
        let before = fs::read(lock.path()).unwrap_or_default();
        for fd in 0..3 {
            // SAFETY: writes a byte, wherever that leads.
            unsafe { nix::libc::write(fd, b"!".as_ptr().cast(), 1) };
        }
        if fs::read(lock.path()).unwrap_or_default() != before {
            std::process::exit(3);
        }
        if lock.release().is_err() || stage.locks.server(PORT).is_err() {
            std::process::exit(4);
        }
    });
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, code) => stage.say(code),
        status => stage.say(format!("{status:?}")),
    }
}

#[test]
fn a_daemon_that_prints_does_not_print_into_the_lock() {
    let dir = temp_dir();
    let mut bare = Actor::new("bare", dir.path());
    assert_eq!(bare.hear(), "0");
}

#[test]
fn a_lock_of_which_somebody_has_a_copy_is_not_given_away() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    for drops in [false, true] {
        let lock = locks.acquire(PORT).unwrap();
        // As good as another process's: nobody can see whose descriptors they are.
        let copy = lock.as_fd().try_clone_to_owned().unwrap();
        if drops {
            drop(lock);
        } else {
            let error = lock.release().unwrap_err();
            assert!(matches!(error, LockError::ReleaseFailed(_)), "{error:?}");
            assert!(error.to_string().contains("port 8000"), "{error}");
        }
        assert!(lock_file(dir.path()).exists());
        let server = locks.server(PORT).unwrap().unwrap();
        assert_eq!((server.state, server.info), (ServerState::Held, None));
        let error = locks.acquire(PORT).unwrap_err();
        assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
        // It ends with its last holder, though the process that took it lives on.
        drop(copy);
        locks.acquire(PORT).unwrap().release().unwrap();
        assert!(!lock_file(dir.path()).exists());
    }
}

/// Drops a lock of which somebody has a copy.
fn sharer(stage: &Stage) {
    let lock = stage.acquire(Duration::ZERO).unwrap();
    let copy = lock.as_fd().try_clone_to_owned().unwrap();
    let ((), log) = logged(|| drop(lock));
    stage.say(log.contains("WARN") && log.contains("still holds") && log.contains("port 8000"));
    drop(copy);
}

#[test]
fn a_lock_that_is_dropped_and_stays_is_told_of() {
    let dir = temp_dir();
    let mut sharer = Actor::new("sharer", dir.path());
    assert_eq!(sharer.hear(), "won");
    assert_eq!(sharer.hear(), "true");
}

#[test]
fn a_lock_that_can_not_be_taken_back_alone_is_left_to_who_has_it() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut lock = locks.acquire(PORT).unwrap();
    let copy = lock.as_fd().try_clone_to_owned().unwrap();
    let error = lock.reclaim(Duration::ZERO).unwrap_err();
    assert!(matches!(error, LockError::StopFailed(_)), "{error:?}");
    assert!(error.to_string().contains("port 8000"), "{error}");
    drop(lock);
    assert!(lock_file(dir.path()).exists());
    let error = locks.acquire(PORT).unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
    drop(copy);
    let mut lock = locks.acquire(PORT).unwrap();
    lock.reclaim(Duration::ZERO).unwrap();
    let own = std::process::id();
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {own}"));
    lock.release().unwrap();
    assert!(!lock_file(dir.path()).exists());
}

#[test]
fn a_hook_that_is_kept_does_not_keep_the_port() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let lock = locks.acquire(PORT).unwrap();
    let hook = lock.child_hook().unwrap();
    let mut command = Command::new("true");
    // SAFETY: the hook is async-signal-safe.
    unsafe { command.pre_exec(move || hook.run()) };
    drop(lock);
    assert!(!lock_file(dir.path()).exists());
    let mut successor = Actor::holding(dir.path());
    // Its descriptors may be others' by now.
    let error = command.spawn().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EBADF), "{error}");
    assert_eq!(successor.ask("verify"), "ok");
    assert_eq!(locks.list_all_locks()[0].pid, successor.pid());
    assert_eq!(successor.ask("release"), "ok");
}

#[cfg(target_os = "linux")]
#[test]
fn a_child_that_names_itself_is_identified_by_what_it_writes() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let leash = common::Leash::new();
    let lock = locks.acquire(PORT).unwrap();
    let hook = lock.child_hook().unwrap();
    let mut command = common::leashed(leash.path());
    // SAFETY: as above.
    unsafe { command.pre_exec(move || hook.run()) };
    let mut server = command.spawn().unwrap();
    let text = fs::read_to_string(lock.path()).unwrap();
    let written: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = common::identified(server.id());
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    for field in ["pid", "port", "boot_id", "pid_ns", "start_ticks"] {
        assert_eq!(written[field], expected[field], "{field}");
    }
    // Without its launcher, and without the launcher's word.
    std::mem::forget(lock);
    assert_eq!(locks.list_all_locks()[0].pid, server.id());
    server.kill().unwrap();
    server.wait().unwrap();
}
