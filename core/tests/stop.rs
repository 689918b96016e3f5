//! Stopping the server that guards a port, and nobody else.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use common::{Actor, DEAD, PATIENCE, PORT, Stage, fork, holder, leashed, lock_file, temp_dir};
use llmlb_lock_core::{
    LockDir, LockError, ServerLock, StopOptions, StopOutcome, is_process_running, stop_process,
};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use tempfile::TempDir;

common::roles!(
    holder,
    polite,
    stubborn,
    waiter,
    with_leftovers,
    slow_starter,
    gives_back_and_stays,
    headless
);

static ASKED: OnceLock<OwnedFd> = OnceLock::new();

extern "C" fn on_term(_: i32) {
    let _ = nix::unistd::write(ASKED.get().expect("set before the handler").as_fd(), b"!");
}

/// A pipe that becomes readable when SIGTERM arrives.
fn term_pipe() -> OwnedFd {
    let (read, write) = nix::unistd::pipe().unwrap();
    ASKED.set(write).unwrap();
    let action = SigAction::new(
        SigHandler::Handler(on_term),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler only writes to a pipe.
    unsafe { sigaction(Signal::SIGTERM, &action) }.unwrap();
    read
}

/// Releases when asked to end.
fn polite(stage: &Stage) {
    let asked = term_pipe();
    let lock = stage.acquire(Duration::ZERO).unwrap();
    nix::unistd::read(&asked, &mut [0]).unwrap();
    lock.release().unwrap();
}

/// Does not end when asked to.
fn stubborn(stage: &Stage) {
    let asked = term_pipe();
    let _lock = stage.acquire(Duration::ZERO).unwrap();
    loop {
        nix::unistd::read(&asked, &mut [0]).unwrap();
        stage.say("no");
    }
}

/// Gives the lock back when asked to end, and runs on.
fn gives_back_and_stays(stage: &Stage) {
    let asked = term_pipe();
    let lock = stage.acquire(Duration::ZERO).unwrap();
    nix::unistd::read(&asked, &mut [0]).unwrap();
    lock.release().unwrap();
    stage.say("released");
    stage.say(stage.hear());
    stage.hear();
}

/// Goes on in a child, whose main thread ends while another one holds the lock.
fn headless(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO);
    let lock = &mut lock;
    fork(|| {
        lock.as_mut().unwrap().adopt().unwrap();
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
        stage.say(std::process::id());
        // SAFETY: ends this thread alone, which leaves nothing behind that others use.
        #[cfg(target_os = "linux")]
        unsafe {
            nix::libc::syscall(nix::libc::SYS_exit, 0)
        };
    });
    // Without destructors: the child has the lock.
    std::process::exit(0);
}

fn waiter(stage: &Stage) {
    stage.say("waiting");
    let lock = stage.acquire(PATIENCE).unwrap();
    stage.hear();
    stage.say(common::done(&lock.release()));
    stage.hear();
}

/// Acquires, and goes on in a child that starts processes which inherit the lock, one of them
/// deaf to SIGTERM, and tells their ids.
fn with_leftovers(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO);
    let lock = &mut lock;
    fork(|| serve_with_leftovers(stage, lock.as_mut().unwrap()));
    // Without destructors: the child has the lock.
    std::process::exit(0);
}

// They are left to whoever ends them.
#[allow(clippy::zombie_processes)]
fn serve_with_leftovers(stage: &Stage, lock: &mut ServerLock) {
    lock.adopt().unwrap();
    let leash = stage.hear();
    let leash = Path::new(&leash);
    lock.set_inheritable(true).unwrap();
    let one = leashed(leash).spawn().unwrap();
    let two = std::process::Command::new("sh")
        .args(["-c", "trap '' TERM; exec cat \"$0\""])
        .arg(leash)
        .stdout(std::process::Stdio::null())
        .stdin(std::process::Stdio::null())
        .spawn()
        .unwrap();
    lock.set_inheritable(false).unwrap();
    // It ignores the signal only once it has become cat.
    common::eventually("it has become cat", || {
        std::fs::read_to_string(format!("/proc/{}/comm", two.id())).unwrap() == "cat\n"
    });
    stage.say(format!("{} {} {}", std::process::id(), one.id(), two.id()));
    stage.hear();
}

fn holding(role: &str) -> (TempDir, LockDir, Actor) {
    let dir = temp_dir();
    let mut actor = Actor::new(role, dir.path());
    assert_eq!(actor.hear(), "won");
    let locks = LockDir::new(dir.path());
    (dir, locks, actor)
}

fn within(timeout: Duration, force: bool) -> StopOptions {
    StopOptions::default().timeout(timeout).force(force)
}

