//! What Linux alone tells of other processes. Elsewhere a live process that the file of a held lock
//! names is taken at its word, and what a server leaves behind is ended by its launcher: through
//! the process group, or the job object.

use std::io;

use chrono::{DateTime, Utc};

use super::LockFile;

pub(crate) fn holds(_pid: u32, _file: &LockFile) -> io::Result<Option<bool>> {
    Ok(None)
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
