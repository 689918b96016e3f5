//! Whether a PID is alive, and can be the one that wrote a lock file.

use std::collections::HashMap;
use std::io;

use chrono::TimeDelta;

use crate::record::{Identity, Record};
use crate::sys::{self, LockFile, Process};

/// A process may seem to start this much after the lock it took: start times are coarse.
const START_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// How much is shown of a process's arguments, in bytes: it may have megabytes of them.
const LONGEST_COMMAND: usize = 4096;

/// Whether a process with this id is running. A zombie is not, and the id of a thread is none. One
/// of which that can't be told, as no descriptors are left or it is hidden, is.
///
/// A PID alone is weak evidence, as the system gives it to another process in time: to know
/// whether a port is guarded, ask [`LockDir::servers`](crate::LockDir::servers).
pub fn is_process_running(pid: u32) -> bool {
    !matches!(find(pid), Ok(None))
}

/// The arguments that a process shows, its program first; what is no UTF-8 in them is replaced. On
/// Linux; `None` elsewhere, and where they can't be read, within a quarter of a second at most. What
/// is longer than 4 KiB is cut there, and ends in `…`.
///
/// A process may show whatever it likes: make control characters harmless before printing it.
pub fn process_command(pid: u32) -> Option<Vec<String>> {
    let pid = valid_pid(pid)?;
    let text = sys::command_line(pid.unsigned_abs(), LONGEST_COMMAND + 1)?;
    let shown = &text[..text.len().min(LONGEST_COMMAND)];
    let is_cut = shown.len() < text.len();
    let shown = String::from_utf8_lossy(shown);
    let shown = match is_cut {
        true => format!("{shown}…"),
        false => shown.trim_end_matches(['\0', ' ']).to_owned(),
    };
    (!shown.is_empty()).then(|| shown.split('\0').map(str::to_owned).collect())
}

/// Asks the process to end: SIGTERM on Unix; on Windows it is terminated at once.
///
/// The caller vouches for the PID. [`stop_server`](crate::stop_server) checks it instead, and
/// waits.
///
/// # Errors
///
/// - [`InvalidInput`](io::ErrorKind::InvalidInput) for 0 and for anything above [`i32::MAX`],
///   before any system call: `kill` takes those for process groups, or for every process there is.
/// - What the system says: no such process, not permitted.
pub fn stop_process(pid: u32) -> io::Result<()> {
    let pid = valid_pid(pid).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{pid} is not the id of a process; nothing was signalled"),
        )
    })?;
    sys::terminate(pid)
}

pub(crate) fn valid_pid(pid: u32) -> Option<i32> {
    i32::try_from(pid).ok().filter(|&pid| pid > 0)
}

/// `None` for a process that has ended, or never was; an error where that can't be told, which is
/// neither.
pub(crate) fn find(pid: u32) -> io::Result<Option<Process>> {
    match valid_pid(pid) {
        Some(_) => sys::process(pid),
        None => Ok(None),
    }
}

/// Processes as one look at locks has seen them: each is asked about once, however many locks name
/// it. Anybody may fill a directory that all may write to with names of one process.
#[derive(Default)]
pub(crate) struct Processes {
    found: HashMap<(u32, Option<u64>), Option<Process>>,
    alike: HashMap<(u32, u32), bool>,
    flocks: sys::Flocks,
}

impl Processes {
    fn find(&mut self, pid: u32, start: Option<u64>) -> io::Result<Option<Process>> {
        if let Some(known) = self.found.get(&(pid, start)) {
            return Ok(known.clone());
        }
        let found = match start.filter(|_| valid_pid(pid).is_some()) {
            Some(start) => sys::process_started_at(pid, start),
            None => find(pid),
        }?;
        self.found.insert((pid, start), found.clone());
        Ok(found)
    }

    /// The process that a record names: none if it has ended, is meant in another boot or PID
    /// namespace, or is another user's that is hidden from us.
    fn named(&mut self, record: &Record) -> io::Result<Option<Process>> {
        if let Some(identity) = &record.identity {
            let here = sys::own_identity()?.unwrap_or_default();
            if (&identity.boot_id, &identity.pid_ns) != (&here.boot_id, &here.pid_ns) {
                return Ok(None);
            }
        }
        let start = record.identity.as_ref().map(Identity::start);
        match self.find(record.info.pid, start) {
            Err(e) if sys::is_anothers(&e) => Ok(None),
            found => found,
        }
    }

