//! What a guarded server is, beside who: what was typed, where it listens, whose it is, where its
//! output goes. All of it is seen, nothing is believed: a stranger's words are made harmless, and a
//! stranger's number is nobody to signal.

use std::net::SocketAddr;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, Utc};
use llmlb_lock_core::LockInfo;
use serde::Serialize;

use crate::insight::Insight;
use crate::state::{LastEnd, State};

/// Null where it can't be told.
#[derive(Default, Serialize)]
pub(crate) struct Details {
    pub(crate) command: Option<String>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) user: Option<String>,
    /// Since it took the port.
    pub(crate) uptime_seconds: Option<i64>,
    /// Where the output of `launcher_pid` goes, if that is a file.
    pub(crate) log_file: Option<String>,
    /// The launcher that guards the port beside the server; the server itself where there is none.
    pub(crate) launcher_pid: Option<u32>,
    /// Since llmlb guards the port.
    pub(crate) restarts: Option<u32>,
    pub(crate) last_end: Option<LastEnd>,
    pub(crate) backends: Option<usize>,
    pub(crate) backends_up: Option<usize>,
}

impl Details {
    /// Of the live holder of a lock, and what its guard tells.
    pub(crate) fn of(
        info: &LockInfo,
        lock: &Path,
        address: Option<SocketAddr>,
        insight: &Insight,
        state: Option<&State>,
    ) -> Self {
        let launcher = outer::launcher(info.pid, lock, insight).unwrap_or(info.pid);
        let last_end = state.and_then(|state| state.last_end.clone());
        Self {
            command: insight
                .command(info.pid)
                .map(|words| harmless(&shown(&words))),
            address,
            user: outer::user(lock).map(|user| harmless(&user)),
            uptime_seconds: Some(uptime(info.started_at, Utc::now())),
            log_file: outer::log_file(launcher).map(|path| harmless(&path)),
            launcher_pid: Some(launcher),
            restarts: state.map(|state| state.restarts),
            last_end: last_end.map(|end| LastEnd {
                signal: end.signal.map(|signal| harmless(&signal)),
                ..end
            }),
            backends: state.and_then(|state| state.backends),
            backends_up: state.and_then(|state| state.backends_up),
        }
    }

    /// In its two greatest units, as that is read.
    pub(crate) fn uptime(&self) -> Option<String> {
        let seconds = self.uptime_seconds?;
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
        Some(match (days, hours, minutes) {
            (0, 0, 0) => format!("{seconds}s"),
            (0, 0, _) => format!("{minutes}m{}s", seconds % 60),
            (0, ..) => format!("{hours}h{}m", minutes % 60),
            _ => format!("{days}d{}h", hours % 24),
        })
    }

    /// What it is, in a few words.
    pub(crate) fn what(&self) -> Option<String> {
        match (self.backends_up, self.backends) {
            (Some(up), Some(all)) => Some(format!("balancer, {up} of {all} backends up")),
            _ => self.command.clone(),
        }
    }

    /// How often it was started again, and why the last time.
    pub(crate) fn restarts(&self) -> Option<String> {
        let restarts = self.restarts?;
        Some(match &self.last_end {
            Some(end) => {
                let at = end.at.to_rfc3339_opts(SecondsFormat::Secs, true);
                format!("{restarts} ({end}, {at})")
            }
            None => restarts.to_string(),
        })
    }

    /// The same without when.
    pub(crate) fn restarts_in_short(&self) -> Option<String> {
        let restarts = self.restarts?;
        Some(match &self.last_end {
            Some(end) => format!("{restarts} ({end})"),
            None => restarts.to_string(),
        })
    }
}

/// A clock that was set back makes nobody younger than new.
fn uptime(since: DateTime<Utc>, now: DateTime<Utc>) -> i64 {
    (now - since).num_seconds().max(0)
}

/// As it would be typed.
fn shown(words: &[String]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,+@%{}".contains(c);
    let words = words.iter().map(|word| match word {
        word if !word.is_empty() && word.chars().all(plain) => word.clone(),
        word => format!("'{}'", word.replace('\'', "'\\''")),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Without what a terminal would obey, or show in another order.
fn harmless(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let seen = text.chars();
    seen.map(|c| if obeyed(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(target_os = "linux")]
mod outer {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    pub(super) use super::unix::user;
    use crate::insight::Insight;

    /// The parent that has the lock as well, if it is of the owner of its file.
    pub(super) fn launcher(holder: u32, lock: &Path, insight: &Insight) -> Option<u32> {
        let launcher = crate::listening::launcher(holder, lock, insight)?;
        let owner = fs::symlink_metadata(lock).ok()?.uid();
        let process = fs::metadata(format!("/proc/{launcher}")).ok()?;
        (process.uid() == owner).then_some(launcher)
    }

    /// Only where the descriptors lead to is read: the file may be on a network mount that hangs.
    pub(super) fn log_file(pid: u32) -> Option<String> {
        let target = |fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).ok();
        let path = target(1).filter(|path| path.is_absolute() && !path.starts_with("/dev"))?;
        let same = target(2).is_some_and(|other| other == path);
        same.then(|| path.to_string_lossy().into_owned())
    }
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use nix::unistd::{Uid, User};

    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(super) fn user(lock: &Path) -> Option<String> {
        let owner = lock.symlink_metadata().ok()?.uid();
        let user = User::from_uid(Uid::from_raw(owner)).ok().flatten();
        Some(user.map_or_else(|| owner.to_string(), |user| user.name))
    }
}

#[cfg(not(target_os = "linux"))]
mod outer {
    use std::path::Path;

    #[cfg(unix)]
    pub(super) use super::unix::user;
    use crate::insight::Insight;

    #[cfg(not(unix))]
    pub(super) fn user(_: &Path) -> Option<String> {
        None
    }

    pub(super) fn launcher(_: u32, _: &Path, _: &Insight) -> Option<u32> {
        None
    }

    pub(super) fn log_file(_: u32) -> Option<String> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_is_read_at_a_glance() {
        let shown = |uptime_seconds| {
            let details = Details {
                uptime_seconds: Some(uptime_seconds),
                ..Details::default()
            };
            details.uptime().unwrap()
        };
        let seconds = [0, 59, 60, 3599, 3600, 90_061, 100 * 86_400];
        let expected = ["0s", "59s", "1m0s", "59m59s", "1h0m", "1d1h", "100d0h"];
        assert_eq!(seconds.map(shown), expected);
    }

    #[test]
    fn words_are_shown_as_they_are_typed_and_move_no_cursor() {
        let words = ["sh", "-c", "it's \x1b[2J\u{9b}31m\u{202e}", ""].map(str::to_owned);
        assert_eq!(
            harmless(&shown(&words)),
            "sh -c 'it'\\''s \u{fffd}[2J\u{fffd}31m\u{fffd}' ''"
        );
    }
}
