//! Which process a lock file means: not merely one of that number, in whatever boot, container or
//! namespace.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::time::Duration;

use common::{
    Actor, PATIENCE, PORT, Stage, content, done, fork, fresh, holder, identified, is_root,
    lock_file, logged, outcome, plant, temp_dir, with_identity,
};
use llmlb_lock_core::{LockDir, LockError, ServerState, StopOptions, StopOutcome};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;

common::roles!(holder, container, nested, squatter, headless);

/// As the first process of a container that shares the lock directory.
fn container(stage: &Stage) {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let init = fork(|| {
        assert_eq!(std::process::id(), 1);
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).unwrap();
        let lock = stage.acquire(Duration::ZERO);
        stage.hear();
        drop(lock);
    });
    stage.say(init);
    waitpid(init, None).unwrap();
    stage.say("ended");
    stage.hear();
}

#[test]
fn a_killed_containers_left_over_blocks_nobody_on_the_host() {
    if !is_root("a_killed_containers_left_over_blocks_nobody_on_the_host") {
        return;
    }
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut container = Actor::new("container", dir.path());
    // Either comes first.
    let (said, more) = (container.hear(), container.hear());
    let init: u32 = [said, more].iter().find_map(|s| s.parse().ok()).unwrap();
    let named = locks.read_lock_info(PORT).unwrap().unwrap();
    assert_eq!(named.pid, 1);

    // While it runs, its PID means nothing here, and must not be advised to be killed.
    let error = locks.acquire(PORT).unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
    let server = locks.server(PORT).unwrap().unwrap();
    assert_eq!(server.state, ServerState::Held);

    common::signal(init, Signal::SIGKILL);
    assert_eq!(container.hear(), "ended");
    let server = locks.server(PORT).unwrap().unwrap();
    assert_eq!(server.state, ServerState::Stale);
    assert_eq!(locks.list_all_locks(), []);
    let (lock, log) = logged(|| locks.acquire(PORT));
    lock.unwrap().release().unwrap();
    assert!(log.contains("WARN"), "{log}");
    assert!(
        log.contains("Stale lock file detected (PID 1 not running)"),
        "{log}"
    );
    assert!(log.contains(&format!("port {PORT}")), "{log}");
}

#[test]
fn a_free_lock_is_a_left_over_unless_the_identity_fits_exactly() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut bystander = Actor::new("echo", dir.path());
    assert_eq!(bystander.ask("here"), "here");
    let pid = bystander.pid();
    let exact = identified(pid);
    let json: serde_json::Value = serde_json::from_str(&exact).unwrap();
    let boot = json["boot_id"].as_str().unwrap();
    let pid_ns = json["pid_ns"].as_u64().unwrap();
    let start = json["start_ticks"].as_u64().unwrap();
    for text in [
        fresh(pid),
        content(1, "2026-01-30T12:00:00Z"),
        fresh(1),
        with_identity(
            &fresh(pid),
            "00000000-0000-0000-0000-000000000000",
            pid_ns,
            start,
        ),
        with_identity(&fresh(pid), boot, pid_ns + 1, start),
        with_identity(&fresh(pid), boot, pid_ns, start - 1),
        with_identity(&fresh(pid), boot, pid_ns, start + 1),
        exact.replace(r#""start_ticks""#, r#""ticks""#),
    ] {
        plant(dir.path(), &text);
        let server = locks.server(PORT).unwrap().unwrap();
        assert_eq!(server.state, ServerState::Stale, "{text}");
        let (lock, log) = logged(|| locks.acquire(PORT));
        lock.unwrap_or_else(|e| panic!("{text}: {e}"))
            .release()
            .unwrap();
        assert!(
            log.contains("Stale lock file detected (PID "),
            "{text}: {log}"
        );
        plant(dir.path(), &text);
        let stopped = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        assert!(
            matches!(stopped, StopOutcome::StaleCleaned { .. }),
            "{text}"
        );
    }
    plant(dir.path(), &exact);
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {pid}"));
    let server = locks.server(PORT).unwrap().unwrap();
    assert_eq!(server.state, ServerState::Running);
    assert_eq!(bystander.ask("unharmed"), "unharmed");
}

