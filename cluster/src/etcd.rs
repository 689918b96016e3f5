//! etcd's own words: ranges, transactions, leases. Apart, so that nothing else here knows of
//! base64 or of numbers that are strings.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::clock::BootTime;
use crate::error::{ClusterError, code};
use crate::http::{Answer, Http};
use crate::keys::end_of;

/// Records that a page may have.
const PAGE: usize = 256;

/// A key and what stands there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kv {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    pub(crate) create_revision: u64,
    pub(crate) mod_revision: u64,
    pub(crate) lease: u64,
}

/// All keys of a range at one revision.
#[derive(Debug)]
pub(crate) struct Range {
    pub(crate) kvs: Vec<Kv>,
    pub(crate) revision: u64,
    pub(crate) cluster_id: u64,
}

/// A condition of a transaction.
pub(crate) enum If<'a> {
    /// 0: it does not exist.
    Created(&'a str, u64),
    /// 0: it does not exist.
    Modified(&'a str, u64),
}

/// A step of a transaction.
pub(crate) enum Do<'a> {
    Get(&'a str),
    Put(&'a str, &'a str, u64),
    Delete(&'a str),
}

/// What became of a transaction.
pub(crate) struct Txn {
    pub(crate) succeeded: bool,
    pub(crate) revision: u64,
    /// What its Gets found, in their order.
    pub(crate) found: Vec<Option<Kv>>,
    /// When it was sent.
    pub(crate) sent: BootTime,
}

impl Http {
    pub(crate) fn get(&self, key: &str) -> Result<Option<Kv>, ClusterError> {
        let answer = self.call("/v3/kv/range", &json!({"key": encode(key)}))?;
        Ok(kvs(&answer.body)?.pop())
    }

    /// All below `prefix`, page by page, at one revision.
    pub(crate) fn list(&self, prefix: &str) -> Result<Range, ClusterError> {
        let end = encode(end_of(prefix));
        let mut from = encode(prefix);
        let mut all = Vec::new();
        let mut at = 0;
        loop {
            let body = json!({
                "key": from, "range_end": end, "limit": PAGE.to_string(), "revision": at.to_string(),
            });
            let Answer { body, address, .. } = self.call("/v3/kv/range", &body)?;
            let page = kvs(&body)?;
            if at == 0 {
                at = number(&body["header"]["revision"]);
            }
            if at == 0 {
                return Err(ClusterError::NotEtcd {
                    address,
                    reason: "an answer without a revision".into(),
                });
            }
            let last = page.last().map(|kv| kv.key.clone());
            all.extend(page);
            match last {
                // The next key is this one and a zero byte.
                Some(last) if body["more"] == true => from = encode(format!("{last}\0")),
                _ => {
                    return Ok(Range {
                        kvs: all,
                        revision: at,
                        cluster_id: number(&body["header"]["cluster_id"]),
                    });
                }
            }
        }
    }

    /// The present revision, as a majority of etcd knows it.
    pub(crate) fn revision(&self, key: &str) -> Result<(u64, u64), ClusterError> {
        let body = json!({"key": encode(key), "count_only": true});
        let answer = self.call("/v3/kv/range", &body)?;
        let header = &answer.body["header"];
        Ok((number(&header["revision"]), number(&header["cluster_id"])))
    }

    /// Writes `key`; with a lease that has ended the error is `NOT_FOUND`.
    pub(crate) fn put(&self, key: &str, value: &str, lease: u64) -> Result<u64, ClusterError> {
        let body = json!({
            "key": encode(key), "value": encode(value), "lease": lease.to_string(),
        });
        let answer = self.call("/v3/kv/put", &body)?;
        Ok(number(&answer.body["header"]["revision"]))
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), ClusterError> {
        self.call("/v3/kv/deleterange", &json!({"key": encode(key)}))
            .map(drop)
    }

    pub(crate) fn txn(
        &self,
        ifs: &[If<'_>],
        then: &[Do<'_>],
        or: &[Do<'_>],
    ) -> Result<Txn, ClusterError> {
        let body = json!({
            "compare": ifs.iter().map(condition).collect::<Vec<_>>(),
            "success": then.iter().map(step).collect::<Vec<_>>(),
            "failure": or.iter().map(step).collect::<Vec<_>>(),
        });
        let Answer { body, sent, .. } = self.call("/v3/kv/txn", &body)?;
        let found = body["responses"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|response| response.get("response_range"))
            .map(|range| Ok(kvs(range)?.pop()))
            .collect::<Result<_, ClusterError>>()?;
        Ok(Txn {
            succeeded: body["succeeded"] == true,
            revision: number(&body["header"]["revision"]),
            found,
            sent,
        })
    }

    /// Makes the lease `id`, or finds that an earlier try has; says what TTL it has.
    pub(crate) fn grant(&self, id: u64, ttl: u64) -> Result<u64, ClusterError> {
        let body = json!({"ID": id.to_string(), "TTL": ttl.to_string()});
        match self.call("/v3/lease/grant", &body) {
            Ok(answer) => Ok(number(&answer.body["TTL"])),
            Err(ClusterError::Refused { message, .. }) if message.contains("already exists") => {
                Ok(ttl)
            }
            Err(error) => Err(error),
        }
    }

    /// Renews a lease. `false`: it has ended.
    pub(crate) fn keep_alive(&self, id: u64) -> Result<bool, ClusterError> {
        let answer = self.call("/v3/lease/keepalive", &json!({"ID": id.to_string()}))?;
        // It is a stream of one; for a lease that has ended the TTL is left out.
        Ok(number(&answer.body["result"]["TTL"]) > 0)
    }

    /// Ends a lease, and removes its keys. One that has ended is fine.
    pub(crate) fn revoke(&self, id: u64) -> Result<(), ClusterError> {
        match self.call("/v3/lease/revoke", &json!({"ID": id.to_string()})) {
            Err(ClusterError::Refused {
                code: code::NOT_FOUND,
                ..
            })
            | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A lease's number is ours to choose, so that it can be ended whatever became of the request.
pub(crate) fn lease_id() -> u64 {
    fastrand::u64(1..=i64::MAX as u64)
}

pub(crate) fn encode(text: impl AsRef<[u8]>) -> String {
    BASE64.encode(text)
}

fn decode(text: &Value) -> Option<Vec<u8>> {
    BASE64.decode(text.as_str().unwrap_or_default()).ok()
}

/// 64-bit numbers are strings in etcd's JSON; zero is left out.
pub(crate) fn number(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.parse().unwrap_or(0),
        other => other.as_u64().unwrap_or(0),
    }
}

fn kvs(body: &Value) -> Result<Vec<Kv>, ClusterError> {
    body["kvs"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|kv| {
            read_kv(kv).ok_or_else(|| ClusterError::NotEtcd {
                address: "etcd".into(),
                reason: "a key that is not in base64".into(),
            })
        })
        .collect()
}

pub(crate) fn read_kv(kv: &Value) -> Option<Kv> {
    Some(Kv {
        key: String::from_utf8_lossy(&decode(&kv["key"])?).into_owned(),
        value: decode(&kv["value"])?,
        create_revision: number(&kv["create_revision"]),
        mod_revision: number(&kv["mod_revision"]),
        lease: number(&kv["lease"]),
    })
}

fn condition(this: &If<'_>) -> Value {
    match this {
        If::Created(key, revision) => json!({
            "key": encode(key), "target": "CREATE", "result": "EQUAL",
            "create_revision": revision.to_string(),
        }),
        If::Modified(key, revision) => json!({
            "key": encode(key), "target": "MOD", "result": "EQUAL",
            "mod_revision": revision.to_string(),
        }),
    }
}

fn step(this: &Do<'_>) -> Value {
    match this {
        Do::Get(key) => json!({"request_range": {"key": encode(key)}}),
        Do::Put(key, value, lease) => json!({"request_put": {
            "key": encode(key), "value": encode(value), "lease": lease.to_string(),
        }}),
        Do::Delete(key) => json!({"request_delete_range": {"key": encode(key)}}),
    }
}
