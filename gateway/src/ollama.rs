//! Ollama's own lists, which OpenAI's API has no place for: what is there, and what is loaded.

use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::backend::Backend;
use crate::probe;

/// How long one backend may hold up the lists of all.
const PATIENCE: Duration = Duration::from_secs(2);

/// An entry of either list.
pub(crate) type Entry = Map<String, Value>;

/// Asks a backend that is up what it has loaded, if it is one that tells.
pub(crate) async fn look(backend: &Backend) {
    if !backend.is_up() {
        backend.loaded.forget();
        return;
    }
    // Each of its models has a tag; others need not be asked for what they do not know.
    let models = backend.models();
    let tagged = models.is_some_and(|models| models.names().any(|id| id.contains(':')));
    if !tagged || !backend.loaded.may_tell() {
        return;
    }
    match probe::get(backend, "/api/ps").await {
        Ok((StatusCode::OK, body)) => match parse(&body) {
            Some(entries) => backend.loaded.set(entries.iter().filter_map(name)),
            None => backend.loaded.deny(),
        },
        Ok(_) => backend.loaded.deny(),
        // What was known is the best guess.
        Err(_) => {}
    }
}

/// What a backend lists there, if it does in time.
pub(crate) async fn list(backend: &Backend, path: &'static str) -> Option<Vec<Entry>> {
    match timeout(PATIENCE, probe::get(backend, path)).await {
        Ok(Ok((StatusCode::OK, body))) => parse(&body),
        _ => None,
    }
}

/// All lists in one, each model once.
pub(crate) fn merge(lists: impl Iterator<Item = Vec<Entry>>) -> Vec<Entry> {
    let mut known = std::collections::HashSet::new();
    let mut entries: Vec<Entry> = lists.flatten().collect();
    entries.retain(|entry| name(entry).is_none_or(|name| known.insert(name.to_owned())));
    entries
}

fn parse(body: &[u8]) -> Option<Vec<Entry>> {
    #[derive(Deserialize)]
    struct List {
        models: Vec<Entry>,
    }
    let list: List = serde_json::from_slice(body).ok()?;
    Some(list.models)
}

fn name(entry: &Entry) -> Option<&str> {
    let name = entry.get("name").or_else(|| entry.get("model"));
    name?.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_put_together_and_each_model_is_in_there_once() {
        let list = |text: &str| parse(text.as_bytes()).unwrap();
        let merged = merge(
            [
                list(r#"{"models":[{"name":"a","size":1},{"model":"b"}]}"#),
                list(r#"{"models":[{"name":"a","size":2},{"name":"c"}]}"#),
            ]
            .into_iter(),
        );
        let names: Vec<_> = merged.iter().filter_map(name).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert_eq!(merged[0]["size"], 1);
        for text in ["", "[]", "{}", r#"{"object":"list","data":[]}"#] {
            assert!(parse(text.as_bytes()).is_none(), "{text}");
        }
    }
}
