//! What happens to a lock file that somebody else holds, by inotify.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tracing::debug;

use crate::sys::LockFile;

/// Of the file systems whose other users' changes inotify does not tell: those of other machines,
/// and those that a program serves.
const UNTOLD: [u32; 9] = [
    0x0000_6969, // NFS
    0xff53_4d42, // CIFS
    0xfe53_4d42, // SMB2
    0x0000_517b, // SMB
    0x0102_1997, // 9p
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
    0x7461_636f, // OCFS2
    0x6573_5546, // FUSE
];

/// A watch of one lock file and its directory.
#[derive(Debug)]
pub(crate) struct Watch {
    /// There until it is dropped.
    queue: Option<OwnedFd>,
}

/// The kernel takes 5 to 30 ms to end an inotify instance, as it waits for all that may look at the
/// watches just now. Whoever got the lock has no time for that.
impl Drop for Watch {
    fn drop(&mut self) {
        let queue = self.queue.take();
        let thread = std::thread::Builder::new()
            .name("llmlb-unwatch".to_owned())
            .stack_size(64 * 1024);
        // Where there can be no thread, this closes it here.
        let _ = thread.spawn(move || drop(queue));
    }
}

impl Watch {
    /// `None` where it can't be had: no instances or watches are left, or nothing would be told.
    /// The path may name another file than `file` by now, which the caller has to look at.
    pub(crate) fn of(file: &LockFile, path: &Path) -> Option<Self> {
        match Self::open(file, path) {
            Ok(watch) => watch,
            Err(e) => {
                debug!(
                    "Cannot watch {}, trying again and again: {e}",
                    path.display()
                );
                None
            }
        }
    }

    fn open(file: &LockFile, path: &Path) -> io::Result<Option<Self>> {
        let kind = rustix::fs::fstatfs(file)?.f_type;
        // The type's width and sign differ by architecture.
        if UNTOLD.contains(&(kind as u32)) {
            return Ok(None);
        }
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // A release unlinks the file, which is a change of its attributes for as long as a waiter
        // has it open; a death only closes it. Whoever opens it to lock it closes it for writing
        // too: that wakes waiters in vain, and costs them a few tries.
        let file = WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::DONT_FOLLOW;
        inotify::add_watch(&queue, path, file)?;
        if let Some(directory) = path.parent() {
            let moved = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
            inotify::add_watch(&queue, directory, moved)?;
        }
        Ok(Some(Self { queue: Some(queue) }))
    }

    /// Waits until something has happened, for at most this long. A signal ends the wait early.
    pub(crate) fn wait(&self, longest: Duration) -> io::Result<bool> {
        let timeout = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let Some(queue) = &self.queue else {
            return Ok(false);
        };
        match poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => {
                // What has happened is seen by looking: here it only must not be told twice.
                let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
                let _ = rustix::io::read(queue, &mut buffer);
                Ok(true)
            }
            Err(e) => Err(e.into()),
        }
    }
}
