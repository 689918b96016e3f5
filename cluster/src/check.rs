//! Whether a cluster can be relied on: the data for `llmlb cluster check`. Apart, since it looks at
//! each member by itself, where all else takes whichever answers.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use chrono::Utc;
use serde_json::json;

use crate::error::{ClusterError, UnreachableEndpoint};
use crate::etcd::{lease_id, number};
use crate::http::{Config, Http};
use crate::interrupt::Interrupt;
use crate::keys::Keys;
use crate::record::nonce;

const ATTEMPT: Duration = Duration::from_secs(2);
/// How long all members together may take for one request: after a look at each there is time for
/// one that waits for a majority in vain, within the ten seconds that a terminal gets.
const ALL: Duration = Duration::from_secs(7);

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
        let all = &config.url.endpoints;
        let attempt = ATTEMPT.min(ALL / u32::try_from(all.len()).unwrap_or(1));
        let http = Http::new(config, attempt, Some(interrupt));
        let found = members(&http, all.len());
        let quorum = match silence(&found) {
            Some(endpoints) => Err(ClusterError::Unreachable { endpoints }),
            None => quorum(&http, keys),
        };
        // Who waits for a majority in vain once would wait so again.
        let (ttl_floor, rights) = match &quorum {
            Err(ClusterError::Unreachable { endpoints }) => {
                let endpoints = endpoints.clone();
                let again = ClusterError::Unreachable {
                    endpoints: endpoints.clone(),
                };
                (Err(again), Err(ClusterError::Unreachable { endpoints }))
            }
            _ => (ttl_floor(&http), rights(&http, keys)),
        };
        http.check_interrupt()?;
        Ok(Self {
            endpoints: all.iter().map(ToString::to_string).zip(found).collect(),
            quorum,
            ttl_floor,
            rights,
        })
    }
}

type Found = Result<EndpointCheck, ClusterError>;

/// Of each member by itself, all at once: several may be silent.
fn members(http: &Http, count: usize) -> Vec<Found> {
    thread::scope(|scope| {
        let asked: Vec<_> = (0..count)
            .map(|index| scope.spawn(move || member(http, index)))
            .collect();
        let answers = asked.into_iter();
        answers
            .map(|asked| asked.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// Why none of the members answers, where none does.
fn silence(found: &[Found]) -> Option<Vec<UnreachableEndpoint>> {
    let silent = found.iter().map(|found| match found {
        Err(ClusterError::Unreachable { endpoints }) => Some(endpoints.clone()),
        _ => None,
    });
    let all: Option<Vec<_>> = silent.collect();
    all.map(|all| all.concat())
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
