//! Faults of the machines themselves, which root alone can make: a network that is cut between hosts,
//! a disk that is full. Skipped, and said so, where they can't be made.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use llmlb_cluster_tests::etcd::{Etcd, base64, binary};
use llmlb_cluster_tests::{eventually, guinea, is_running, scratch};
use llmlb_lock_cluster::Interrupt;
use llmlb_tests::{Running, Sandbox, llmlb_binary};
use tempfile::TempDir;

fn run(program: &str, args: &[&str]) -> Option<Output> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then_some(output)
}

/// A name that no other run of these tests has.
fn unique(name: &str) -> String {
    format!("lb{}{name}", std::process::id())
}

/// Two hosts that reach etcd's each by a cable of its own, and nothing else.
struct Hosts {
    etcd: Option<Running>,
    _data: TempDir,
}

const HOSTS: [&str; 2] = ["a", "b"];

impl Hosts {
    /// Why they can't be there.
    fn new() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can make network namespaces".to_owned());
        }
        let mut hosts = Self {
            etcd: None,
            _data: scratch(),
        };
        let middle = unique("e");
        for name in [&middle, &unique("a"), &unique("b")] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        for (i, host) in HOSTS.into_iter().enumerate() {
            let (host, near, far) = (unique(host), unique("h"), unique(host));
            ip(&[
                "-n", &host, "link", "add", &near, "type", "veth", "peer", "name", &far,
            ])?;
            ip(&["-n", &host, "link", "set", &far, "netns", &middle])?;
            let address = |last: u8| format!("10.77.{i}.{last}/30");
            ip(&["-n", &host, "address", "add", &address(2), "dev", &near])?;
            ip(&["-n", &middle, "address", "add", &address(1), "dev", &far])?;
            ip(&["-n", &host, "link", "set", &near, "up"])?;
            ip(&["-n", &middle, "link", "set", &far, "up"])?;
        }
        let data = hosts._data.path().display().to_string();
        let url = "http://10.77.0.1:2379,http://10.77.1.1:2379";
        let mut etcd = inside("e", &guinea());
        etcd.arg("die-with-parent").arg(binary());
        etcd.args(["--data-dir", &data, "--listen-client-urls", url]);
        etcd.args(["--advertise-client-urls", url]);
        hosts.etcd = Some(Running::start(&mut etcd));
        Ok(hosts)
    }

    fn cable(&self, host: &str, state: &str) {
        ip(&["-n", &unique("e"), "link", "set", &unique(host), state]).unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.etcd = None;
        for host in ["a", "b", "e"] {
            let _ = run("ip", &["netns", "del", &unique(host)]);
        }
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    run("ip", args)
        .map(drop)
        .ok_or_else(|| format!("ip {args:?} fails"))
}

/// A program on this host.
fn inside(host: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &unique(host)]).arg(program);
    command
}

fn url(host: &str) -> String {
    let index = HOSTS.iter().position(|name| *name == host).unwrap();
    format!("etcd://10.77.{index}.1:2379/t")
}

fn llmlb(host: &str, sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut command = inside(host, llmlb_binary());
    command.env("LLMLB_LOCK_DIR", sandbox.path()).args(args);
    command
}

fn serve(host: &str, sandbox: &Sandbox, service: &str, port: &str, more: &[&str]) -> Running {
    let url = url(host);
    let mut command = llmlb(host, sandbox, &["serve", "--port", port, "--cluster", &url]);
    command.args(["--service", service, "--ttl", "3", "--drain-timeout", "0.5"]);
    command
        .args(["--advertise", &format!("http://{host}:{port}")])
        .args(more);
    Running::start(command.arg("--").arg(guinea()).args(["listen", port]))
}

fn serving(server: &mut Running) -> u32 {
    let words = server.expect_output("serving ");
    words.split(' ').nth(1).unwrap().parse().unwrap()
}

