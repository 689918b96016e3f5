//! What Linux alone tells of other processes. Elsewhere a live process that the file of a held lock
//! names is taken at its word, and what a server leaves behind is ended by its launcher: through
//! the process group, or the job object.

use std::io;

use chrono::{DateTime, Utc};

use super::{Directory, LockFile, Process, ProcessHandle, process};
use crate::server_id::ServerId;

pub(crate) fn holds(_pid: u32, _file: &LockFile) -> io::Result<Option<bool>> {
    Ok(None)
}

/// What processes hold, as one look at many locks sees it.
#[derive(Default)]
pub(crate) struct Flocks;

impl Flocks {
    pub(crate) fn holds(&mut self, pid: u32, file: &LockFile) -> io::Result<Option<bool>> {
        holds(pid, file)
    }
}

pub(crate) fn taker(_pid: u32, _file: &LockFile) -> io::Result<Option<u32>> {
    Ok(None)
}

pub(crate) fn holders(_file: &LockFile) -> io::Result<Vec<(u32, u32)>> {
    Ok(Vec::new())
}

pub(crate) fn leads_group(_pid: u32, _marker: &str) -> bool {
    false
}

pub(crate) fn stragglers(_group: u32, _marker: Option<&str>, _left: DateTime<Utc>) -> Vec<u32> {
    Vec::new()
}

pub(crate) fn is_straggler(
    _pid: u32,
    _group: u32,
    _marker: Option<&str>,
    _left: DateTime<Utc>,
) -> bool {
    false
}

/// A number that no ancestor of this process has had: there are no PID namespaces here.
pub(crate) fn generation() -> u64 {
    u64::from(std::process::id())
}

/// Whether a process could not be looked at because it is another user's; that the owner of the
/// file and of the process differ is told by both.
pub(crate) fn is_anothers(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::PermissionDenied
}

pub(crate) fn server_id(_pid: u32) -> Option<ServerId> {
    None
}

pub(crate) fn server_id_of(
    _pid: u32,
    _file: &LockFile,
    _directory: &Directory,
    _port: u16,
) -> Option<ServerId> {
    None
}

/// Processes of killed servers: none that could be told from others.
#[derive(Default)]
pub(crate) struct Marked {
    pub(crate) found: Vec<(ProcessHandle, ServerId)>,
}

impl Marked {
    pub(crate) fn search(
        &mut self,
        _owner: u32,
        _wanted: &dyn Fn(&ServerId) -> bool,
    ) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn kill(&self) {}
    pub(crate) fn close(&self) {}
}

/// The process, if it is the one that started then.
pub(crate) fn process_started_at(pid: u32, start: u64) -> io::Result<Option<Process>> {
    Ok(process(pid)?.filter(|process| process.start == start))
}

/// Changes of a locked file are told by nothing that a process without rights can ask.
#[cfg(windows)]
#[derive(Debug)]
pub(crate) struct Watch(std::convert::Infallible);

#[cfg(windows)]
impl Watch {
    pub(crate) fn of(_file: &LockFile, _path: &std::path::Path) -> Option<Self> {
        None
    }

    pub(crate) fn wait(&self, _longest: std::time::Duration) -> io::Result<bool> {
        match self.0 {}
    }
}

/// Whose servers they would be.
#[cfg(windows)]
pub(crate) fn user_and_place(_directory: &Directory) -> io::Result<(u32, String)> {
    Ok((0, String::new()))
}

pub(crate) fn command_line(_pid: u32, _most: usize) -> Option<Vec<u8>> {
    None
}
