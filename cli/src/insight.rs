//! What processes have open, whom they have started and how they were started themselves, as one
//! look at many servers sees it. Apart from what it is asked for, because strangers decide how many
//! lock files name one process, and how much that has open: each is looked into once, and nobody
//! further than there is reason to.

#[cfg(target_os = "linux")]
pub(crate) use linux::{Insight, Looked};

/// Nothing is told of other processes.
#[cfg(not(target_os = "linux"))]
#[derive(Default)]
pub(crate) struct Insight {}

#[cfg(not(target_os = "linux"))]
impl Insight {
    /// The arguments that a process shows.
    pub(crate) fn command(&self, pid: u32) -> Option<Vec<String>> {
        llmlb_lock_core::process_command(pid)
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{HashMap, HashSet};
    use std::fs;
    use std::io::{self, ErrorKind};
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex, OnceLock, PoisonError};

    use llmlb_lock_core::process_command;

    /// How many descriptors of one user's processes are looked at.
    const MOST: usize = 1 << 16;

    #[derive(Default)]
    pub(crate) struct Insight {
        known: Mutex<Known>,
    }

    #[derive(Default)]
    struct Known {
        processes: HashMap<u32, Arc<Process>>,
        commands: HashMap<u32, Option<Vec<String>>>,
        looked_at: HashMap<u32, usize>,
    }

    /// What a process lets others see of something.
    pub(crate) enum Looked<T> {
        At(T),
        /// It has ended.
        Gone,
        /// All of it, or some.
        Hidden,
    }

    /// A process as it was when it was first asked about.
    pub(crate) struct Process {
        pid: u32,
        open: Looked<Open>,
        children: OnceLock<Looked<Vec<u32>>>,
    }

    struct Open {
        /// By their inodes.
        sockets: HashSet<u64>,
        locks: HashSet<PathBuf>,
        whole: bool,
    }

    impl Insight {
        pub(crate) fn of(&self, pid: u32) -> Arc<Process> {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(process) = known.processes.get(&pid) {
                return process.clone();
            }
            let owner = fs::metadata(format!("/proc/{pid}")).map_or(0, |process| process.uid());
            let looked_at = known.looked_at.entry(owner).or_default();
            let process = Arc::new(Process {
                pid,
                open: looked(open(pid, looked_at)),
                children: OnceLock::new(),
            });
            known.processes.insert(pid, process.clone());
            process
        }

        /// The arguments that a process shows.
        pub(crate) fn command(&self, pid: u32) -> Option<Vec<String>> {
            let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(command) = known().commands.get(&pid) {
                return command.clone();
            }
            // Nobody waits for one that hangs but who asks for it.
            let command = process_command(pid);
            known().commands.insert(pid, command.clone());
            command
        }
    }

    impl Process {
        /// The first of these sockets that it has open.
        pub(crate) fn first_open<'a, T>(
            &self,
            sockets: &'a [T],
            inode: impl Fn(&T) -> u64,
        ) -> Looked<Option<&'a T>> {
            match &self.open {
                Looked::At(open) => {
                    let mut sockets = sockets.iter();
                    match sockets.find(|socket| open.sockets.contains(&inode(socket))) {
                        None if !open.whole => Looked::Hidden,
                        found => Looked::At(found),
                    }
                }
                Looked::Gone => Looked::Gone,
                Looked::Hidden => Looked::Hidden,
            }
        }

        /// Whom it has started.
        pub(crate) fn children(&self) -> &Looked<Vec<u32>> {
            self.children.get_or_init(|| looked(children(self.pid)))
        }

        /// Whether it has this lock file open.
        pub(crate) fn has_lock(&self, path: &Path) -> bool {
            matches!(&self.open, Looked::At(open) if open.locks.contains(path))
        }
    }

    fn looked<T>(result: io::Result<T>) -> Looked<T> {
        match result {
            Ok(seen) => Looked::At(seen),
            Err(e) if is_gone(&e) => Looked::Gone,
            Err(_) => Looked::Hidden,
        }
    }

    /// Only where the descriptors lead to is read, never what they are: one may be on a network
    /// mount that hangs.
    fn open(pid: u32, looked_at: &mut usize) -> io::Result<Open> {
        let mut open = Open {
            sockets: HashSet::new(),
            locks: HashSet::new(),
            whole: true,
        };
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            if *looked_at >= MOST {
                open.whole = false;
                break;
            }
            *looked_at += 1;
            // One that has been closed meanwhile.
            let Ok(target) = fs::read_link(entry?.path()) else {
                continue;
            };
            let name = target.to_str().unwrap_or_default();
            let socket = name.strip_prefix("socket:[");
            let inode = socket.and_then(|rest| rest.strip_suffix(']')?.parse::<u64>().ok());
            open.sockets.extend(inode);
            if name.ends_with(".lock") {
                open.locks.insert(target);
            }
        }
        Ok(open)
    }

    fn children(pid: u32) -> io::Result<Vec<u32>> {
        let mut children = Vec::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let thread = entry?.path();
            match fs::read_to_string(thread.join("children")) {
                Ok(text) => children.extend(
                    text.split_ascii_whitespace()
                        .filter_map(|c| c.parse::<u32>().ok()),
                ),
                // A thread that has ended; or a kernel that does not tell of children.
                Err(e) if is_gone(&e) && !thread.exists() => {}
                Err(_) => return Err(ErrorKind::Unsupported.into()),
            }
        }
        Ok(children)
    }

    fn is_gone(e: &io::Error) -> bool {
        const ESRCH: i32 = nix::errno::Errno::ESRCH as i32;
        e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(ESRCH)
    }
}
