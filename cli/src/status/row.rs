//! One line of what `status` tells, as JSON has it. Apart from how it is found out, and from how a
//! table shows it.

use chrono::{DateTime, Utc};
use llmlb_lock_core::{LeftOver, Server, ServerState};
use serde::Serialize;

use crate::details::Details;

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) port: u16,
    pub(super) pid: Option<u32>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) status: Status,
    /// Of a file that can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) owner: Option<String>,
    #[serde(flatten)]
    pub(super) details: Details,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Status {
    Running,
    Starting,
    Held,
    Stale,
    Unreadable,
    /// A process that a killed server left behind.
    LeftOver,
}

impl Row {
    pub(super) fn new(server: Server, ready: bool, details: Details) -> Self {
        let (status, owner) = match server.state {
            ServerState::Running if ready => (Status::Running, None),
            ServerState::Running => (Status::Starting, None),
            ServerState::Stale => (Status::Stale, None),
            ServerState::Unreadable { owner } => (Status::Unreadable, owner),
            _ => (Status::Held, None),
        };
        // The file of a lock that somebody else holds names the wrong one.
        let info = server.info.filter(|_| status != Status::Held);
        Self {
            port: server.port,
            pid: info.as_ref().map(|info| info.pid),
            started_at: info.map(|info| info.started_at),
            status,
            owner,
            details,
        }
    }

    pub(super) fn left_over(left_over: LeftOver) -> Self {
        Self {
            port: left_over.port,
            pid: Some(left_over.pid),
            started_at: left_over.started_at,
            status: Status::LeftOver,
            owner: None,
            details: Details::default(),
        }
    }
}
