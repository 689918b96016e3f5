//! What happens to a lock file that somebody else holds, by a kqueue.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue};
use tracing::debug;

use crate::sys::LockFile;

/// The file was unlocked by `flock`, or by the end of who had locked it. nix does not name it.
const NOTE_FUNLOCK: FilterFlag = FilterFlag::from_bits_retain(0x100);

/// A watch of one lock file.
#[derive(Debug)]
pub(crate) struct Watch {
    queue: Kqueue,
}

impl Watch {
    /// `None` where it can't be had.
    pub(crate) fn of(file: &LockFile, path: &Path) -> Option<Self> {
        match Self::open(file) {
            Ok(watch) => Some(watch),
            Err(e) => {
                let path = path.display();
                debug!("Cannot watch {path}, trying again and again: {e}");
                None
            }
        }
    }

    fn open(file: &LockFile) -> io::Result<Self> {
        let queue = Kqueue::new()?;
        let change = KEvent::new(
            file.as_fd().as_raw_fd() as usize,
            EventFilter::EVFILT_VNODE,
            EvFlags::EV_ADD | EvFlags::EV_CLEAR,
            FilterFlag::NOTE_DELETE | FilterFlag::NOTE_RENAME | NOTE_FUNLOCK,
            0,
            0,
        );
        queue.kevent(&[change], &mut [], None)?;
        Ok(Self { queue })
    }

    /// Waits until something has happened, for at most this long. A signal ends the wait early.
    pub(crate) fn wait(&self, longest: Duration) -> io::Result<bool> {
        let none = KEvent::new(
            0,
            EventFilter::EVFILT_VNODE,
            EvFlags::empty(),
            FilterFlag::empty(),
            0,
            0,
        );
        let timeout = nix::libc::timespec {
            tv_sec: longest.as_secs() as _,
            tv_nsec: longest.subsec_nanos() as _,
        };
        match self.queue.kevent(&[], &mut [none], Some(timeout)) {
            Ok(0) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(e) => Err(e.into()),
        }
    }
}
