//! No server outlives its guardian or its time, whoever is killed or stopped.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{PATIENCE, eventually, role, scratch};
use llmlb_lock_cluster::watchdog::Watchdog;
use llmlb_lock_cluster::{Cluster, ClusterUrl, Options, Record, Timing};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process that is a child of ours, or of one of ours.
fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).unwrap();
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).unwrap();
    if signal == Signal::SIGSTOP {
        eventually("it is stopped", || state(pid).as_deref() == Some("T"));
    }
}

/// As /proc tells it.
fn state(pid: impl std::fmt::Display) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.rsplit(')').next()?;
    Some(rest.split_whitespace().next()?.to_owned())
}

fn is_running(pid: u32) -> bool {
    !matches!(state(pid).as_deref(), None | Some("Z" | "X"))
}

/// What the server has written last is younger than its first.
fn serves(dir: &Path) -> bool {
    std::fs::read_to_string(dir.join("history")).is_ok_and(|text| text.contains("begin"))
}

/// A guardian, its watchdog, and its server.
struct Trio {
    guardian: Child,
    input: Option<std::process::ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
    watchdog: u32,
    server: u32,
    dir: tempfile::TempDir,
}

impl Trio {
    /// The server waits behind its gate.
    fn gated() -> Self {
        let dir = scratch();
        let mut guardian = role("guardian")
            .arg(llmlb_cluster_tests::guinea())
            .arg("server")
            .arg(dir.path())
            .args(["1", "stubborn"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut trio = Self {
            input: guardian.stdin.take(),
            output: BufReader::new(guardian.stdout.take().unwrap()),
            guardian,
            watchdog: 0,
            server: 0,
            dir,
        };
        trio.watchdog = trio.hear("watchdog");
        trio.server = trio.hear("gated");
        trio
    }

    fn open(&mut self) {
        writeln!(self.input.as_ref().unwrap(), "open").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "open\n");
        eventually("it serves", || serves(self.dir.path()));
    }

    fn hear(&mut self, what: &str) -> u32 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim()
            .strip_prefix(what)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    fn all_end(&mut self) {
        let (watchdog, server) = (self.watchdog, self.server);
        eventually("the server has ended", || !is_running(server));
        eventually("the watchdog has ended", || !is_running(watchdog));
    }
}

impl Drop for Trio {
    fn drop(&mut self) {
        let _ = self.guardian.kill();
        let _ = self.guardian.wait();
    }
}

#[test]
fn a_killed_guardian_takes_its_server_along() {
    let mut trio = Trio::gated();
    trio.open();
    trio.guardian.kill().unwrap();
    trio.all_end();
}

#[test]
fn a_guardian_that_ends_takes_its_server_along() {
    let mut trio = Trio::gated();
    trio.open();
    trio.input = None;
    trio.all_end();
}

#[test]
fn a_guardian_killed_before_the_gate_is_open_leaves_no_server() {
    let mut trio = Trio::gated();
    trio.guardian.kill().unwrap();
    trio.all_end();
    assert!(!serves(trio.dir.path()), "it ran unwatched");
}

#[test]
fn signals_for_the_guardian_do_not_end_its_watchdog_first() {
    let mut trio = Trio::gated();
    trio.open();
    for term in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGTSTP,
    ] {
        signal(trio.watchdog, term);
    }
    // Handled before what comes next, if it were.
    assert!(is_running(trio.watchdog) && is_running(trio.server));
    trio.guardian.kill().unwrap();
    trio.all_end();
}

/// It has a process group of its own, which is nobody's when the guardian is gone: then the kernel
/// continues what is stopped there.
#[test]
fn a_stopped_watchdog_is_continued_by_the_end_of_its_guardian() {
    let mut trio = Trio::gated();
    trio.open();
    signal(trio.watchdog, Signal::SIGSTOP);
    trio.guardian.kill().unwrap();
    trio.guardian.wait().unwrap();
    trio.all_end();
}