/// Holds the lock and writes into the file what it likes.
fn squatter(stage: &Stage) {
    let _lock = stage.acquire(Duration::ZERO).unwrap();
    loop {
        fs::write(lock_file(stage.locks.path()), stage.hear()).unwrap();
        stage.say("written");
    }
}

#[test]
fn while_the_lock_is_held_a_file_without_identity_is_judged_by_the_start() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut squatter = Actor::new("squatter", dir.path());
    assert_eq!(squatter.hear(), "won");
    let pid = squatter.pid();
    squatter.ask(fresh(pid));
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {pid}"));
    assert_eq!(locks.list_all_locks()[0].pid, pid);
    // With one it has to be the right one.
    squatter.ask(with_identity(&fresh(pid), "another boot", 1, 1));
    let error = locks.acquire(PORT).unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
    let server = locks.server(PORT).unwrap().unwrap();
    assert_eq!(server.state, ServerState::Held);
    squatter.ask(identified(pid));
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {pid}"));
}

/// Acquires as PID 1 of a namespace, and forks a PID 1 of another one, which drops its copy.
fn nested(stage: &Stage) {
    unshare(CloneFlags::CLONE_NEWPID).unwrap();
    let parent = fork(|| {
        assert_eq!(std::process::id(), 1);
        let mut lock = stage.acquire(Duration::ZERO).unwrap();
        unshare(CloneFlags::CLONE_NEWPID).unwrap();
        let copy = &mut lock;
        let child = fork(|| {
            assert_eq!(std::process::id(), 1);
            stage.say(done(&copy.hand_over(1)));
            // SAFETY: the copy belongs to the child alone, which exits without touching it again.
            drop(unsafe { std::ptr::read(copy) });
            stage.say("dropped");
        });
        waitpid(child, None).unwrap();
        stage.hear();
        stage.say(done(&lock.release()));
    });
    waitpid(parent, None).unwrap();
}

#[test]
fn a_child_with_its_parents_pid_frees_nothing() {
    if !is_root("a_child_with_its_parents_pid_frees_nothing") {
        return;
    }
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut nested = Actor::new("nested", dir.path());
    assert_eq!(nested.hear(), "won");
    let refused = nested.hear();
    assert!(refused.starts_with("NotOwner"), "{refused}");
    assert_eq!(nested.hear(), "dropped");
    assert!(lock_file(dir.path()).exists());
    let error = locks.acquire(PORT).unwrap_err();
    assert!(matches!(error, LockError::HeldByUnknown { .. }), "{error}");
    assert_eq!(nested.ask("release"), "ok");
    assert!(!lock_file(dir.path()).exists());
}

/// A process whose main thread has ended: another one holds the lock.
fn headless(stage: &Stage) {
    let child = fork(|| {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let main = format!("/proc/self/task/{}/stat", std::process::id());
                let ended = || fs::read_to_string(&main).unwrap().contains(") Z ");
                common::eventually("the main thread ends", ended);
                stage.say(std::process::id());
                let lock = stage.acquire(Duration::ZERO);
                stage.hear();
                drop(lock);
                std::process::exit(0);
            });
            // SAFETY: ends this thread alone, which owns nothing.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
    });
    waitpid(child, None).unwrap();
    stage.say("ended");
}

#[test]
fn a_process_whose_main_thread_has_ended_is_alive() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut actor = Actor::new("headless", dir.path());
    let pid: u32 = actor.hear().parse().unwrap();
    assert_eq!(actor.hear(), "won");
    assert!(llmlb_lock_core::is_process_running(pid));
    assert_eq!(outcome(&locks.acquire(PORT)), format!("lost to {pid}"));
    assert_eq!(locks.list_all_locks()[0].pid, pid);
    actor.tell("end");
    assert_eq!(actor.hear(), "ended");
    assert!(!llmlb_lock_core::is_process_running(pid));
    drop(locks.acquire_timeout(PORT, PATIENCE).unwrap());
}
