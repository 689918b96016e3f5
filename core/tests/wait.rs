//! Waiting for the holder to leave.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use common::{Actor, PATIENCE, PORT, Stage, holder, lock_file, outcome, temp_dir};
use llmlb_lock_core::{LockDir, LockError};

common::roles!(holder, waiter);

/// Waits for the lock as long as it takes, then holds it until told to release.
fn waiter(stage: &Stage) {
    stage.say("waiting");
    let lock = stage.acquire(PATIENCE).unwrap();
    stage.hear();
    stage.say(common::done(&lock.release()));
    stage.hear();
}

#[cfg(target_os = "linux")]
fn has_open(pid: u32, path: &std::path::Path) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}

/// A process that waits for the lock, with the holder's file open.
#[cfg(target_os = "linux")]
fn waiting(dir: &std::path::Path) -> Actor {
    let mut waiter = Actor::new("waiter", dir);
    assert_eq!(waiter.hear(), "waiting");
    common::eventually("it waits on the file", || {
        has_open(waiter.pid(), &lock_file(dir))
    });
    waiter
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_gets_a_released_lock() {
    let dir = temp_dir();
    let mut holder = Actor::holding(dir.path());
    let mut waiter = waiting(dir.path());
    assert!(waiter.is_silent());
    assert_eq!(holder.ask("release"), "ok");
    assert_eq!(waiter.hear(), "won");
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_gets_a_killed_holders_lock() {
    let dir = temp_dir();
    let mut holder = Actor::holding(dir.path());
    let mut waiter = waiting(dir.path());
    holder.kill();
    assert_eq!(waiter.hear(), "won");
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_cannot_split_the_lock_after_a_release() {
    // The waiter has the old file open, which is unlocked when its holder releases. Holding that
    // must mean nothing: the path is another file by now.
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    for _ in 0..20 {
        let mut holder = Actor::holding(dir.path());
        let mut waiter = waiting(dir.path());
        waiter.pause();
        assert_eq!(holder.ask("release"), "ok");
        // Nor does the old file name a live process any more, which would protect it.
        holder.kill();
        let successor = locks.acquire(PORT).unwrap();
        waiter.resume();
        common::eventually("it waits on the new file", || {
            has_open(waiter.pid(), successor.path())
        });
        assert!(waiter.is_silent());
        successor.verify().unwrap();
        successor.release().unwrap();
        assert_eq!(waiter.hear(), "won");
        assert_eq!(waiter.ask("release"), "ok");
    }
}

#[test]
fn the_timeout_is_kept_and_names_the_holder() {
    let dir = temp_dir();
    let holder = Actor::holding(dir.path());
    let before = fs::read(lock_file(dir.path())).unwrap();
    let timeout = Duration::from_millis(150);
    let started = Instant::now();
    let result = LockDir::new(dir.path()).acquire_timeout(PORT, timeout);
    assert!(started.elapsed() >= timeout);
    assert!(started.elapsed() < timeout + PATIENCE / 2);
    assert_eq!(outcome(&result), format!("lost to {}", holder.pid()));
    // A loser leaves the holder's bytes as they are.
    assert_eq!(fs::read(lock_file(dir.path())).unwrap(), before);
}

#[test]
fn a_timeout_without_end_is_no_error() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let lock = locks.acquire_timeout(PORT, Duration::MAX).unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| locks.acquire_timeout(PORT, Duration::MAX).map(drop));
        lock.release().unwrap();
        waiter.join().unwrap().unwrap();
    });
}

#[test]
fn a_wait_is_interrupted() {
    let dir = temp_dir();
    let holder = Actor::holding(dir.path());
    let mut calls = 0;
    let result = LockDir::new(dir.path()).acquire_interruptible(PORT, PATIENCE, || {
        calls += 1;
        calls == 3
    });
    assert!(matches!(result, Err(LockError::Interrupted { port: PORT })));
    assert_eq!(calls, 3);
    drop(holder);
}

#[test]
fn without_a_holder_nothing_is_waited_for() {
    let dir = temp_dir();
    let never = || panic!("asked without need");
    let lock = LockDir::new(dir.path()).acquire_interruptible(PORT, PATIENCE, never);
    drop(lock.unwrap());
}

#[test]
fn a_waiter_takes_the_place_of_a_process_that_is_alive_without_the_lock() {
    let dir = temp_dir();
    let mut daemon = Actor::new("echo", dir.path());
    common::plant(dir.path(), common::fresh(daemon.pid()));
    let locks = LockDir::new(dir.path());
    let mut calls = 0;
    let lock = locks.acquire_interruptible(PORT, PATIENCE, || {
        calls += 1;
        if calls == 2 {
            daemon.kill();
        }
        false
    });
    assert_eq!(lock.unwrap().info().pid, std::process::id());
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_does_not_wait_for_a_file_that_was_removed_under_its_holder() {
    let dir = temp_dir();
    let _holder = Actor::holding(dir.path());
    let waiter = waiting(dir.path());
    fs::remove_file(lock_file(dir.path())).unwrap();
    let locks = LockDir::new(dir.path());
    common::eventually("the waiter is named", || {
        let named = locks.read_lock_info(PORT).unwrap();
        named.is_some_and(|info| info.pid == waiter.pid())
    });
}
