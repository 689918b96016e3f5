//! `llmlb cluster check`: what the library finds, in words, and what to do about it.

use std::time::Duration;

use llmlb_lock_cluster::{Check, EndpointCheck};

use super::connection::Connection;
use super::foreign::printable;
use crate::exit::{self, Failure};
use crate::output;

/// Beyond this a renewal may come late.
const SLOW: Duration = Duration::from_millis(500);
/// Beyond this start times mislead whoever reads them.
const CLOCK: i64 = 5;
/// An exclusive server with the usual TTL of 15 s needs less.
const TTL_FLOOR: Duration = Duration::from_secs(15);

pub(crate) fn run(etcd: &Connection) -> Result<u8, Failure> {
    let check = etcd.ask(|cluster, interrupt| cluster.check(interrupt))?;
    let lines = lines(&check);
    for line in &lines {
        let (word, text) = match line {
            Ok(text) => ("ok   ", text),
            Err(text) => ("wrong", text),
        };
        output::line(&format!("{word} {}", printable(text).replace('\n', " ")))?;
    }
    Ok(match lines.iter().all(Result::is_ok) {
        true => exit::OK,
        false => exit::FAILURE,
    })
}

/// What is right, or what is wrong and what to do.
type Line = Result<String, String>;

fn lines(check: &Check) -> Vec<Line> {
    let members = check.endpoints.iter();
    let mut lines: Vec<Line> = members
        .map(|(address, found)| match found {
            Ok(found) => member(address, found),
            Err(error) => Err(format!(
                "etcd {address}: {error}; start it, or leave it out"
            )),
        })
        .collect();
    let mut ids = check
        .endpoints
        .iter()
        .filter_map(|(_, found)| found.as_ref().ok().map(|found| found.cluster_id));
    let first = ids.next();
    if ids.any(|id| Some(id) != first) {
        lines.push(Err(
            "the addresses belong to different etcds: name the members of one".to_owned(),
        ));
    }
    lines.push(match &check.quorum {
        Ok(time) => Ok(format!("quorum: a majority agrees within {time:.1?}")),
        Err(error) => Err(format!("quorum: {error}; start a majority of the members")),
    });
    lines.push(match &check.ttl_floor {
        Ok(floor) if *floor <= TTL_FLOOR => Ok(format!("the shortest TTL is {floor:?}")),
        Ok(floor) => Err(format!(
            "the shortest TTL is {floor:?}: lower etcd's --election-timeout, or raise --ttl"
        )),
        Err(error) => Err(format!("the shortest TTL: {error}")),
    });
    lines.push(match &check.rights {
        Ok(()) => Ok("rights: all that is needed".to_owned()),
        Err(error) => Err(format!("rights: {error}")),
    });
    lines
}

fn member(address: &str, found: &EndpointCheck) -> Line {
    let clock = match found.clock_ahead {
        None => "clock unknown".to_owned(),
        Some(ahead) if ahead.abs() <= 1 => "clock as ours".to_owned(),
        Some(ahead) => format!("clock {ahead} s ahead of ours"),
    };
    let told = format!(
        "etcd {address}: version {}, answers in {:.1?}, {clock}",
        found.version, found.latency
    );
    if !found.errors.is_empty() {
        return Err(format!("{told}; it complains: {}", found.errors.join(", ")));
    }
    if !found.has_leader {
        return Err(format!(
            "{told}; it knows no leader: start the other members"
        ));
    }
    if found.latency > SLOW {
        return Err(format!(
            "{told}; too slow: give it a faster disk or network"
        ));
    }
    match found.clock_ahead {
        Some(ahead) if ahead.abs() > CLOCK => {
            Err(format!("{told}; set both by NTP, as start times mislead"))
        }
        _ => Ok(told),
    }
}
