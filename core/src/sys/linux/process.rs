//! One process, looked up in `/proc`.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use rustix::time::ClockId;

use crate::sys::Process;
/// What `/proc/<pid>/stat` tells of a process or thread.
pub(super) struct Stat {
    state: u8,
    parent: u32,
    pub(super) group: u32,
    /// Clock ticks after boot.
    pub(super) start: u64,
}

pub(super) fn stat(pid: u32) -> Option<Stat> {
    // One read: the kernel gives it out whole, and what is needed is well within.
    let mut buffer = [0; 1024];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let len = file.read(&mut buffer).ok()?;
    let text = &buffer[..len];
    // The name in parentheses may hold anything, parentheses too.
    let after_name = text.iter().rposition(|&b| b == b')')? + 1;
    let text = std::str::from_utf8(&text[after_name..]).ok()?;
    let mut fields = text.split_ascii_whitespace();
    Some(Stat {
        state: *fields.next()?.as_bytes().first()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
        start: fields.nth(16)?.parse().ok()?,
    })
}

impl Stat {
    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    pub(super) fn started(&self) -> Option<DateTime<Utc>> {
        let hertz = rustix::param::clock_ticks_per_second();
        let after_boot = TimeDelta::milliseconds(i64::try_from(self.start * 1000 / hertz).ok()?);
        Some(Utc::now() - (since_boot() - after_boot))
    }
}

fn since_boot() -> TimeDelta {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    TimeDelta::seconds(now.tv_sec) + TimeDelta::nanoseconds(now.tv_nsec)
}

/// Looks one process up. `None` for none, a zombie or a thread. `pid` must be from 1 to
/// `i32::MAX`.
pub(crate) fn process(pid: u32) -> Option<Process> {
    let stat = stat(pid)?;
    if !stat.is_alive() || is_thread(pid) {
        return None;
    }
    Some(Process {
        started: stat.started(),
        parent: stat.parent,
    })
}

/// `/proc/<tid>` exists for every thread of a process, though it isn't listed.
fn is_thread(pid: u32) -> bool {
    match pidfd(pid) {
        Ok(_) | Err(Errno::SRCH) => false,
        // Kernels differ in what they say of a thread, and some are told to refuse the call.
        Err(_) => status_field(pid, "Tgid:").and_then(|tgid| tgid.parse().ok()) != Some(pid),
    }
}

pub(super) fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

pub(super) fn pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    // rustix checks for negative numbers in debug builds alone.
    let raw = i32::try_from(pid).map_err(|_| Errno::SRCH)?;
    let pid = rustix::process::Pid::from_raw(raw).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}
