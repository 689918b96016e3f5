//! What becomes of headers between a client and a backend.

use std::net::SocketAddr;

use axum::http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, HeaderName, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Makes a client's headers the gateway's.
pub(super) fn forward(headers: &mut HeaderMap, peer: Option<SocketAddr>, upgrade: bool) {
    let protocol = if upgrade {
        headers.remove(UPGRADE)
    } else {
        None
    };
    remove_hop_by_hop(headers);
    // Answered by this server already.
    headers.remove(EXPECT);
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
    if let Some(peer) = peer {
        add_forwarded_for(headers, peer);
    }
    if !headers.contains_key(X_FORWARDED_HOST)
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !headers.contains_key(X_FORWARDED_PROTO) {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    // Says the same as those, and would say it wrong now.
    headers.remove(FORWARDED);
}

fn add_forwarded_for(headers: &mut HeaderMap, peer: SocketAddr) {
    let ip = peer.ip().to_canonical();
    let mut path = String::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        if let Ok(value) = value.to_str() {
            path.push_str(value);
            path.push_str(", ");
        }
    }
    path.push_str(&ip.to_string());
    if let Ok(value) = HeaderValue::try_from(path) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Removes what is meant for this connection alone (RFC 9110, 7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
            .filter_map(|name| name.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

pub(super) fn ask_for_upgrade(headers: &HeaderMap) -> bool {
    // The only one that is known to bring no request past the gateway.
    let mut protocols = headers.get_all(UPGRADE).iter();
    protocols
        .next()
        .is_some_and(|first| first.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && protocols.next().is_none()
        && tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn forwarded(pairs: &[(&'static str, &'static str)], upgrade: bool) -> HeaderMap {
        let peer = "10.0.0.9:1".parse().unwrap();
        let mut headers = headers(pairs);
        forward(&mut headers, Some(peer), upgrade);
        headers
    }

    #[test]
    fn hop_by_hop_headers_stay_and_all_else_goes_on() {
        let out = forwarded(
            &[
                ("connection", "close, X-Mine"),
                ("connection", "x-too"),
                ("x-mine", "1"),
                ("x-too", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("authorization", "Bearer k"),
                ("x-other", "1"),
            ],
            false,
        );
        let mut names: Vec<_> = out.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "authorization",
                "x-forwarded-for",
                "x-forwarded-proto",
                "x-other"
            ]
        );
    }

    #[test]
    fn who_asked_is_added_to_who_is_said_to_have() {
        let out = forwarded(
            &[
                ("host", "llm.example"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-for", "5.6.7.8"),
                ("x-forwarded-proto", "https"),
            ],
            false,
        );
        assert_eq!(out["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.0.0.9");
        assert_eq!(out["x-forwarded-host"], "llm.example");
        assert_eq!(out["x-forwarded-proto"], "https");
    }

    #[test]
    fn an_upgrade_is_asked_for_by_both_headers() {
        let asks = |pairs| ask_for_upgrade(&headers(pairs));
        assert!(asks(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket")
        ]));
        assert!(!asks(&[
            ("connection", "keep-alive"),
            ("upgrade", "websocket")
        ]));
        assert!(!asks(&[("connection", "upgrade")]));
        assert!(!asks(&[("connection", "upgrade"), ("upgrade", "h2c")]));
        let out = forwarded(&[("connection", "Upgrade"), ("upgrade", "websocket")], true);
        assert_eq!(out["upgrade"], "websocket");
        assert_eq!(out["connection"], "upgrade");
    }
}
