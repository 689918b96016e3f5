//! A lock file that is removed or replaced under its holder.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;

use common::{Actor, PORT, holder, lock_file, logged, temp_dir};
use llmlb_lock_core::{LockDir, LockError, ServerLock};

common::roles!(holder);

#[test]
fn an_intact_lock_verifies() {
    let dir = temp_dir();
    let lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    lock.verify().unwrap();
    // What it says is not what it is.
    fs::write(lock.path(), "scribble").unwrap();
    lock.verify().unwrap();
}

#[test]
fn a_removed_file_is_lost() {
    let dir = temp_dir();
    let lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    fs::remove_file(lock.path()).unwrap();
    let error = lock.verify().unwrap_err();
    let LockError::Lost { port: PORT, path } = error else {
        panic!("{error}");
    };
    assert_eq!(path, lock_file(dir.path()));
}

#[test]
fn a_replaced_file_is_lost_and_the_successors_stays() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    for drops in [false, true] {
        let first = locks.acquire(PORT).unwrap();
        fs::remove_file(first.path()).unwrap();
        let mut successor = Actor::holding(dir.path());
        assert!(matches!(first.verify(), Err(LockError::Lost { .. })));
        let ((), log) = logged(|| {
            if drops {
                drop(first);
            } else {
                first.release().unwrap();
            }
        });
        assert!(log.contains("was removed or replaced"), "{log}");
        assert_eq!(successor.ask("verify"), "ok");
        let named = locks.read_lock_info(PORT).unwrap().unwrap().pid;
        assert_eq!(named, successor.pid());
        assert_eq!(successor.ask("release"), "ok");
    }
}

#[test]
fn another_file_moved_into_place_is_lost() {
    let dir = temp_dir();
    let lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    let other = dir.path().join("other");
    fs::copy(lock.path(), &other).unwrap();
    fs::rename(&other, lock.path()).unwrap();
    assert!(matches!(lock.verify(), Err(LockError::Lost { .. })));
    lock.release().unwrap();
    assert!(lock_file(dir.path()).exists());
}

#[test]
fn a_lost_lock_is_not_adopted() {
    let dir = temp_dir();
    let mut lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    fs::remove_file(lock.path()).unwrap();
    assert!(matches!(lock.adopt(), Err(LockError::Lost { .. })));
}

#[test]
fn a_removed_directory_is_lost_and_made_again() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path().join("locks"));
    let lock = locks.acquire(PORT).unwrap();
    fs::remove_dir_all(locks.path()).unwrap();
    assert!(matches!(lock.verify(), Err(LockError::Lost { .. })));
    let next = locks.acquire(PORT).unwrap();
    drop(lock);
    next.verify().unwrap();
}

#[test]
fn a_lock_may_be_sent_to_and_shared_with_threads() {
    fn send_and_sync<T: Send + Sync + 'static>() {}
    send_and_sync::<ServerLock>();
    send_and_sync::<LockError>();
}
