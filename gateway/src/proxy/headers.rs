//! What becomes of headers between a client and a backend.

use axum::http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, HOST, HeaderName, LOCATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue};

use crate::auth::X_API_KEY;
use crate::url::BackendUrl;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Makes a client's headers the gateway's.
pub(super) fn forward(
    headers: &mut HeaderMap,
    peer: Option<&HeaderValue>,
    upgrade: bool,
    scheme: &'static str,
) {
    let mut seen = Seen::among(headers);
    if seen.hop_by_hop {
        forward_hop_by_hop(headers, upgrade);
        // Any of them may have been named there.
        seen = Seen::among(headers);
    }
    if seen.expect {
        // Answered by this server already.
        headers.remove(EXPECT);
    }
    if seen.forwarded {
        // Says the same as the others, and would say it wrong now.
        headers.remove(FORWARDED);
    }
    if let Some(peer) = peer {
        if seen.forwarded_for {
            add_forwarded_for(headers, peer);
        } else {
            headers.insert(X_FORWARDED_FOR, peer.clone());
        }
    }
    if !seen.forwarded_host
        && let Some(host) = headers.get(HOST).cloned()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if !seen.forwarded_proto {
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    }
}

/// Which of those that matter are there: to go through the names once costs less than to look each of
/// these up.
#[derive(Default)]
struct Seen {
    hop_by_hop: bool,
    expect: bool,
    forwarded: bool,
    forwarded_for: bool,
    forwarded_host: bool,
    forwarded_proto: bool,
}

impl Seen {
    fn among(headers: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in headers.keys() {
            match name.as_str() {
                "expect" => seen.expect = true,
                "forwarded" => seen.forwarded = true,
                "x-forwarded-for" => seen.forwarded_for = true,
                "x-forwarded-host" => seen.forwarded_host = true,
                "x-forwarded-proto" => seen.forwarded_proto = true,
                _ => seen.hop_by_hop |= is_hop_by_hop(name),
            }
        }
        seen
    }
}

/// Leaves of what is meant for this connection what is meant for the next, too.
fn forward_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = if upgrade {
        headers.remove(UPGRADE)
    } else {
        None
    };
    let takes_trailers = !upgrade && headers.contains_key(TE) && {
        let mut codings = tokens(headers, &TE);
        codings.any(|coding| coding.eq_ignore_ascii_case("trailers"))
    };
    remove_hop_by_hop(headers);
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
        headers.insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if let Some(protocol) = protocol {
        headers.insert(UPGRADE, protocol);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn add_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut path = Vec::new();
    for value in headers.get_all(X_FORWARDED_FOR) {
        if value.to_str().is_ok() {
            path.extend_from_slice(value.as_bytes());
            path.extend_from_slice(b", ");
        }
    }
    path.extend_from_slice(peer.as_bytes());
    if let Ok(value) = HeaderValue::try_from(path) {
        headers.insert(X_FORWARDED_FOR, value);
    }
}

/// Removes the ways to show a key.
pub(super) fn remove_keys(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(X_API_KEY);
}

/// Removes what is meant for this connection alone (RFC 9110, 7.6.1).
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // To look at each name costs less than to look each of these up.
    if !headers.keys().any(is_hop_by_hop) {
        return;
    }
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
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade"
    )
}

/// Tells a client who is sent elsewhere at its own backend to go there through the gateway: where
/// the backend is it may not know, nor reach it.
pub(super) fn relocate(headers: &mut HeaderMap, backend: &BackendUrl) {
    let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
    let here = location.and_then(|location| within(location, backend));
    if let Some(here) = here
        && let Ok(here) = HeaderValue::try_from(here)
    {
        headers.insert(LOCATION, here);
    }
}

