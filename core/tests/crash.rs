//! However a holder dies, the next one starts at once, and two never overlap.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use common::{Actor, PATIENCE, PORT, Stage, fork, holder, lock_file, logged, temp_dir};
use llmlb_lock_core::LockDir;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::waitpid;
use nix::time::{ClockId, clock_gettime};

const LOOPERS: usize = 8;
const HOLDS: usize = 60;

common::roles!(holder, looper);

#[test]
fn kill_9_leaves_nothing_that_blocks() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    for round in 0..30 {
        let mut holder = Actor::holding(dir.path());
        let pid = holder.pid();
        holder.kill();
        assert!(lock_file(dir.path()).exists(), "round {round}");
        let (lock, log) = logged(|| locks.acquire(PORT));
        let warning = format!("Stale lock file detected (PID {pid} not running), cleaning up");
        assert!(log.contains(&warning), "round {round}: {log}");
        lock.unwrap().release().unwrap();
        assert!(!lock_file(dir.path()).exists(), "round {round}");
    }
}

#[test]
fn exit_without_release_leaves_nothing_that_blocks() {
    let dir = temp_dir();
    let mut holder = Actor::holding(dir.path());
    holder.tell("leave");
    assert!(holder.wait().success());
    drop(LockDir::new(dir.path()).acquire(PORT).unwrap());
}

/// Forks holders, of which every other one dies by kill -9 and the rest release.
fn looper(stage: &Stage) {
    let diary = stage.locks.path().join("diary");
    for round in 0..HOLDS {
        let child = fork(|| {
            let lock = stage.locks.acquire_timeout(PORT, PATIENCE).unwrap();
            let start = now();
            // Long enough for another to get in, if the lock lets it.
            let end = start + Duration::from_micros(200);
            while now() < end {
                std::hint::spin_loop();
            }
            let end = now();
            let mut options = fs::OpenOptions::new();
            let mut diary = options.append(true).create(true).open(&diary).unwrap();
            let line = format!("{} {}\n", start.as_nanos(), end.as_nanos());
            diary.write_all(line.as_bytes()).unwrap();
            if round % 2 == 0 {
                raise(Signal::SIGKILL).unwrap();
            }
            lock.release().unwrap();
        });
        waitpid(child, None).unwrap();
    }
    stage.say("done");
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

#[test]
fn holds_never_overlap_when_half_of_the_holders_crash() {
    let dir = temp_dir();
    let mut loopers: Vec<_> = (0..LOOPERS)
        .map(|_| Actor::new("looper", dir.path()))
        .collect();
    for looper in &mut loopers {
        assert_eq!(looper.hear(), "done");
    }
    let diary = fs::read_to_string(dir.path().join("diary")).unwrap();
    let mut holds: Vec<(u128, u128)> = diary
        .lines()
        .map(|line| {
            let (start, end) = line.split_once(' ').unwrap();
            (start.parse().unwrap(), end.parse().unwrap())
        })
        .collect();
    assert_eq!(holds.len(), LOOPERS * HOLDS);
    holds.sort_unstable();
    for pair in holds.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:?} overlap");
    }
}

#[test]
fn a_refused_start_does_not_wait() {
    let dir = temp_dir();
    let holder = Actor::holding(dir.path());
    let started = Instant::now();
    let result = LockDir::new(dir.path()).acquire(PORT);
    assert_eq!(
        common::outcome(&result),
        format!("lost to {}", holder.pid())
    );
    // Below the second that an unclear holder is given.
    assert!(started.elapsed() < Duration::from_millis(900));
}
