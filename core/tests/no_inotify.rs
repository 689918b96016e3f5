//! Waiting where the system does not tell of changes: no inotify instance is left, or a sandbox
//! refuses the call.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use common::{Actor, PATIENCE, Stage, holder, temp_dir};

common::roles!(holder, sandboxed);

/// From now on, `inotify_init1` fails in this process as it does when no instance is left.
fn refuse_inotify(errno: i32) {
    use seccomp::{EQUAL, LOAD, step};
    let number = step(LOAD, 0, 0);
    let call = step(EQUAL, libc::SYS_inotify_init1 as u32, 1);
    seccomp::refuse(&[number, call], errno);
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { libc::inotify_init1(0) }, -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(errno));
}

fn sandboxed(stage: &Stage) {
    refuse_inotify(stage.hear().parse().unwrap());
    stage.say("waiting");
    let lock = stage.acquire(PATIENCE).unwrap();
    stage.hear();
    stage.say(common::done(&lock.release()));
}

#[test]
fn a_waiter_gets_the_lock_all_the_same() {
    for errno in [libc::EMFILE, libc::ENOSYS] {
        for killed in [true, false] {
            let dir = temp_dir();
            let mut holder = Actor::holding(dir.path());
            let mut waiter = Actor::new("sandboxed", dir.path());
            waiter.tell(errno);
            assert_eq!(waiter.hear(), "waiting");
            common::eventually("it waits on the file", || {
                common::has_open(waiter.pid(), &common::lock_file(dir.path()))
            });
            assert!(waiter.is_silent());
            if killed {
                holder.kill();
            } else {
                assert_eq!(holder.ask("release"), "ok");
            }
            assert_eq!(waiter.hear(), "won");
            assert_eq!(waiter.ask("release"), "ok");
        }
    }
}
