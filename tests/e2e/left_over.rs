//! Nothing survives the stop: whatever a server has started is gone with it. And nothing else is.

mod cgroups;
mod forged;
mod scene;
mod set_uid;
mod zombies;

use std::fs;
use std::process::Command;

use llmlb_tests::{Running, free_port, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;

use scene::{FAMILY, Scene, expect_dead, expect_members, has_cgroup, leaf, scenes};

#[test]
fn what_left_its_session_ends_with_a_stop_which_says_so() {
    for scene in scenes() {
        let (llmlb, members) = scene.serve(&["session", "deaf", "renamed", "stopped"], 4);
        let server = scene.server();
        let leaf = leaf(server);
        let stopped = scene.stop().expect(0);
        // Whose environment is overwritten is known to its launcher alone.
        assert!(
            stopped
                .stdout
                .contains("processes that the server left behind\n"),
            "{stopped:?}"
        );
        assert!(stopped.stdout.ends_with("Server stopped successfully\n"));
        for pid in members {
            assert!(!is_alive(pid), "{pid}");
        }
        scene.expect_nobody_left_but(&llmlb);
        llmlb.finish().expect(0);
        assert!(!leaf.is_some_and(|leaf| leaf.exists()));
    }
}

#[test]
fn also_with_sigterm_to_llmlb_and_with_the_death_of_the_server() {
    for scene in scenes() {
        for dies in [false, true] {
            let (llmlb, members) = scene.serve(&["session", "renamed"], 2);
            let code = if dies {
                signal_pid(scene.server(), Signal::SIGKILL);
                128 + 9
            } else {
                llmlb.ask_to_end();
                0
            };
            llmlb.finish().expect(code);
            assert!(members.iter().all(|&pid| !is_alive(pid)));
            scene.expect_nobody_left();
        }
    }
}

#[test]
fn who_forks_twice_does_not_escape() {
    for scene in scenes() {
        let (llmlb, _) = scene.serve(&["twice=25", "dying-twice=25"], 25);
        scene.stop().expect(0);
        scene.expect_nobody_left_but(&llmlb);
        llmlb.finish().expect(0);
    }
}

#[test]
fn nor_does_who_forks_again_and_again() {
    for scene in scenes() {
        let (llmlb, _) = scene.serve(&["chain=400", "chain=400"], 0);
        scene.stop().expect(0);
        scene.expect_nobody_left_but(&llmlb);
        llmlb.finish().expect(0);
    }
}

#[test]
fn what_killed_ones_left_is_shown_and_ended_by_stop() {
    for scene in scenes() {
        let (mut llmlb, members) = scene.serve(&["session", "deaf", "twice=3"], 5);
        let leaf = leaf(scene.server());
        assert_eq!(leaf.is_some(), scene.user.is_none() && has_cgroup());
        scene.kill_both(&mut llmlb);
        let port = scene.port.to_string();

        let shown = scene.run(&["status", "--all"]).expect(0).stdout;
        for pid in &members {
            let line = shown
                .lines()
                .find(|line| line.contains(&format!(" {pid} ")));
            let line = line.unwrap_or_else(|| panic!("{pid} in {shown}"));
            assert!(
                line.starts_with(&port) && line.ends_with("LeftOver"),
                "{shown}"
            );
        }
        let json = scene
            .run(&["status", "--all", "--format", "json"])
            .expect(0)
            .stdout;
        let left_over = format!(r#"{{"port":{port},"pid":{},"#, members[0]);
        assert!(json.contains(&left_over), "{json}");

        let stopped = scene.stop().expect(0).stdout;
        assert!(stopped.contains("ended 5 processes (PIDs: "), "{stopped}");
        assert!(members.iter().all(|&pid| !is_alive(pid)));
        scene.expect_nobody_left();
        assert!(!leaf.is_some_and(|leaf| leaf.exists()));
        let nothing = scene.stop().expect(0).stdout;
        assert_eq!(nothing, format!("No server running on port {port}\n"));
    }
}

#[test]
fn and_the_next_start_is_not_beside_it() {
    for scene in scenes() {
        let (mut llmlb, members) = scene.serve(&["session", "stopped"], 2);
        scene.kill_both(&mut llmlb);
        let (mut next, new) = scene.serve(&["session"], 1);
        next.expect_log("left behind by a killed server");
        assert!(members.iter().all(|&pid| !is_alive(pid)));
        assert!(is_alive(new[0]));
        let shown = scene.run(&["status", "--all"]).expect(0).stdout;
        assert!(!shown.contains("LeftOver"), "{shown}");
        next.ask_to_end();
        next.finish().expect(0);
        scene.expect_nobody_left();
    }
}

#[test]
fn the_servers_of_other_lock_directories_and_ports_are_spared() {
    let (one, mut other) = (Scene::new(), Scene::new());
    other.port = one.port;
    let another_port = free_port();
    let (mut llmlb, members) = one.serve(&["session"], 1);
    one.kill_both(&mut llmlb);

    let (mut next, _) = other.serve(&[], 0);
    other.stop().expect(0);
    next.wait();
    let mut neighbour = one.sandbox.serve(another_port);
    one.run(&["stop", "--port", &another_port.to_string()])
        .expect(0);
    neighbour.wait();
    assert!(is_alive(members[0]));
    one.stop().expect(0);
    assert!(!is_alive(members[0]));
}

#[test]
fn what_was_let_go_is_spared() {
    for scene in scenes() {
        let (llmlb, members) = scene.serve(&["let-go", "session"], 2);
        let server = scene.server();
        let is_let_go = |pid: &&u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
            !String::from_utf8_lossy(&environment).contains("LLMLB_SERVER_ID")
        };
        let let_go = *members.iter().find(is_let_go).unwrap();
        let leaf = leaf(server);
        scene.stop().expect(0);
        llmlb.finish().expect(0);
        assert!(is_alive(let_go));
        let alive = |pid: &&u32| is_alive(**pid);
        assert_eq!(members.iter().filter(alive).count(), 1);
        // Out of the way of the cgroup, too.
        assert!(!leaf.is_some_and(|leaf| leaf.exists()));
        signal_pid(let_go, Signal::SIGKILL);
        expect_dead(let_go);
    }
}

#[test]
fn what_llmlb_was_given_by_whoever_started_it_is_spared() {
    for scene in scenes() {
        // A shell's background job, whose own child becomes an orphan: llmlb is its parent then.
        let job = r#"sh -c 'sleep 1000 & echo "given $!"; exec sleep 1000' & echo "given $!"; exec "$0" "$@""#;
        let mut shell = scene.started_by(&["sh", "-c", job], &scene.command(&["session"]));
        let mut llmlb = Running::start(&mut shell);
        let given: Vec<u32> = (0..2)
            .map(|_| {
                let line = llmlb.expect_output("given ");
                line.split(' ').nth(1).unwrap().parse().unwrap()
            })
            .collect();
        let members = expect_members(&mut llmlb, 1);
        // The child's parent leaves it to us.
        let parent = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields = stat.rsplit(')').next().unwrap().to_owned();
            fields
                .split_ascii_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u32>()
                .unwrap()
        };
        let (job, orphan) = match parent(given[0]) == llmlb.pid() {
            true => (given[0], given[1]),
            false => (given[1], given[0]),
        };
        assert_eq!(parent(orphan), job);
        signal_pid(job, Signal::SIGKILL);
        wait_until("the orphan to be ours", || {
            (parent(orphan) == llmlb.pid()).then_some(())
        });
        scene.stop().expect(0);
        assert_eq!(llmlb.wait().code(), Some(0));
        assert!(!is_alive(members[0]));
        assert!(is_alive(orphan));
        signal_pid(orphan, Signal::SIGKILL);
    }
}

