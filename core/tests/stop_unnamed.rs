//! Stopping whoever holds a lock whose file names nobody: found by their descriptors, looked at again
//! after a pause, and only then signalled.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use common::{Actor, PORT, Stage, fork, lock_file, temp_dir};
use llmlb_lock_core::{LockDir, LockError, StopOptions, StopOutcome, is_process_running};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

common::roles!(alone, shared, obliging);

/// Holds a lock that names nobody, lets go of it when told to, and stays.
fn alone(stage: &Stage) {
    let lock = unnamed(stage);
    stage.say("held");
    let_go(stage, lock);
}

/// The same, while a child holds it too.
fn shared(stage: &Stage) {
    let lock = unnamed(stage);
    let child = fork(|| stage.stay());
    stage.say(child);
    let_go(stage, lock);
}

static ASKED: OnceLock<OwnedFd> = OnceLock::new();

extern "C" fn on_term(_: i32) {
    let _ = nix::unistd::write(ASKED.get().expect("set before the handler").as_fd(), b"!");
}

/// Lets go of a lock that names nobody when asked to end, and stays; its child does neither.
fn obliging(stage: &Stage) {
    let lock = unnamed(stage);
    let (read, write) = nix::unistd::pipe().unwrap();
    ASKED.set(write).unwrap();
    let action = |handler| SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: nothing is called.
    unsafe { sigaction(Signal::SIGTERM, &action(SigHandler::SigIgn)) }.unwrap();
    let child = fork(|| stage.stay());
    // SAFETY: the handler only writes to a pipe.
    unsafe { sigaction(Signal::SIGTERM, &action(SigHandler::Handler(on_term))) }.unwrap();
    stage.say(child);
    nix::unistd::read(&read, &mut [0]).unwrap();
    drop(lock);
    stage.say("let go");
    loop {
        stage.say(stage.hear());
    }
}

fn unnamed(stage: &Stage) -> File {
    let path = lock_file(stage.locks.path());
    let lock = File::create_new(path).unwrap();
    // SAFETY: the descriptor is open, and stays so.
    let locked = unsafe { nix::libc::flock(lock.as_raw_fd(), nix::libc::LOCK_EX) };
    assert_eq!(locked, 0);
    lock
}

fn let_go(stage: &Stage, lock: File) {
    stage.hear();
    drop(lock);
    stage.say("let go");
    loop {
        stage.say(stage.hear());
    }
}

/// Whether this test has a handle of the process open, as a stop has between its two looks.
fn has_handle(pid: u32) -> bool {
    let fds = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let mut texts = fds.map(|fd| fs::read_to_string(fd.path()).unwrap_or_default());
    let is_handle = |text: String| {
        let pids = text.lines().filter_map(|line| line.strip_prefix("Pid:"));
        pids.map(str::trim).any(|found| found == pid.to_string())
    };
    texts.any(is_handle)
}

/// Stops the port; its holder lets go when it has been looked at for the first time.
fn stop_while_letting_go(dir: &Path, holder: &mut Actor) -> Result<StopOutcome, LockError> {
    let mut has_let_go = false;
    let options = StopOptions::default();
    let outcome = LockDir::new(dir).stop_interruptible(PORT, &options, || {
        if !has_let_go && has_handle(holder.pid()) {
            assert_eq!(holder.ask("let go"), "let go");
            has_let_go = true;
        }
        false
    });
    assert!(has_let_go);
    outcome
}

#[test]
fn who_lets_go_of_the_lock_meanwhile_is_spared() {
    let dir = temp_dir();
    let mut holder = Actor::new("alone", dir.path());
    assert_eq!(holder.hear(), "held");
    let outcome = stop_while_letting_go(dir.path(), &mut holder).unwrap();
    assert_eq!(outcome, StopOutcome::StaleCleaned { info: None });
    assert_eq!(holder.ask("still here"), "still here");
    assert!(!lock_file(dir.path()).exists());
}

#[test]
fn also_where_another_holds_it_still() {
    let dir = temp_dir();
    let mut holder = Actor::new("shared", dir.path());
    let child: u32 = holder.hear().parse().unwrap();
    let outcome = stop_while_letting_go(dir.path(), &mut holder).unwrap();
    let StopOutcome::Stopped { info, forced, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((info.pid, forced), (child, false));
    assert!(!is_process_running(child));
    assert_eq!(holder.ask("still here"), "still here");
    assert!(!lock_file(dir.path()).exists());
}

#[test]
fn by_force_only_those_are_killed_that_hold_it_still() {
    let dir = temp_dir();
    let mut holder = Actor::new("obliging", dir.path());
    let child: u32 = holder.hear().parse().unwrap();
    let options = StopOptions::default()
        .timeout(Duration::from_secs(1))
        .force(true);
    let outcome = LockDir::new(dir.path()).stop_server(PORT, &options);
    assert_eq!(holder.hear(), "let go");
    assert_eq!(holder.ask("still here"), "still here");
    let StopOutcome::Stopped { info, forced, .. } = outcome.unwrap() else {
        panic!("not stopped");
    };
    assert_eq!((info.pid, forced), (child, true));
    assert!(!is_process_running(child));
    assert!(!lock_file(dir.path()).exists());
}
