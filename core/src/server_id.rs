//! Which start of which server a process belongs to. Apart from the lock, because it is told to
//! processes by their environment, which they keep when lock, launcher and server are gone.

use std::fmt;
#[cfg(unix)]
use std::process;
#[cfg(unix)]
use std::time::{SystemTime, UNIX_EPOCH};

/// A launcher puts the [`ServerId`] of its server into the server's environment by this name: what
/// the server leaves behind is known by it, also when launcher and server have been killed.
///
/// A process without it that has left its session is let go: nobody ends it with the server.
pub const SERVER_ID_ENV: &str = "LLMLB_SERVER_ID";

/// Names one start of a server: unique, and bound to its port, its user and its lock directory.
///
/// Made by [`ServerLock::server_id`](crate::ServerLock::server_id), passed on as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerId {
    text: String,
    port: u16,
    owner: u32,
    place: String,
    session: u32,
    launcher: u32,
}

impl ServerId {
    /// For a server that the calling process is about to start.
    #[cfg(unix)]
    pub(crate) fn new(port: u16, user: u32, place: String, session: u32) -> Self {
        let launcher = process::id();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_nanos();
        Self {
            text: format!("{port}.{user}.{place}.{session}.{launcher}.{now:x}"),
            port,
            owner: user,
            place,
            session,
            launcher,
        }
    }

    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('.');
        let id = Self {
            text: text.to_owned(),
            port: fields.next()?.parse().ok()?,
            owner: fields.next()?.parse().ok()?,
            place: fields.next()?.to_owned(),
            session: fields.next()?.parse().ok()?,
            launcher: fields.next()?.parse().ok()?,
        };
        u128::from_str_radix(fields.next()?, 16).ok()?;
        fields.next().is_none().then_some(id)
    }

    /// The text for [`SERVER_ID_ENV`].
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The port of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user who started it.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    /// The session it was started in.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn session(&self) -> u32 {
        self.session
    }

    /// The process that started it.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn launcher(&self) -> u32 {
        self.launcher
    }

    /// Whether it was started by this user, for a lock in the directory at `place`.
    pub(crate) fn is_of(&self, owner: u32, place: &str) -> bool {
        self.owner == owner && self.place == place
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_no_two_are_alike() {
        let new = || ServerId::new(8000, 1000, "fe-1-2".to_owned(), 7);
        let id = new();
        assert_eq!(ServerId::parse(id.as_str()), Some(id.clone()));
        assert!(id.is_of(1000, "fe-1-2"));
        assert!(!id.is_of(1000, "fe-1-3"));
        assert!(!id.is_of(0, "fe-1-2"));
        assert_ne!(id, new());
        for text in [
            "",
            "8000",
            "8000.0.a.1.2",
            "8000.0.a.1.2.3.4",
            "x.0.a.1.2.3",
        ] {
            assert_eq!(ServerId::parse(text), None, "{text}");
        }
    }
}
