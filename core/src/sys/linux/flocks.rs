//! Which locks processes hold, as one look at many lock files sees it. Apart from looking at one,
//! because strangers decide how many files there are, and whom they name: nobody's descriptors are
//! gone through twice, and not more of them than there is reason to.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::iter;

use super::environment::threads;
use super::holders::{Flock, Inode, KernelsList, is_lack_of_descriptors};
use crate::error::context;
use crate::sys::LockFile;
use crate::sys::unix::again;

/// How many descriptors are looked at for the sake of one user's lock files. Those that a process
/// opened first come first.
const MOST: usize = 1 << 16;

/// The locks of the processes that were asked about, for each user whose files named them.
#[derive(Default)]
pub(crate) struct Flocks {
    of: HashMap<(u32, Option<u32>), Held>,
    looked_at: HashMap<Option<u32>, usize>,
    list: Option<KernelsList>,
}

enum Held {
    /// By the number of the file: its device, and the descriptor's entry in `/proc`.
    Known(HashMap<u64, Vec<(String, String)>>),
    /// The process is not ours to look into.
    Hidden,
}

impl Flocks {
    /// As [`holds`](super::holds).
    pub(crate) fn holds(&mut self, pid: u32, file: &LockFile) -> io::Result<Option<bool>> {
        let inode = Inode::of(file)?;
        let key = (pid, file.owner());
        if !self.of.contains_key(&key) {
            let looked_at = self.looked_at.entry(file.owner()).or_default();
            self.of.insert(key, held_by(pid, looked_at)?);
        }
        Ok(Some(match self.of.get(&key) {
            Some(Held::Known(held)) => {
                let held = held.get(&inode.number).map_or(&[][..], |held| held);
                held.iter().any(|(device, link)| inode.is_on(device, link))
            }
            // The kernel's own list names at least who took the lock.
            Some(Held::Hidden) => {
                let list = self.list.get_or_insert_with(KernelsList::read);
                list.has(pid, inode.number)
            }
            None => false,
        }))
    }
}

fn held_by(pid: u32, looked_at: &mut usize) -> io::Result<Held> {
    let mut held = HashMap::new();
    // The descriptors of a process whose main thread has ended are seen through the others.
    let others = iter::once_with(|| threads(pid).unwrap_or_default()).flatten();
    let others = others.filter(|&thread| thread != pid);
    let others = others.map(|thread| format!("/proc/{pid}/task/{thread}"));
    for process in iter::once(format!("/proc/{pid}")).chain(others) {
        let path = format!("{process}/fdinfo");
        let mut entries = match again(|| fs::read_dir(&path)) {
            Ok(entries) => entries.flatten().peekable(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, path)),
            Err(_) => return Ok(Held::Hidden),
        };
        let is_seen = entries.peek().is_some();
        for entry in entries {
            if *looked_at >= MOST {
                break;
            }
            *looked_at += 1;
            let text = match fs::read_to_string(entry.path()) {
                Ok(text) => text,
                Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, path)),
                Err(_) => continue,
            };
            let locks = text.lines().filter_map(|line| line.strip_prefix("lock:"));
            for flock in locks.filter_map(Flock::parse) {
                let link = format!("{process}/fd/{}", entry.file_name().to_string_lossy());
                let same: &mut Vec<_> = held.entry(flock.number).or_default();
                same.push((flock.device.to_owned(), link));
            }
        }
        if is_seen {
            break;
        }
    }
    Ok(Held::Known(held))
}
