//! Processes that have ended and that nobody has reaped: they are not waited for, nor counted.

use std::fs;

use llmlb_tests::{Running, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;

use super::scene::{FAMILY, expect_dead, expect_members, scenes};

fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn is_zombie(pid: u32) -> bool {
    !is_alive(pid) && fs::exists(format!("/proc/{pid}")).unwrap()
}

#[test]
fn of_a_family_with_a_zombie_only_the_living_are_ended_and_counted() {
    for scene in scenes() {
        let (llmlb, members) = scene.serve(&["zombie"], 1);
        let zombie = children(members[0])[0];
        wait_until("it to end", || is_zombie(zombie).then_some(()));
        let stopped = scene.stop().expect(0);
        assert!(
            stopped.stdout.ends_with(
                "Ended 1 process that the server left behind\nServer stopped successfully\n"
            ),
            "{stopped:?}"
        );
        llmlb.finish().expect(0);
        scene.expect_nobody_left();
    }
}

/// Nobody but a process that was let go can reap it.
#[test]
fn a_zombie_in_the_servers_group_is_not_waited_for() {
    for scene in scenes() {
        for is_stopped in [true, false] {
            let (llmlb, members) = scene.serve(&["let-go-zombie"], 1);
            let zombie = children(members[0])[0];
            wait_until("it to end", || is_zombie(zombie).then_some(()));
            if is_stopped {
                let stopped = scene.stop().expect(0).stdout;
                assert!(!stopped.contains("left behind"), "{stopped}");
            } else {
                llmlb.ask_to_end();
            }
            let ended = llmlb.finish().expect(0);
            assert!(!ended.stderr.contains("WARN"), "{ended:?}");
            assert!(!scene.sandbox.lock_file(scene.port).exists());
            assert!(is_alive(members[0]) && is_zombie(zombie));
            signal_pid(members[0], Signal::SIGKILL);
            expect_dead(members[0]);
        }
    }
}

/// llmlb and the server have been killed, and are zombies of somebody who reaps nobody, as all will
/// be that they left. Also where one of those holds the lock.
#[test]
fn what_nobody_reaps_when_all_are_killed_is_not_waited_for() {
    for kinds in [["session", "zombie"], ["holding", "zombie"]] {
        for scene in scenes() {
            let llmlb = scene.command(&kinds);
            let mut command = scene.started_by(&[FAMILY, "stranger"], &llmlb);
            let mut stranger = Running::start(&mut command);
            let members = expect_members(&mut stranger, 2);
            let (llmlb, server) = (children(stranger.pid())[0], scene.server());
            for pid in [llmlb, server] {
                signal_pid(pid, Signal::SIGKILL);
                expect_dead(pid);
            }
            let stopped = scene.stop().expect(0).stdout;
            assert!(stopped.contains("ended 2 processes (PIDs: "), "{stopped}");
            for pid in members.into_iter().chain([llmlb, server]) {
                assert!(is_zombie(pid), "{pid}");
            }
            assert!(!scene.sandbox.lock_file(scene.port).exists());
            let shown = scene.run(&["status", "--all"]).expect(0).stdout;
            assert!(!shown.contains("LeftOver"), "{shown}");
            let nothing = scene.stop().expect(0).stdout;
            assert!(nothing.starts_with("No server running"), "{nothing}");
            let (next, _) = scene.serve(&[], 0);
            scene.stop().expect(0);
            next.finish().expect(0);
        }
    }
}