#[track_caller]
fn assert_stopped(outcome: Result<StopOutcome, LockError>, pid: u32, was_forced: bool) {
    let outcome = outcome.unwrap();
    let StopOutcome::Stopped { info, forced, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((info.pid, info.port, forced), (pid, PORT, was_forced));
}

#[test]
fn a_server_that_releases_is_stopped() {
    let (dir, locks, mut server) = holding("polite");
    let outcome = locks.stop_server(PORT, &StopOptions::default());
    assert_stopped(outcome, server.pid(), false);
    assert!(!lock_file(dir.path()).exists());
    assert!(server.wait().success());
}

#[test]
fn a_server_that_just_dies_is_stopped_and_its_file_removed() {
    // Its parent, this test, has not reaped it: it counts as stopped all the same, at once.
    let (dir, locks, mut server) = holding("holder");
    let started = Instant::now();
    let outcome = locks.stop_server(PORT, &StopOptions::default());
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_stopped(outcome, server.pid(), false);
    assert!(!lock_file(dir.path()).exists());
    assert!(!is_process_running(server.pid()));
    assert!(!server.wait().success());
}

#[test]
fn a_server_that_does_not_end_times_out_and_is_spared() {
    let (dir, locks, mut server) = holding("stubborn");
    let timeout = Duration::from_millis(150);
    let started = Instant::now();
    let outcome = locks.stop_server(PORT, &within(timeout, false)).unwrap();
    assert!(started.elapsed() >= timeout);
    assert!(matches!(outcome, StopOutcome::TimedOut { info } if info.pid == server.pid()));
    assert_eq!(server.hear(), "no");
    assert!(server.is_alive());
    assert!(lock_file(dir.path()).exists());
}

#[test]
fn force_kills_after_the_timeout() {
    let (dir, locks, mut server) = holding("stubborn");
    let timeout = Duration::from_millis(150);
    let started = Instant::now();
    let outcome = locks.stop_server(PORT, &within(timeout, true));
    assert!(started.elapsed() >= timeout);
    assert_stopped(outcome, server.pid(), true);
    // It was asked first.
    assert_eq!(server.hear(), "no");
    assert!(!lock_file(dir.path()).exists());
    drop(locks.acquire(PORT).unwrap());
}

#[test]
fn who_has_given_the_port_back_meanwhile_is_not_killed() {
    let (dir, locks, mut server) = holding("gives_back_and_stays");
    let stop = {
        let locks = LockDir::new(dir.path());
        std::thread::spawn(move || locks.stop_server(PORT, &within(Duration::from_secs(1), true)))
    };
    assert_eq!(server.hear(), "released");
    let next = locks.acquire(PORT).unwrap();
    let error = stop.join().unwrap().unwrap_err();
    assert!(matches!(error, LockError::StopFailed(_)), "{error:?}");
    let pid = format!("PID {}: ", server.pid());
    let text = error.to_string();
    assert!(
        text.contains(&pid) && text.contains("has given the port back"),
        "{text}"
    );
    next.verify().unwrap();
    assert_eq!(server.ask("still here"), "still here");
}

#[cfg(target_os = "linux")]
#[test]
fn a_holder_whose_main_thread_has_ended_is_stopped() {
    let (dir, locks, mut launcher) = holding("headless");
    let pid: u32 = launcher.hear().parse().unwrap();
    common::eventually("its main thread has ended", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().starts_with(" Z")
    });
    let outcome = locks.stop_server(PORT, &StopOptions::default());
    assert_stopped(outcome, pid, false);
    assert!(!lock_file(dir.path()).exists());
}

#[test]
fn a_timeout_without_end_is_no_error() {
    let (_dir, locks, server) = holding("polite");
    let outcome = locks.stop_server(PORT, &within(Duration::MAX, true));
    assert_stopped(outcome, server.pid(), false);
}

#[test]
fn a_stop_is_interrupted() {
    let (_dir, locks, mut server) = holding("stubborn");
    let mut calls = 0;
    let result = locks.stop_interruptible(PORT, &within(PATIENCE, true), || {
        calls += 1;
        calls == 2
    });
    assert!(matches!(result, Err(LockError::Interrupted { port: PORT })));
    assert_eq!(server.hear(), "no");
    assert!(server.is_alive());
}

