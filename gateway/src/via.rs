//! Requests that come back to the gateway that sent them on: a backend may be this very server, or
//! one that has it among its backends in turn. Each gateway has an identity of its own, which
//! requests and probes carry in `Via` (RFC 9110, 7.6.3).

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use axum::http::header::VIA;
use axum::http::{HeaderMap, HeaderValue};

/// An element of `Via` that no other gateway has.
pub(crate) fn name_for_this_gateway() -> HeaderValue {
    // Random keys, hashed with what tells processes and moments apart.
    let seed = (std::process::id(), std::time::SystemTime::now());
    let id = RandomState::new().hash_one(seed);
    let name = HeaderValue::try_from(format!("1.1 llmlb-{id:016x}"));
    #[expect(clippy::expect_used, reason = "hexadecimal digits are visible ASCII")]
    name.expect("a name is a valid header value")
}

/// Whether a request has been here before.
pub(crate) fn has_been_here(headers: &HeaderMap, name: &HeaderValue) -> bool {
    let values = headers.get_all(VIA).iter();
    let mut elements = values.flat_map(|value| value.as_bytes().split(|&byte| byte == b','));
    elements.any(|element| element.trim_ascii() == name.as_bytes())
}

/// Adds this gateway to those that a request came through.
pub(crate) fn add(headers: &mut HeaderMap, name: &HeaderValue) {
    headers.append(VIA, name.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_again_among_others() {
        let (mine, other) = (name_for_this_gateway(), name_for_this_gateway());
        assert_ne!(mine, other);
        let mut headers = HeaderMap::new();
        assert!(!has_been_here(&headers, &mine));
        add(&mut headers, &other);
        assert!(!has_been_here(&headers, &mine));
        add(&mut headers, &mine);
        assert!(has_been_here(&headers, &mine));
        let joined = format!("1.0 cache, {} , 1.1 x", mine.to_str().unwrap());
        let joined = HeaderValue::try_from(joined).unwrap();
        let headers = HeaderMap::from_iter([(VIA, joined)]);
        assert!(has_been_here(&headers, &mine) && !has_been_here(&headers, &other));
    }
}
