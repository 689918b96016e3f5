//! Which processes hold a lock or belong to a server, from what the kernel tells of each.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::environment::{Reader, Variable, threads};
use super::process::{stat, status_field};
use crate::error::context;
use crate::sys::LockFile;
use crate::sys::unix::again;

/// More than a few hundred thousand locks are nobody's servers.
const LONGEST_LIST: u64 = 32 << 20;

/// Whether the process belongs to the owner of the lock file, or root wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    may_be_of(pid, file.metadata()?.uid())
}

/// Whether a process that a user has started, as something else tells than itself, belongs to him:
/// those that root has started may have changed their user.
pub(super) fn may_be_of(pid: u32, owner: u32) -> io::Result<bool> {
    Ok(owner == 0 || is_owned_by(pid, owner)?)
}

/// Whether the process belongs to a user.
pub(super) fn is_owned_by(pid: u32, owner: u32) -> io::Result<bool> {
    // Root is shown for all that may not be looked into, too.
    if owner != 0 && stat(pid)?.is_some_and(|stat| stat.shown_owner == owner) {
        return Ok(true);
    }
    let uids = status_field(pid, "Uid:")?.unwrap_or_default();
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
    Inode::of(file)?.taker(pid)
}

/// A lock file as `/proc` tells of it. The files of other processes are never looked at
/// themselves: one of them on a network mount that hangs would hang us.
pub(super) struct Inode {
    pub(super) number: u64,
    device: String,
    /// Our own descriptor's entry in `/proc`.
    link: String,
}

impl Inode {
    pub(super) fn of(file: &LockFile) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let fd = file.as_fd().as_raw_fd();
        let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"));
        // Layered file systems show another number to us than to the kernel's list of locks.
        // Told since Linux 5.14.
        let number = fdinfo.ok().and_then(|text| {
            let number = text.lines().find_map(|line| line.strip_prefix("ino:"))?;
            number.trim().parse().ok()
        });
        let device = metadata.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Self {
            number: number.unwrap_or_else(|| metadata.ino()),
            device: format!("{major:02x}:{minor:02x}"),
            link: format!("/proc/self/fd/{fd}"),
        })
    }

    fn taker(&self, pid: u32) -> io::Result<Option<u32>> {
        let found = self.look(&format!("/proc/{pid}"), pid)?;
        if found != Looked::Nothing {
            return Ok(found.taker());
        }
        // The descriptors of a process whose main thread has ended are seen through the others.
        for thread in threads(pid)?.into_iter().filter(|&thread| thread != pid) {
            let found = self.look(&format!("/proc/{pid}/task/{thread}"), pid)?;
            if found != Looked::Nothing {
                return Ok(found.taker());
            }
        }
        Ok(None)
    }

    fn look(&self, process: &str, pid: u32) -> io::Result<Looked> {
        let path = format!("{process}/fdinfo");
        let entries = match again(|| fs::read_dir(&path)) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Looked::Nothing),
            Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, path)),
            // Not ours to look at: the kernel's own list names at least who took the lock.
            Err(_) if KernelsList::read().has(pid, self.number) => {
                return Ok(Looked::Holder(pid));
            }
            Err(_) => return Ok(Looked::Other),
        };
        let mut looked = Looked::Nothing;
        for entry in entries.flatten() {
            looked = Looked::Other;
            let text = match fs::read_to_string(entry.path()) {
                Ok(text) => text,
                Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, path)),
                Err(_) => continue,
            };
            let taker = text.lines().find_map(|line| self.taker_in(line));
            let Some((taker, device)) = taker else {
                continue;
            };
            let fd = entry.file_name();
            if self.is_on(device, &format!("{process}/fd/{}", fd.to_string_lossy())) {
                return Ok(Looked::Holder(taker));
            }
        }
        Ok(looked)
    }

    /// Whether a lock on a file of this number is one on this file; `theirs` is the entry of the
    /// descriptor in `/proc`.
    pub(super) fn is_on(&self, device: &str, theirs: &str) -> bool {
        // A file system may show another device to us than to the kernel's list of locks.
        device == self.device || name(theirs).is_some_and(|n| Some(n) == name(&self.link))
    }

    fn taker_in<'a>(&self, line: &'a str) -> Option<(u32, &'a str)> {
        let flock = Flock::parse(line.strip_prefix("lock:")?)?;
        (flock.number == self.number).then_some((flock.taker, flock.device))
    }
}

