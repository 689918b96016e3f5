//! Which processes hold a lock or belong to a server, from what the kernel tells of each.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use chrono::{DateTime, Utc};
use rustix::io::Errno;

use super::process::{stat, status_field};
use crate::error::context;
use crate::sys::LockFile;
use crate::sys::unix::again;
/// Whether the process belongs to the owner of the lock file, or root wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    let owner = file.metadata()?.uid();
    if owner == 0 {
        return Ok(true);
    }
    if stat(pid)?.is_some_and(|stat| stat.shown_owner == owner) {
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
    let ours = file.metadata()?;
    let entries = match again(|| fs::read_dir(format!("/proc/{pid}/fd"))) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        // Not ours to look at: the kernel's own list names at least who took the lock.
        Err(_) => return Ok(named_by_kernel(pid, ours.ino()).then_some(pid)),
    };
    for entry in entries.flatten() {
        let Ok(theirs) = again(|| fs::metadata(entry.path())) else {
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

fn all_pids() -> io::Result<Vec<u32>> {
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
    let mut found = Vec::new();
    for pid in all_pids()?.into_iter().filter(|&pid| pid != own) {
        if let Some(taker) = taker(pid, file)? {
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
        .unwrap_or_default()
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
    matches!(stat(pid), Ok(Some(stat)) if stat.group == group
        && stat.is_alive()
        && stat.started().is_some_and(|started| started <= left))
        && marker.is_none_or(|marker| has_in_environment(pid, marker))
}
