//! Keys: what clients show, where one is asked for, and what backends are shown.

use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use subtle::ConstantTimeEq;

/// A secret that debug output leaves out.
#[derive(Clone)]
pub struct ApiKey(String);

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiKeyError {
    /// Nothing is written.
    #[error("an empty key protects nothing")]
    Empty,
    /// It can't be sent as a bearer token.
    #[error("a key is printable ASCII without spaces")]
    Character,
}

impl ApiKey {
    /// Checks that it can be sent as a bearer token.
    ///
    /// # Errors
    ///
    /// When it is empty, or has anything in it but printable ASCII without spaces. The error does
    /// not repeat it.
    pub fn parse(text: &str) -> Result<Self, ApiKeyError> {
        // Taken for "no key", an empty one would open what is meant to be closed.
        if text.is_empty() {
            return Err(ApiKeyError::Empty);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ApiKeyError::Character);
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Takes the same time for every wrong key of the right length.
    pub(crate) fn is_shown_by(&self, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(AUTHORIZATION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return false;
        };
        let Some((scheme, token)) = value.as_bytes().split_at_checked("Bearer ".len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && bool::from(token.trim_ascii_start().ct_eq(self.0.as_bytes()))
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_key_is_accepted() {
        let key = ApiKey::parse("sk-1").unwrap();
        let shown = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(AUTHORIZATION, HeaderValue::from_static(value));
            }
            key.is_shown_by(&headers)
        };
        assert!(shown(&["Bearer sk-1"]));
        assert!(shown(&["bearer  sk-1"]));
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "sk-1",
            "Basic sk-1",
            "Bearer sk-",
            "Bearer sk-12",
            "Bearer sk-2",
            "Bearersk-1",
            "Bearer sk-1,",
        ] {
            assert!(!shown(&[wrong]), "{wrong}");
        }
        assert!(!shown(&[]));
        assert!(!shown(&["Bearer sk-1", "Bearer sk-2"]));
    }

    #[test]
    fn a_key_is_usable_and_stays_secret() {
        for wrong in ["", " ", "a b", "a\n", "ä"] {
            assert!(ApiKey::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(!format!("{:?}", ApiKey::parse("sk-1").unwrap()).contains("sk-1"));
    }
}
