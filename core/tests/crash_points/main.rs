//! Every crash point: what takes a lock, hands it on, gives it back or stops its holder is run
//! under ptrace, killed by -9 before and after each system call that it makes, and has each call
//! fail once with each of several errors. Afterwards the next start takes the port at once, what
//! the file said never misleads, and nothing else was harmed.
//!
//! What looks at all processes, or waits, makes the same call many times over: there the first, the
//! second and the last at each place in the program are points. `LLMLB_CRASH_POINTS_ALL=1` takes all
//! of them, a name after `--` that operation alone.
//!
//! A program of its own, not a test for the usual runner: it forks, which takes a single thread.

#[cfg(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod every_point;

#[cfg(not(all(
    target_os = "linux",
    target_env = "gnu",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
mod every_point {
    //! Where calls can't be followed.

    pub(super) fn main() {
        println!("crash points: SKIPPED, as this takes ptrace on Linux, x86-64 or aarch64");
    }
}

fn main() {
    every_point::main();
}
