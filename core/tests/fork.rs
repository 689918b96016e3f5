//! A forked child has the lock's descriptor, but is not the holder.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Actor, PATIENCE, PORT, Stage, done, fork, lock_file, outcome, temp_dir};
use llmlb_lock_core::{LockDir, LockError, ServerState, StopOptions, StopOutcome};
use nix::sys::wait::waitpid;

common::roles!(parent);

/// Acquires and forks a child that does as told; then holds on until told to release.
fn parent(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO).unwrap();
    let order = stage.hear();
    // In the parent, the lock stays in `lock`; the child's copy is moved out of `copy`.
    let copy = &mut lock;
    let child = fork(|| match order.as_str() {
        "drop" => {
            // SAFETY: the copy belongs to the child alone, which exits without touching it again.
            drop(unsafe { std::ptr::read(copy) });
            stage.say("dropped");
        }
        "release" => {
            // SAFETY: as above.
            stage.say(done(&unsafe { std::ptr::read(copy) }.release()));
        }
        "exit" => {}
        "hand_over" => stage.say(done(&copy.hand_over(std::process::id()))),
        "stay" => {
            stage.say(std::process::id());
            stage.stay();
        }
        _ => panic!("no order {order}"),
    });
    if order != "stay" {
        waitpid(child, None).unwrap();
        stage.say("alone");
    }
    stage.hear();
    stage.say(done(&lock.release()));
    stage.hear();
}

fn start(order: &str) -> (tempfile::TempDir, Actor) {
    let dir = temp_dir();
    let mut parent = Actor::new("parent", dir.path());
    assert_eq!(parent.hear(), "won");
    parent.tell(order);
    (dir, parent)
}

fn still_guarded_then_released(dir: &tempfile::TempDir, parent: &mut Actor) {
    let locks = LockDir::new(dir.path());
    let refused = format!("lost to {}", parent.pid());
    assert!(lock_file(dir.path()).exists());
    assert_eq!(outcome(&locks.acquire(PORT)), refused);
    assert_eq!(parent.ask("release"), "ok");
    assert!(!lock_file(dir.path()).exists());
    drop(locks.acquire(PORT).unwrap());
}

#[test]
fn a_child_that_drops_its_copy_frees_nothing() {
    let (dir, mut parent) = start("drop");
    assert_eq!(parent.hear(), "dropped");
    assert_eq!(parent.hear(), "alone");
    still_guarded_then_released(&dir, &mut parent);
}

#[test]
fn a_child_that_releases_frees_nothing() {
    let (dir, mut parent) = start("release");
    assert_eq!(parent.hear(), "ok");
    assert_eq!(parent.hear(), "alone");
    still_guarded_then_released(&dir, &mut parent);
}

#[test]
fn a_child_that_exits_frees_nothing() {
    let (dir, mut parent) = start("exit");
    assert_eq!(parent.hear(), "alone");
    still_guarded_then_released(&dir, &mut parent);
}

#[test]
fn a_child_may_not_hand_over() {
    let (dir, mut parent) = start("hand_over");
    let refusal = format!("NotOwner {{ port: {PORT}, owner: {} }}", parent.pid());
    assert_eq!(parent.hear(), refusal);
    assert_eq!(parent.hear(), "alone");
    still_guarded_then_released(&dir, &mut parent);
}

#[test]
fn a_released_lock_is_kept_by_a_child_that_has_the_descriptor() {
    let (dir, mut parent) = start("stay");
    let child: u32 = parent.hear().parse().unwrap();
    let answer = parent.ask("release");
    assert!(answer.contains("ResourceBusy"), "{answer}");
    // The parent lives, but guards nothing any more: it must not be named.
    let locks = LockDir::new(dir.path());
    let error = locks.acquire(PORT).unwrap_err();
    assert!(
        matches!(error, LockError::HeldByUnknown { port: PORT, .. }),
        "{error}"
    );
    assert_eq!(locks.servers().unwrap()[0].state, ServerState::Held);
    let child = nix::unistd::Pid::from_raw(i32::try_from(child).unwrap());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    // With the child the lock ends, though the parent lives on.
    let lock = locks.acquire_timeout(PORT, PATIENCE).unwrap();
    assert!(parent.is_alive());
    lock.release().unwrap();
}

#[test]
fn a_child_that_outlives_its_parent_keeps_the_port() {
    let (dir, mut parent) = start("stay");
    let child: u32 = parent.hear().parse().unwrap();
    parent.kill();
    let locks = LockDir::new(dir.path());
    // The file names the dead parent: nobody is named rather than the wrong one.
    let error = locks.acquire(PORT).unwrap_err();
    assert!(
        matches!(error, LockError::HeldByUnknown { port: PORT, .. }),
        "{error}"
    );
    if cfg!(target_os = "linux") {
        let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        let StopOutcome::Stopped {
            info,
            forced: false,
            ..
        } = outcome
        else {
            panic!("{outcome:?}");
        };
        assert_eq!(info.pid, child);
        drop(locks.acquire(PORT).unwrap());
    }
}
