//! No descriptors left: what can't be told is an error, and never taken for death.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Actor, DEAD, PORT, Stage, done, identified, lock_file, outcome, plant, temp_dir};
use llmlb_lock_core::{Kin, is_process_running};
use nix::sys::signal::Signal;

common::roles!(full, starter, watchdog);

/// Opens files until no descriptor is left.
fn exhaust() -> Vec<File> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn full(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO).unwrap();
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let files = exhaust();
    stage.say(is_process_running(child.id()));
    stage.say(is_process_running(DEAD));
    stage.say(done(&lock.hand_over(child.id())));
    stage.say(done(&lock.hand_over(DEAD)));
    stage.say(done(&lock.verify()));
    drop(files);
    stage.say(done(&lock.hand_over(child.id())));
    stage.say(done(&lock.adopt()));
    let files = exhaust();
    // A lock that can't be given back in order is given back all the same.
    stage.say(done(&lock.release()));
    drop(files);
    child.kill().unwrap();
    child.wait().unwrap();
    stage.acquire(Duration::ZERO);
}

#[test]
fn a_live_child_is_not_dead() {
    let dir = temp_dir();
    let mut actor = Actor::new("full", dir.path());
    assert_eq!(actor.hear(), "won");
    assert_eq!(actor.hear(), "true");
    assert_eq!(actor.hear(), "false");
    let refused = actor.hear();
    assert!(refused.starts_with("HandOverFailed"), "{refused}");
    assert!(refused.contains("cannot tell"), "{refused}");
    // That there is no process needs no descriptor.
    let refused = actor.hear();
    assert!(refused.starts_with("NoSuchProcess"), "{refused}");
    for what in ["verify", "hand over", "adopt"] {
        assert_eq!(actor.hear(), "ok", "{what}");
    }
    let refused = actor.hear();
    assert!(refused.starts_with("ReleaseFailed"), "{refused}");
    assert!(refused.contains("serve_8000.lock"), "{refused}");
    assert_eq!(actor.hear(), "won");
}

/// Acquires with as many descriptors left as it is told.
fn starter(stage: &Stage) {
    let left: usize = stage.hear().parse().unwrap();
    let mut files = exhaust();
    files.truncate(files.len() - left);
    let result = stage.locks.acquire(PORT);
    drop(files);
    stage.say(outcome(&result));
}

#[test]
fn a_live_holders_port_is_never_recovered() {
    let dir = temp_dir();
    let mut daemon = Actor::new("echo", dir.path());
    assert_eq!(daemon.ask("here"), "here");
    // It has closed its descriptors.
    let text = identified(daemon.pid());
    plant(dir.path(), &text);
    for left in 0..4 {
        let mut starter = Actor::new("starter", dir.path());
        let refused = starter.ask(left);
        let lost = refused == format!("lost to {}", daemon.pid());
        assert!(lost || refused.starts_with("error"), "{left}: {refused}");
        assert!(lost || refused.contains("Too many open files"), "{refused}");
        assert_eq!(fs::read_to_string(lock_file(dir.path())).unwrap(), text);
    }
}

/// Kills a server without descriptors, and looks with them whether all of it has ended.
fn watchdog(stage: &Stage) {
    // Known by nothing but its descent, as long as that lasts.
    let script = "env -i setsid sleep 1000 & echo $!; exec cat";
    let mut server = Command::new("sh");
    let server = server.args(["-c", script]).stdin(Stdio::piped());
    let mut server = server.stdout(Stdio::piped()).spawn().unwrap();
    let mut escaped = String::new();
    let output = server.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut escaped).unwrap();
    let id = format!("8000.0.place.1.{}.1", std::process::id());
    let mut kin = Kin::new(&id, server.id(), false).unwrap();
    let files = exhaust();
    let blind = kin.kill();
    drop(files);
    server.wait().unwrap();
    stage.say(escaped.trim());
    stage.say(blind.is_ok());
    stage.say(kin.kill().is_ok());
    stage.hear();
}

#[test]
fn a_server_whose_family_was_not_seen_has_not_certainly_ended() {
    let dir = temp_dir();
    let mut watchdog = Actor::new("watchdog", dir.path());
    let escaped = watchdog.hear().parse().unwrap();
    let told = [watchdog.hear(), watchdog.hear()];
    common::signal(escaped, Signal::SIGKILL);
    assert_eq!(told, ["false", "false"]);
}
