//! How much is served at once: as much as is wanted, or the process has file descriptors for.

use tokio::sync::Semaphore;
use tracing::warn;

/// Descriptors for all that is not a connection: logs, locks, the runtime, health checks.
const RESERVE: usize = 64;

/// Connections to be had however many requests are in flight: for health checks, and to say no.
const SLACK: usize = 32;

/// How much is served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// In flight; each may hold a connection to a client and one to a backend.
    pub(crate) requests: usize,
    /// Connections of clients.
    pub(crate) clients: usize,
    /// Threads that serve them.
    pub(crate) workers: usize,
}

/// Descriptors that the runtime of one more worker takes.
const WORKER: usize = 4;

/// For each worker there are to be at least so many descriptors.
const WORKER_SHARE: usize = 32;

/// Bodies may be on their way for at least so many requests, however few may be in flight.
const UPLOADS: usize = 64;

impl Limits {
    /// Requests of which the body is still coming: they hold a connection to a client alone.
    pub(crate) fn uploads(&self) -> usize {
        self.requests.max(UPLOADS).min(self.clients)
    }

    /// As much as is wanted, or the process may have descriptors for.
    pub(crate) fn find(wanted: usize, workers: usize) -> Self {
        let Some(descriptors) = descriptor_limit() else {
            return Self {
                requests: wanted,
                clients: Semaphore::MAX_PERMITS,
                workers,
            };
        };
        let limits = Self::within(descriptors, wanted, workers);
        if limits.requests < wanted {
            warn!(
                "{descriptors} open files are enough for {} request{} in flight, not for {wanted}",
                limits.requests,
                if limits.requests == 1 { "" } else { "s" }
            );
        }
        limits
    }

    fn within(descriptors: usize, wanted: usize, workers: usize) -> Self {
        let workers = workers.min(descriptors / WORKER_SHARE).max(1);
        let reserve = RESERVE + WORKER * (workers - 1);
        let most = (descriptors.saturating_sub(reserve + SLACK) / 2).max(1);
        let requests = wanted.min(most);
        let clients = descriptors.saturating_sub(reserve + requests);
        Self {
            workers,
            requests,
            clients: clients.clamp(requests + 1, Semaphore::MAX_PERMITS),
        }
    }
}

/// Raises the number of files that this process may open to what it is allowed without asking
/// anybody. For a program to call before it makes a [`Gateway`](crate::Gateway), which takes as
/// many connections as there are descriptors for. Does nothing on Windows, which has no such limit.
pub fn raise_descriptor_limit() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            // What there is has to do, then.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    }
}

fn descriptor_limit() -> Option<usize> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit};
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
        usize::try_from(soft).ok()
    }
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_requests_are_wanted_there_is_room_to_say_no() {
        for descriptors in [128, 150, 256, 1024, 4096, 1 << 20] {
            for wanted in [1, 20, 1024, 1 << 24] {
                for wanted_workers in [1, 2, 64, 1024] {
                    let limits = Limits::within(descriptors, wanted, wanted_workers);
                    assert!((1..=wanted).contains(&limits.requests));
                    assert!((1..=wanted_workers).contains(&limits.workers));
                    assert!(limits.clients >= limits.requests + SLACK);
                    let taken = RESERVE + WORKER * (limits.workers - 1);
                    assert!(limits.clients + limits.requests + taken <= descriptors);
                }
            }
        }
        assert_eq!(Limits::within(4096, 1024, 2).requests, 1024);
    }
}
