//! Waiting where the system does not tell of changes: no inotify instance is left, or a sandbox
//! refuses the call.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Actor, PATIENCE, Stage, holder, temp_dir};

common::roles!(holder, sandboxed);

/// From now on, `inotify_init1` fails in this process as it does when no instance is left.
fn refuse_inotify(errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        step(LOAD, 0, 0), // the number of the call
        step(EQUAL, libc::SYS_inotify_init1 as u32, 1),
        step(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program is a valid filter and outlives the calls, which copy it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let filter = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, filter, &program), 0);
        assert_eq!(libc::inotify_init1(0), -1);
    }
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
