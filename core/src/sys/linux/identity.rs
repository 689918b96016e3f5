//! By what a process is told from all others: boot, PID namespace, start. Of this process it is
//! remembered, and may be read between fork and exec.

use std::fs;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags};

use super::generation::own_page;
use super::process::Fields;
use crate::error::context;
use crate::record::Identity;
use crate::sys::unix::again;

/// That of a process which is seen from here and started at `start`. An error where this system
/// does not tell.
pub(crate) fn identity(start: u64) -> io::Result<Option<Identity>> {
    Ok(Some(Identity {
        boot_id: Some(boot_id()?),
        pid_ns: Some(remembered(|page| &page.pid_ns, own_pid_ns)?),
        creation_time: None,
        start_ticks: Some(start),
    }))
}

pub(crate) fn own_identity() -> io::Result<Option<Identity>> {
    identity(remembered(|page| &page.start_ticks, own_start_ticks)?)
}

/// PID namespace and start of this process. Async-signal-safe: it may have been forked just now.
pub(crate) fn forked_identity() -> io::Result<(u64, u64)> {
    Ok((own_pid_ns()?, own_start_ticks()?))
}

fn remembered(
    field: fn(&super::generation::OwnPage) -> &AtomicU64,
    read: fn() -> io::Result<u64>,
) -> io::Result<u64> {
    let known = own_page().map(field);
    match known.map_or(0, |known| known.load(Ordering::Relaxed)) {
        0 => {
            let value = read().map_err(|e| context(e, "/proc/self"))?;
            if let Some(known) = known {
                known.store(value, Ordering::Relaxed);
            }
            Ok(value)
        }
        value => Ok(value),
    }
}

fn own_pid_ns() -> io::Result<u64> {
    Ok(again(|| rustix::fs::stat(c"/proc/self/ns/pid"))?.st_ino)
}

fn own_start_ticks() -> io::Result<u64> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let stat = again(|| rustix::fs::open(c"/proc/self/stat", flags, Mode::empty()))?;
    let mut text = [0; 1024];
    let len = again(|| rustix::io::read(&stat, &mut text))?;
    let fields = Fields::parse(&text[..len]).ok_or(io::ErrorKind::InvalidData)?;
    Ok(fields.start)
}

fn boot_id() -> io::Result<String> {
    // Never set within a closure that reads: a child that is forked meanwhile would wait for it.
    static KNOWN: OnceLock<String> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(known.clone());
    }
    let path = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(path).map_err(|e| context(e, path))?;
    let id = id.trim_ascii_end().to_owned();
    let _ = KNOWN.set(id.clone());
    Ok(id)
}