#[test]
fn the_server_has_neither_the_gate_nor_the_channel() {
    let inherited = |pid: &str| -> Vec<String> {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .map(|target| target.to_string_lossy().into_owned())
            .filter(|target| target.starts_with("pipe:") || target.starts_with("socket:"))
            .collect()
    };
    // What started the tests may have passed pipes on to all of us.
    let before = inherited("self");
    let mut trio = Trio::gated();
    trio.open();
    for target in inherited(&trio.server.to_string()) {
        assert!(before.contains(&target), "{target}");
    }
}

#[test]
fn the_server_has_the_standard_input_it_was_given() {
    let watchdog = Watchdog::start(role("watchdog")).unwrap();
    let (theirs, mut ours) = std::io::pipe().unwrap();
    let mut launcher = role("gate");
    let gate = watchdog.gate(&mut launcher, Some(theirs.into())).unwrap();
    let mut child = launcher.arg("cat").stdout(Stdio::piped()).spawn().unwrap();
    gate.open(child.id(), None).unwrap();
    ours.write_all(b"hello").unwrap();
    drop(ours);
    let said = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert_eq!(said, "hello");
    child.wait().unwrap();
}

#[test]
fn a_watchdog_keeps_nothing_open_that_it_inherited() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    nix::fcntl::fcntl(
        &writer,
        nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()),
    )
    .unwrap();
    let watchdog = Watchdog::start(role("watchdog")).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", watchdog.pid().unwrap()))
        .unwrap()
        .count();
    assert!(open <= 6, "{open} descriptors");
    drop(writer);
    let mut end = [0];
    assert_eq!(nix::unistd::read(&reader, &mut end).unwrap(), 0);
}

#[test]
fn a_program_that_is_no_watchdog_is_an_error() {
    let error = Watchdog::start(Command::new("true"))
        .unwrap_err()
        .to_string();
    assert_eq!(error, "The watchdog failed: the watchdog has ended");
    assert!(Watchdog::start(Command::new("/nowhere")).is_err());
}

/// An active server in etcd, guarded by a candidate process.
struct Active {
    etcd: Etcd,
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    dir: tempfile::TempDir,
    watchdog: u32,
    server: u32,
}