/// The path, and what follows it, as clients of the gateway have them, of what is at the backend.
fn within(location: &str, backend: &BackendUrl) -> Option<String> {
    let path = match location.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            backend.is_at(scheme, authority).then_some(path)?
        }
        None if location.starts_with('/') => location,
        None => return None,
    };
    let path = path.strip_prefix(backend.base())?;
    // A browser would take what follows two of them for a host, and reads past a tab.
    if path.starts_with("//") || path.starts_with("/\\") || path.contains('\t') {
        return None;
    }
    match path.chars().next() {
        Some('/') => Some(path.to_owned()),
        None | Some('?' | '#') => Some(format!("/{path}")),
        // Its path only begins like the base.
        Some(_) => None,
    }
}

/// Says an answer's length once, if at all: whoever comes next may not read it as the gateway does.
pub(super) fn say_length_once(headers: &mut HeaderMap) {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let is_plain = |value: &HeaderValue| value.as_bytes().iter().all(u8::is_ascii_digit);
    if values.next().is_none_or(is_plain) && values.next().is_none() {
        return;
    }
    let one = {
        let mut lengths = tokens(headers, &CONTENT_LENGTH).map(str::parse::<u64>);
        let first = lengths.next().and_then(Result::ok);
        first.filter(|first| lengths.all(|other| other.as_ref() == Ok(first)))
    };
    match one {
        Some(length) => headers.insert(CONTENT_LENGTH, length.into()),
        // Of an answer without a body, where nobody has looked at it.
        None => headers.remove(CONTENT_LENGTH),
    };
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
        let peer = HeaderValue::from_static("10.0.0.9");
        let mut headers = headers(pairs);
        forward(&mut headers, Some(&peer), upgrade, "http");
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
                ("te", "gzip"),
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
    fn what_a_client_takes_away_is_said_again() {
        let out = forwarded(
            &[
                ("host", "h"),
                ("connection", "x-forwarded-for, x-forwarded-host"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "other"),
            ],
            false,
        );
        assert_eq!(out["x-forwarded-for"], "10.0.0.9");
        assert_eq!(out["x-forwarded-host"], "h");
    }

    #[test]
    fn trailers_are_announced_and_asked_for() {
        let out = forwarded(&[("te", "gzip, Trailers"), ("trailer", "x-sum")], false);
        assert_eq!(out["te"], "trailers");
        assert_eq!(out["connection"], "te");
        assert_eq!(out["trailer"], "x-sum");
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
    fn where_a_backend_sends_its_own_clients_is_told_as_the_gateway_has_it() {
        let (bare, based, tls) = ("http://h:8000", "http://h:8000/a", "https://h");
        for (url, location, told) in [
            (bare, "http://h:8000/v1/x/?q#f", "/v1/x/?q#f"),
            (bare, "HTTP://H:8000/v1/x/", "/v1/x/"),
            (bare, "http://h:8000", "/"),
            (bare, "http://h:8000?q", "/?q"),
            (bare, "/v1/x/", "/v1/x/"),
            (tls, "https://h:443/x", "/x"),
            (based, "http://h:8000/a/x", "/x"),
            (based, "http://h:8000/a", "/"),
            (based, "/a/x", "/x"),
        ] {
            assert_eq!(relocated(url, location), told, "{url} {location}");
        }
        // Elsewhere, or not known to be anywhere here, or what would be another host's.
        for (url, location) in [
            (bare, "https://h:8000/x"),
            (bare, "http://h/x"),
            (bare, "http://other:8000/x"),
            (bare, "http://u@h:8000/x"),
            (bare, "//h:8000/x"),
            (bare, "http://h:8000//other/x"),
            (bare, "http://h:8000/\\other/x"),
            (bare, "http://h:8000/\t/other/x"),
            (bare, "x"),
            (bare, ""),
            (tls, "http://h/x"),
            (based, "http://h:8000/ab"),
            (based, "http://h:8000/x"),
            (based, "/x"),
            (based, "/a//other/x"),
            (based, "http://h:8000/a//other"),
        ] {
            assert_eq!(relocated(url, location), location, "{url}");
        }
    }

    fn relocated(url: &str, location: &'static str) -> String {
        let mut headers = headers(&[("location", location)]);
        relocate(&mut headers, &url.parse().unwrap());
        headers[LOCATION].to_str().unwrap().to_owned()
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
