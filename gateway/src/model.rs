//! Which model a request asks for.

use std::borrow::Cow;

use serde::Deserialize;

use crate::body::Received;

/// The model that a request names, by its path or else in its body.
pub(crate) fn named<'a>(path: &'a str, body: &'a Received) -> Option<Cow<'a, str>> {
    in_path(path).or_else(|| in_body(body))
}

/// The model that it names, if it is JSON, complete and does.
fn in_body(body: &Received) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        model: Cow<'a, str>,
    }
    if body.rest.is_some() || body.start.is_empty() {
        return None;
    }
    let named: Named<'_> = serde_json::from_slice(&body.start).ok()?;
    Some(named.model)
}

/// The ID in `/v1/models/ID`.
pub(crate) fn in_path(path: &str) -> Option<Cow<'_, str>> {
    let id = path.strip_prefix("/v1/models/")?;
    (!id.is_empty()).then(|| percent_decoded(id))
}

fn percent_decoded(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return text.into();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn model(text: &'static str) -> Option<String> {
        let received = Received {
            start: Bytes::from_static(text.as_bytes()),
            rest: None,
        };
        in_body(&received).map(Cow::into_owned)
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        assert_eq!(model(r#"{"model":"a"}"#).as_deref(), Some("a"));
        let late = r#" {"messages":[{"model":"no"}],"model":"a\"\u00e4/b","n":1} "#;
        assert_eq!(model(late).as_deref(), Some("a\"ä/b"));
    }

    #[test]
    fn anything_else_names_none() {
        for text in [
            "",
            "{}",
            "[]",
            "model",
            r#"{"model":1}"#,
            r#"{"model":"a""#,
            "{\"model\":\"\u{0}\"}",
        ] {
            assert_eq!(model(text), None, "{text}");
        }
    }

    #[test]
    fn model_names_in_paths_are_decoded() {
        for (path, name) in [
            ("meta/llama", "meta/llama"),
            ("meta%2Fllama", "meta/llama"),
            ("a%3Ab%", "a:b%"),
            ("%zz%4", "%zz%4"),
        ] {
            assert_eq!(percent_decoded(path), name);
        }
    }
}
