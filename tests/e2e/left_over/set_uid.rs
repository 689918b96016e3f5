//! What a server has started as another user: whoever started the server may neither look into it
//! nor signal it, and it goes on holding the lock.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use llmlb_tests::{Finished, Running, is_alive, signal_pid};
use nix::sys::signal::Signal;

use super::scene::{FAMILY, NOBODY, Scene, expect_dead};

/// Whoever runs the server.
const USER: u32 = NOBODY - 1;

/// A scene whose server has started such a process; `None` where that can't be.
struct SetUid {
    scene: Scene,
    llmlb: Running,
    left_over: u32,
    file: (PathBuf, u64),
}

impl SetUid {
    fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED, needs root: {test}");
            return None;
        }
        let mut scene = Scene::without_cgroup();
        scene.user = Some(USER);
        let program = scene.sandbox.path().join("set-uid");
        fs::copy(FAMILY, &program).unwrap();
        chown(&program, Some(NOBODY), Some(NOBODY)).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
        let (llmlb, members) = scene.serve(&[&format!("set-uid={}", program.display())], 1);
        let left_over = members[0];
        let status = fs::read_to_string(format!("/proc/{left_over}/status")).unwrap();
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        if uids
            .unwrap()
            .split_whitespace()
            .any(|uid| uid == USER.to_string())
        {
            eprintln!("SKIPPED, as set-uid programs run as anybody (nosuid?): {test}");
            return None;
        }
        let path = scene.sandbox.lock_file(scene.port);
        let inode = fs::metadata(&path).unwrap().ino();
        Some(Self {
            scene,
            llmlb,
            left_over,
            file: (path, inode),
        })
    }

    /// llmlb has ended, and the port is guarded all the same, by a process that nobody names.
    #[track_caller]
    fn expect_guarded(&self) {
        let (path, inode) = &self.file;
        assert_eq!(fs::metadata(path).unwrap().ino(), *inode);
        assert!(is_alive(self.left_over));
        let port = self.scene.port.to_string();
        let status = self.scene.run(&["status"]).expect(0).stdout;
        assert!(
            status.contains(&format!("{port}  -    -        Held")),
            "{status}"
        );
        let serve = ["serve", "--port", &port];
        for refused in [self.scene.run(&serve), self.scene.sandbox.run(serve)] {
            self.expect_unnamed(refused);
        }
        self.expect_unnamed(self.scene.stop());
        self.expect_unnamed(self.scene.run(&["stop", "--force", "--port", &port]));
        assert_eq!(fs::metadata(path).unwrap().ino(), *inode);
    }

    /// Says whose it can't be, and claims nothing.
    #[track_caller]
    fn expect_unnamed(&self, finished: Finished) {
        let finished = finished.expect(1);
        let text = &finished.stderr;
        let (port, path) = (self.scene.port, self.file.0.display());
        for part in [
            &format!("Port {port} is locked by a process that {path} does not name\n"),
            "unless it is another user's: llmlb stop",
            &format!("as root:                     fuser -v {path}\n"),
        ] {
            assert!(text.contains(part), "{finished:?}");
        }
        assert!(!finished.stdout.contains("success"), "{finished:?}");
    }

    /// The port is free with its end, not before.
    fn end(self) {
        signal_pid(self.left_over, Signal::SIGKILL);
        expect_dead(self.left_over);
        let mut next = Running::start(&mut self.scene.command(&[]));
        next.expect_output("ready");
        self.scene.stop().expect(0);
        next.finish().expect(0);
        self.scene.expect_nobody_left();
    }
}

#[test]
fn what_may_not_be_seen_keeps_the_lock_when_llmlb_was_asked_to_end() {
    let test = "what_may_not_be_seen_keeps_the_lock_when_llmlb_was_asked_to_end";
    let Some(mut scene) = SetUid::new(test) else {
        return;
    };
    scene.llmlb.ask_to_end();
    // The server has ended well, and its end is not what there is to be told.
    assert_eq!(scene.llmlb.wait().code(), Some(1));
    let path = scene.file.0.display();
    let warning = format!("another process still holds {path}, so port");
    scene.llmlb.expect_log(&warning);
    scene.expect_guarded();
    scene.end();
}

#[test]
fn and_when_the_server_was_killed() {
    let Some(mut scene) = SetUid::new("and_when_the_server_was_killed") else {
        return;
    };
    signal_pid(scene.scene.server(), Signal::SIGKILL);
    assert_eq!(scene.llmlb.wait().code(), Some(128 + 9));
    scene.expect_guarded();
    scene.end();
}

#[test]
fn and_when_the_server_was_stopped_which_does_not_claim_success() {
    let test = "and_when_the_server_was_stopped_which_does_not_claim_success";
    let Some(mut scene) = SetUid::new(test) else {
        return;
    };
    scene.expect_unnamed(scene.scene.stop());
    assert_eq!(scene.llmlb.wait().code(), Some(1));
    scene.expect_guarded();
    scene.end();
}

#[test]
fn and_when_llmlb_and_the_server_were_killed() {
    let Some(mut scene) = SetUid::new("and_when_llmlb_and_the_server_were_killed") else {
        return;
    };
    scene.scene.kill_both(&mut scene.llmlb);
    scene.expect_guarded();
    scene.end();
}
