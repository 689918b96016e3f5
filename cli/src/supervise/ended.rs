//! When a child has ended, told by itself: SIGCHLD alone is easily lost to whoever started us.

use std::convert::Infallible;

use nix::unistd::Pid;

/// A watch of one child's end.
pub(super) struct Ended(#[cfg(target_os = "linux")] Option<linux::PidFd>);

impl Ended {
    /// None where there are no such handles: SIGCHLD has to do.
    #[cfg_attr(not(target_os = "linux"), allow(unused_variables))]
    pub(super) fn of(child: Pid) -> Self {
        Self(
            #[cfg(target_os = "linux")]
            linux::open(child),
        )
    }

    /// Completes when it has ended.
    pub(super) async fn wait(&self) {
        #[cfg(target_os = "linux")]
        if let Some(handle) = &self.0
            && let Ok(mut ready) = handle.readable().await
        {
            // Once: under a debugger there is nothing to be reaped yet, and SIGCHLD will tell.
            ready.clear_ready();
            return;
        }
        let never: Infallible = std::future::pending().await;
        match never {}
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;

    use nix::unistd::Pid;
    use rustix::process::{PidfdFlags, pidfd_open};
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;
    use tracing::debug;

    pub(super) type PidFd = AsyncFd<OwnedFd>;

    pub(super) fn open(child: Pid) -> Option<PidFd> {
        let pid = rustix::process::Pid::from_raw(child.as_raw())?;
        let handle = pidfd_open(pid, PidfdFlags::empty());
        let watched = handle.map_err(io::Error::from).and_then(|handle| {
            // SAFETY: an OwnedFd is one descriptor, open for as long as it lives.
            Ok(unsafe { AsyncFd::register_with_interest(handle, Interest::READABLE) }?)
        });
        watched
            .inspect_err(|e| debug!("No handle of the server, SIGCHLD alone will tell: {e}"))
            .ok()
    }
}
