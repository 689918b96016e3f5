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

/// A process that waits for the lock, with the holder's file open.
#[cfg(target_os = "linux")]
fn waiting(dir: &std::path::Path) -> Actor {
    let mut waiter = Actor::new("waiter", dir);
    assert_eq!(waiter.hear(), "waiting");
    common::eventually("it waits on the file", || {
        common::has_open(waiter.pid(), &lock_file(dir))
    });
    waiter
}

#[cfg(target_os = "linux")]
fn has_a_watch(pid: u32) -> bool {
    common::has_open(pid, "anon_inode:inotify".as_ref())
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
            common::has_open(waiter.pid(), successor.path())
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

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_waits_by_events_and_leaves_none_open() {
    let dir = temp_dir();
    let mut holder = Actor::holding(dir.path());
    let mut waiter = waiting(dir.path());
    common::eventually("it is told of changes", || has_a_watch(waiter.pid()));
    assert_eq!(holder.ask("release"), "ok");
    assert_eq!(waiter.hear(), "won");
    common::eventually("it is closed", || !has_a_watch(waiter.pid()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_gets_the_lock_that_an_inherited_descriptor_kept() {
    let dir = temp_dir();
    let mut lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    lock.set_inheritable(true).unwrap();
    let mut server = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    lock.hand_over(server.id()).unwrap();
    drop(lock);
    let mut waiter = waiting(dir.path());
    assert!(waiter.is_silent());
    server.kill().unwrap();
    assert_eq!(waiter.hear(), "won");
    server.wait().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_waiter_goes_where_the_directory_is() {
    let dir = temp_dir();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let _holder = Actor::holding(&locks);
    let mut waiter = waiting(&locks);
    fs::rename(&locks, dir.path().join("moved")).unwrap();
    assert_eq!(waiter.hear(), "won");
    assert!(lock_file(&locks).exists());
}

#[test]
fn many_waiters_get_it_one_after_the_other() {
    const COUNT: usize = 20;
    let dir = temp_dir();
    let locks = &LockDir::new(dir.path());
    let lock = locks.acquire(PORT).unwrap();
    let mut waiters: Vec<Actor> = (0..COUNT)
        .map(|_| Actor::new("waiter", dir.path()))
        .collect();
    waiters
        .iter_mut()
        .for_each(|waiter| assert_eq!(waiter.hear(), "waiting"));
    lock.release().unwrap();
    for _ in 0..COUNT {
        let mut winner = None;
        common::eventually("one has it", || {
            winner = waiters.iter().position(|waiter| !waiter.is_silent());
            winner.is_some()
        });
        let mut winner = waiters.swap_remove(winner.unwrap());
        let named = locks.read_lock_info(PORT).unwrap().unwrap();
        assert_eq!(named.pid, winner.pid());
        assert!(waiters.iter().all(Actor::is_silent));
        assert_eq!(winner.ask("release"), "ok");
    }
    assert!(!lock_file(dir.path()).exists());
}
