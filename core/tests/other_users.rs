//! Several users on one machine: each sees the others' servers, and none can use a lock file to
//! make another do something.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{
    Actor, DEAD, Leash, PORT, Stage, content, fresh, holder, identified, is_root, leashed,
    lock_file, logged, open_dir, outcome, plant,
};
use llmlb_lock_core::{
    GUARDED_PORT_ENV, LockDir, LockError, ServerState, StopOptions, StopOutcome,
};

common::roles!(holder, contender, stopper, squatter, with_offspring);

const NOBODY: u32 = 65534;

fn contender(stage: &Stage) {
    stage.acquire(Duration::ZERO);
    match stage.locks.server(PORT).unwrap().unwrap().state {
        ServerState::Unreadable { owner } => stage.say(format!("owned by {}", owner.unwrap())),
        state => stage.say(format!("{state:?}")),
    }
}

fn stopper(stage: &Stage) {
    let result = stage.locks.stop_server(PORT, &StopOptions::default());
    stage.say(match result {
        Ok(outcome) => format!("{outcome:?}"),
        Err(e) => format!("error {e}"),
    });
}

/// Holds the lock and writes into the file what it likes.
fn squatter(stage: &Stage) {
    let _lock = stage.acquire(Duration::ZERO).unwrap();
    fs::write(lock_file(stage.locks.path()), stage.hear()).unwrap();
    stage.say("written");
    stage.hear();
}

fn owned_by_nobody(dir: &Path, text: &str) {
    let path = plant(dir, text);
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// A process of root's that would not survive SIGTERM.
fn bystander() -> Actor {
    let dir = open_dir();
    let mut bystander = Actor::new("echo", dir.path());
    assert_eq!(bystander.ask("here"), "here");
    bystander
}

#[test]
fn another_users_server_is_shown_and_refused() {
    if !is_root("another_users_server_is_shown_and_refused") {
        return;
    }
    let dir = open_dir();
    let mut server = Actor::holding(dir.path());
    let mut contender = Actor::nobody("contender", dir.path());
    let text = contender.hear();
    assert!(text.starts_with("error Failed to acquire lock: "), "{text}");
    for part in [
        lock_file(dir.path()).to_str().unwrap(),
        "belongs to user root",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(contender.hear(), "owned by root");
    let mut stopper = Actor::nobody("stopper", dir.path());
    let text = stopper.hear();
    assert!(text.contains("belongs to user root"), "{text}");
    assert_eq!(server.ask("verify"), "ok");
}

#[test]
fn root_sees_and_stops_another_users_server() {
    if !is_root("root_sees_and_stops_another_users_server") {
        return;
    }
    let dir = open_dir();
    let locks = LockDir::new(dir.path());
    let mut server = Actor::nobody("holder", dir.path());
    assert_eq!(server.hear(), "won");
    let refused = format!("lost to {}", server.pid());
    assert_eq!(outcome(&locks.acquire(PORT)), refused);
    assert_eq!(locks.list_all_locks().len(), 1);
    let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
    assert!(matches!(outcome, StopOutcome::Stopped { info, .. } if info.pid == server.pid()));
    assert!(!lock_file(dir.path()).exists());
}

#[test]
fn another_users_leftover_is_not_trusted() {
    if !is_root("another_users_leftover_is_not_trusted") {
        return;
    }
    let dir = open_dir();
    let text = content(DEAD, "2026-01-30T12:00:00Z");
    owned_by_nobody(dir.path(), &text);
    let error = LockDir::new(dir.path()).acquire(PORT).unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains(lock_file(dir.path()).to_str().unwrap()),
        "{shown}"
    );
    assert!(shown.contains("belongs to user nobody"), "{shown}");
    assert_eq!(fs::read_to_string(lock_file(dir.path())).unwrap(), text);
}

#[test]
fn a_strangers_file_never_makes_root_signal_while_nobody_holds_it() {
    if !is_root("a_strangers_file_never_makes_root_signal_while_nobody_holds_it") {
        return;
    }
    let dir = open_dir();
    let locks = LockDir::new(dir.path());
    let mut bystander = bystander();
    let pid = bystander.pid();
    for text in [fresh(pid), fresh(1), identified(pid)] {
        owned_by_nobody(dir.path(), &text);
        let options = StopOptions::default()
            .timeout(Duration::from_millis(100))
            .force(true);
        // A left-over, whomever it names.
        let (outcome, log) = logged(|| locks.stop_server(PORT, &options).unwrap());
        assert_eq!(outcome, StopOutcome::StaleCleaned { info: None });
        assert!(!log.contains("PID"), "{log}");
    }
    assert_eq!(bystander.ask("unharmed"), "unharmed");
}

#[test]
fn a_strangers_file_never_makes_root_signal_while_the_stranger_holds_it() {
    if !is_root("a_strangers_file_never_makes_root_signal_while_the_stranger_holds_it") {
        return;
    }
    let dir = open_dir();
    let locks = LockDir::new(dir.path());
    let mut bystander = bystander();
    for pid in [bystander.pid(), 1] {
        let mut squatter = Actor::nobody("squatter", dir.path());
        assert_eq!(squatter.hear(), "won");
        assert_eq!(squatter.ask(fresh(pid)), "written");
        // Nor is it shown to anybody: who holds the lock is not known from the file.
        let error = locks.acquire(PORT).unwrap_err();
        assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
        let server = locks.server(PORT).unwrap().unwrap();
        assert_eq!((server.state, server.info), (ServerState::Held, None));
        // The stranger itself is found by its descriptor.
        let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        let StopOutcome::Stopped { info, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(info.pid, squatter.pid());
    }
    assert_eq!(bystander.ask("unharmed"), "unharmed");
}

/// Leads a process group, as a launcher makes its server do, and tells when it may be stopped.
fn with_offspring(stage: &Stage) {
    let _lock = stage.acquire(Duration::ZERO).unwrap();
    stage.hear();
}

#[test]
fn what_a_stranger_leaves_in_its_group_is_ended_if_it_is_its_own() {
    if !is_root("what_a_stranger_leaves_in_its_group_is_ended_if_it_is_its_own") {
        return;
    }
    let leash = Leash::new();
    for (user, ends) in [(NOBODY, true), (0, false)] {
        let dir = open_dir();
        let mut server = Actor::start("with_offspring", dir.path(), |command: &mut Command| {
            command.uid(NOBODY).gid(NOBODY).process_group(0);
        });
        assert_eq!(server.hear(), "won");
        // As by a program that runs as another user for whoever starts it.
        let mut other = leashed(leash.path())
            .env(GUARDED_PORT_ENV, PORT.to_string())
            .process_group(i32::try_from(server.pid()).unwrap())
            .uid(user)
            .spawn()
            .unwrap();
        let locks = LockDir::new(dir.path());
        let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        assert!(
            matches!(outcome, StopOutcome::Stopped { .. }),
            "{outcome:?}"
        );
        let ended = !llmlb_lock_core::is_process_running(other.id());
        assert_eq!(ended, ends, "user {user}");
        let _ = other.kill();
        other.wait().unwrap();
    }
}