    /// As [`is_holder`].
    pub(crate) fn is_holder(&mut self, record: &Record, file: &LockFile) -> io::Result<bool> {
        let Some(process) = self.named(record)? else {
            return Ok(false);
        };
        let identified = match record.identity {
            Some(_) => Some(is_identified(&process, record)?),
            None if started_in_time(&process, record) => Some(true),
            None => None,
        };
        // Nobody's descriptors are gone through because a stranger wrote down his number.
        if identified == Some(false) || !self.is_owned_alike(&process, record, file)? {
            return Ok(false);
        }
        let holds = || matches!(self.flocks.holds(record.info.pid, file), Ok(Some(true)));
        Ok(identified.unwrap_or_else(holds))
    }

    /// As [`is_live_holder`], of a lock that may be free: only an identity tells.
    pub(crate) fn is_live_holder(&mut self, record: &Record, file: &LockFile) -> io::Result<bool> {
        Ok(!cfg!(windows) && record.identity.is_some() && self.is_holder(record, file)?)
    }

    /// As [`may_be_shown`]: a stranger must not make others look at, or end, what he likes.
    pub(crate) fn may_be_shown(&mut self, record: &Record, file: &LockFile) -> bool {
        let pid = record.info.pid;
        matches!(self.find(pid, None), Ok(None)) || matches!(self.owned_alike(pid, file), Ok(true))
    }

    fn is_owned_alike(
        &mut self,
        process: &Process,
        record: &Record,
        file: &LockFile,
    ) -> io::Result<bool> {
        // What is known already settles most cases: root could do anything anyway.
        let owner = file.owner();
        let alike = owner.is_some() && (owner == process.owner || owner == Some(0));
        Ok(alike || self.owned_alike(record.info.pid, file)?)
    }

    fn owned_alike(&mut self, pid: u32, file: &LockFile) -> io::Result<bool> {
        let Some(owner) = file.owner() else {
            return sys::owned_alike(pid, file);
        };
        if let Some(known) = self.alike.get(&(pid, owner)) {
            return Ok(*known);
        }
        let alike = sys::owned_alike(pid, file)?;
        self.alike.insert((pid, owner), alike);
        Ok(alike)
    }
}

/// Whether the very process that wrote the record, or was handed the lock in it, is alive, though it
/// does not hold it: it closed its descriptors, as daemonizers do. Never one of another user than the
/// file's, who may write what he likes; and never on Windows, where the lock does not end with a
/// descriptor that others have closed.
pub(crate) fn is_live_holder(record: &Record, file: &LockFile) -> io::Result<bool> {
    Processes::default().is_live_holder(record, file)
}

/// Whether the process that a record names may be shown where it is not the holder.
pub(crate) fn may_be_shown(record: &Record, file: &LockFile) -> bool {
    Processes::default().may_be_shown(record, file)
}

fn is_identified(process: &Process, record: &Record) -> io::Result<bool> {
    Ok(record.identity.is_some() && record.identity == sys::identity(process.start)?)
}

/// Whether the process that the file of a held lock names is to be taken for its holder, and may be
/// shown to others: it belongs to the owner of the file.
///
/// A record without an identity is judged by the start of the process: one that started later got a
/// recycled PID. If the wall clock was set meanwhile, its descriptor tells.
pub(crate) fn is_holder(record: &Record, file: &LockFile) -> io::Result<bool> {
    Processes::default().is_holder(record, file)
}

/// Whether a process that is alive may be the one that the record names, for all that the record
/// tells.
pub(crate) fn could_be(record: &Record) -> bool {
    match Processes::default().named(record) {
        Ok(Some(process)) if record.identity.is_none() => started_in_time(&process, record),
        Ok(Some(process)) => matches!(is_identified(&process, record), Ok(true)),
        Ok(None) => false,
        Err(_) => true,
    }
}

fn started_in_time(process: &Process, record: &Record) -> bool {
    process
        .started
        .is_none_or(|started| started - START_TOLERANCE <= record.info.started_at)
}
