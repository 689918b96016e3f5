//! What runs, as read from etcd: servers, and what is no record of one. Apart from the record
//! itself, since a list and a watch make the same of what they find.

use std::collections::BTreeMap;
use std::fmt;

use crate::etcd::Kv;
use crate::keys::{Keys, Kind};
use crate::record::Record;

/// A server that has a record in etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// What it says of itself, with the token that etcd gave it.
    pub record: Record,
    /// Whether it has registered: one that has not is leaving, or active, and not serving yet.
    pub registered: bool,
    /// Whether it was withdrawn, and has not ended.
    pub leaving: bool,
}

/// A key that is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Skipped {
    /// Where it is in etcd.
    pub key: String,
    /// Why it is no record.
    pub reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in etcd is not a record of llmlb: {}",
            self.key, self.reason
        )
    }
}

/// All servers, by service, host and port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listing {
    /// Those that can be read.
    pub servers: Vec<Server>,
    /// What stands beside them.
    pub skipped: Vec<Skipped>,
}

/// What a key holds.
pub(crate) enum Found {
    Server(Box<Server>),
    Skipped(Skipped),
    /// Ours, and no server.
    Other,
}

pub(crate) fn judge(keys: &Keys, kv: &Kv) -> Found {
    let skipped = |reason: String| {
        Found::Skipped(Skipped {
            key: printable(&kv.key),
            reason,
        })
    };
    let Some((kind, service, instance)) = keys.split(&kv.key) else {
        return skipped("it is no key of this version".into());
    };
    let instance = match kind {
        Kind::Server | Kind::Leaving => Some(instance),
        Kind::Holder => None,
        Kind::Fence => return Found::Other,
    };
    match Record::read(&kv.value, service, instance) {
        Ok(record) => Found::Server(Box::new(Server {
            record: if kind == Kind::Holder {
                record.with_token(kv.create_revision)
            } else {
                record
            },
            registered: kind == Kind::Server,
            leaving: kind == Kind::Leaving,
        })),
        Err(reason) => skipped(reason),
    }
}

/// Of those that are registered, leaving and active, each server once.
pub(crate) fn listing(keys: &Keys, kvs: &[Kv]) -> Listing {
    let mut servers: BTreeMap<_, Server> = BTreeMap::new();
    let mut skipped = Vec::new();
    for kv in kvs {
        match judge(keys, kv) {
            Found::Server(server) => {
                let record = &server.record;
                let id = (record.service.clone(), record.host.clone(), record.port);
                let tells = |server: &Server| (server.registered, server.leaving);
                match servers.get(&id) {
                    Some(known) if tells(known) > tells(&server) => {}
                    _ => drop(servers.insert(id, *server)),
                }
            }
            Found::Skipped(one) => skipped.push(one),
            Found::Other => {}
        }
    }
    Listing {
        servers: servers.into_values().collect(),
        skipped,
    }
}

/// A foreign key may have anything in it, and ends up in terminals.
fn printable(key: &str) -> String {
    key.chars()
        .take(300)
        .flat_map(|c| c.escape_debug())
        .collect()
}