#[test]
fn nobody_is_no_error() {
    let dir = temp_dir();
    for locks in [
        LockDir::new(dir.path()),
        LockDir::new(dir.path().join("none")),
    ] {
        let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        assert_eq!(outcome, StopOutcome::NotRunning);
        // Looking makes nothing.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_stale_file_is_removed() {
    let dir = temp_dir();
    let path = common::plant(dir.path(), common::content(DEAD, "2026-01-30T12:00:00Z"));
    let locks = LockDir::new(dir.path());
    let outcome = locks.stop_server(PORT, &StopOptions::default()).unwrap();
    assert!(matches!(outcome, StopOutcome::StaleCleaned { info: Some(info) } if info.pid == DEAD));
    assert!(!path.exists());
}

#[test]
fn the_calling_process_is_refused() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let lock = locks.acquire(PORT).unwrap();
    let error = locks
        .stop_server(PORT, &StopOptions::default())
        .unwrap_err();
    let LockError::StopFailed(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    lock.verify().unwrap();
}

#[test]
fn port_0_is_refused() {
    let error = LockDir::new("/nowhere").stop_server(0, &StopOptions::default());
    assert!(matches!(error, Err(LockError::InvalidPort { port: 0 })));
}

#[cfg(target_os = "linux")]
#[test]
fn what_inherited_the_lock_ends_with_the_server_though_the_launcher_is_gone() {
    for server_is_killed in [false, true] {
        let (dir, locks, mut launcher) = holding("with_leftovers");
        assert!(launcher.wait().success());
        let leash = common::Leash::new();
        let pids = launcher.ask(leash.path().display());
        let pids: Vec<u32> = pids.split(' ').map(|pid| pid.parse().unwrap()).collect();
        let outcome = if server_is_killed {
            common::signal(pids[0], Signal::SIGKILL);
            common::eventually("it has died", || !is_process_running(pids[0]));
            // Nothing is left to be asked but the one that is deaf.
            locks.stop_server(PORT, &within(Duration::from_millis(300), true))
        } else {
            locks.stop_server(PORT, &StopOptions::default())
        };
        let outcome = outcome.unwrap();
        let StopOutcome::Stopped { info, forced, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(forced, server_is_killed);
        assert_eq!(info.pid == pids[0], !server_is_killed);
        for pid in pids {
            assert!(!is_process_running(pid), "{pid} runs");
        }
        assert!(!lock_file(dir.path()).exists());
        drop(locks.acquire(PORT).unwrap());
    }
}

/// Gets the lock as soon as its holder leaves, and is slow to write its name.
fn slow_starter(stage: &Stage) {
    let path = lock_file(stage.locks.path());
    let file = std::fs::File::options().read(true).write(true).open(&path);
    stage.say("waiting");
    let lock = nix::fcntl::FlockArg::LockExclusive;
    let _lock = nix::fcntl::Flock::lock(file.unwrap(), lock).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let text = common::fresh(std::process::id());
    std::fs::write(&path, text).unwrap();
    stage.say("won");
    stage.say(stage.hear());
}

#[cfg(target_os = "linux")]
#[test]
fn who_takes_the_lock_before_the_old_file_is_gone_is_not_taken_for_a_leftover() {
    let (_dir, locks, server) = holding("holder");
    let mut next = Actor::new("slow_starter", locks.path());
    assert_eq!(next.hear(), "waiting");
    let outcome = locks.stop_server(PORT, &StopOptions::default());
    assert_stopped(outcome, server.pid(), false);
    assert_eq!(next.hear(), "won");
    assert_eq!(next.ask("still here"), "still here");
}

#[cfg(target_os = "linux")]
#[test]
fn who_only_has_the_file_open_is_not_signalled() {
    let (dir, locks, server) = holding("polite");
    let file = std::fs::File::open(lock_file(dir.path())).unwrap();
    let leash = common::Leash::new();
    let mut reader = leashed(leash.path()).stdin(file).spawn().unwrap();
    let outcome = locks.stop_server(PORT, &StopOptions::default());
    assert_stopped(outcome, server.pid(), false);
    assert!(reader.try_wait().unwrap().is_none());
    reader.kill().unwrap();
    reader.wait().unwrap();
}

#[test]
fn a_waiting_process_gets_the_lock_of_a_stopped_server_and_survives() {
    for role in ["polite", "holder"] {
        for round in 0..40 {
            let (dir, locks, server) = holding(role);
            let mut waiter = Actor::new("waiter", dir.path());
            assert_eq!(waiter.hear(), "waiting");
            let outcome = locks.stop_server(PORT, &StopOptions::default());
            assert_stopped(outcome, server.pid(), false);
            assert_eq!(waiter.hear(), "won", "{role}, round {round}");
            assert_eq!(waiter.ask("release"), "ok", "{role}, round {round}");
        }
    }
}

#[test]
fn not_a_process() {
    for pid in [0, i32::MAX as u32 + 1, u32::MAX - 1, u32::MAX] {
        let error = stop_process(pid).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput, "{pid}");
        // The system had no part in it.
        assert_eq!(error.raw_os_error(), None, "{pid}");
        assert!(error.to_string().contains(&pid.to_string()), "{error}");
    }
}

#[test]
fn a_process_by_its_pid() {
    let dir = temp_dir();
    let mut server = Actor::new("polite", dir.path());
    assert_eq!(server.hear(), "won");
    stop_process(server.pid()).unwrap();
    assert!(server.wait().success());
    let error = stop_process(DEAD).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ESRCH as i32));
}
