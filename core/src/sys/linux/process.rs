//! One process, looked up in `/proc`: alive, dead, or an error where that can't be told.

use std::fs;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use chrono::{DateTime, TimeDelta, Utc};
use rustix::io::Errno;
use rustix::process::PidfdFlags;
use rustix::time::ClockId;

use crate::error::{context, os_error};
use crate::sys::Process;
use crate::sys::unix::again;

/// What `/proc/<pid>/stat` says.
pub(super) struct Fields {
    state: u8,
    parent: u32,
    group: u32,
    session: u32,
    flags: u32,
    threads: u32,
    /// Clock ticks after boot.
    pub(super) start: u64,
}

impl Fields {
    /// Neither allocates nor locks.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses too.
        let after_name = text.iter().rposition(|&b| b == b')')? + 1;
        let text = std::str::from_utf8(&text[after_name..]).ok()?;
        let mut fields = text.split_ascii_whitespace();
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            // -1 of one that is just being taken away.
            group: fields.next()?.parse().unwrap_or(0),
            session: fields.next()?.parse().unwrap_or(0),
            flags: fields.nth(2)?.parse().ok()?,
            threads: fields.nth(10)?.parse().ok()?,
            start: fields.nth(1)?.parse().ok()?,
        })
    }

    fn is_running(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }
}

/// A process or thread that `/proc` shows.
pub(super) struct Stat {
    alive: bool,
    pub(super) parent: u32,
    pub(super) group: u32,
    pub(super) session: u32,
    flags: u32,
    /// Clock ticks after boot.
    pub(super) start: u64,
    /// The effective user, or root for a process that is not to be looked into.
    pub(super) shown_owner: u32,
}

/// `None` where there is none. An error where that can't be told: no descriptors are left, `/proc`
/// does not show it.
pub(super) fn stat(pid: u32) -> io::Result<Option<Stat>> {
    let path = format!("/proc/{pid}/stat");
    let (fields, shown_owner) = match read_stat(&path) {
        Ok(Some(found)) => found,
        Ok(None) => return unseen(pid, context(Errno::ACCESS, path)),
        Err(e) => return unseen(pid, e),
    };
    // A main thread that has ended is a zombie for as long as any other thread lives.
    let alive = fields.is_running() || fields.threads > 1 && has_running_thread(pid)?;
    Ok(Some(Stat {
        alive,
        parent: fields.parent,
        group: fields.group,
        session: fields.session,
        flags: fields.flags,
        start: fields.start,
        shown_owner,
    }))
}

fn read_stat(path: &str) -> io::Result<Option<(Fields, u32)>> {
    // One read: the kernel gives it out whole, and what is needed is well within.
    let mut buffer = [0; 1024];
    let read = fs::File::open(path).and_then(|mut file| {
        let owner = again(|| file.metadata())?.uid();
        Ok((again(|| file.read(&mut buffer))?, owner))
    });
    match read {
        Ok((len, owner)) => match Fields::parse(&buffer[..len]) {
            Some(fields) => Ok(Some((fields, owner))),
            None => Err(context(io::Error::from(io::ErrorKind::InvalidData), path)),
        },
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(context(e, path)),
    }
}

fn is_gone(e: &io::Error) -> bool {
    let gone = [Errno::NOENT, Errno::SRCH].map(|errno| Some(errno.raw_os_error()));
    gone.contains(&e.raw_os_error())
}

/// That `/proc` does not show a process does not mean that there is none: it may be mounted with
/// `hidepid`, or not at all. One that starts or ends this very moment is an error, too.
fn unseen(pid: u32, e: io::Error) -> io::Result<Option<Stat>> {
    match rustix::process::test_kill_process(raw_pid(pid)?) {
        Err(Errno::SRCH) => Ok(None),
        Err(Errno::PERM) => Err(context(Errno::PERM, format!("/proc/{pid}"))),
        _ => Err(e),
    }
}

/// Whether a process could not be looked at because it is another user's.
pub(crate) fn is_anothers(e: &io::Error) -> bool {
    os_error(e) == Some(Errno::PERM.raw_os_error())
}

fn has_running_thread(pid: u32) -> io::Result<bool> {
    let path = format!("/proc/{pid}/task");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(false),
        Err(e) => return Err(context(e, path)),
    };
    for entry in entries {
        let thread = entry.map_err(|e| context(e, &*path))?.file_name();
        let stat = read_stat(&format!("{path}/{}/stat", thread.to_string_lossy()))?;
        if stat.is_some_and(|(fields, _)| fields.is_running()) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Stat {
    pub(super) fn is_alive(&self) -> bool {
        self.alive
    }

    /// Whether it is a thread of the kernel's own.
    pub(super) fn is_kernel(&self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.flags & PF_KTHREAD != 0
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

/// Looks one process up. `None` for none, a zombie or a thread; an error where that can't be told.
/// `pid` must be from 1 to `i32::MAX`.
pub(crate) fn process(pid: u32) -> io::Result<Option<Process>> {
    let Some(stat) = stat(pid)?.filter(Stat::is_alive) else {
        return Ok(None);
    };
    if is_thread(pid)? {
        return Ok(None);
    }
    Ok(Some(Process::from(stat)))
}

/// The process, if it is the one that started then. Nobody writes the start of a thread into a file
/// and means it, so that this asks less of the kernel.
pub(crate) fn process_started_at(pid: u32, start: u64) -> io::Result<Option<Process>> {
    let stat = stat(pid)?.filter(|stat| stat.is_alive() && stat.start == start);
    Ok(stat.map(Process::from))
}

impl From<Stat> for Process {
    fn from(stat: Stat) -> Self {
        Self {
            started: stat.started(),
            parent: stat.parent,
            start: stat.start,
            owner: Some(stat.shown_owner),
        }
    }
}

/// `/proc/<tid>` exists for every thread of a process, though it isn't listed.
fn is_thread(pid: u32) -> io::Result<bool> {
    match pidfd(pid) {
        Ok(_) | Err(Errno::SRCH) => Ok(false),
        Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Err(context(e, format!("pidfd of PID {pid}")))
        }
        // Kernels differ in what they say of a thread, and some are told to refuse the call.
        Err(_) => {
            let group = status_field(pid, "Tgid:")?;
            Ok(group.is_some_and(|tgid| tgid.parse() != Ok(pid)))
        }
    }
}

/// `None` where there is no such process, or no such field.
pub(super) fn status_field(pid: u32, name: &str) -> io::Result<Option<String>> {
    let path = format!("/proc/{pid}/status");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if is_gone(&e) => return Ok(None),
        Err(e) => return Err(context(e, path)),
    };
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.map(|line| line.trim().to_owned()))
}

pub(super) fn pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    let pid = raw_pid(pid)?;
    again(|| rustix::process::pidfd_open(pid, PidfdFlags::empty()))
}

fn raw_pid(pid: u32) -> Result<rustix::process::Pid, Errno> {
    // rustix checks for negative numbers in debug builds alone.
    let raw = i32::try_from(pid).map_err(|_| Errno::SRCH)?;
    rustix::process::Pid::from_raw(raw).ok_or(Errno::SRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_just_being_taken_away_can_be_read() {
        let text = b"7 (a) b) X 1 -1 -1 0 -1 4228100 0 0 0 0 0 0 0 0 20 0 0 0 12345 0 0";
        let fields = Fields::parse(text).expect("what the kernel writes");
        assert_eq!((fields.parent, fields.group, fields.start), (1, 0, 12345));
        assert!(!fields.is_running());
    }
}
