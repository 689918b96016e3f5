//! The family of a server, as its launcher sees it: all orphans in it come to the launcher, and all
//! of it may live in a cgroup of its own. Who is in it, and who only looks like it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::process;

use super::cgroup::Leaf;
use super::environment::{Reader, Variable, threads};
use super::holders::{all_pids, is_lack_of_descriptors, is_owned_by, may_be_of};
use super::process::stat;
use crate::error::context;
use crate::server_id::ServerId;

/// How often it is looked at processes that come and go without end.
const LOOKS: usize = 64;

/// What the launcher knows of its server's family.
#[derive(Debug)]
pub(crate) struct Family {
    id: ServerId,
    leaf: Option<Leaf>,
    /// Whether orphans come to us.
    adopts: bool,
    /// Whether whoever descends from us can only come from the server: we had no children before,
    /// and are not the one to whom all orphans of a container come.
    alone: bool,
    session: u32,
    /// Children of the launcher that are not the server's, such as a watchdog.
    beside: Vec<u32>,
}

impl Family {
    /// To be called before the server is started; the launcher has these children already, and they
    /// start none.
    pub(crate) fn new(id: ServerId, beside: &[u32]) -> Self {
        for (leaf, abandoned) in Leaf::all_here() {
            // Of launchers that were killed; a live one is about to use its own.
            if matches!(stat(abandoned.launcher()), Ok(None)) && !leaf.is_populated() {
                leaf.remove();
            }
        }
        let own = process::id();
        Self {
            leaf: Leaf::create(&id),
            alone: own != 1
                && children(own)
                    .is_ok_and(|children| children.iter().all(|child| beside.contains(child))),
            adopts: adopt_orphans(),
            session: id.session(),
            beside: beside.to_vec(),
            id,
        }
    }

    /// As another process sees it, which was told whether whoever descends from the launcher can
    /// only come from the server.
    pub(crate) fn of_another(id: ServerId, told: bool) -> Self {
        Self {
            leaf: None,
            alone: told,
            adopts: told,
            session: id.session(),
            beside: Vec::new(),
            id,
        }
    }

    pub(crate) fn id(&self) -> &ServerId {
        &self.id
    }

    /// Whether whoever descends from the launcher can only come from the server.
    pub(crate) fn is_told_by_descent(&self) -> bool {
        self.alone && self.adopts
    }

    /// Other children that the launcher has by now.
    pub(crate) fn set_beside(&mut self, beside: &[u32]) {
        self.beside = beside.to_vec();
    }

    /// What the server's process calls to enter, between fork and exec.
    pub(crate) fn entrance(&self) -> Entrance {
        Entrance(self.leaf.as_ref().and_then(|leaf| leaf.entrance().ok()))
    }

    /// Whether nobody can be left, told without looking at any process; `childless` is what `wait`
    /// says.
    pub(crate) fn is_over(&self, childless: bool) -> bool {
        let populated = self.leaf.as_ref().is_some_and(Leaf::is_populated);
        childless && self.adopts && !populated
    }

    /// All live members. One look may miss those who are forked meanwhile: that there are none is
    /// said where two looks have seen the same. Orphans stay to be seen until they are reaped.
    pub(crate) fn members(&self, server: u32) -> io::Result<Vec<u32>> {
        let mut candidates = self.candidates()?;
        for _ in 0..LOOKS {
            let has = |pid: &u32| *pid != process::id() && self.has(*pid, server);
            let members: Vec<u32> = candidates.iter().copied().filter(has).collect();
            if !members.is_empty() || !self.adopts {
                return Ok(members);
            }
            let seen = candidates;
            candidates = self.candidates()?;
            if candidates == seen {
                break;
            }
        }
        Ok(Vec::new())
    }

    fn candidates(&self) -> io::Result<Vec<u32>> {
        let mut candidates = match self.adopts {
            true => descendants(process::id())?,
            false => {
                let mut pids = all_pids()?;
                pids.retain(|&pid| is_owned_by(pid, self.id.owner()).unwrap_or(false));
                pids
            }
        };
        candidates.extend(self.leaf.iter().flat_map(Leaf::members));
        candidates.sort_unstable();
        candidates.dedup();
        Ok(candidates)
    }

