//! `llmlb stop --cluster`: asks the llmlb that guards a server to stop it, and waits until it has.

use std::fmt;
use std::time::Duration;

use llmlb_lock_cluster::{Cluster, Interrupt, Record, StopAnswer};

use super::connection::{Connection, failure};
use super::foreign::printable;
use crate::exit::{self, Failure};
use crate::{output, pool};

/// How many are stopped side by side.
const STOPS: usize = 32;

/// Whom to stop.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Which<'a> {
    pub(crate) service: &'a str,
    pub(crate) host: Option<&'a str>,
    pub(crate) port: Option<u16>,
    /// All of those, or the only one.
    pub(crate) all: bool,
}

impl Which<'_> {
    fn takes(&self, record: &Record) -> bool {
        self.host.is_none_or(|host| host == record.host)
            && self.port.is_none_or(|port| port == record.port)
    }
}

impl fmt::Display for Which<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.service)?;
        match (self.host, self.port) {
            (Some(host), Some(port)) => write!(f, " on {host}:{port}"),
            (Some(host), None) => write!(f, " on {host}"),
            (None, Some(port)) => write!(f, " on port {port}"),
            (None, None) => Ok(()),
        }
    }
}

pub(crate) fn run(etcd: &Connection, which: Which<'_>, timeout: Duration) -> Result<u8, Failure> {
    let listing = etcd.ask(|cluster, ended| cluster.servers(Some(which.service), ended))?;
    for one in &listing.skipped {
        output::note(&format!("Warning: {}", printable(&one.to_string())));
    }
    let records = listing.servers.into_iter().map(|server| server.record);
    let servers: Vec<Record> = records.filter(|record| which.takes(record)).collect();
    if servers.is_empty() {
        output::line(&format!("No server of {which} running"))?;
        return Ok(exit::OK);
    }
    if servers.len() > 1 && !which.all {
        return Err(ambiguous(&which, &servers));
    }
    let results = pool::map(&servers, STOPS, |server| {
        stop_one(&etcd.cluster, server, timeout)
    });
    output::joined(results)?;
    Ok(exit::OK)
}

fn ambiguous(which: &Which<'_>, servers: &[Record]) -> Failure {
    let names: Vec<_> = servers.iter().map(Record::instance).collect();
    let message = format!(
        "There are {} servers of {which}: {}\n\n\
         To stop one: --host HOST, and --port PORT where a host has several\n\
         To stop all: --all",
        names.len(),
        names.join(", ")
    );
    Failure::new(exit::FAILURE, message)
}

fn stop_one(cluster: &Cluster, server: &Record, timeout: Duration) -> Result<(), Failure> {
    let never = &Interrupt::new();
    let name = format!("{} on {}", server.service, server.instance());
    let pid = server.pid;
    // What can't be said keeps nobody from being stopped: that is told afterwards.
    let said = output::line(&format!("Stopping server of {name} (PID: {pid})..."));
    let answer = cluster
        .request_stop(server, &own_name(), never)
        .and_then(|ticket| ticket.wait(timeout, never))
        .map_err(failure)?;
    let message = match answer {
        StopAnswer::Stopped => return output::line("Server stopped successfully").and(said),
        StopAnswer::Accepted => format!(
            "Server of {name} (PID: {pid}) still runs after {timeout:?}\n\n\
             Its llmlb has been told, and is ending it.\n\
             To wait longer: --timeout SECS\n\
             To kill it:     llmlb stop --port {} --force, on {}",
            server.port, server.host
        ),
        // Unanswered, and whatever else there may be one day.
        _ => format!(
            "The llmlb that guards the server of {name} (PID: {pid}) has not answered within \
             {timeout:?}\n\n\
             It is hung, or cut off from etcd, and the server may still run. {}\n\
             To stop it there: llmlb stop --port {}, on {}",
            unanswered(server),
            server.port,
            server.host
        ),
    };
    Err(Failure::new(exit::FAILURE, message))
}

/// What becomes of a server whose guardian says nothing.
fn unanswered(server: &Record) -> &'static str {
    if server.exclusive {
        "If it is, its lease ends by itself and its watchdog ends the server before that."
    } else {
        "If it is, its record goes when its lease ends; the server does not end by that."
    }
}

/// How this host calls itself, for the log of the other.
fn own_name() -> String {
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy();
    let valid = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let name: String = name.chars().filter(valid).take(253).collect();
    match name.is_empty() {
        true => "unknown".to_owned(),
        false => name,
    }
}
