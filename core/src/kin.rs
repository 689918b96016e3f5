//! A server's offspring as a watchdog sees it: another process than the launcher, which has to end
//! all of it when the launcher has been killed or stopped. Apart from the launcher's own view, to
//! which the kernel brings all orphans. Linux alone.

use std::io;
use std::time::Duration;

use crate::process::valid_pid;
use crate::server_id::ServerId;
use crate::sys::{self, Family, Marked, ProcessHandle};

/// All that a server has started, for a process that the launcher has started beside it.
///
/// Found by the cgroup of the server, by [`SERVER_ID_ENV`](crate::SERVER_ID_ENV) in the environment,
/// by descent from server and launcher, and by the server's process group and session. Descent is
/// seen only while it lasts, so [`look`](Self::look) now and then.
#[derive(Debug)]
pub struct Kin {
    family: Family,
    server: ProcessHandle,
    launcher: Option<ProcessHandle>,
    /// May belong to it: looked at before they are killed.
    seen: Vec<ProcessHandle>,
    /// Who carries the ID, or is in the cgroup.
    marked: Marked,
    /// Why some who may belong to it were not seen when that could be seen last.
    missed: Option<io::Error>,
}

impl Kin {
    /// Of the server with this PID, which the launcher has not waited for, and this
    /// [`SERVER_ID_ENV`](crate::SERVER_ID_ENV). `told_by_descent` is what
    /// [`Offspring::is_told_by_descent`](crate::Offspring::is_told_by_descent) says.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput): that is no ID of a server.
    /// [`NotFound`](io::ErrorKind::NotFound): there is no such process. What the system says if it
    /// can't be looked at.
    pub fn new(id: &str, server: u32, told_by_descent: bool) -> io::Result<Self> {
        let id = ServerId::parse(id).ok_or(io::ErrorKind::InvalidInput)?;
        let launcher = id.launcher();
        for pid in [server, launcher] {
            valid_pid(pid).ok_or(io::ErrorKind::InvalidInput)?;
        }
        Ok(Self {
            family: Family::of_another(id, told_by_descent),
            server: ProcessHandle::open(server)?.ok_or(io::ErrorKind::NotFound)?,
            launcher: ProcessHandle::open(launcher)?,
            seen: Vec::new(),
            marked: Marked::default(),
            missed: None,
        })
    }

    /// Notes who descends from server and launcher, for the time when that can't be seen any more.
    /// Reads a few files for each thread of theirs, and waits for nothing.
    pub fn look(&mut self) {
        self.seen.retain(|handle| !has_ended(handle));
        let before = self.missed.take();
        let roots = [Some(&self.server), self.launcher.as_ref()];
        let roots = roots.into_iter().flatten().filter(|root| !has_ended(root));
        let roots: Vec<u32> = roots.map(ProcessHandle::pid).collect();
        for root in roots {
            let found = self.gather(sys::descendants(root), |pid| sys::descends(pid, root));
            self.note(found);
        }
        // Whom the one before has missed this one has seen, if it could be.
        if has_ended(&self.server) {
            self.missed = self.missed.take().or(before);
        }
    }

    /// Those that the server leads, which is told by its number for as long as it is its own.
    fn look_at_led(&mut self) {
        let server = self.server.pid();
        if has_ended(&self.server) {
            return;
        }
        let found = self.gather(sys::led_by(server), |pid| sys::is_led_by(pid, server));
        if !has_ended(&self.server) {
            self.note(found);
        }
    }

    /// Handles of these, as far as each `is` one of them also when it is open; and why one is missing.
    fn gather(
        &self,
        pids: io::Result<Vec<u32>>,
        is: impl Fn(u32) -> bool,
    ) -> (Vec<ProcessHandle>, Option<io::Error>) {
        let (mut found, mut missed) = (Vec::new(), None);
        for pid in pids.unwrap_or_else(|e| {
            missed = Some(e);
            Vec::new()
        }) {
            match self.open(pid) {
                Ok(handle) => found.extend(handle.filter(|_| is(pid))),
                // Another user's that is hidden from us can't be ended either.
                Err(e) if sys::is_anothers(&e) => {}
                Err(e) => missed = Some(e),
            }
        }
        (found, missed)
    }

    fn note(&mut self, (found, missed): (Vec<ProcessHandle>, Option<io::Error>)) {
        for handle in found {
            if self.seen.iter().all(|seen| seen.pid() != handle.pid()) {
                self.seen.push(handle);
            }
        }
        self.missed = missed.or(self.missed.take());
    }

    /// A process that is not known yet.
    fn open(&self, pid: u32) -> io::Result<Option<ProcessHandle>> {
        let launcher = self.family.id().launcher();
        let others = [std::process::id(), launcher, self.server.pid()];
        if others.contains(&pid) || self.seen.iter().any(|seen| seen.pid() == pid) {
            return Ok(None);
        }
        ProcessHandle::open(pid)
    }

    /// Kills the server and all of them, and says how many live ones it has found, with the server.
    /// 0 only if there is certainly none: call it again until then.
    ///
    /// # Errors
    ///
    /// What the system says if processes can't be looked at, or could not be when the server ended.
    /// Those that could be were killed.
    pub fn kill(&mut self) -> io::Result<usize> {
        // Before the server's end takes descent and group away.
        self.look();
        self.look_at_led();
        let server = self.server.pid();
        let mut left = usize::from(!has_ended(&self.server));
        let mut result = self.server.kill();
        let known: Vec<_> = self.seen.iter().map(ProcessHandle::pid).collect();
        for handle in &self.seen {
            if self.family.has(handle.pid(), server) && !has_ended(handle) {
                left += 1;
                result = result.and(handle.kill());
            }
        }
        let family = &self.family;
        let owner = family.id().owner();
        self.marked.search(owner, &|id| id == family.id())?;
        for (handle, _) in &self.marked.found {
            if handle.pid() != server && !has_ended(handle) {
                left += usize::from(!known.contains(&handle.pid()));
                result = result.and(handle.kill());
            }
        }
        if left == 0 {
            self.marked.close();
        } else {
            self.marked.kill();
        }
        match &self.missed {
            Some(e) if left == 0 => {
                Err(io::Error::new(e.kind(), format!("not all were seen: {e}")))
            }
            _ => result.map(|()| left),
        }
    }
}

/// What can't be told is no end.
fn has_ended(handle: &ProcessHandle) -> bool {
    handle.wait(Duration::ZERO).unwrap_or(false)
}
