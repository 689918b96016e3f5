//! What a backend says it serves.

use serde_json::Value;

/// The models a backend lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Models(Vec<(String, Value)>);

impl Models {
    /// Reads the answer to `GET /v1/models`.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut list: Value = serde_json::from_slice(body).ok()?;
        let Some(Value::Array(entries)) = list.get_mut("data").map(Value::take) else {
            return None;
        };
        let named = entries.into_iter().filter_map(|entry| {
            let id = entry.get("id")?.as_str()?.to_owned();
            Some((id, entry))
        });
        Some(Self(named.collect()))
    }

    pub(crate) fn entries(&self) -> &[(String, Value)] {
        &self.0
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(id, _)| id.as_str())
    }
}

/// The names that an entry is asked for by: Ollama lists "name:latest" and answers to "name".
pub(crate) fn names_of(id: &str) -> impl Iterator<Item = &str> {
    [Some(id), id.strip_suffix(":latest")].into_iter().flatten()
}

#[cfg(test)]
pub(crate) fn listing(ids: &[&str]) -> Models {
    let entry = |id: &&str| ((*id).to_owned(), Value::Null);
    Models(ids.iter().map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_of_models_are_understood() {
        let parse = |text: &str| Models::parse(text.as_bytes());
        let models = parse(r#"{"data":[{"id":"a","x":1},{"no":"id"},7]}"#).unwrap();
        assert_eq!(models.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(models.entries()[0].1["x"], 1);
        for text in ["", "[]", "{}", r#"{"data":{}}"#, r#"{"error":"x"}"#] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
