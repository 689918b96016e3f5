//! Stopping where the kernel or a sandbox refuses process descriptors.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/seccomp.rs"]
mod seccomp;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{Actor, DEAD, PORT, Stage, holder, lock_file, temp_dir};
use llmlb_lock_core::{StopOptions, StopOutcome, is_process_running};

common::roles!(holder, sandboxed);

/// From now on, `pidfd_open` fails in this process as it does without the system call.
fn refuse_pidfd(errno: i32) {
    use seccomp::{EQUAL, LOAD, step};
    let number = step(LOAD, 0, 0);
    let call = step(EQUAL, libc::SYS_pidfd_open as u32, 1);
    seccomp::refuse(&[number, call], errno);
    // SAFETY: takes no pointer.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    assert_eq!(opened, -1);
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
