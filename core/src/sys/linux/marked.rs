//! Processes that carry the identity of a server, wherever they have gone. Apart from the launcher's
//! own view, because this is what is left to go by when the launcher has been killed.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;

use super::cgroup::Leaf;
use super::descent::own_line;
use super::environment::{Reader, Variable};
use super::handle::ProcessHandle;
use super::holders::{all_pids, is_owned_by, may_be_of};
use super::process::stat;
use crate::server_id::ServerId;
use crate::sys::{Directory, LockFile, user_and_place};

/// How often the list of processes is read again for those who were forked meanwhile.
const ROUNDS: usize = 64;

/// Processes of killed servers, and the cgroups that they are in.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub(crate) found: Vec<(ProcessHandle, ServerId)>,
    leaves: Vec<(Leaf, ServerId)>,
}

/// The server that a process belongs to, as its environment says.
pub(crate) fn server_id(pid: u32) -> Option<ServerId> {
    match Reader::default().server_id(pid) {
        Variable::Is(id) => ServerId::parse(&id),
        _ => None,
    }
}

/// The same for one that guards a port, if it is of the owner of the lock's file.
pub(crate) fn server_id_of(
    pid: u32,
    file: &LockFile,
    directory: &Directory,
    port: u16,
) -> Option<ServerId> {
    let (_, place) = user_and_place(directory).ok()?;
    let owner = file.metadata().ok()?.uid();
    server_id(pid).filter(|id| id.port() == port && id.is_of(owner, &place))
}

/// Whether a process of `owner`'s that may carry an ID. The environment of a stranger is not read: it
/// says what he likes, and takes as long as he likes.
fn may_carry(pid: u32, owner: u32) -> bool {
    let Ok(Some(stat)) = stat(pid) else {
        return false;
    };
    // Root is shown for all that may not be looked into, too.
    let may_be_its = stat.shown_owner == owner || stat.shown_owner == 0;
    let carries = may_be_its && stat.is_alive() && !stat.is_kernel();
    carries && is_owned_by(pid, owner).unwrap_or(false)
}

/// The ID in the environment of a live process.
fn carried(pid: u32, reader: &mut Reader) -> Option<ServerId> {
    match reader.settled_server_id(pid) {
        Variable::Is(id) => ServerId::parse(&id),
        _ => None,
    }
}

impl Marked {
    /// Looks for all live processes of the servers of `owner` that are `wanted`, this one and its
    /// ancestors apart. Where a process starts others meanwhile, these are found too, and so are
    /// those in a cgroup that an earlier search has found. Who is another user's belongs to them by
    /// their cgroup alone.
    pub(crate) fn search(
        &mut self,
        owner: u32,
        wanted: &dyn Fn(&ServerId) -> bool,
    ) -> io::Result<()> {
        self.found.clear();
        let mut reader = Reader::default();
        let mut seen: HashSet<u32> = own_line();
        for _ in 0..ROUNDS {
            let new: Vec<u32> = all_pids()?
                .into_iter()
                .filter(|&pid| seen.insert(pid))
                .collect();
            if new.is_empty() {
                break;
            }
            for pid in new {
                if may_carry(pid, owner) {
                    if let Some(id) = carried(pid, &mut reader).filter(wanted) {
                        self.add(pid, id, &mut reader)?;
                    }
                } else if owner == 0
                    && let Some((leaf, id)) = Leaf::of(pid).filter(|(_, id)| wanted(id))
                {
                    // It has changed its user since root has started it.
                    self.add_leaf(leaf, &id);
                }
            }
        }
        for (leaf, id) in Leaf::all_here() {
            if wanted(&id) {
                self.add_leaf(leaf, &id);
            }
        }
        self.add_members()
    }

    fn add(&mut self, pid: u32, id: ServerId, reader: &mut Reader) -> io::Result<()> {
        if let Some(handle) = ProcessHandle::open(pid)?
            && is_alive(pid)
            && is_owned_by(pid, id.owner())?
            && carried(pid, reader).as_ref() == Some(&id)
        {
            if let Some((leaf, _)) = Leaf::of(pid).filter(|(_, its)| *its == id) {
                self.add_leaf(leaf, &id);
            }
            self.found.push((handle, id));
        }
        Ok(())
    }

    fn add_leaf(&mut self, leaf: Leaf, id: &ServerId) {
        if !self.leaves.iter().any(|(known, _)| known.is(&leaf)) {
            self.leaves.push((leaf, id.clone()));
        }
    }

    /// Those in the cgroup of a server whose environment does not tell.
    fn add_members(&mut self) -> io::Result<()> {
        for (leaf, id) in &self.leaves {
            for pid in leaf.members() {
                let known = self.found.iter().any(|(handle, _)| handle.pid() == pid);
                if !known
                    && let Some(handle) = ProcessHandle::open(pid)?
                    && is_member(pid, id)
                {
                    self.found.push((handle, id.clone()));
                }
            }
        }
        Ok(())
    }

    /// Kills the cgroups, without those in them who are nobody's left-over.
    pub(crate) fn kill(&self) {
        for (leaf, id) in &self.leaves {
            for pid in leaf.members() {
                if !is_member(pid, id) {
                    leaf.let_go(pid);
                }
            }
            leaf.kill();
        }
    }

    /// Removes the cgroups that nobody is left in.
    pub(crate) fn close(&self) {
        for (leaf, id) in &self.leaves {
            for pid in leaf.members() {
                if !is_member(pid, id) {
                    leaf.let_go(pid);
                }
            }
            leaf.remove();
        }
    }
}

fn is_alive(pid: u32) -> bool {
    matches!(stat(pid), Ok(Some(stat)) if stat.is_alive())
}

/// Whether a process in the cgroup of a server belongs to it.
fn is_member(pid: u32, id: &ServerId) -> bool {
    let Ok(Some(stat)) = stat(pid) else {
        return false;
    };
    if !stat.is_alive() || !may_be_of(pid, id.owner()).unwrap_or(false) {
        return false;
    }
    match Reader::default().settled_server_id(pid) {
        Variable::Is(carried) if carried == id.as_str() => true,
        Variable::Unknown => true,
        // One that has left the session as well was let go.
        _ => stat.session == id.session(),
    }
}
