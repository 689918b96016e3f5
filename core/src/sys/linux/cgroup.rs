//! A cgroup of its own for a server and all it starts: the one way to end a whole family in one
//! stroke. Where there may be none (no cgroup v2, no right to it), nothing is lost: all of this is
//! best effort.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::server_id::ServerId;

const PREFIX: &str = "llmlb-";
/// How deep a server may nest cgroups of its own for them to be cleared away.
const DEPTH: usize = 8;

/// The cgroup of one start of a server.
#[derive(Debug)]
pub(super) struct Leaf {
    path: PathBuf,
}

impl Leaf {
    /// Below the cgroup of this process; `None` where that is not possible.
    pub(super) fn create(id: &ServerId) -> Option<Self> {
        let path = directory_of("self")?.join(format!("{PREFIX}{id}"));
        fs::create_dir(&path).ok()?;
        Some(Self { path })
    }

    /// The one that a process is in, and whose it is.
    pub(super) fn of(pid: u32) -> Option<(Self, ServerId)> {
        let cgroup = cgroup_of(&pid.to_string())?;
        // Where it is mounted need not be known of all others.
        if !cgroup.contains(&format!("/{PREFIX}")) {
            return None;
        }
        let path = mounted(&cgroup)?;
        path.ancestors().find_map(|path| Self::at(path.to_owned()))
    }

    /// One that was made by the user whose it says it is: anybody may give his own such a name.
    fn at(path: PathBuf) -> Option<(Self, ServerId)> {
        let name = path.file_name()?.to_str()?;
        let id = ServerId::parse(name.strip_prefix(PREFIX)?)?;
        let owner = fs::symlink_metadata(&path).ok()?.uid();
        (owner == id.owner()).then_some((Self { path }, id))
    }

    /// All that are below the cgroup of this process.
    pub(super) fn all_here() -> Vec<(Self, ServerId)> {
        let Some(own) = directory_of("self") else {
            return Vec::new();
        };
        let entries = fs::read_dir(own).into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::at(entry.path())).collect()
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        self.path == other.path
    }

    /// Whoever writes `0` here enters.
    pub(super) fn entrance(&self) -> io::Result<File> {
        File::options()
            .write(true)
            .open(self.path.join("cgroup.procs"))
    }

    pub(super) fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.path.join("cgroup.events"));
        events.is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// All processes in it and in the cgroups below.
    pub(super) fn members(&self) -> Vec<u32> {
        let mut members = Vec::new();
        each(&self.path, DEPTH, &mut |path| {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            members.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        });
        members
    }

    /// Moves a process out of it.
    pub(super) fn let_go(&self, pid: u32) {
        if let Some(parent) = self.path.parent() {
            let _ = fs::write(parent.join("cgroup.procs"), pid.to_string());
        }
    }

    /// Kills all that are in it, with what they are forking this very moment. Since Linux 5.14.
    pub(super) fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }

    /// Does nothing as long as anybody is in it.
    pub(super) fn remove(&self) {
        if fs::remove_dir(&self.path).is_err() {
            each(&self.path, DEPTH, &mut |path| {
                let _ = fs::remove_dir(path);
            });
        }
    }
}

/// A directory and those below it, the deepest first.
fn each(path: &Path, depth: usize, visit: &mut dyn FnMut(&Path)) {
    if depth > 0 {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                each(&entry.path(), depth - 1, visit);
            }
        }
    }
    visit(path);
}

/// Where the cgroup v2 of a process is mounted.
fn directory_of(pid: &str) -> Option<PathBuf> {
    mounted(&cgroup_of(pid)?)
}

fn cgroup_of(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let cgroup = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Outside of our cgroup namespace.
    let is_outside = cgroup.split('/').any(|part| part == "..");
    (!is_outside).then(|| cgroup.to_owned())
}

fn mounted(cgroup: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| below_mount(line, cgroup))
}

/// "41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
fn below_mount(line: &str, cgroup: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    if !kind.starts_with("cgroup2 ") {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let below = match root {
        "/" => cgroup,
        root => cgroup.strip_prefix(root)?,
    };
    Some(Path::new(at).join(below.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_below_its_mount() {
        let whole = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw";
        let part = "41 31 0:38 /a /mnt rw - cgroup2 cgroup2 rw";
        let old = "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd";
        let found = |line, cgroup| below_mount(line, cgroup);
        assert_eq!(found(whole, "/a/b"), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(found(whole, "/"), Some("/sys/fs/cgroup/".into()));
        assert_eq!(found(part, "/a/b"), Some("/mnt/b".into()));
        assert_eq!(found(part, "/c"), None);
        assert_eq!(found(old, "/a"), None);
    }
}
