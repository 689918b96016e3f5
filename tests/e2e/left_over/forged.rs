//! An environment is whatever its process has been given: a stranger's says what he likes, and is not
//! what makes root end anybody.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use llmlb_tests::is_alive;

use super::scene::{NOBODY, Scene, cgroup, has_cgroup, leaf};

fn is_root(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED, needs root: {test}");
    }
    is_root
}

/// What a server of the scene carries.
fn id_of(server: u32) -> String {
    let environment = fs::read_to_string(format!("/proc/{server}/environ")).unwrap();
    let mut entries = environment.split('\0');
    let id = entries.find_map(|entry| entry.strip_prefix("LLMLB_SERVER_ID="));
    id.unwrap().to_owned()
}

/// A process that says that it belongs to a server of root's.
struct Stranger(Child);

impl Stranger {
    fn new(id: &str) -> Self {
        let mut sleep = Command::new("sleep");
        sleep.arg("1000").env("LLMLB_SERVER_ID", id);
        Self(sleep.uid(NOBODY).gid(NOBODY).spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stranger_who_says_that_he_is_roots_left_over_is_none() {
    if !is_root("a_stranger_who_says_that_he_is_roots_left_over_is_none") {
        return;
    }
    let scene = Scene::new();
    let (llmlb, _) = scene.serve(&[], 0);
    // The ID itself is seen by the name of the cgroup.
    let id = id_of(scene.server());
    let mut stranger = Stranger::new(&id);
    scene.stop().expect(0);
    llmlb.finish().expect(0);
    assert!(stranger.is_alive());
    let shown = scene.run(&["status", "--all"]).expect(0).stdout;
    assert!(!shown.contains("LeftOver"), "{shown}");
    let (next, _) = scene.serve(&[], 0);
    assert!(stranger.is_alive());
    scene.stop().expect(0);
    let stopped = next.finish().expect(0);
    assert!(!stopped.stderr.contains("left behind"), "{stopped:?}");
    scene.stop().expect(0);
    assert!(stranger.is_alive());
}

/// One that has given up root's rights is known by a cgroup that root has made, and by nothing that it
/// says itself.
#[test]
fn who_has_changed_its_user_is_ended_where_its_cgroup_tells_whose_it_is() {
    let test = "who_has_changed_its_user_is_ended_where_its_cgroup_tells_whose_it_is";
    if !is_root(test) {
        return;
    }
    let scene = Scene::new();
    let (llmlb, members) = scene.serve(&["dropped"], 1);
    scene.stop().expect(0);
    llmlb.finish().expect(0);
    assert!(!is_alive(members[0]));

    let (mut llmlb, members) = scene.serve(&["dropped"], 1);
    let leaf = leaf(scene.server());
    assert_eq!(leaf.is_some(), has_cgroup());
    scene.kill_both(&mut llmlb);
    let stopped = scene.stop().expect(0).stdout;
    match leaf {
        Some(leaf) => {
            assert!(stopped.contains("ended 1 process (PID: "), "{stopped}");
            assert!(!leaf.exists());
        }
        None => assert!(!stopped.contains("ended"), "{stopped}"),
    }
    assert_eq!(is_alive(members[0]), !has_cgroup());
}

/// Whoever may make cgroups may give them any name, and may be able to move root's processes there.
#[test]
fn a_strangers_cgroup_is_not_roots_whatever_its_name() {
    if !is_root("a_strangers_cgroup_is_not_roots_whatever_its_name") || !has_cgroup() {
        return;
    }
    let scene = Scene::new();
    let (llmlb, _) = scene.serve(&[], 0);
    let id = id_of(scene.server());
    scene.stop().expect(0);
    llmlb.finish().expect(0);

    let mut roots = Command::new("sleep").arg("1000").spawn().unwrap();
    let session = nix::unistd::getsid(None).unwrap().to_string();
    let mut fields: Vec<&str> = id.split('.').collect();
    (fields[3], fields[5]) = (&session, "1");
    let path = cgroup("self").unwrap();
    let path = path.join(format!("llmlb-{}", fields.join(".")));
    fs::create_dir(&path).unwrap();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::write(path.join("cgroup.procs"), roots.id().to_string()).unwrap();
    let stopped = scene.stop();
    let spared = roots.try_wait().unwrap().is_none();
    let _ = roots.kill();
    roots.wait().unwrap();
    let _ = fs::remove_dir(&path);
    assert!(spared, "{stopped:?}");
    assert!(!stopped.expect(0).stdout.contains("ended"));
}
