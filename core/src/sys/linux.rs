use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, Signal};
use rustix::time::ClockId;

use super::{LockFile, Process};

/// How often a process without a pidfd is looked at.
const FALLBACK_POLL: Duration = Duration::from_millis(2);

/// What `/proc/<pid>/stat` tells of a process or thread.
struct Stat {
    state: u8,
    parent: u32,
    group: u32,
    /// Clock ticks after boot.
    start: u64,
}

fn stat(pid: u32) -> Option<Stat> {
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
    fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn started(&self) -> Option<DateTime<Utc>> {
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

fn status_field(pid: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

fn pidfd(pid: u32) -> Result<OwnedFd, Errno> {
    // rustix checks for negative numbers in debug builds alone.
    let raw = i32::try_from(pid).map_err(|_| Errno::SRCH)?;
    let pid = rustix::process::Pid::from_raw(raw).ok_or(Errno::SRCH)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty())
}

/// Whether the process belongs to the owner of the lock file, or root wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    let owner = file.metadata()?.uid();
    if owner == 0 {
        return Ok(true);
    }
    let uids = status_field(pid, "Uid:").unwrap_or_default();
    // Real, effective and saved: a server may have dropped or raised its privileges.
    let mut uids = uids.split_ascii_whitespace().take(3);
    Ok(uids.any(|uid| uid.parse() == Ok(owner)))
}

/// Whether a descriptor of the process holds the kernel lock; `None` on systems that do not tell.
/// Having the file open is not enough: whoever waits or reads has that too.
pub(crate) fn holds(pid: u32, file: &LockFile) -> io::Result<Option<bool>> {
    Ok(Some(taker(pid, file)?.is_some()))
}

/// Which process took the kernel lock that a descriptor of `pid` holds: itself, or the one it
/// inherited the descriptor from. 0 for one that can't be named in this PID namespace; `None`
/// where no descriptor holds it.
pub(crate) fn taker(pid: u32, file: &LockFile) -> io::Result<Option<u32>> {
    let ours = file.metadata()?;
    let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Not ours to look at: the kernel's own list names at least who took the lock.
        Err(_) => return Ok(named_by_kernel(pid, ours.ino()).then_some(pid)),
    };
    for entry in entries.flatten() {
        let Ok(theirs) = fs::metadata(entry.path()) else {
            continue;
        };
        if (theirs.dev(), theirs.ino()) != (ours.dev(), ours.ino()) {
            continue;
        }
        let fdinfo = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy());
        let Ok(fdinfo) = fs::read_to_string(fdinfo) else {
            continue;
        };
        // "lock:	1: FLOCK  ADVISORY  WRITE 2197 fe:00:10010636 0 EOF"
        let taker = fdinfo.lines().find_map(|line| {
            let mut fields = line.strip_prefix("lock:")?.split_ascii_whitespace();
            (fields.nth(1) == Some("FLOCK")).then(|| fields.nth(2)?.parse().ok())
        });
        if let Some(taker) = taker {
            return Ok(Some(taker.unwrap_or(0)));
        }
    }
    Ok(None)
}

/// Whether `/proc/locks` has a flock on the inode taken by the process.
fn named_by_kernel(pid: u32, inode: u64) -> bool {
    let Ok(locks) = fs::read_to_string("/proc/locks") else {
        return false;
    };
    locks.lines().any(|line| {
        // "1: FLOCK  ADVISORY  WRITE 2197 fe:00:10010636 0 EOF"
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&"FLOCK")
            && fields.get(4).and_then(|f| f.parse().ok()) == Some(pid)
            && fields
                .get(5)
                .and_then(|f| f.rsplit(':').next()?.parse().ok())
                == Some(inode)
    })
}

fn all_pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.flatten().filter_map(name).collect()
}

/// Every process, this one apart, whose descriptors hold the kernel lock, with its
/// [`taker`]. Looks at all processes: only for what is left when the named holder is gone.
pub(crate) fn holders(file: &LockFile) -> io::Result<Vec<(u32, u32)>> {
    let own = std::process::id();
    let mut found = Vec::new();
    for pid in all_pids().into_iter().filter(|&pid| pid != own) {
        if let Some(taker) = taker(pid, file)? {
            found.push((pid, taker));
        }
    }
    Ok(found)
}

/// Whether a process leads a process group of its own and has `marker` in its environment.
pub(crate) fn leads_group(pid: u32, marker: &str) -> bool {
    stat(pid).is_some_and(|stat| stat.group == pid) && has_in_environment(pid, marker)
}

fn has_in_environment(pid: u32, variable: &str) -> bool {
    fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|env| env.split(|&b| b == 0).any(|var| var == variable.as_bytes()))
}

/// Processes that a server which led the process group `group` has left behind in it: those that
/// were there before `left`, and have `marker`, if one is asked for, in their environment.
pub(crate) fn stragglers(group: u32, marker: Option<&str>, left: DateTime<Utc>) -> Vec<u32> {
    let Some(raw) = i32::try_from(group)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    else {
        return Vec::new();
    };
    // The usual case, settled without a look at all processes.
    if rustix::process::test_kill_process_group(raw) == Err(Errno::SRCH) {
        return Vec::new();
    }
    all_pids()
        .into_iter()
        .filter(|&pid| is_straggler(pid, group, marker, left))
        .collect()
}

/// Whether [`stragglers`] names the process.
pub(crate) fn is_straggler(
    pid: u32,
    group: u32,
    marker: Option<&str>,
    left: DateTime<Utc>,
) -> bool {
    stat(pid).is_some_and(|stat| {
        stat.group == group
            && stat.is_alive()
            && stat.started().is_some_and(|started| started <= left)
    }) && marker.is_none_or(|marker| has_in_environment(pid, marker))
}

/// A process that can't turn into another one: a pidfd, or, where the kernel or a sandbox refuses
/// those, the PID together with its start.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    pidfd: Option<OwnedFd>,
    start: u64,
}

impl ProcessHandle {
    /// `None` where there is no such process. `pid` must be from 1 to `i32::MAX`.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let pidfd = match pidfd(pid) {
            Ok(fd) => Some(fd),
            Err(Errno::SRCH) => return Ok(None),
            Err(Errno::NOSYS | Errno::PERM | Errno::ACCESS) => None,
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None), // a thread
            Err(e) => return Err(e.into()),
        };
        let Some(stat) = stat(pid) else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            pidfd,
            start: stat.start,
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. True: it can be asked.
    pub(crate) fn terminate(&self) -> io::Result<bool> {
        self.signal(Signal::TERM).map(|()| true)
    }

    /// Lets it go on if it is stopped (Ctrl-Z): it could not react otherwise.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Ends it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// A process that is gone already is no error.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        let result = match &self.pidfd {
            Some(pidfd) => rustix::process::pidfd_send_signal(pidfd, signal),
            None if self.is_gone() => return Ok(()),
            None => match i32::try_from(self.pid)
                .ok()
                .and_then(rustix::process::Pid::from_raw)
            {
                Some(pid) => rustix::process::kill_process(pid, signal),
                None => Err(Errno::SRCH),
            },
        };
        match result {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn is_gone(&self) -> bool {
        stat(self.pid).is_none_or(|stat| !stat.is_alive() || stat.start != self.start)
    }

    /// Waits for its end; a zombie has ended. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(pidfd) = &self.pidfd else {
                if self.is_gone() {
                    return Ok(true);
                }
                if left.is_zero() {
                    return Ok(false);
                }
                std::thread::sleep(left.min(FALLBACK_POLL));
                continue;
            };
            let mut fds = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
            let timespec = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match rustix::event::poll(&mut fds, Some(&timespec)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
