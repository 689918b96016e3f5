//! A lock directory that a stranger has filled with locks, all of them held. A test program of its own:
//! so many locks and descriptors slow down all who look for theirs, on the whole machine.
// By what a process has open.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use llmlb_tests::{Finished, Running, Sandbox};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::Value;

const HOARDER: &str = env!("CARGO_BIN_EXE_guinea-hoarder");
const NOBODY: u32 = 65534;
const FIRST: u16 = 5000;
/// A sixth of all there may be: the time it takes grows with the number, and no faster.
const COUNT: u16 = 10_000;
/// How many rows `status` shows.
const SHOWN: usize = 2000;

struct Hoarder {
    process: Child,
    files: Vec<PathBuf>,
}

impl Hoarder {
    fn new(sandbox: &Sandbox, first: u16, count: u16) -> Self {
        let mut command = Command::new(HOARDER);
        command.arg(sandbox.path()).arg(first.to_string());
        command.arg(count.to_string()).uid(NOBODY).gid(NOBODY);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let ports = (first..).take(count.into());
        Self {
            process: command.spawn().unwrap(),
            files: ports.map(|port| sandbox.lock_file(port)).collect(),
        }
    }

    fn expect_holding(&mut self) {
        let mut line = String::new();
        let output = self.process.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert!(line.starts_with("holds "), "{line}");
    }
}

impl Drop for Hoarder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The sandbox would stop one after the other.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
    }
}

/// What a command says. A look at each lock for 20 milliseconds takes minutes, and is given up.
fn finish(mut command: Command) -> Finished {
    Running::start(&mut command).finish()
}

fn free_port(from: u16) -> u16 {
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (from..FIRST).find(is_free).unwrap()
}

#[test]
fn ten_thousand_held_locks_of_a_stranger_hold_nobody_up() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("needs root: the locks are another user's");
        return;
    }
    let sandbox = Sandbox::new();
    fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let each = u16::try_from(most.saturating_sub(50))
        .unwrap_or(COUNT)
        .min(3000);
    let firsts = (FIRST..FIRST + COUNT).step_by(each.into());
    let count = |first: u16| each.min(FIRST + COUNT - first);
    let mut hoarders: Vec<_> = firsts
        .map(|first| Hoarder::new(&sandbox, first, count(first)))
        .collect();
    hoarders.iter_mut().for_each(Hoarder::expect_holding);

    let own = sandbox.serve(free_port(2000));
    let table = finish(sandbox.llmlb(["status"])).expect(0);
    let left_out = format!(
        "{} more lock files are not shown; see --port for one of them",
        usize::from(COUNT) + 1 - SHOWN
    );
    let mut lines = table.stdout.lines();
    assert_eq!(lines.next_back(), Some(&*left_out));
    let first = lines.nth(1).unwrap();
    let pid = own.pid().to_string();
    assert!(
        first.contains(&pid) && first.ends_with("Running"),
        "{first}"
    );

    // Another starts beside them, on a port that is free.
    let other = sandbox.serve(free_port(3500));
    let json = finish(sandbox.llmlb(["status", "--all", "--format", "json"])).expect(0);
    let rows: Vec<Value> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows.len(), SHOWN);
    assert_eq!(rows[0]["pid"], own.pid());
    assert_eq!(rows[1]["pid"], other.pid());
    // The others are listed by port, and tell what is true of them.
    let is_stranger = |pid: &Value| hoarders.iter().any(|hoarder| *pid == hoarder.process.id());
    for row in &rows[2..] {
        let status = row["status"].as_str().unwrap();
        match row["port"].as_u64().unwrap() % 3 {
            0 => assert_eq!((status, &row["pid"]), ("Held", &Value::Null), "{row}"),
            _ => {
                assert!(["Starting", "Running"].contains(&status), "{row}");
                assert!(is_stranger(&row["pid"]), "{row}");
            }
        }
    }
    let one = ["status", "--port", "5001", "--format", "json"];
    let one = sandbox.run(one);
    let one: Vec<Value> = serde_json::from_str(&one.stdout).unwrap();
    assert_eq!(
        (one.len(), &one[0]["status"]),
        (1, &"Held".into()),
        "{one:?}"
    );
}
