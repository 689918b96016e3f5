//! The lock directory is renamed, removed or out of reach while locks are taken, waited for and held.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Actor, PATIENCE, PORT, Stage, done, holder, is_root, lock_file, temp_dir};
use llmlb_lock_core::{LockDir, LockError};

common::roles!(holder, confined);

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// Waits for a holder, and meanwhile does `disturb` to the directory.
fn wait_while(disturb: impl Fn(&Path)) {
    let dir = temp_dir();
    let path = dir.path().join("locks");
    fs::create_dir(&path).unwrap();
    let locks = LockDir::new(&path);
    let _holder = Actor::holding(&path);
    let mut disturbed = false;
    let lock = locks.acquire_interruptible(PORT, PATIENCE, || {
        if !disturbed {
            disturb(&path);
            disturbed = true;
        }
        false
    });
    // The holder is still there, in a directory that nobody finds any more.
    let lock = lock.unwrap();
    lock.verify().unwrap();
    assert!(lock_file(&path).exists());
    lock.release().unwrap();
    assert!(is_empty(&path));
}

#[test]
fn who_waits_for_a_holder_in_a_directory_that_is_renamed_gets_the_new_one() {
    wait_while(|path| fs::rename(path, path.with_extension("moved")).unwrap());
}

#[test]
fn who_waits_for_a_holder_in_a_directory_that_is_removed_gets_the_new_one() {
    wait_while(|path| fs::remove_dir_all(path).unwrap());
}

#[test]
fn who_waits_for_a_holder_in_a_directory_that_is_replaced_gets_the_new_one() {
    wait_while(|path| {
        fs::rename(path, path.with_extension("moved")).unwrap();
        fs::create_dir(path).unwrap();
    });
}

#[test]
fn a_directory_that_is_renamed_again_and_again_costs_no_start_its_time_and_keeps_no_file() {
    let dir = temp_dir();
    let path = dir.path().join("locks");
    let locks = LockDir::new(&path);
    let done = AtomicBool::new(false);
    let mut moved = 0;
    let mut slow = 0;
    thread::scope(|scope| {
        let starts = scope.spawn(|| {
            let mut slow = 0;
            for _ in 0..2000 {
                let started = Instant::now();
                match locks.acquire(PORT) {
                    Ok(lock) => drop(lock),
                    // Gone between its creation and its opening.
                    Err(LockError::DirectoryCreationFailed(_)) => {}
                    Err(e) => panic!("{e}"),
                }
                // The second in which a start looks for a name in a file that nobody writes.
                slow += u32::from(started.elapsed() >= Duration::from_secs(1));
            }
            done.store(true, Ordering::Relaxed);
            slow
        });
        while !done.load(Ordering::Relaxed) && !starts.is_finished() {
            if fs::rename(&path, dir.path().join(moved.to_string())).is_ok() {
                moved += 1;
            }
        }
        slow += starts.join().unwrap();
    });
    assert!(moved > 10);
    assert_eq!(slow, 0);
    for moved in 0..moved {
        assert!(is_empty(&dir.path().join(moved.to_string())), "{moved}");
    }
}

#[test]
fn a_lock_in_a_directory_that_was_renamed_is_lost_and_given_back_there() {
    let dir = temp_dir();
    let path = dir.path().join("locks");
    let locks = LockDir::new(&path);
    let lock = locks.acquire(PORT).unwrap();
    let moved = dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    assert!(matches!(lock.verify(), Err(LockError::Lost { .. })));
    let next = locks.acquire(PORT).unwrap();
    drop(lock);
    assert!(is_empty(&moved));
    next.verify().unwrap();
}

/// A daemon that changes its root once it has its lock.
fn confined(stage: &Stage) {
    let lock = stage.acquire(Duration::ZERO).unwrap();
    let root = stage.hear();
    nix::unistd::chroot(root.as_str()).unwrap();
    nix::unistd::chdir("/").unwrap();
    assert!(fs::read_dir("/").unwrap().next().is_none());
    stage.say(done(&lock.verify()));
    stage.hear();
    stage.say(done(&lock.verify()));
    stage.hear();
    stage.say(done(&lock.release()));
}

#[test]
fn a_daemon_that_changes_its_root_keeps_its_lock() {
    if !is_root("a_daemon_that_changes_its_root_keeps_its_lock") {
        return;
    }
    for removed in [false, true] {
        let (dir, root) = (temp_dir(), temp_dir());
        let mut daemon = Actor::new("confined", dir.path());
        assert_eq!(daemon.hear(), "won");
        assert_eq!(daemon.ask(root.path().display()), "ok");
        if removed {
            fs::remove_file(lock_file(dir.path())).unwrap();
            let answer = daemon.ask("verify");
            assert!(answer.starts_with("Lost"), "{answer}");
        } else {
            assert_eq!(daemon.ask("verify"), "ok");
        }
        assert_eq!(daemon.ask("release"), "ok");
        assert!(is_empty(dir.path()));
    }
}