/// A lock of this kind, as the kernel tells of it.
pub(super) struct Flock<'a> {
    pub(super) taker: u32,
    pub(super) device: &'a str,
    pub(super) number: u64,
}

impl<'a> Flock<'a> {
    /// "1: FLOCK  ADVISORY  WRITE 2197 fe:00:10010636 0 EOF"
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let mut fields = text.split_ascii_whitespace();
        if fields.nth(1)? != "FLOCK" {
            return None;
        }
        let taker = fields.nth(2)?.parse().unwrap_or(0);
        let (device, number) = fields.next()?.rsplit_once(':')?;
        Some(Self {
            taker,
            device,
            number: number.parse().ok()?,
        })
    }
}

/// What the descriptors of a process tell.
#[derive(PartialEq, Eq)]
enum Looked {
    /// One holds the lock, which this process took.
    Holder(u32),
    /// None does.
    Other,
    /// There are none.
    Nothing,
}

impl Looked {
    fn taker(self) -> Option<u32> {
        match self {
            Self::Holder(taker) => Some(taker),
            Self::Other | Self::Nothing => None,
        }
    }
}

pub(super) fn is_lack_of_descriptors(e: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE]
        .map(|errno| Some(errno.raw_os_error()))
        .contains(&e.raw_os_error())
}

/// The name of a file by its entry in `/proc`, which touches no file system.
fn name(link: &str) -> Option<OsString> {
    let path = fs::read_link(link).ok()?;
    let name = path.file_name()?.as_bytes();
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Some(OsStr::from_bytes(name).to_owned())
}

/// Who took which flock, as `/proc/locks` tells everybody.
pub(super) struct KernelsList(HashSet<(u32, u64)>);

impl KernelsList {
    pub(super) fn read() -> Self {
        let mut found = HashSet::new();
        let list =
            fs::File::open("/proc/locks").map(|file| BufReader::new(file.take(LONGEST_LIST)));
        for line in list
            .into_iter()
            .flat_map(BufRead::lines)
            .map_while(Result::ok)
        {
            found.extend(Flock::parse(&line).map(|flock| (flock.taker, flock.number)));
        }
        Self(found)
    }

    pub(super) fn has(&self, pid: u32, number: u64) -> bool {
        self.0.contains(&(pid, number))
    }
}

pub(super) fn all_pids() -> io::Result<Vec<u32>> {
    let list = || {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            pids.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(pids)
    };
    again(list).map_err(|e: io::Error| context(e, "/proc"))
}

/// Every process, this one apart, whose descriptors hold the kernel lock, with its
/// [`taker`]. Looks at all processes: only for what is left when the named holder is gone.
pub(crate) fn holders(file: &LockFile) -> io::Result<Vec<(u32, u32)>> {
    let own = std::process::id();
    let inode = Inode::of(file)?;
    let mut found = Vec::new();
    for pid in all_pids()?.into_iter().filter(|&pid| pid != own) {
        if let Some(taker) = inode.taker(pid)? {
            found.push((pid, taker));
        }
    }
    Ok(found)
}

/// Whether a process leads a process group of its own and has `marker` in its environment.
pub(crate) fn leads_group(pid: u32, marker: &str) -> bool {
    matches!(stat(pid), Ok(Some(stat)) if stat.group == pid) && has_in_environment(pid, marker)
}

fn has_in_environment(pid: u32, variable: &str) -> bool {
    let Some((name, value)) = variable.split_once('=') else {
        return false;
    };
    matches!(Reader::default().variable(pid, name), Variable::Is(found) if found == value)
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
    let pids = all_pids().unwrap_or_default().into_iter();
    pids.filter(|&pid| is_straggler(pid, group, marker, left))
        .collect()
}

/// Whether [`stragglers`] names the process.
pub(crate) fn is_straggler(
    pid: u32,
    group: u32,
    marker: Option<&str>,
    left: DateTime<Utc>,
) -> bool {
    matches!(stat(pid), Ok(Some(stat)) if stat.group == group
        && stat.is_alive()
        && stat.started().is_some_and(|started| started <= left))
        && marker.is_none_or(|marker| has_in_environment(pid, marker))
}
