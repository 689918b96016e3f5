//! What the llmlb that guards a port knows beside who holds it: how often its server was started
//! again and why it ended, whether it is ready, how many backends are up. It writes that into
//! `serve_PORT.state` beside the lock, for `status`. Apart from the lock file, which decides: this
//! decides nothing, may be missing or wrong at any time, and counts only for the holder that the
//! lock file names.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[cfg(unix)]
pub(crate) use file::{Beside, StateFile, read};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Who guards the port and writes this.
    pub(crate) llmlb: u32,
    /// The holder as the lock file names it; about another one this says nothing.
    pid: u32,
    started_at: DateTime<Utc>,
    /// Since the guard began.
    pub(crate) restarts: u32,
    /// Of the server before this one.
    pub(crate) last_end: Option<LastEnd>,
    /// Whether what it was told to ask has answered; `None` where its sockets tell.
    pub(crate) ready: Option<bool>,
    /// Whether that is asked elsewhere than on its port: its sockets need not tell anything then.
    #[serde(default)]
    pub(crate) asked_elsewhere: bool,
    /// Of a load balancer.
    pub(crate) backends: Option<usize>,
    pub(crate) backends_up: Option<usize>,
}

#[cfg(unix)]
impl State {
    fn name(&mut self, info: &llmlb_lock_core::LockInfo) {
        self.pid = info.pid;
        self.started_at = info.started_at;
    }
}

/// Why and when a server ended that was to serve on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LastEnd {
    pub(crate) at: DateTime<Utc>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<String>,
    /// It was ended because it was not ready in time.
    pub(crate) too_late: bool,
}

impl fmt::Display for LastEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.too_late, &self.signal, self.exit_code) {
            (true, ..) => f.write_str("not ready in time"),
            (false, Some(signal), _) => f.write_str(signal),
            (false, None, Some(code)) => write!(f, "exit code {code}"),
            (false, None, None) => f.write_str("ended"),
        }
    }
}

/// No guard tells there.
#[cfg(not(unix))]
pub(crate) fn read(_: &std::path::Path, _: &llmlb_lock_core::LockInfo) -> Option<State> {
    None
}

#[cfg(unix)]
mod file {
    use std::fs::{File, symlink_metadata};
    use std::io::{self, Read, Write};
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use llmlb_lock_core::{LockInfo, ServerLock};
    use rustix::fs::{
        AtFlags, Mode, OFlags, Stat, fstat, lstat, open, openat, renameat, statat, unlinkat,
    };
    use tracing::debug;

    use super::{LastEnd, State};
    use crate::ready::ReadyUrl;

    /// Ours are a tenth of it.
    const MAX_LEN: u64 = 4096;

    /// The writer's side. It is removed when it is dropped, unless another has put its own there.
    #[derive(Debug)]
    pub(crate) struct StateFile {
        state: State,
        name: PathBuf,
        directory: Option<OwnedFd>,
        /// What was last written, open, so that no file of a successor's gets its number.
        written: Option<File>,
    }

    impl StateFile {
        /// Of a lock that is held. Replaces what is left over there.
        pub(crate) fn beside(lock: &ServerLock) -> Self {
            let info = lock.info();
            let mut file = Self {
                state: State {
                    llmlb: std::process::id(),
                    pid: info.pid,
                    started_at: info.started_at,
                    restarts: 0,
                    last_end: None,
                    ready: None,
                    asked_elsewhere: false,
                    backends: None,
                    backends_up: None,
                },
                name: lock.path().with_extension("state"),
                directory: None,
                written: None,
            };
            file.name = file.name.file_name().map(PathBuf::from).unwrap_or_default();
            match lock.directory_fd().try_clone_to_owned() {
                Ok(directory) => file.directory = Some(directory),
                Err(e) => debug!("Nothing is told to llmlb status: {e}"),
            }
            file.write();
            file
        }

        /// The lock names another holder from now on.
        pub(crate) fn begins(&mut self, info: &LockInfo, asked: Option<&ReadyUrl>) {
            self.change(|state| {
                state.name(info);
                state.ready = asked.map(|_| false);
                state.asked_elsewhere = matches!(asked, Some(ReadyUrl::Url(_)));
            });
        }

        pub(crate) fn ready(&mut self) {
            self.change(|state| state.ready = state.ready.map(|_| true));
        }

        /// The server has ended, and its guard holds the lock until it is started again.
        pub(crate) fn ended(&mut self, info: &LockInfo, why: LastEnd) {
            self.change(|state| {
                state.name(info);
                state.ready = state.ready.map(|_| false);
                state.last_end = Some(why);
            });
        }

        pub(crate) fn restarted(&mut self) {
            self.state.restarts = self.state.restarts.saturating_add(1);
        }

