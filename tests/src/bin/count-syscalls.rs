//! Counts the system calls of a process from now to its end: `count-syscalls PID`. Says `watching`
//! when it does, and the number when the process has ended.

#![allow(clippy::unwrap_used)]

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;

    use nix::sys::ptrace::{self, Options};
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    use nix::unistd::Pid;

    pub(super) fn main() {
        let pid = std::env::args().nth(1).unwrap();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let mut seized = Vec::new();
        for thread in threads.flatten() {
            let thread = thread.file_name().to_str().unwrap().parse().unwrap();
            let thread = Pid::from_raw(thread);
            let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD;
            ptrace::seize(thread, options).unwrap();
            ptrace::interrupt(thread).unwrap();
            seized.push(thread);
        }
        for thread in seized {
            waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            ptrace::syscall(thread, None).unwrap();
        }
        println!("watching");
        let mut stops = 0;
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::__WALL)) {
            let (thread, signal) = match status {
                WaitStatus::PtraceSyscall(thread) => {
                    stops += 1;
                    (thread, None)
                }
                WaitStatus::PtraceEvent(thread, ..) => (thread, None),
                WaitStatus::Stopped(thread, signal) => {
                    (thread, (signal != Signal::SIGTRAP).then_some(signal))
                }
                _ => continue,
            };
            // One that has been killed meanwhile is waited for above.
            let _ = ptrace::syscall(thread, signal);
        }
        // Each call stops twice, but for the one that ends the process.
        println!("{}", (stops + 1) / 2);
    }
}
