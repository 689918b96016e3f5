//! The key that clients show, where one is asked for.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use crate::Gateway;
use crate::error::Refusal;

/// A secret that debug output leaves out.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Checks that it can be sent as a bearer token.
    pub fn parse(text: &str) -> Result<Self, String> {
        // Taken for "no key", an empty one would open what is meant to be closed.
        if text.is_empty() {
            return Err("an empty key protects nothing".to_owned());
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("a key is printable ASCII without spaces".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::try_from(format!("Bearer {}", self.0)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Takes the same time for every wrong key of the right length.
    fn is_shown_by(&self, headers: &HeaderMap) -> bool {
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

/// Lets only those through who show the key.
pub(crate) async fn require(
    State(gateway): State<Arc<Gateway>>,
    request: Request,
    next: Next,
) -> Response {
    match &gateway.options.api_key {
        Some(key) if !key.is_shown_by(request.headers()) => {
            gateway.metrics.refused(&Refusal::Unauthorized);
            Refusal::Unauthorized.into_response()
        }
        _ => next.run(request).await,
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
