//! One built-in server takes the place of another without closing the port for an instant: the
//! listener and the lock go from the one to the other through a socket beside the lock file.
//!
//! Whoever dies on the way leaves the other in charge: both have both, and the lock file names the
//! one that serves. The holder goes on accepting until its successor says that it serves; for a
//! little while longer it keeps lock and listener, and takes over again should the successor be
//! gone. A predecessor that finishes its last requests lives as long as its successor stands for
//! it: who ends, wants those before him gone too, and waits for them.

#[cfg(unix)]
mod door;
#[cfg(unix)]
mod holder;
#[cfg(unix)]
mod successor;
#[cfg(unix)]
mod wire;

#[cfg(not(unix))]
mod alone;
#[cfg(not(unix))]
pub(crate) use alone::{Predecessor, Successor};

use std::convert::Infallible;
use std::io;
#[cfg(unix)]
use std::net::SocketAddr;
use std::net::TcpListener;
#[cfg(unix)]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::time::Duration;

use llmlb_gateway::Gateway;
#[cfg(unix)]
use llmlb_lock_core::LockDir;
use llmlb_lock_core::ServerLock;
#[cfg(unix)]
use tokio::time::{Instant, sleep};
#[cfg(unix)]
use tracing::warn;

#[cfg(target_os = "linux")]
use crate::cluster::told::Telling;
use crate::guard::watch;
use crate::signals::Shutdown;
#[cfg(unix)]
use crate::state::StateFile;
#[cfg(unix)]
use door::Door;
#[cfg(unix)]
pub(crate) use holder::Successor;
#[cfg(unix)]
use holder::{Fate, Knock};
#[cfg(unix)]
use successor::Answer;
#[cfg(unix)]
pub(crate) use successor::Predecessor;

/// How long a holder is ready to take over again from a successor that serves.
#[cfg(unix)]
const SETTLE: Duration = Duration::from_secs(2);

/// How long a start looks for the one in charge, while others replace one another.
#[cfg(unix)]
const PATIENCE: Duration = Duration::from_secs(2);
#[cfg(unix)]
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(unix)]
const TELL_STEP: Duration = Duration::from_secs(1);

/// What a built-in server has to do with those before and after it.
pub(crate) struct Succession {
    /// None where another process guards the port for this one.
    lock: Option<ServerLock>,
    listener: TcpListener,
    predecessor: Option<Predecessor>,
    /// Open as long as somebody may take over.
    #[cfg(unix)]
    door: Option<Door>,
    /// Where this process guards the port.
    #[cfg(unix)]
    state: Option<StateFile>,
    /// Where another does.
    #[cfg(target_os = "linux")]
    telling: Option<Telling>,
}

/// How a reign ends.
pub(crate) enum Course {
    /// The port is to be given up.
    Shutdown,
    /// Somebody else serves there.
    #[cfg_attr(not(unix), expect(dead_code, reason = "nobody comes after"))]
    Succeeded(Successor),
}

impl Succession {
    /// Nobody was there.
    pub(crate) fn first(lock: ServerLock, listener: TcpListener) -> Self {
        Self::new(lock, listener, None)
    }

    /// Nobody was there, and nobody can take over: another process guards the port for this one.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "for clusters"))]
    pub(crate) fn guarded(listener: TcpListener) -> Self {
        Self {
            #[cfg(unix)]
            door: None,
            #[cfg(unix)]
            state: None,
            #[cfg(target_os = "linux")]
            telling: Telling::inherited(),
            lock: None,
            listener,
            predecessor: None,
        }
    }

    fn new(lock: ServerLock, listener: TcpListener, predecessor: Option<Predecessor>) -> Self {
        Self {
            #[cfg(unix)]
            door: open_door(&lock),
            #[cfg(unix)]
            state: Some(StateFile::beside(&lock)),
            #[cfg(target_os = "linux")]
            telling: None,
            lock: Some(lock),
            listener,
            predecessor,
        }
    }

    /// From the built-in server that has the port, of the same user and on one of these addresses.
    /// `None` where there is none, or it does not hand over, in this time if one is given.
    #[cfg(unix)]
    pub(crate) async fn succeed(
        locks: &LockDir,
        port: u16,
        wanted: &[SocketAddr],
        patience: Option<Duration>,
    ) -> Option<Self> {
        let patience = patience.unwrap_or(successor::PATIENCE);
        // No server hands over in no time.
        let patience = patience.clamp(successor::SILENCE, successor::PATIENCE);
        let until = Instant::now() + PATIENCE;
        loop {
            match successor::ask(locks, port, wanted, patience).await {
                Answer::Granted(lock, listener, predecessor) => {
                    return Some(Self::new(*lock, listener, Some(predecessor)));
                }
                // Another is in charge by now, whose door opens any moment; or nobody.
                Answer::Gone if Instant::now() < until => sleep(PAUSE).await,
                Answer::Gone | Answer::Refused => return None,
            }
        }
    }

