//! Which models a server has, as it says itself: for its record. Apart from registering, which waits
//! for none of this.

use std::time::Duration;

use llmlb_lock_cluster::{Record, Registration};
use serde::Deserialize;
use tokio::time::sleep;
use tracing::debug;

use crate::ready::Probe;

/// A list that is longer is not read.
const MOST: usize = 1 << 20;
/// How many names a record may have, and how long they may be.
const NAMES: usize = 512;
const NAME: usize = 512;
/// Before the next try with a server that does not say. One that has a key, or none, is not asked
/// for ever.
const PAUSES: [u64; 6] = [0, 1, 2, 4, 8, 16];
/// How often a load balancer is asked, whose models come and go with its backends.
const STEP: Duration = Duration::from_secs(5);

/// Writes into a registered server's record which models it has. Completes when there is no more to
/// be known.
pub(super) async fn tell(
    registration: &Registration,
    record: Record,
    probe: &Probe,
    changes: bool,
) {
    let mut told = Vec::new();
    let mut pauses = PAUSES.into_iter().map(Duration::from_secs);
    while let Some(pause) = pauses.next().or(changes.then_some(STEP)) {
        sleep(pause).await;
        let Some(models) = list(probe).await else {
            continue;
        };
        if models != told {
            told.clone_from(&models);
            let record = record.clone().with_models(models);
            if let Err(e) = registration.update(record) {
                debug!("Its models are not told: {e}");
            }
        }
        if !changes {
            return;
        }
    }
}

#[derive(Deserialize)]
struct List {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

async fn list(probe: &Probe) -> Option<Vec<String>> {
    parse(&probe.get("/v1/models", MOST).await?)
}

/// Those that a record may have.
fn parse(bytes: &[u8]) -> Option<Vec<String>> {
    let list: List = serde_json::from_slice(bytes).ok()?;
    let names = list.data.into_iter().map(|model| model.id);
    let fit =
        |name: &String| (1..=NAME).contains(&name.len()) && !name.chars().any(char::is_control);
    Some(names.filter(fit).take(NAMES).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_record_may_have_are_taken() {
        let long = "x".repeat(NAME + 1);
        let text = serde_json::json!({ "object": "list", "data": [
            { "id": "qwen3", "object": "model" }, { "id": "" }, { "id": "a\u{1b}[2J" }, { "id": long },
            { "id": "b" },
        ]});
        assert_eq!(parse(text.to_string().as_bytes()).unwrap(), ["qwen3", "b"]);
        assert_eq!(parse(b"{\"data\": [{}]}"), None);
        assert_eq!(parse(b"<html>"), None);
        let many = serde_json::json!({ "data": vec![serde_json::json!({ "id": "m" }); 600] });
        assert_eq!(parse(many.to_string().as_bytes()).unwrap().len(), NAMES);
    }
}