fn status(host: &str, sandbox: &Sandbox) -> String {
    let output = llmlb(host, sandbox, &["status", "--cluster", &url(host)]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn a_host_that_is_cut_off_ends_its_exclusive_server_before_another_starts_and_keeps_the_others() {
    let hosts = match Hosts::new() {
        Ok(hosts) => hosts,
        Err(why) => return println!("skipped: {why}"),
    };
    let sandboxes = [Sandbox::new(), Sandbox::new()];
    eventually("etcd is up", || {
        status("a", &sandboxes[0]).contains("No servers")
    });
    let mut active = serve("a", &sandboxes[0], "index", "8000", &["--exclusive"]);
    let mut found = serve("a", &sandboxes[0], "chat", "8001", &[]);
    let (active_pid, found_pid) = (serving(&mut active), serving(&mut found));
    let lists = |host: usize, what: &str| status(HOSTS[host], &sandboxes[host]).contains(what);
    eventually("both are listed", || {
        lists(1, "a:8000") && lists(1, "a:8001")
    });
    let mut standby = serve(
        "b",
        &sandboxes[1],
        "index",
        "8000",
        &["--exclusive", "--wait"],
    );
    standby.expect_log("Waiting: Service index is active on a:8000");

    hosts.cable("a", "down");
    serving(&mut standby);
    assert!(!is_running(active_pid), "two are active");
    active.finish().expect(6);
    assert!(is_running(found_pid), "a registration ends no server");
    eventually("it is not listed", || !lists(1, "a:8001"));

    hosts.cable("a", "up");
    eventually("it is listed anew", || lists(1, "a:8001"));
    let refused = serve("a", &sandboxes[0], "index", "8000", &["--exclusive"]);
    let refused = refused.finish().expect(1).stderr;
    assert!(
        refused.contains("Service index is active on b:8000"),
        "{refused}"
    );
}

/// A small disk.
struct Disk(TempDir);

impl Disk {
    fn new(size: &str) -> Option<Self> {
        let dir = scratch();
        let path = dir.path().display().to_string();
        let options = format!("size={size}");
        run(
            "mount",
            &["-t", "tmpfs", "-o", &options, "llmlb-test", &path],
        )?;
        Some(Self(dir))
    }

    /// Until not one more byte fits.
    fn fill(&self) {
        let mut file = File::create(self.0.path().join("full")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.path().join("full")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.0.path().display().to_string();
        run("umount", &["--lazy", &path]);
    }
}

#[test]
fn a_node_whose_disk_is_full_costs_nobody_the_service() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can make a small disk");
    }
    let Some(disk) = Disk::new("150m") else {
        return println!("skipped: no tmpfs may be mounted here");
    };
    let mut etcd = Etcd::start_on(3, &[], |etcd| {
        let data = etcd.path("n0");
        let _ = std::fs::remove_dir_all(disk.0.path().join("n0"));
        std::fs::create_dir(disk.0.path().join("n0")).unwrap();
        std::os::unix::fs::symlink(disk.0.path().join("n0"), data).unwrap();
    });
    let (sandbox, cluster) = (Sandbox::new(), etcd.cluster("disk"));
    let url = etcd.url("disk").to_string();
    let port = llmlb_tests::free_port().to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &port, "--cluster", &url]);
    command.args([
        "--service",
        "index",
        "--exclusive",
        "--ttl",
        "6",
        "--drain-timeout",
        "0.5",
    ]);
    command.arg("--").arg(guinea()).args(["listen", &port]);
    let mut server = Running::start(command.stdin(Stdio::null()));
    let pid = serving(&mut server);
    let token = || {
        let listing = cluster.servers(Some("index"), &Interrupt::new());
        listing.ok()?.servers.first()?.record.token
    };
    eventually("it is listed", || token().is_some());
    let before = token();

    disk.fill();
    // Until the log of its own no longer fits.
    let value = base64(&"x".repeat(400_000));
    let body = format!(r#"{{"key":"{}","value":"{value}"}}"#, base64("/filler"));
    let ended = (0..600).any(|_| {
        // The one that ends may do so in the middle of an answer.
        let _ = etcd.try_call("kv/put", &body);
        etcd.nodes[0].has_ended()
    });
    assert!(ended, "the disk was not full: {}", etcd.nodes[0].log());
    let log = etcd.nodes[0].log();
    assert!(log.contains("no space left on device"), "{log}");

    // Longer than the lease, twice.
    std::thread::sleep(std::time::Duration::from_secs(13));
    assert!(is_running(pid));
    assert_eq!(token(), before, "the majority goes on");
    disk.clear();
    etcd.nodes[0].kill();
    etcd.nodes[0].start();
    eventually("all members are well again", || {
        let check = cluster.check(&Interrupt::new());
        check.is_ok_and(|check| check.endpoints.iter().all(|member| member.1.is_ok()))
    });
    server.ask_to_end();
    server.wait();
    assert!(!is_running(pid));
}
