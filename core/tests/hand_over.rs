//! A launcher gives the lock to the server it starts: it lasts as long as the server.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Actor, DEAD, Leash, PORT, Stage, done, leashed, lock_file, outcome, temp_dir};
use llmlb_lock_core::{LockDir, LockError, ServerState, StopOptions, StopOutcome};
use tempfile::TempDir;

common::roles!(launcher);

/// Starts a server with the lock, hands it over, and does as told.
// The servers are left to whoever ends them.
#[allow(clippy::zombie_processes)]
fn launcher(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO).unwrap();
    let leash = stage.hear();
    lock.set_inheritable(true).unwrap();
    let server = leashed(Path::new(&leash)).spawn().unwrap();
    lock.set_inheritable(false).unwrap();
    // Started without the lock: it must not matter to the guard.
    let mut bystander = leashed(Path::new(&leash)).spawn().unwrap();
    stage.say(server.id());
    stage.say(done(&lock.hand_over(server.id())));
    loop {
        match stage.hear().as_str() {
            "drop" => {
                drop(lock);
                stage.say("ok");
                break;
            }
            "release" => {
                stage.say(done(&lock.release()));
                break;
            }
            "adopt" => stage.say(done(&lock.adopt())),
            "hand over to nobody" => stage.say(done(&lock.hand_over(DEAD))),
            "hand over to the other" => {
                stage.say(done(&lock.hand_over(bystander.id())));
                bystander.kill().unwrap();
            }
            order => panic!("no order {order}"),
        }
    }
    stage.hear();
}

struct Launch {
    dir: TempDir,
    locks: LockDir,
    launcher: Actor,
    server: u32,
    _leash: Leash,
}

fn launch() -> Launch {
    let dir = temp_dir();
    let leash = Leash::new();
    let mut launcher = Actor::new("launcher", dir.path());
    assert_eq!(launcher.hear(), "won");
    launcher.tell(leash.path().display());
    let server = launcher.hear().parse().unwrap();
    assert_eq!(launcher.hear(), "ok");
    Launch {
        locks: LockDir::new(dir.path()),
        dir,
        launcher,
        server,
        _leash: leash,
    }
}

impl Launch {
    fn is_guarded_by_the_server(&self) {
        let refused = format!("lost to {}", self.server);
        assert_eq!(outcome(&self.locks.acquire(PORT)), refused);
        let servers = self.locks.servers().unwrap();
        assert_eq!(servers.len(), 1);
        assert_eq!(servers[0].state, ServerState::Running);
        assert_eq!(servers[0].info.as_ref().unwrap().pid, self.server);
    }

    fn stop_ends_the_server(&self) {
        let stopped = self.locks.stop_server(PORT, &StopOptions::default());
        let StopOutcome::Stopped { info, forced, .. } = stopped.unwrap() else {
            panic!("not stopped");
        };
        assert_eq!((info.pid, forced), (self.server, false));
        assert!(!lock_file(self.dir.path()).exists());
        drop(self.locks.acquire(PORT).unwrap());
    }
}

#[test]
fn the_guard_outlives_a_killed_launcher_and_stop_ends_the_server() {
    let mut launch = launch();
    launch.is_guarded_by_the_server();
    launch.launcher.kill();
    launch.is_guarded_by_the_server();
    launch.stop_ends_the_server();
}

#[test]
fn dropping_the_lock_leaves_it_to_the_server() {
    for way in ["drop", "release"] {
        let mut launch = launch();
        assert_eq!(launch.launcher.ask(way), "ok");
        launch.is_guarded_by_the_server();
        launch.stop_ends_the_server();
    }
}

#[test]
fn a_server_without_launcher_that_dies_leaves_nothing_that_blocks() {
    let mut launch = launch();
    launch.launcher.kill();
    let server = nix::unistd::Pid::from_raw(i32::try_from(launch.server).unwrap());
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL).unwrap();
    let lock = launch.locks.acquire_timeout(PORT, common::PATIENCE);
    lock.unwrap().release().unwrap();
}

#[test]
fn a_lock_that_was_taken_back_and_released_ends_with_the_server() {
    let mut launch = launch();
    assert_eq!(launch.launcher.ask("adopt"), "ok");
    let refused = format!("lost to {}", launch.launcher.pid());
    assert_eq!(outcome(&launch.locks.acquire(PORT)), refused);
    // Its server lives still, with the lock's descriptor.
    let answer = launch.launcher.ask("release");
    assert!(answer.contains("ResourceBusy"), "{answer}");
    let error = launch.locks.acquire(PORT).unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
    let server = nix::unistd::Pid::from_raw(i32::try_from(launch.server).unwrap());
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL).unwrap();
    let lock = launch.locks.acquire_timeout(PORT, common::PATIENCE);
    lock.unwrap().release().unwrap();
    assert!(!lock_file(launch.dir.path()).exists());
}

#[test]
fn only_a_live_process_gets_the_lock() {
    let mut launch = launch();
    let refused = format!("NoSuchProcess {{ port: {PORT}, pid: {DEAD} }}");
    assert_eq!(launch.launcher.ask("hand over to nobody"), refused);
    launch.is_guarded_by_the_server();
    for pid in [0, u32::MAX, i32::MAX as u32 + 1] {
        let dir = temp_dir();
        let mut lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
        let error = lock.hand_over(pid).unwrap_err();
        assert!(matches!(error, LockError::NoSuchProcess { .. }), "{error}");
        assert_eq!(lock.info().pid, std::process::id());
    }
}

#[test]
fn a_lost_lock_is_not_handed_over() {
    let mut launch = launch();
    std::fs::remove_file(lock_file(launch.dir.path())).unwrap();
    let other = launch.locks.acquire(PORT).unwrap();
    let answer = launch.launcher.ask("hand over to the other");
    assert!(answer.starts_with("Lost"), "{answer}");
    let info = launch.locks.read_lock_info(PORT).unwrap().unwrap();
    assert_eq!(&info, other.info());
}
