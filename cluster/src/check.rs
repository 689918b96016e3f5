//! Whether a cluster can be relied on: the data for `llmlb cluster check`. Apart, since it looks at
//! each member by itself, where all else takes whichever answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::json;

use crate::error::ClusterError;
use crate::etcd::{lease_id, number};
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::keys::Keys;
use crate::record::nonce;

const ATTEMPT: Duration = Duration::from_secs(2);

/// What a check has found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Check {
    /// Each address by itself, in the order of the URL.
    pub endpoints: Vec<(String, Result<EndpointCheck, ClusterError>)>,
    /// How long a majority took to agree on a read, if it did.
    pub quorum: Result<Duration, ClusterError>,
    /// The shortest TTL that is granted, in whole seconds.
    pub ttl_floor: Result<Duration, ClusterError>,
    /// Whether all that llmlb does below the prefix is allowed.
    pub rights: Result<(), ClusterError>,
}

/// What one member of etcd has said.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EndpointCheck {
    /// Its version.
    pub version: String,
    /// How long it took to answer.
    pub latency: Duration,
    /// How far its clock is ahead of ours, in whole seconds; `None` where it does not tell. Leases
    /// do not depend on it, what is written of start times does.
    pub clock_ahead: Option<i64>,
    /// Which cluster it is in: two addresses of one URL must not differ.
    pub cluster_id: u64,
    /// Whether it leads.
    pub is_leader: bool,
    /// Whether it knows a leader.
    pub has_leader: bool,
    /// The size of its database, in bytes.
    pub db_size: u64,
    /// What it complains about: no space, corruption.
    pub errors: Vec<String>,
}

impl Check {
    pub(crate) fn run(
        config: &Arc<Config>,
        keys: &Keys,
        interrupt: &Interrupt,
    ) -> Result<Self, ClusterError> {
        let http = Http::new(config, ATTEMPT, Some(interrupt));
        let endpoints = config
            .url
            .endpoints
            .iter()
            .enumerate()
            .map(|(i, endpoint)| (endpoint.to_string(), member(&http, i)))
            .collect();
        let check = Self {
            endpoints,
            quorum: quorum(&http, keys),
            ttl_floor: ttl_floor(&http),
            rights: rights(&http, keys),
        };
        http.check_interrupt()?;
        Ok(check)
    }
}

fn member(http: &Http, index: usize) -> Result<EndpointCheck, ClusterError> {
    let start = Instant::now();
    let answer = http.call_at(index, "/v3/maintenance/status", &json!({}))?;
    let latency = start.elapsed();
    let clock_ahead = answer.date.map(|date| (date - Utc::now()).num_seconds());
    let body = &answer.body;
    let Some(version) = body["version"].as_str() else {
        return Err(ClusterError::NotEtcd {
            address: answer.address,
            reason: "a status without a version".into(),
        });
    };
    let leader = number(&body["leader"]);
    Ok(EndpointCheck {
        version: version.to_owned(),
        latency,
        clock_ahead,
        cluster_id: number(&body["header"]["cluster_id"]),
        is_leader: leader != 0 && leader == number(&body["header"]["member_id"]),
        has_leader: leader != 0,
        db_size: number(&body["dbSize"]),
        errors: body["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|error| Some(error.as_str()?.to_owned()))
            .collect(),
    })
}

fn quorum(http: &Http, keys: &Keys) -> Result<Duration, ClusterError> {
    let start = Instant::now();
    http.revision(&keys.servers(None))?;
    Ok(start.elapsed())
}

fn ttl_floor(http: &Http) -> Result<Duration, ClusterError> {
    let lease = lease_id();
    let granted = http.grant(lease, 1)?;
    http.revoke(lease)?;
    Ok(Duration::from_secs(granted))
}

fn rights(http: &Http, keys: &Keys) -> Result<(), ClusterError> {
    let key = keys.check(&nonce());
    let lease = lease_id();
    http.grant(lease, 10)?;
    let all = http
        .put(&key, "check", lease)
        .and_then(|_| http.get(&key))
        .and_then(|_| http.delete(&key))
        .and_then(|()| http.list(&keys.servers(None)).map(drop))
        .and_then(|()| http.list(&keys.exclusive(None)).map(drop));
    let revoked = http.revoke(lease);
    all.and(revoked)
}