#[test]
fn other_users_processes_are_spared() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::without_cgroup();
    let (mut llmlb, members) = scene.serve(&["session"], 1);
    let environment = fs::read(format!("/proc/{}/environ", members[0])).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    let id = environment
        .split('\0')
        .find_map(|entry| entry.strip_prefix("LLMLB_SERVER_ID="));
    let mut roots = Command::new("sleep")
        .arg("1000")
        .env("LLMLB_SERVER_ID", id.unwrap())
        .spawn()
        .unwrap();
    scene.kill_both(&mut llmlb);
    // Root neither sees nor ends what a user's server has left, and the user spares root's.
    let root = Scene::new();
    let status = scene.sandbox.run(["status", "--all"]).expect(0);
    assert!(!status.stdout.contains("LeftOver"), "{status:?}");
    scene
        .sandbox
        .run(["stop", "--port", &scene.port.to_string()])
        .expect(0);
    assert!(is_alive(members[0]));
    scene.stop().expect(0);
    assert!(!is_alive(members[0]));
    assert!(roots.try_wait().unwrap().is_none());
    roots.kill().unwrap();
    roots.wait().unwrap();
    drop(root);
}

#[test]
fn a_command_that_daemonizes_is_no_success() {
    for scene in scenes() {
        let mut llmlb = scene.command(&["daemonize", "session"]);
        let finished = Running::start(&mut llmlb).finish().expect(1);
        assert!(
            finished.stderr.contains("has to stay in the foreground"),
            "{finished:?}"
        );
        scene.expect_nobody_left();
    }
}

#[test]
fn as_the_first_process_of_a_container_too() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let scene = Scene::new();
    let port = scene.port.to_string();
    let llmlb = scene.llmlb(&["serve", "--port", &port, "--", FAMILY, "serve", &port]);
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
    command
        .arg(llmlb.get_program())
        .args(llmlb.get_args())
        .args(["session", "deaf"]);
    command.env("LLMLB_LOCK_DIR", scene.sandbox.path());
    let mut unshare = Running::start(&mut command);
    for _ in 0..3 {
        unshare.expect_output("");
    }
    let children = format!("/proc/{0}/task/{0}/children", unshare.pid());
    let llmlb: u32 = fs::read_to_string(children)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    signal_pid(llmlb, Signal::SIGTERM);
    unshare.finish().expect(0);
    scene.expect_nobody_left();
}