    /// Whether a process that descends from us, or is in our cgroup, belongs to the server.
    pub(crate) fn has(&self, pid: u32, server: u32) -> bool {
        let Ok(Some(stat)) = stat(pid) else {
            return false;
        };
        if !stat.is_alive()
            || self.beside.contains(&pid)
            || !may_be_of(pid, self.id.owner()).unwrap_or(false)
        {
            return false;
        }
        if stat.group == server || stat.session == server {
            return true;
        }
        match Reader::default().settled_server_id(pid) {
            Variable::Is(id) if id == self.id.as_str() => true,
            Variable::Unknown => self.alone && self.adopts,
            // One that has left the session as well was let go.
            _ => self.alone && self.adopts && stat.session == self.session,
        }
    }

    /// Kills the whole cgroup, if there is one. Who is in it and does not belong to the server is
    /// moved out first.
    pub(crate) fn kill(&self, server: u32) {
        if let Some(leaf) = &self.leaf {
            self.let_others_go(leaf, server);
            leaf.kill();
        }
    }

    /// When all have ended.
    pub(crate) fn close(&self, server: u32) {
        if let Some(leaf) = &self.leaf {
            if leaf.is_populated() {
                self.let_others_go(leaf, server);
            }
            leaf.remove();
        }
    }

    fn let_others_go(&self, leaf: &Leaf, server: u32) {
        for pid in leaf.members() {
            if !self.has(pid, server) {
                leaf.let_go(pid);
            }
        }
    }
}

/// How a server's process enters its cgroup.
#[derive(Debug)]
pub(crate) struct Entrance(Option<File>);

impl Entrance {
    /// Async-signal-safe. A cgroup that is closed to us is one there is not.
    pub(crate) fn enter(&self) {
        if let Some(file) = &self.0 {
            let _ = rustix::io::write(file.as_fd(), b"0");
        }
    }
}

fn adopt_orphans() -> bool {
    // Who is asked to be the reaper is this process, whatever number is given.
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).is_ok()
}

/// Whether a process descends from another that has not ended.
pub(crate) fn descends(mut pid: u32, from: u32) -> bool {
    // A line is no longer than this, and one that changes under our eyes has no circles for long.
    for _ in 0..1024 {
        pid = match stat(pid) {
            Ok(Some(stat)) => stat.parent,
            _ => return false,
        };
        if pid == from || pid == 0 {
            return pid == from;
        }
    }
    false
}

/// Those that are in the process group or in the session of a leader that has not ended.
pub(crate) fn led_by(leader: u32) -> io::Result<Vec<u32>> {
    let mut pids = all_pids()?;
    pids.retain(|&pid| is_led_by(pid, leader));
    Ok(pids)
}

pub(crate) fn is_led_by(pid: u32, leader: u32) -> bool {
    matches!(stat(pid), Ok(Some(stat)) if stat.group == leader || stat.session == leader)
}

/// All processes that descend from one, by one look from the top to the bottom.
pub(crate) fn descendants(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = children(pid)?;
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        next += 1;
        for child in children(pid)? {
            if !found.contains(&child) {
                found.push(child);
            }
        }
    }
    Ok(found)
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for thread in threads(pid)? {
        match fs::read_to_string(format!("/proc/{pid}/task/{thread}/children")) {
            Ok(text) => found.extend(
                text.split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            ),
            Err(e) if is_lack_of_descriptors(&e) => return Err(context(e, format!("/proc/{pid}"))),
            Err(_) if !is_listed_by_kernel() => return children_by_parent(pid),
            Err(_) => {}
        }
    }
    Ok(found)
}

/// Kernels may be built without it.
fn is_listed_by_kernel() -> bool {
    fs::exists("/proc/thread-self/children").unwrap_or(false)
}

fn children_by_parent(parent: u32) -> io::Result<Vec<u32>> {
    let mut pids = all_pids()?;
    pids.retain(|&pid| matches!(stat(pid), Ok(Some(stat)) if stat.parent == parent));
    Ok(pids)
}

/// This process and all it descends from.
pub(super) fn own_line() -> HashSet<u32> {
    let mut line = HashSet::new();
    let mut pid = process::id();
    while pid > 0 && line.insert(pid) {
        pid = match stat(pid) {
            Ok(Some(stat)) => stat.parent,
            _ => 0,
        };
    }
    line
}