        /// Again and again: what somebody has removed or replaced comes back.
        pub(crate) fn backends(&mut self, up: usize, all: usize) {
            if !self.is_in_place() {
                self.write();
            }
            self.change(|state| {
                state.backends_up = Some(up);
                state.backends = Some(all);
            });
        }

        fn change(&mut self, change: impl FnOnce(&mut State)) {
            let before = self.state.clone();
            change(&mut self.state);
            if self.state != before {
                self.write();
            }
        }

        /// A disk that is full costs a line in `status`, and nothing else.
        fn write(&mut self) {
            let Some(directory) = &self.directory else {
                return;
            };
            match replace(directory, &self.name, &self.state) {
                Ok(written) => self.written = Some(written),
                Err(e) => {
                    debug!("Cannot write {}: {e}", self.name.display());
                    // What is there is true no longer.
                    self.remove();
                }
            }
        }

        fn remove(&mut self) {
            if let (Some(directory), true) = (&self.directory, self.is_in_place()) {
                let _ = unlinkat(directory, &self.name, AtFlags::empty());
            }
            self.written = None;
        }

        fn is_in_place(&self) -> bool {
            let (Some(directory), Some(written)) = (&self.directory, &self.written) else {
                return false;
            };
            let found = statat(directory, &self.name, AtFlags::SYMLINK_NOFOLLOW);
            is_same(written, found)
        }
    }

    impl Drop for StateFile {
        fn drop(&mut self) {
            self.remove();
        }
    }

    /// A reader sees the one before or this one. Nothing that others have put there is written to.
    fn replace(directory: &OwnedFd, name: &Path, state: &State) -> io::Result<File> {
        let new = name.with_extension("state.new");
        let _ = unlinkat(directory, &new, AtFlags::empty());
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory, &new, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        let text = serde_json::to_vec(state)?;
        let written = file.write_all(&text);
        let renamed = written.and_then(|()| Ok(renameat(directory, &new, directory, name)?));
        if renamed.is_err() {
            let _ = unlinkat(directory, &new, AtFlags::empty());
        }
        renamed.map(|()| file)
    }

    /// Whether that is what was found.
    fn is_same(held: impl AsFd, found: rustix::io::Result<Stat>) -> bool {
        match (fstat(held), found) {
            (Ok(held), Ok(found)) => (held.st_dev, held.st_ino) == (found.st_dev, found.st_ino),
            _ => false,
        }
    }

    /// What is told of the live holder of a lock, by its guard: who could be anybody is not believed.
    pub(crate) fn read(lock: &Path, info: &LockInfo) -> Option<State> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = lock.with_extension("state");
        let file = File::from(open(path, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.uid() != symlink_metadata(lock).ok()?.uid() {
            return None;
        }
        let mut text = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut text).ok()?;
        if text.len() as u64 > MAX_LEN {
            return None;
        }
        let mut state: State = serde_json::from_slice(&text).ok()?;
        if (state.pid, state.started_at) != (info.pid, info.started_at) {
            return None;
        }
        // What it has told of the past stays true when it is gone.
        if !guards(state.llmlb, info.pid) {
            (state.ready, state.backends, state.backends_up) = (None, None, None);
        }
        Some(state)
    }

    /// Whether it may be the live guard of a holder: it is that itself, or has started it.
    fn guards(llmlb: u32, holder: u32) -> bool {
        #[cfg(target_os = "linux")]
        let is_parent = || crate::listening::parent(holder) == Some(llmlb);
        #[cfg(not(target_os = "linux"))]
        let is_parent = || llmlb_lock_core::is_process_running(llmlb);
        llmlb == holder || is_parent()
    }

    /// What a guard keeps beside its lock, held on to: whoever has killed it clears that up.
    pub(crate) struct Beside(Vec<(PathBuf, OwnedFd)>);

    impl Beside {
        pub(crate) fn of(lock: &Path) -> Self {
            let extensions = ["state", "state.new", "sock", "sock.new"];
            let paths = extensions.map(|extension| lock.with_extension(extension));
            let held = |path: PathBuf| Some((path.clone(), hold(&path)?));
            Self(paths.into_iter().filter_map(held).collect())
        }

        /// What is there by now of another server stays.
        pub(crate) fn clear(self) {
            for (path, held) in self.0 {
                if is_same(held, lstat(&path)) {
                    let _ = std::fs::remove_file(path);
                }
            }
        }
    }

    /// A descriptor that keeps the number of a file from being given to another.
    #[cfg(target_os = "linux")]
    fn hold(path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).ok()
    }

    /// A socket can't be opened there, and stays for the next start.
    #[cfg(not(target_os = "linux"))]
    fn hold(path: &Path) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).ok()
    }
}