impl Active {
    fn start(ttl: &str, drain: &str) -> Self {
        let etcd = Etcd::start(1);
        let dir = scratch();
        let mut child = role("candidate")
            .arg(format!("etcd://127.0.0.1:{}/t", etcd.nodes[0].port))
            .args(["chat", "gpu1"])
            .arg(dir.path())
            .args([ttl, drain, "stubborn"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut active = Self {
            etcd,
            child,
            lines,
            dir,
            watchdog: 0,
            server: 0,
        };
        active.watchdog = active.hear("watchdog").parse().unwrap();
        let line = active.hear("active");
        active.server = line.split(' ').nth(1).unwrap().parse().unwrap();
        eventually("it serves", || serves(active.dir.path()));
        active
    }

    /// The rest of the next line that begins so.
    fn hear(&mut self, what: &str) -> String {
        loop {
            let line = self.lines.next().expect("it goes on").unwrap();
            if let Some(rest) = line.strip_prefix(what) {
                return rest.trim().to_owned();
            }
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_server_of_a_stopped_guardian_is_dead_at_the_deadline() {
    let mut active = Active::start("2", "0.2");
    // It would be active at once if the server were not.
    let cluster = active.etcd.cluster("t");
    signal(active.child.id(), Signal::SIGSTOP);
    let timing = Timing::new(Duration::from_secs(2), Duration::ZERO).unwrap();
    let options = Options::new(Record::new("chat", "gpu2", 8000), timing);
    let next = cluster
        .acquire_timeout("chat", options, Some(PATIENCE))
        .unwrap();
    assert!(!is_running(active.server), "two are active");
    drop(next);
    // It continues, finds what happened, and is active again in good order.
    signal(active.child.id(), Signal::SIGCONT);
    let lost = active.hear("lost");
    assert!(
        lost.contains("watchdog had to kill") || lost.contains("in time"),
        "{lost}"
    );
    active.hear("active");
}

#[test]
fn a_killed_watchdog_is_noticed_and_the_server_ended() {
    let mut active = Active::start("3", "0.5");
    signal(active.watchdog, Signal::SIGKILL);
    let lost = active.hear("lost");
    assert!(lost.contains("the watchdog has ended"), "{lost}");
    let server = active.server;
    eventually("the server has ended", || !is_running(server));
    active.hear("active");
}

#[test]
fn while_the_server_of_a_killed_watchdog_drains_another_watches() {
    let mut active = Active::start("15", "4");
    signal(active.watchdog, Signal::SIGKILL);
    active.hear("lost");
    assert!(is_running(active.server), "it drains");
    active.child.kill().unwrap();
    let server = active.server;
    eventually("the server has ended", || !is_running(server));
}

#[test]
fn a_stopped_watchdog_is_noticed_and_the_server_ended() {
    let mut active = Active::start("3", "0.5");
    signal(active.watchdog, Signal::SIGSTOP);
    let lost = active.hear("lost");
    assert!(lost.contains("does not answer"), "{lost}");
    let server = active.server;
    eventually("the server has ended", || !is_running(server));
    // The candidate gets rid of the stopped one, and starts another.
    active.hear("active");
    let watchdog = active.watchdog;
    eventually("the watchdog has ended", || !is_running(watchdog));
}

#[test]
fn a_watchdog_whose_time_has_passed_without_a_server_sleeps() {
    let etcd = Etcd::start(1);
    let proxy = llmlb_cluster_tests::proxy::Proxy::start(etcd.nodes[0].port);
    let url = format!("etcd://127.0.0.1:{}/t", proxy.port);
    let cluster = Cluster::connect(&ClusterUrl::parse(&url).unwrap()).unwrap();
    let timing = Timing::new(Duration::from_secs(1), Duration::ZERO).unwrap();
    let options = Options::new(Record::new("chat", "gpu1", 8000), timing)
        .with_watchdog(Watchdog::start(role("watchdog")).unwrap());
    let exclusive = cluster.acquire("chat", options).unwrap();
    let pid = exclusive.watchdog().unwrap().pid().unwrap();
    proxy.faults.cut(true);
    eventually("the time is over", || exclusive.remaining().is_zero());
    // In ticks of 10 ms.
    let cpu = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_millis(500));
    assert!(cpu() - before < 10, "it does not sleep");
}

/// What remains: with both stopped nobody is there to kill. The token then protects whoever looks
/// at it, and whichever continues first kills.
#[test]
fn of_both_stopped_the_first_that_continues_ends_the_server() {
    for first in ["guardian", "watchdog"] {
        let mut active = Active::start("2", "0.2");
        signal(active.child.id(), Signal::SIGSTOP);
        signal(active.watchdog, Signal::SIGSTOP);
        let cluster = active.etcd.cluster("t");
        let timing = Timing::new(Duration::from_secs(2), Duration::ZERO).unwrap();
        let options = Options::new(Record::new("chat", "gpu2", 8000), timing);
        let next = cluster
            .acquire_timeout("chat", options, Some(PATIENCE))
            .unwrap();
        assert!(is_running(active.server), "who has ended it?");
        signal(
            if first == "guardian" {
                active.child.id()
            } else {
                active.watchdog
            },
            Signal::SIGCONT,
        );
        let server = active.server;
        eventually("the server has ended", || !is_running(server));
        drop(next);
        if first == "guardian" {
            active.hear("lost");
        }
    }
}

#[test]
fn of_both_killed_the_watchdog_last_the_server_is_ended_by_it() {
    let active = Active::start("2", "0.2");
    signal(active.child.id(), Signal::SIGKILL);
    let server = active.server;
    // The watchdog sees the end of its guardian at once; only one killed within that time is too late.
    eventually("the server has ended", || !is_running(server));
}

#[test]
fn a_group_goes_with_the_server_that_leads_it() {
    use std::os::unix::process::CommandExt;
    let watchdog = Watchdog::start(role("watchdog")).unwrap();
    let mut launcher = role("gate");
    let gate = watchdog.gate(&mut launcher, None).unwrap();
    launcher.args(["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"]);
    let mut child = launcher
        .process_group(0)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gate.open(child.id(), None).unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let helper: u32 = line.trim().parse().unwrap();
    assert!(is_running(helper));
    drop(watchdog);
    child.wait().unwrap();
    eventually("its helper is gone", || !is_running(helper));
}