    /// Whether [`succeed`](Self::succeed) is worth a try.
    #[cfg(unix)]
    pub(crate) fn is_possible(locks: &LockDir, port: u16) -> bool {
        door::exists(&locks.lock_path(port))
    }

    #[cfg(unix)]
    pub(crate) fn lock(&self) -> Option<&ServerLock> {
        self.lock.as_ref()
    }

    /// To accept from.
    pub(crate) fn listener(&self) -> io::Result<tokio::net::TcpListener> {
        let listener = self.listener.try_clone()?;
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    }

    /// Until a signal says to end, or somebody has taken over for good.
    #[cfg(unix)]
    pub(crate) async fn reign(&mut self, gateway: &Gateway, shutdown: &mut Shutdown) -> Course {
        loop {
            let knock = tokio::select! {
                never = look_after(self.lock.as_ref()) => match never {},
                never = tell(gateway, |up, all| {
                    if let Some(state) = &mut self.state {
                        state.backends(up, all);
                    }
                    #[cfg(target_os = "linux")]
                    if let Some(telling) = &mut self.telling {
                        telling.backends(up, all);
                    }
                }) => match never {},
                _ = shutdown.recv() => return Course::Shutdown,
                knock = offer(self.door.as_ref(), self.lock.as_ref(), &self.listener) => knock,
            };
            let mut successor = match knock {
                Knock::Nothing => continue,
                Knock::Failed => {
                    self.take_back();
                    continue;
                }
                Knock::Succeeded(successor) => successor,
            };
            // Who knocks from here on is the successor's affair.
            self.door = None;
            gateway.retire();
            successor.retired().await;
            let fate = tokio::select! {
                _ = shutdown.recv() => return Course::Shutdown,
                () = sleep(SETTLE) => return Course::Succeeded(successor),
                fate = successor.fate() => fate,
            };
            if fate == Fate::Ending {
                return Course::Shutdown;
            }
            warn!("The successor has failed, serving on");
            self.take_back();
            gateway.resume();
            self.door = self.lock.as_ref().and_then(open_door);
        }
    }

    /// Until a signal says to end.
    #[cfg(not(unix))]
    pub(crate) async fn reign(&mut self, _: &Gateway, shutdown: &mut Shutdown) -> Course {
        tokio::select! {
            never = look_after(self.lock.as_ref()) => match never {},
            _ = shutdown.recv() => Course::Shutdown,
        }
    }

    /// Names this process again, if the file names another.
    #[cfg(unix)]
    fn take_back(&mut self) {
        let Some(lock) = &mut self.lock else { return };
        let named = LockDir::default().read_lock_info(lock.info().port);
        if named.is_ok_and(|info| info.is_some_and(|info| info.pid == std::process::id())) {
            return;
        }
        if let Err(e) = lock.adopt() {
            warn!("{e}");
        }
        if let Some(state) = &mut self.state {
            state.begins(lock.info(), None);
        }
    }

    /// What is left to see to before the lock is given back.
    pub(crate) fn end(self) -> (Option<ServerLock>, Option<Predecessor>) {
        (self.lock, self.predecessor)
    }

    /// The port is another's: gives up the lock, which it has as well, and the listener.
    pub(crate) fn retire(self, gateway: &Gateway) -> Option<Predecessor> {
        gateway.close_port();
        self.predecessor
    }
}

#[cfg(unix)]
fn open_door(lock: &ServerLock) -> Option<Door> {
    Door::open(lock)
        .inspect_err(|e| warn!("No successor can take over, and --replace will leave a gap: {e}"))
        .ok()
}

/// Looks after the lock, if it is ours. Completes never.
async fn look_after(lock: Option<&ServerLock>) -> Infallible {
    match lock {
        Some(lock) => watch(lock).await,
        None => std::future::pending().await,
    }
}

/// Tells `llmlb status` how many backends are up, whenever that has changed.
#[cfg(unix)]
async fn tell(gateway: &Gateway, mut tell: impl FnMut(usize, usize)) -> Infallible {
    loop {
        let (up, all) = gateway.backends_up();
        tell(up, all);
        sleep(TELL_STEP).await;
    }
}

#[cfg(unix)]
async fn offer(door: Option<&Door>, lock: Option<&ServerLock>, listener: &TcpListener) -> Knock {
    match (door, lock) {
        (Some(door), Some(lock)) => door.offer(lock.as_fd(), listener.as_fd()).await,
        _ => std::future::pending().await,
    }
}
