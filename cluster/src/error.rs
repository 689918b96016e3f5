//! The whole error space, in the words the user reads.

use std::fmt;
use std::io;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use thiserror::Error;

/// Everything that can go wrong beyond one machine.
///
/// Messages name the address, the service or the key, and say what to do next.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClusterError {
    /// Not what [`ClusterUrl`](crate::ClusterUrl) takes.
    #[error("Invalid cluster URL {url:?}: {reason}")]
    InvalidUrl {
        /// What was given, without a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file with certificates or a key can't be used.
    #[error("Cannot use {path}: {reason}")]
    Certificate {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// The times don't fit into the TTL; the message shows the arithmetic.
    #[error("Invalid timing: {reason}")]
    InvalidTiming {
        /// The arithmetic.
        reason: String,
    },
    /// A name, a host or a record that can't be kept in etcd.
    #[error("Invalid {what}: {reason}")]
    InvalidRecord {
        /// Which field.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another server is the active one, and this is who.
    #[error(
        "Service {service} is active on {host}:{port} (PID: {pid}, started: {started}, token {token})",
        started = started_at.to_rfc3339_opts(SecondsFormat::Secs, true)
    )]
    AlreadyActive {
        /// The service that was asked for.
        service: String,
        /// The holder's host, as it calls itself.
        host: String,
        /// The holder's port.
        port: u16,
        /// The holder's process id, on its host.
        pid: u32,
        /// When the holder started.
        started_at: DateTime<Utc>,
        /// The holder's fencing token.
        token: u64,
    },
    /// The service is held, but its record can't be read: something else wrote it, or a newer
    /// version.
    #[error(
        "Service {service} is active, but {key} in etcd does not say where: {reason}\n\n\
         To see it: etcdctl get {key}"
    )]
    ActiveUnknown {
        /// The service that was asked for.
        service: String,
        /// The key.
        key: String,
        /// Why its record can't be read.
        reason: String,
    },
    /// The last holder vanished without goodbye, and its time is not over yet.
    #[error(
        "The last server of {service} ended without giving its lease back: its time is over in \
         {wait:.1} s at most; wait for it, or try again",
        wait = wait.as_secs_f64()
    )]
    NotYet {
        /// The service that was asked for.
        service: String,
        /// How long at most.
        wait: Duration,
    },
    /// No member of etcd answered.
    #[error("Cannot reach etcd: {}", list(endpoints))]
    Unreachable {
        /// Each address that was tried, and why it failed.
        endpoints: Vec<UnreachableEndpoint>,
    },
    /// etcd answered with an error.
    #[error("etcd at {address} refuses: {message}{}", hint(*code))]
    Refused {
        /// Who answered.
        address: String,
        /// gRPC's number of the error.
        code: i32,
        /// What it said.
        message: String,
    },
    /// What answered is not etcd 3.4 or later.
    #[error(
        "{address} does not answer as etcd does: {reason}\n\n\
         llmlb needs etcd 3.4 or later, with its JSON gateway (--enable-grpc-gateway) on"
    )]
    NotEtcd {
        /// Who answered.
        address: String,
        /// What came.
        reason: String,
    },
    /// A key below the prefix is not what llmlb writes, and nothing is safe until it is removed.
    #[error("{key} in etcd is not what llmlb writes: {reason}\n\nTo remove it: etcdctl del {key}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The lease was lost; another server may be active from the deadline on.
    #[error("The lease of {service} (token {token}) was lost: {reason}")]
    Lost {
        /// The service.
        service: String,
        /// The token that is no longer the highest.
        token: u64,
        /// How.
        reason: String,
    },
    /// The lease could not be given back: it ends by itself, within its TTL.
    #[error("Cannot give the lease of {service} back, it ends by itself within {ttl} s: {source}",
        ttl = ttl.as_secs_f64())]
    ReleaseFailed {
        /// The service.
        service: String,
        /// At most this long.
        ttl: Duration,
        /// Why.
        source: Box<ClusterError>,
    },
    /// The watchdog could not be started, or has ended.
    #[error("The watchdog failed: {0}")]
    Watchdog(#[source] io::Error),
    /// A thread could not be started.
    #[error("Cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// A wait was ended by its [`Interrupt`](crate::Interrupt).
    #[error("Interrupted")]
    Interrupted,
}

/// One member of etcd that could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreachableEndpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// Why not.
    pub reason: String,
}

impl fmt::Display for UnreachableEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.address, self.reason)
    }
}

fn list(endpoints: &[UnreachableEndpoint]) -> String {
    endpoints
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// gRPC's numbers.
pub(crate) mod code {
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const NOT_FOUND: i32 = 5;
    pub(crate) const PERMISSION_DENIED: i32 = 7;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const UNAVAILABLE: i32 = 14;
    pub(crate) const UNAUTHENTICATED: i32 = 16;
}

fn hint(code: i32) -> &'static str {
    match code {
        code::PERMISSION_DENIED => "; grant the user readwrite on the prefix",
        code::UNAUTHENTICATED | code::INVALID_ARGUMENT => "; check user and password",
        code::RESOURCE_EXHAUSTED => "; compact, defragment and disarm its alarm",
        _ => "",
    }
}

impl ClusterError {
    /// Whether the same may succeed in a moment: an outage, not a refusal.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotEtcd { .. } => true,
            // A full disk is made room on, a leader elected, a password corrected.
            Self::Refused { code, .. } => *code != code::NOT_FOUND,
            _ => false,
        }
    }
}
