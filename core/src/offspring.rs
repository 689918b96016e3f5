//! All that a server starts, as its launcher sees it and ends it. Apart from stopping, which has to
//! find a server first: a launcher that stays is told by the kernel who came from its own.

use std::io;

use crate::error::LockError;
use crate::lock::ServerLock;
use crate::server_id::ServerId;
use crate::sys::{Entrance, Family, ProcessHandle};

/// What a launcher needs so that nothing its server started outlives the server: not even what has
/// left its process group and session, forked twice, closed every descriptor or renamed itself.
///
/// On Linux, the calling process becomes the parent of all orphans below it
/// (`PR_SET_CHILD_SUBREAPER`) and has to reap them; and the server lives in a cgroup of its own
/// where one may be created. On other systems this knows the server's process group alone.
///
/// Spared are processes of other users, those that the launcher had before, and those that were let
/// go: that have left the session and unset [`SERVER_ID_ENV`](crate::SERVER_ID_ENV).
///
/// ```no_run
/// # use std::os::unix::process::CommandExt;
/// use llmlb_lock_core::{Offspring, SERVER_ID_ENV, ServerLock};
///
/// let lock = ServerLock::acquire(8000)?;
/// let mut offspring = Offspring::prepare(&lock)?;
/// let entrance = offspring.entrance();
/// let mut command = std::process::Command::new("vllm");
/// command.env(SERVER_ID_ENV, offspring.id().as_str()).process_group(0);
/// // SAFETY: it is async-signal-safe.
/// unsafe { command.pre_exec(move || Ok(entrance.enter())) };
/// let mut server = command.spawn()?;
/// offspring.started(server.id());
/// server.wait()?;
/// while offspring.survivors(false)? > 0 {
///     offspring.kill()?;
///     # break;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Offspring {
    id: ServerId,
    family: Family,
    /// The server, which leads its process group.
    server: Option<u32>,
    known: Vec<Member>,
    ended: usize,
}

#[derive(Debug)]
struct Member {
    handle: ProcessHandle,
    asked: bool,
}

/// What the server's process calls between fork and exec.
#[derive(Debug)]
pub struct OffspringEntrance(Entrance);

impl OffspringEntrance {
    /// Enters the server's cgroup, where there is one. Async-signal-safe; what can't be is left out.
    pub fn enter(&self) {
        self.0.enter();
    }
}

impl Offspring {
    /// To be called before the server is started.
    ///
    /// # Errors
    ///
    /// [`LockError::HandOverFailed`] as for [`ServerLock::server_id`].
    pub fn prepare(lock: &ServerLock) -> Result<Self, LockError> {
        Self::prepare_beside(lock, &[])
    }

    /// The same for a launcher that has these children already, which belong to no server and start
    /// no processes, such as a watchdog.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    pub fn prepare_beside(lock: &ServerLock, others: &[u32]) -> Result<Self, LockError> {
        let id = lock.server_id()?;
        Ok(Self {
            family: Family::new(id.clone(), others),
            id,
            server: None,
            known: Vec::new(),
            ended: 0,
        })
    }

    /// The server's, for its environment.
    pub fn id(&self) -> &ServerId {
        &self.id
    }

    /// For the server's process.
    pub fn entrance(&self) -> OffspringEntrance {
        OffspringEntrance(self.family.entrance())
    }

    /// Tells which children that belong to no server the launcher has by now.
    pub fn set_beside(&mut self, others: &[u32]) {
        self.family.set_beside(others);
    }

    /// Whether a process that descends from the launcher can only come from the server, for
    /// [`Kin::new`](crate::Kin::new).
    #[cfg(target_os = "linux")]
    pub fn is_told_by_descent(&self) -> bool {
        self.family.is_told_by_descent()
    }

    /// Tells who the server is: the leader of a process group of its own.
    pub fn started(&mut self, server: u32) {
        self.server = Some(server);
    }

    /// How many have been ended by [`ask`](Self::ask) and [`kill`](Self::kill).
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// How many live processes there are beside the server, which has ended. 0 only if there is
    /// certainly none.
    ///
    /// `childless` says that `wait` has found no child of the calling process: then this costs one
    /// system call at most.
    ///
    /// # Errors
    ///
    /// What the system says if processes can't be looked at.
    pub fn survivors(&mut self, childless: bool) -> io::Result<usize> {
        let Some(server) = self.server else {
            return Ok(0);
        };
        if self.family.is_over(childless) {
            self.known.clear();
            return Ok(0);
        }
        // A single look may miss one who was forked behind its back.
        for _ in 0..2 {
            self.look(server)?;
            if !self.known.is_empty() {
                break;
            }
        }
        Ok(self.known.len())
    }

    fn look(&mut self, server: u32) -> io::Result<()> {
        let mut alive = Vec::new();
        for member in self.known.drain(..) {
            if !member.handle.wait(std::time::Duration::ZERO)? {
                alive.push(member);
            }
        }
        self.known = alive;
        for pid in self.family.members(server)? {
            if self.known.iter().all(|known| known.handle.pid() != pid)
                && let Some(handle) = ProcessHandle::open(pid)?
                && self.family.has(pid, server)
            {
                let asked = false;
                self.known.push(Member { handle, asked });
            }
        }
        Ok(())
    }

    /// Asks those that [`survivors`](Self::survivors) has found to end, each once.
    ///
    /// # Errors
    ///
    /// What the system says if one may not be signalled.
    pub fn ask(&mut self) -> io::Result<()> {
        for member in self.known.iter_mut().filter(|member| !member.asked) {
            member.asked = true;
            self.ended += 1;
            member.handle.terminate()?;
            // What is stopped can't react.
            member.handle.resume()?;
        }
        Ok(())
    }

    /// Kills them, and what they are forking this very moment.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub fn kill(&mut self) -> io::Result<()> {
        // First all that are known: who forks without end is to get no further.
        for member in &mut self.known {
            self.ended += usize::from(!std::mem::replace(&mut member.asked, true));
            member.handle.kill()?;
        }
        if let Some(server) = self.server {
            self.family.kill(server);
        }
        Ok(())
    }

    /// The PIDs of those that the last look has found.
    pub fn pids(&self) -> Vec<u32> {
        let pids = self.known.iter();
        pids.map(|member| member.handle.pid()).collect()
    }
}

impl Drop for Offspring {
    fn drop(&mut self) {
        self.family.close(self.server.unwrap_or(0));
    }
}
