//! Environments that strangers have made to cost whoever looks at them. Apart, as it measures the
//! memory of its own process: no other test may run beside it.
#![cfg(all(
    target_os = "linux",
    target_pointer_width = "64",
    target_endian = "little"
))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::{self, Write};

use common::{Actor, Stage, eventually, temp_dir};
use llmlb_lock_core::LockDir;

common::roles!(boundless);

const HUGE: usize = 1 << 30;

/// Says that all of a gigabyte is its environment, which takes no privilege.
fn boundless(stage: &Stage) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<u64> = after_name
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // As they are counted in proc(5), the first of these being the third.
    let field = |number: usize| fields[number - 3];
    // SAFETY: new memory, of which nothing is read or written here; the map is as the kernel tells
    // it, but for the environment, which nobody in this process looks at any more.
    let done = unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            HUGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        );
        assert_ne!(memory, libc::MAP_FAILED);
        // `struct prctl_mm_map`, of which the last two words are the auxiliary vector, unchanged,
        // its length, 0, and the program's file, unchanged.
        let map: [u64; 13] = [
            field(26),
            field(27),
            field(45),
            field(46),
            field(47),
            libc::sbrk(0) as u64,
            field(28),
            field(48),
            field(49),
            memory as u64,
            memory as u64 + HUGE as u64,
            0,
            u64::from(u32::MAX) << 32,
        ];
        let (map, len) = (map.as_ptr(), size_of_val(&map));
        libc::prctl(libc::PR_SET_MM, libc::PR_SET_MM_MAP, map, len, 0)
    };
    stage.say(match done {
        0 => "done".to_owned(),
        _ => io::Error::last_os_error().to_string(),
    });
    stage.hear();
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().split_ascii_whitespace().next();
    number.unwrap().parse().unwrap()
}

#[test]
fn an_environment_without_end_costs_whoever_looks_at_it_no_memory() {
    let dir = temp_dir();
    let mut boundless = Actor::new("boundless", dir.path());
    let done = boundless.hear();
    if done != "done" {
        let _ = writeln!(io::stderr().lock(), "SKIPPED, PR_SET_MM_MAP: {done}");
        return;
    }
    let before = peak();
    assert_eq!(LockDir::new(dir.path()).left_overs().unwrap(), []);
    // Who reads and was not waited for has ended, too.
    eventually("nobody reads any more", || {
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")));
        !names.any(|name| name.is_ok_and(|name| name.trim() == "environments"))
    });
    let cost = (peak() - before) >> 10;
    assert!(cost < 64, "{cost} MiB");
}
