//! The form that an answer has, by its headers: all who read in answers must agree on it.

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};

/// One that can be read while it passes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON value.
    Document,
    /// Server-sent events.
    Events,
    /// A JSON value in each line.
    Lines,
}

impl Form {
    /// None where it is another one, or packed.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let coding = text(headers, &CONTENT_ENCODING);
        if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
            return None;
        }
        let kind = text(headers, &CONTENT_TYPE)?.split(';').next()?.trim();
        let forms = [
            ("application/json", Self::Document),
            ("text/event-stream", Self::Events),
            ("application/x-ndjson", Self::Lines),
        ];
        let mut forms = forms.into_iter();
        forms
            .find(|(name, _)| kind.eq_ignore_ascii_case(name))
            .map(|(_, form)| form)
    }
}

/// What cannot be read is there all the same.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get(name)?;
    Some(value.to_str().unwrap_or_default().trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn it_is_told_by_the_type_without_parameters_in_any_case() {
        let of = |kind: &'static str| {
            Form::of(&HeaderMap::from_iter([(
                CONTENT_TYPE,
                HeaderValue::from_static(kind),
            )]))
        };
        assert_eq!(of("application/json; charset=utf-8"), Some(Form::Document));
        assert_eq!(of("Text/Event-Stream;charset=UTF-8"), Some(Form::Events));
        assert_eq!(of(" application/x-ndjson"), Some(Form::Lines));
        for other in ["", "text/plain", "application/jsonl", "application/json5"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(Form::of(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_packed_has_none() {
        let of = |coding: &[u8]| {
            Form::of(&HeaderMap::from_iter([
                (CONTENT_TYPE, HeaderValue::from_static("application/json")),
                (CONTENT_ENCODING, HeaderValue::from_bytes(coding).unwrap()),
            ]))
        };
        assert_eq!(of(b"identity"), Some(Form::Document));
        assert_eq!(of(b"Identity"), Some(Form::Document));
        for packed in [&b"gzip"[..], b"identity, br", b"\xff"] {
            assert_eq!(of(packed), None, "{packed:?}");
        }
    }
}
