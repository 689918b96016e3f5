//! Stopping where the kernel or a sandbox refuses process descriptors.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Actor, DEAD, PORT, Stage, holder, lock_file, temp_dir};
use llmlb_lock_core::{StopOptions, StopOutcome, is_process_running};

common::roles!(holder, sandboxed);

/// From now on, `pidfd_open` fails in this process as it does without the system call.
fn refuse_pidfd(errno: i32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, k, jf| libc::sock_filter { code, jt: 0, jf, k };
    let mut filter = [
        step(LOAD, 0, 0), // the number of the call
        step(EQUAL, libc::SYS_pidfd_open as u32, 1),
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
        let own = libc::getpid();
        assert_eq!(libc::syscall(libc::SYS_pidfd_open, own, 0), -1);
    }
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(errno));
}

fn sandboxed(stage: &Stage) {
    refuse_pidfd(stage.hear().parse().unwrap());
    stage.say(is_process_running(std::process::id()));
    stage.say(is_process_running(DEAD));
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).unwrap();
        let _ = ended.recv();
    });
    stage.say(is_process_running(told.recv().unwrap() as u32));
    drop(end);
    thread.join().unwrap();
    let options = StopOptions::default()
        .timeout(Duration::from_secs(30))
        .force(false);
    let outcome = stage.locks.stop_server(PORT, &options).unwrap();
    let StopOutcome::Stopped { info, forced, .. } = outcome else {
        panic!("{outcome:?}");
    };
    stage.say(format!("stopped {} {forced}", info.pid));
}

#[test]
fn processes_are_told_apart_and_stopped_all_the_same() {
    for errno in [libc::ENOSYS, libc::EPERM] {
        let dir = temp_dir();
        let mut server = Actor::holding(dir.path());
        let mut stopper = Actor::new("sandboxed", dir.path());
        stopper.tell(errno);
        assert_eq!(stopper.hear(), "true");
        assert_eq!(stopper.hear(), "false");
        assert_eq!(stopper.hear(), "false");
        assert_eq!(stopper.hear(), format!("stopped {} false", server.pid()));
        assert!(!lock_file(dir.path()).exists());
        assert!(!server.wait().success());
    }
}
