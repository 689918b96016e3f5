//! What the tests of the cluster stand on: real etcd processes, a proxy that lies, and the program
//! that plays servers, watchdogs and candidates.
#![cfg(target_os = "linux")]
// For the tests beside it alone.
#![allow(missing_docs, clippy::expect_used, clippy::panic)]

pub mod etcd;
pub mod proxy;
pub mod tls;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a machine under load may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The directory of the binaries of this build.
fn bin_dir() -> PathBuf {
    let mut dir = std::env::current_exe().expect("a test knows its own path");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}

/// Where data may go: below `target`.
pub fn scratch() -> tempfile::TempDir {
    let dir = bin_dir().join("../tmp");
    std::fs::create_dir_all(&dir).expect("target can be written");
    tempfile::Builder::new()
        .prefix("cluster-")
        .tempdir_in(dir)
        .expect("target/tmp can be written")
}

/// The program of all roles.
pub fn guinea() -> PathBuf {
    bin_dir().join("cluster-guinea")
}

/// A role of it.
pub fn role(name: &str) -> Command {
    let mut command = Command::new(guinea());
    command.arg(name);
    command
}

/// Waits until `done` says so; panics with `what` when patience ends.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Panics when none of three attempts takes less than `limit`: a busy machine is late at times, what
/// is wrong is late each time.
pub fn within(limit: Duration, mut attempt: impl FnMut() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 3 {
        took.push(attempt());
        if took.last().is_some_and(|took| *took < limit) {
            return;
        }
    }
    panic!("not within {limit:?}: {took:?}");
}

/// Those that any thread of it has started, and nobody has waited for.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    let children = tasks.map(|task| {
        let path = task.expect("it is there").path().join("children");
        std::fs::read_to_string(path).unwrap_or_default()
    });
    let text = children.collect::<Vec<_>>().join(" ");
    let pids = text.split_whitespace();
    pids.map(|pid| pid.parse().expect("a PID")).collect()
}

/// Not a zombie either.
pub fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
    state.is_some_and(|state| !matches!(state, b'Z' | b'X'))
}
