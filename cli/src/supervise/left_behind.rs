//! Ends what the server left behind. Apart from supervising, as it begins when the server has ended,
//! and may take as long as the server did.

use std::time::Duration;

use llmlb_lock_core::Offspring;
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::ending::Ending;
use crate::signals::{Shutdown, Stream};

/// What ends by itself when the server has gone well is no left-over.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a killed process may take to die.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often they are looked at, beside at every end of a child.
const LONGEST_STEP: Duration = Duration::from_millis(50);

/// How the left-overs ended.
pub(super) enum LeftBehind {
    /// There were none, or this many were ended because the server was to end.
    Ended,
    /// They were ended although nobody had asked the server to end.
    Daemons,
    /// One is there still.
    Alive,
}

/// Ends all that `offspring` knows of a server that has ended by itself and `succeeded`, or not, and
/// the process group. Its members keep the group's number from being used again, so that it can't
/// come to mean another one. The `watchdog` of the moment is none of them.
pub(super) async fn end(
    group: Pid,
    offspring: &mut Offspring,
    watchdog: &impl Fn() -> Option<u32>,
    ending: &mut Ending,
    succeeded: bool,
    shutdown: &mut Shutdown,
    child_changed: &mut Stream,
) -> LeftBehind {
    let ended = Instant::now();
    let was_wanted = ending.is_wanted();
    let settle = match was_wanted || !succeeded {
        true => Duration::ZERO,
        false => SETTLE,
    };
    let mut killed: Option<Instant> = None;
    let mut step = Duration::from_micros(200);
    loop {
        let childless = reap_all();
        offspring.set_beside(watchdog().as_slice());
        let left = offspring.survivors(childless).unwrap_or_else(|e| {
            warn!("Cannot tell what the server has left behind: {e}");
            0
        });
        if left == 0 && !has_members(group) {
            let daemons = offspring.ended() > 0 && !was_wanted;
            return match daemons {
                true => LeftBehind::Daemons,
                false => LeftBehind::Ended,
            };
        }
        let mut result = Ok(());
        if ending.is_killed() {
            result = offspring.kill();
            if killed.get_or_insert_with(Instant::now).elapsed() >= KILL_WAIT {
                let pids = offspring.pids();
                warn!("What the server left behind was killed and has not ended: {pids:?}");
                return LeftBehind::Alive;
            }
        } else if ended.elapsed() >= settle {
            if !ending.is_asked() {
                if !was_wanted {
                    warn!(
                        "The server left processes behind, ending them: a COMMAND has to stay in \
                         the foreground"
                    );
                }
                ending.ask(group, Signal::SIGTERM);
            }
            result = offspring.ask();
        }
        if let Err(e) = result {
            warn!("Cannot signal what the server left behind: {e}");
        }
        tokio::select! {
            () = sleep(step) => {}
            () = child_changed.recv() => {}
            number = shutdown.recv() => ending.signalled(group, number),
            () = ending.expired() => ending.kill(group),
        }
        step = (step * 2).min(LONGEST_STEP);
    }
}

/// Takes all dead children away. Whether there are no others.
fn reap_all() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Err(Errno::ECHILD) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

/// Whether the process group has members beside those that `Offspring` finds.
fn has_members(group: Pid) -> bool {
    cfg!(not(target_os = "linux")) && killpg(group, None) != Err(Errno::ESRCH)
}
