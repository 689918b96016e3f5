//! What macOS tells of processes: kqueue and sysinfo.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

use super::{LockFile, Process};

mod watch;

use crate::record::Identity;
use crate::server_id::ServerId;
pub(crate) use watch::Watch;

fn look_up<T>(
    pid: u32,
    what: ProcessRefreshKind,
    read: impl FnOnce(&sysinfo::Process) -> T,
) -> Option<T> {
    let pid = sysinfo::Pid::from_u32(pid);
    let mut system = System::new();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, what);
    let process = system.process(pid)?;
    let alive = !matches!(
        process.status(),
        ProcessStatus::Zombie | ProcessStatus::Dead
    );
    (alive && process.thread_kind().is_none()).then(|| read(process))
}

fn seen(pid: u32) -> Option<Process> {
    look_up(pid, ProcessRefreshKind::nothing(), |process| Process {
        started: i64::try_from(process.start_time())
            .ok()
            .and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
        parent: process.parent().map_or(0, sysinfo::Pid::as_u32),
        start: process.start_time(),
        owner: None,
    })
}

/// Looks one process up. `None` for none, a zombie or a thread.
pub(crate) fn process(pid: u32) -> io::Result<Option<Process>> {
    Ok(seen(pid))
}

/// Whole seconds tell too little: a holder is judged by its start alone.
pub(crate) fn identity(_start: u64) -> io::Result<Option<Identity>> {
    Ok(None)
}

pub(crate) fn own_identity() -> io::Result<Option<Identity>> {
    Ok(None)
}

pub(crate) fn forked_identity() -> io::Result<(u64, u64)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether the process belongs to the owner of the lock file, or root wrote the file.
pub(crate) fn owned_alike(pid: u32, file: &LockFile) -> io::Result<bool> {
    let owner = file.metadata()?.uid();
    if owner == 0 {
        return Ok(true);
    }
    let what = ProcessRefreshKind::nothing().with_user(UpdateKind::Always);
    Ok(look_up(pid, what, |process| {
        let real = process.user_id().map(|uid| **uid);
        let effective = process.effective_user_id().map(|uid| **uid);
        real == Some(owner) || effective == Some(owner)
    })
    .unwrap_or(false))
}

/// A process watched by a kqueue from before it is checked, so that its end is never missed.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: u32,
    raw: Pid,
    queue: Kqueue,
    started: Option<DateTime<Utc>>,
}

impl ProcessHandle {
    /// `None` where there is no such process.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let raw = match i32::try_from(pid) {
            Ok(raw) if raw > 0 => Pid::from_raw(raw),
            _ => return Ok(None),
        };
        let queue = Kqueue::new()?;
        let exit = KEvent::new(
            pid as usize,
            EventFilter::EVFILT_PROC,
            EvFlags::EV_ADD,
            FilterFlag::NOTE_EXIT,
            0,
            0,
        );
        match queue.kevent(&[exit], &mut [], None) {
            Ok(_) => {}
            Err(Errno::ESRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let Some(process) = seen(pid) else {
            return Ok(None);
        };
        Ok(Some(Self {
            pid,
            raw,
            queue,
            started: process.started,
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. True: it can be asked.
    pub(crate) fn terminate(&self) -> io::Result<bool> {
        self.signal(Signal::SIGTERM).map(|()| true)
    }

    /// Lets it go on if it is stopped (Ctrl-Z): it could not react otherwise.
    pub(crate) fn resume(&self) -> io::Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// A process that is gone already is no error.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        if seen(self.pid).is_none_or(|process| process.started != self.started) {
            return Ok(());
        }
        match kill(self.raw, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for its end; a zombie has ended. False when `timeout` ran out first.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            // The event is delivered once: later waits see the end here.
            if seen(self.pid).is_none_or(|process| process.started != self.started) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let none = KEvent::new(
                0,
                EventFilter::EVFILT_PROC,
                EvFlags::empty(),
                FilterFlag::empty(),
                0,
                0,
            );
            let wait = nix::libc::timespec {
                tv_sec: left.as_secs() as _,
                tv_nsec: left.subsec_nanos() as _,
            };
            match self.queue.kevent(&[], &mut [none], Some(wait)) {
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The family of a server: its process group is all that is known of it.
#[derive(Debug)]
pub(crate) struct Family;

impl Family {
    pub(crate) fn new(_id: ServerId, _beside: &[u32]) -> Self {
        Self
    }

    pub(crate) fn set_beside(&mut self, _beside: &[u32]) {}

    pub(crate) fn entrance(&self) -> Entrance {
        Entrance
    }

    pub(crate) fn is_over(&self, _childless: bool) -> bool {
        false
    }

    /// The leader stands for all: it is dead, and the group's number is taken as long as anybody is
    /// left.
    pub(crate) fn members(&self, _server: u32) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    pub(crate) fn has(&self, _pid: u32, _server: u32) -> bool {
        false
    }

    pub(crate) fn kill(&self, _server: u32) {}

    pub(crate) fn close(&self, _server: u32) {}
}

/// There are no cgroups.
#[derive(Debug)]
pub(crate) struct Entrance;

impl Entrance {
    pub(crate) fn enter(&self) {}
}
