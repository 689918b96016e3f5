//! A server with a family, and what became of each of its members.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use llmlb_tests::{Finished, Running, Sandbox, free_port, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;

pub(super) const FAMILY: &str = env!("CARGO_BIN_EXE_guinea-family");
pub(super) const NOBODY: u32 = 65534;

/// A server with its family, and all processes that were started for it.
pub(super) struct Scene {
    pub(super) sandbox: Sandbox,
    pub(super) port: u16,
    pub(super) user: Option<u32>,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self {
            sandbox: Sandbox::new(),
            port: free_port(),
            user: None,
        }
    }

    /// As one who may create no cgroup, if the test may choose.
    pub(super) fn without_cgroup() -> Self {
        let mut scene = Self::new();
        scene.user = nix::unistd::geteuid().is_root().then_some(NOBODY);
        fs::set_permissions(scene.sandbox.path(), fs::Permissions::from_mode(0o777)).unwrap();
        scene
    }

    pub(super) fn llmlb(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.llmlb(args);
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Finished {
        let mut command = self.llmlb(args);
        Finished::of(command.stdin(Stdio::null()).output().unwrap())
    }

    pub(super) fn command(&self, kinds: &[&str]) -> Command {
        let port = self.port.to_string();
        let mut llmlb = self.llmlb(&["serve", "--port", &port, "--", FAMILY, "serve", "{port}"]);
        llmlb.args(kinds);
        llmlb
    }

    /// The same, started by another program, which gets it as its last arguments.
    pub(super) fn started_by(&self, starter: &[&str], command: &Command) -> Command {
        let mut starting = Command::new(starter[0]);
        starting.args(&starter[1..]);
        starting.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                starting.env(name, value);
            }
        }
        if let Some(user) = self.user {
            starting.uid(user).gid(user);
        }
        starting
    }

    /// Serves, and tells the members of the family when there are so many.
    pub(super) fn serve(&self, kinds: &[&str], members: usize) -> (Running, Vec<u32>) {
        let mut llmlb = Running::start(&mut self.command(kinds));
        let members = expect_members(&mut llmlb, members);
        (llmlb, members)
    }

    pub(super) fn stop(&self) -> Finished {
        self.run(&["stop", "--port", &self.port.to_string()])
    }

    pub(super) fn server(&self) -> u32 {
        self.sandbox.named_pid(self.port)
    }

    /// llmlb and its server die by kill -9, the lock is free.
    pub(super) fn kill_both(&self, llmlb: &mut Running) {
        let server = self.server();
        llmlb.kill();
        signal_pid(server, Signal::SIGKILL);
        expect_dead(server);
    }

    /// All that runs with this lock directory in its environment.
    pub(super) fn processes(&self) -> BTreeSet<u32> {
        let marker = format!("LLMLB_LOCK_DIR={}", self.sandbox.path().display());
        let ours = |text: &[u8]| {
            text.split(|&b| b == 0)
                .any(|entry| entry == marker.as_bytes())
        };
        let all = environments().into_iter();
        all.filter(|(_, text)| ours(text))
            .map(|(pid, _)| pid)
            .collect()
    }

    #[track_caller]
    pub(super) fn expect_nobody_left(&self) {
        self.expect_left(&[]);
    }

    /// The lock is given back, and nothing else is left than llmlb, which is about to end.
    #[track_caller]
    pub(super) fn expect_nobody_left_but(&self, llmlb: &Running) {
        self.expect_left(&[llmlb.pid()]);
    }

    #[track_caller]
    fn expect_left(&self, spared: &[u32]) {
        // Ended, if not yet reaped.
        let alive: Vec<u32> = self
            .processes()
            .into_iter()
            .filter(|&pid| is_alive(pid) && !spared.contains(&pid))
            .collect();
        assert!(alive.is_empty(), "{alive:?} are alive");
        assert!(!self.sandbox.lock_file(self.port).exists());
    }
}

/// Of all processes, without those that take too long: another test makes one wait for a mount that
/// hangs.
fn environments() -> Vec<(u32, Vec<u8>)> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut left: Vec<u32> = pids.collect();
    let mut found = Vec::new();
    while let Some(first) = left.first() {
        let (sender, texts) = channel();
        let (pids, mut unread) = (left.clone(), *first);
        thread::spawn(move || {
            for pid in pids {
                let text = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let _ = sender.send((pid, text));
            }
        });
        while let Ok((pid, text)) = texts.recv_timeout(Duration::from_secs(2)) {
            left.retain(|&other| other != pid);
            unread = left.first().copied().unwrap_or(0);
            found.push((pid, text));
        }
        left.retain(|&other| other != unread);
    }
    found
}

impl Drop for Scene {
    fn drop(&mut self) {
        for pid in self.processes() {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }
}

pub(super) fn expect_members(llmlb: &mut Running, members: usize) -> Vec<u32> {
    let mut found = Vec::new();
    let mut ready = false;
    while found.len() < members || !ready {
        let line = llmlb.expect_output("");
        match line.split_once(' ') {
            Some(("member", pid)) => found.push(pid.parse().unwrap()),
            _ => ready |= line.starts_with("ready"),
        }
    }
    assert!(found.iter().all(|&member| is_alive(member)));
    found
}

#[track_caller]
pub(super) fn expect_dead(pid: u32) {
    wait_until("it to die", || (!is_alive(pid)).then_some(()));
}

/// As root, with a cgroup, and as a user without one.
pub(super) fn scenes() -> [Scene; 2] {
    [Scene::new(), Scene::without_cgroup()]
}

/// The cgroup (v2) of a server, where it has one of its own.
pub(super) fn leaf(pid: u32) -> Option<PathBuf> {
    let path = cgroup(&pid.to_string())?;
    path.to_str()?.contains("/llmlb-").then_some(path)
}

/// That of any process, where there is one.
pub(super) fn cgroup(pid: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(cgroup_mount()?.join(path.trim_start_matches('/')))
}

pub(super) fn cgroup_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(mount.split(' ').nth(4)?))
}

/// Whether root may create a cgroup here.
pub(super) fn has_cgroup() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let name = format!("test-{}", std::process::id());
        let path = cgroup("self").map(|own| own.join(name));
        path.is_some_and(|path| {
            fs::create_dir(&path)
                .and_then(|()| fs::remove_dir(&path))
                .is_ok()
        })
    })
}
