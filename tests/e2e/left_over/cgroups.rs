//! Where cgroups (v2) are mounted read-only, as in most containers, and where a part of them is
//! another user's, as in a unit with `Delegate=yes`.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use llmlb_tests::{Running, is_alive};

use super::scene::{NOBODY, Scene, cgroup, cgroup_mount, expect_members, has_cgroup, leaf};

/// Whether cgroups can be what these tests need; says so where not.
fn are_ours(test: &str) -> bool {
    let ours = nix::unistd::geteuid().is_root() && has_cgroup();
    if !ours {
        eprintln!("SKIPPED, needs root and a cgroup (v2) that may be written to: {test}");
    }
    ours
}

/// Starts llmlb by a shell that does this first.
fn serve_after(scene: &Scene, script: &str, kinds: &[&str], members: usize) -> (Running, Vec<u32>) {
    let starter = ["unshare", "--mount", "sh", "-ec", script];
    let mut llmlb = Running::start(&mut scene.started_by(&starter, &scene.command(kinds)));
    let members = expect_members(&mut llmlb, members);
    (llmlb, members)
}

#[test]
fn where_cgroups_are_mounted_read_only_left_overs_are_ended_all_the_same() {
    if !are_ours("where_cgroups_are_mounted_read_only_left_overs_are_ended_all_the_same") {
        return;
    }
    let scene = Scene::new();
    let mount = cgroup_mount().unwrap();
    let script = format!(
        r#"mount -o remount,bind,ro {0}; ! mkdir {0}/none 2>&-; exec "$0" "$@""#,
        mount.display()
    );
    for end in ["stop", "signal", "launcher", "kill"] {
        let kinds = ["session", "deaf", "twice=3"];
        let (mut llmlb, members) = serve_after(&scene, &script, &kinds, 5);
        assert_eq!(leaf(scene.server()), None);
        match end {
            "stop" => drop(scene.stop().expect(0)),
            "signal" => llmlb.ask_to_end(),
            "launcher" => {
                llmlb.kill();
                scene.stop().expect(0);
            }
            _ => {
                scene.kill_both(&mut llmlb);
                let stopped = scene.stop().expect(0).stdout;
                assert!(stopped.contains("ended 5 processes"), "{stopped}");
            }
        }
        llmlb.wait();
        assert!(members.iter().all(|&pid| !is_alive(pid)), "{end}");
        scene.expect_nobody_left();
    }
}

/// A part of the cgroups that an unprivileged user may do anything in; removed at the end.
struct Delegated(PathBuf);

impl Delegated {
    fn to_nobody() -> Self {
        let name = format!("delegated-{}", std::process::id());
        let path = cgroup("self").unwrap().join(name);
        fs::create_dir(&path).unwrap();
        let delegated = Self(path);
        // As systemd does it.
        for name in [
            "",
            "cgroup.procs",
            "cgroup.subtree_control",
            "cgroup.threads",
        ] {
            chown(delegated.0.join(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        delegated
    }

    /// Starts llmlb in it.
    fn serve(&self, scene: &mut Scene, kinds: &[&str], members: usize) -> (Running, Vec<u32>) {
        let script = format!(
            r#"echo 0 > {}/cgroup.procs
            exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups -- "$0" "$@""#,
            self.0.display()
        );
        // Only root can move a process into it.
        let user = scene.user.take();
        let started = serve_after(scene, &script, kinds, members);
        scene.user = user;
        started
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // What a failed test has left in it is killed, and takes an instant to be gone.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..100 {
            for leaf in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(leaf.path());
            }
            if fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn where_cgroups_are_delegated_a_user_ends_left_overs_by_them() {
    if !are_ours("where_cgroups_are_delegated_a_user_ends_left_overs_by_them") {
        return;
    }
    let delegated = Delegated::to_nobody();
    let mut scene = Scene::without_cgroup();
    for end in ["stop", "signal", "launcher", "kill", "start"] {
        // What has overwritten its environment is known by its cgroup alone when llmlb is gone.
        let kinds = ["session", "deaf", "renamed"];
        let (mut llmlb, members) = delegated.serve(&mut scene, &kinds, 3);
        let leaf = leaf(scene.server()).expect("a cgroup of its own");
        assert_eq!(leaf.parent(), Some(&*delegated.0));
        assert_eq!(cgroup(&members[2].to_string()).as_ref(), Some(&leaf));
        match end {
            "stop" => drop(scene.stop().expect(0)),
            "signal" => llmlb.ask_to_end(),
            "launcher" => {
                llmlb.kill();
                scene.stop().expect(0);
            }
            "kill" => {
                scene.kill_both(&mut llmlb);
                let stopped = scene.stop().expect(0).stdout;
                assert!(stopped.contains("ended 3 processes"), "{stopped}");
            }
            _ => {
                scene.kill_both(&mut llmlb);
                let (mut next, _) = delegated.serve(&mut scene, &[], 0);
                next.expect_log("left behind by a killed server");
                next.ask_to_end();
                next.finish().expect(0);
            }
        }
        llmlb.wait();
        assert!(members.iter().all(|&pid| !is_alive(pid)), "{end}");
        assert!(!leaf.exists(), "{end}");
        scene.expect_nobody_left();
    }
}
