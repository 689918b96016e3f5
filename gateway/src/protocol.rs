//! What a request must look like to be understood by all alike.
//!
//! hyper takes some of what RFC 9112 forbids or leaves to the recipient. Whoever stands before or
//! behind this server may read it otherwise, and then one sees two requests where another sees one.

use axum::http::header::{HOST, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderName, Request, Version};

use crate::error::Refusal;

/// Whether a request may be answered at all.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), Refusal> {
    let headers = request.headers();
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(Refusal::Malformed("it has more than one Host")),
        (None, _) if request.version() >= Version::HTTP_11 => {
            return Err(Refusal::Malformed("it has no Host"));
        }
        _ => {}
    }
    check_coding(headers)
}

fn check_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    // To some servers they are the same as those with dashes.
    let is_one =
        |name: &HeaderName| matches!(name.as_str(), "transfer_encoding" | "content_length");
    if headers.keys().any(is_one) {
        return Err(Refusal::Malformed("a header with _ where - belongs"));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (_, Some(_)) => Err(Refusal::Malformed("it has more than one Transfer-Encoding")),
        (Some(one), None) if one.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(Refusal::Unimplemented(
            "a Transfer-Encoding other than chunked",
        )),
    }
}

/// Whether a path leaves where it begins, to servers that resolve `.` and `..` in whatever way
/// they are written.
pub(crate) fn has_dot_segments(path: &str) -> bool {
    // Most have neither.
    if !path.contains(['.', '%']) {
        return false;
    }
    let decoded: Vec<u8> = percent_encoding::percent_decode_str(path).collect();
    decoded.split(|b| matches!(b, b'/' | b'\\')).any(|segment| {
        // What follows it there is a parameter to some.
        let name = segment.split(|b| *b == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Version, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().version(version);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match check(&request.body(()).unwrap()) {
            Ok(()) => 200,
            Err(refusal) => refusal.status().as_u16(),
        }
    }

    #[test]
    fn what_may_be_read_in_two_ways_is_refused() {
        let host = ("host", "h");
        let http11 = |headers: &[_]| status(Version::HTTP_11, headers);
        assert_eq!(http11(&[host]), 200);
        assert_eq!(status(Version::HTTP_10, &[]), 200);
        assert_eq!(http11(&[]), 400);
        assert_eq!(http11(&[host, host]), 400);
        assert_eq!(status(Version::HTTP_10, &[host, host]), 400);
        let coding = |value| ("transfer-encoding", value);
        assert_eq!(http11(&[host, coding("Chunked")]), 200);
        for value in [
            "gzip, chunked",
            "chunked, chunked",
            "identity",
            "xchunked",
            "",
        ] {
            assert_eq!(http11(&[host, coding(value)]), 501, "{value}");
        }
        assert_eq!(http11(&[host, coding("chunked"), coding("chunked")]), 400);
        assert_eq!(http11(&[host, ("transfer_encoding", "chunked")]), 400);
        assert_eq!(http11(&[host, ("content_length", "1")]), 400);
    }

    #[test]
    fn dots_are_seen_however_they_are_written() {
        for path in [
            "/../other",
            "/a/..",
            "/a/./b",
            "/%2e%2e/other",
            "/%2E./other",
            "/a/..%2fother",
            "/a%2f..%2fother",
            "/a/..;x=1/other",
            "/a\\..\\other",
            "/a/%5c..%5c",
        ] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in [
            "/",
            "/v1/models/a..b",
            "/v1/models/a%2Fb",
            "/.well-known/x",
            "/a/...",
            "/%252e%252e/",
        ] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }
}
