//! All of an exclusive service is gone before another starts: not its first process alone, but what
//! that has started, whatever became of llmlb.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{children, eventually, is_running};
use llmlb_tests::{Running, Sandbox, family_binary, free_port, signal_pid};
use nix::sys::signal::Signal;

const NOBODY: u32 = 65534;

/// Those that have left the server's group and session, in all ways there are.
const KINDS: [&str; 5] = ["session", "deaf", "renamed", "stopped", "twice=2"];
const MEMBERS: usize = 6;

fn serve(sandbox: &Sandbox, etcd: &Etcd, user: Option<u32>, more: &[&str]) -> Command {
    serve_on(free_port(), sandbox, etcd, user, more)
}

fn serve_on(
    port: u16,
    sandbox: &Sandbox,
    etcd: &Etcd,
    user: Option<u32>,
    more: &[&str],
) -> Command {
    let (port, url) = (port.to_string(), etcd.url("family").to_string());
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
    port: u16,
    server: u32,
    members: Vec<u32>,
    /// Deliberately: it has unset the variable, and left the session.
    let_go: u32,
}

impl Service {
    fn start(sandbox: &Sandbox, etcd: &Etcd, user: Option<u32>) -> Self {
        let port = free_port();
        let mut first = serve_on(port, sandbox, etcd, user, &[]);
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
        let is_let_go = |&pid: &u32| {
            let text = environment(pid);
            text.contains("PATH=") && !text.contains("LLMLB_SERVER_ID")
        };
        let let_go = *members.iter().find(|pid| is_let_go(pid)).unwrap();
        members.retain(|&pid| pid != let_go);
        Self {
            llmlb,
            port,
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

fn environment(pid: u32) -> String {
    let environ = std::fs::read(format!("/proc/{pid}/environ"));
    String::from_utf8_lossy(&environ.unwrap_or_default()).into_owned()
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

/// With a cgroup the server goes with llmlb; without it is nobody's. Either way the port's lock
/// protects it from a second one, until what is left there is ended.
#[test]
fn what_llmlb_and_its_watchdog_killed_at_once_leave_is_ended_by_the_next_start_or_a_stop() {
    for user in users() {
        let (etcd, sandbox) = (Etcd::start(1), sandbox());
        let mut service = Service::start(&sandbox, &etcd, user);
        let (server, port) = (service.server, service.port);
        let groups = std::fs::read_to_string(format!("/proc/{server}/cgroup")).unwrap();
        let mut guards = children(service.llmlb.pid());
        guards.retain(|&child| {
            let words = std::fs::read_to_string(format!("/proc/{child}/cmdline"));
            words.unwrap().contains("@watchdog")
        });
        // Stopped, it notices nothing meanwhile.
        service.llmlb.signal(Signal::SIGSTOP);
        signal_pid(guards[0], Signal::SIGKILL);
        service.llmlb.kill();
        let next = || Running::start(&mut serve_on(port, &sandbox, &etcd, user, &["--wait"]));
        if groups.contains("/llmlb-") {
            eventually("the server has ended", || !is_running(server));
            assert!(service.members.iter().any(|&pid| is_running(pid)));
            let mut next = next();
            next.expect_log("left behind by a killed server");
            next.expect_output("ready");
            assert!(service.is_gone(), "it overlaps");
            continue;
        }
        assert!(is_running(server), "who has ended it?");
        let refused = serve_on(port, &sandbox, &etcd, user, &[]).output().unwrap();
        let refused = String::from_utf8(refused.stderr).unwrap();
        let named = format!("Server already running on port {port} (PID: {server}, ");
        assert!(refused.contains(&named), "{refused}");
        let mut stop = sandbox.llmlb(["stop", &port.to_string()]);
        if let Some(user) = user {
            stop.uid(user).gid(user);
        }
        assert!(stop.status().unwrap().success());
        next().expect_output("ready");
        assert!(!is_running(server), "it overlaps");
        // Whoever has overwritten its environment can't be told from any other process of this user.
        let is_known = |pid| environment(pid).contains("LLMLB_SERVER_ID");
        let mut members = service.members.iter().copied();
        assert!(!members.any(|pid| is_running(pid) && is_known(pid)));
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
