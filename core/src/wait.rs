//! Waiting for a lock that somebody holds. Apart from acquiring, which is about who may have it:
//! this only tells when it is worth another try.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::sys::{LockFile, Watch};

/// The longest that a waiter sleeps where the system tells it of changes. It is woken by what
/// happens; this bounds how late it hears of an interruption, or of an event that never came.
const WATCHED: Duration = Duration::from_millis(100);
/// Where the system does not tell: one try, a system call, each time.
const POLLED: Duration = Duration::from_millis(25);
/// The first pause after an event. The kernel tells that a file is closed right before it gives
/// the lock up.
const SHORTEST: Duration = Duration::from_micros(30);
/// How often a waiter looks whether it waits for the right file, if nothing tells it.
const CHECK: Duration = Duration::from_secs(1);

/// Why a wait is over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The lock is ours. The path may name another file by now.
    Locked,
    /// The path names another file, and this one is no longer worth a wait.
    Moved,
    Expired,
    Interrupted,
}

/// Waits until the holder of `file`, opened at `path`, gives its lock up. `interrupted` is asked
/// before each pause.
pub(crate) fn for_holder(
    file: &LockFile,
    path: &Path,
    deadline: Option<Instant>,
    interrupted: &mut impl FnMut() -> bool,
) -> io::Result<Over> {
    let watch = Watch::of(file, path);
    let longest = if watch.is_some() { WATCHED } else { POLLED };
    let mut pause = SHORTEST;
    // It was watched too late to be told of what has happened before.
    let mut checked: Option<Instant> = None;
    loop {
        if file.retry()? {
            return Ok(Over::Locked);
        }
        // A file that was removed under its holder is no longer worth a wait.
        if checked.is_none_or(|checked| checked.elapsed() >= CHECK) {
            if !file.is_at(path)? {
                return Ok(Over::Moved);
            }
            checked = Some(Instant::now());
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Over::Expired);
        }
        if interrupted() {
            return Ok(Over::Interrupted);
        }
        let step = pause.min(left.unwrap_or(pause));
        let happened = match &watch {
            Some(watch) => watch.wait(step)?,
            None => {
                std::thread::sleep(step);
                false
            }
        };
        if happened {
            pause = SHORTEST;
            checked = None;
        } else {
            pause = (pause * 2).min(longest);
        }
    }
}
