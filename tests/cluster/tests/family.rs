//! All of an exclusive service is gone before another starts: not its first process alone, but what
//! that has started, whatever became of llmlb.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{eventually, is_running};
use llmlb_tests::{Running, Sandbox, family_binary, free_port, signal_pid};
use nix::sys::signal::Signal;

const NOBODY: u32 = 65534;

/// Those that have left the server's group and session, in all ways there are.
const KINDS: [&str; 5] = ["session", "deaf", "renamed", "stopped", "twice=2"];
const MEMBERS: usize = 6;

fn serve(sandbox: &Sandbox, etcd: &Etcd, user: Option<u32>, more: &[&str]) -> Command {
    let (port, url) = (free_port().to_string(), etcd.url("family").to_string());
    let mut command = sandbox.llmlb(["serve", "--port", &port, "--cluster", &url]);
    command.args(["--service", "chat", "--exclusive", "--ttl", "3"]);
    command.args(["--drain-timeout", "0.5"]).args(more);
    command.arg("--").arg(family_binary()).args(["serve", "0"]);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    command
}

struct Service {
    llmlb: Running,
    server: u32,
    members: Vec<u32>,
    /// Deliberately: it has unset the variable, and left the session.
    let_go: u32,
}

impl Service {
    fn start(sandbox: &Sandbox, etcd: &Etcd, user: Option<u32>) -> Self {
        let mut first = serve(sandbox, etcd, user, &[]);
        let mut llmlb = Running::start(first.args(KINDS).arg("let-go"));
        let (mut members, mut server) = (Vec::new(), 0);
        while members.len() < MEMBERS + 1 || server == 0 {
            let line = llmlb.expect_output(" ");
            let (what, pid) = line.split_once(' ').unwrap();
            match what {
                "member" => members.push(pid.parse().unwrap()),
                _ => server = pid.parse().unwrap(),
            }
        }
        let is_let_go = |pid: &u32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
            let text = String::from_utf8_lossy(&environ);
            text.contains("PATH=") && !text.contains("LLMLB_SERVER_ID")
        };
        let let_go = *members.iter().find(|pid| is_let_go(pid)).unwrap();
        members.retain(|&pid| pid != let_go);
        Self {
            llmlb,
            server,
            members,
            let_go,
        }
    }

    fn is_gone(&self) -> bool {
        !self.members.iter().any(|&pid| is_running(pid)) && !is_running(self.server)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for &pid in self.members.iter().chain([&self.let_go]) {
            if is_running(pid) {
                signal_pid(pid, Signal::SIGKILL);
            }
        }
    }
}

/// As root, with a cgroup where there may be one, and as a user without.
fn users() -> Vec<Option<u32>> {
    match nix::unistd::geteuid().is_root() {
        true => vec![None, Some(NOBODY)],
        false => vec![None],
    }
}

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let mode = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(sandbox.path(), mode).unwrap();
    sandbox
}

#[test]
fn what_the_server_has_started_goes_with_a_killed_llmlb() {
    for user in users() {
        let (etcd, sandbox) = (Etcd::start(1), sandbox());
        let mut service = Service::start(&sandbox, &etcd, user);
        service.llmlb.kill();
        eventually("all of it is gone", || service.is_gone());
        assert!(is_running(service.let_go), "it was let go");
    }
}

#[test]
fn what_the_server_has_started_is_gone_before_another_takes_over_from_a_stopped_llmlb() {
    for user in users() {
        let (etcd, sandbox) = (Etcd::start(1), sandbox());
        let service = Service::start(&sandbox, &etcd, user);
        let mut standby = Running::start(&mut serve(&sandbox, &etcd, user, &["--wait"]));
        standby.expect_log("Waiting: Service chat is active");
        service.llmlb.signal(Signal::SIGSTOP);
        standby.expect_output("ready");
        assert!(service.is_gone(), "it overlaps");
        assert!(is_running(service.let_go), "it was let go");
        service.llmlb.signal(Signal::SIGCONT);
    }
}

#[test]
fn what_a_server_that_has_ended_left_behind_goes_with_a_stopped_llmlb() {
    for user in users() {
        let (etcd, sandbox) = (Etcd::start(1), sandbox());
        let service = Service::start(&sandbox, &etcd, user);
        let mut standby = Running::start(&mut serve(&sandbox, &etcd, user, &["--wait"]));
        standby.expect_log("Waiting: Service chat is active");
        service.llmlb.signal(Signal::SIGSTOP);
        signal_pid(service.server, Signal::SIGKILL);
        standby.expect_output("ready");
        assert!(service.is_gone(), "it overlaps");
        service.llmlb.signal(Signal::SIGCONT);
    }
}

#[test]
fn a_stop_ends_all_of_it_and_not_the_watchdog_before() {
    for user in users() {
        let (etcd, sandbox) = (Etcd::start(1), sandbox());
        let mut service = Service::start(&sandbox, &etcd, user);
        service.llmlb.ask_to_end();
        service.llmlb.wait();
        assert!(service.is_gone());
        assert!(is_running(service.let_go), "it was let go");
    }
}
