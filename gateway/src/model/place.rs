//! Where a request names its model, so that another name can be put there. All else of it stays,
//! byte for byte.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use axum::http::uri::PathAndQuery;
use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::task::yield_now;

use super::gzip;
use super::multipart::Multipart;
use super::scan::{Found, Scan};
use super::{Content, Search, model_in_path};

/// What need not be encoded in a path or a query.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Where a body names its model, or could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    range: Range<usize>,
    form: Form,
    /// It stands in what the body unpacks to.
    pub(crate) packed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// Between quotation marks.
    String,
    /// In the place of `null`.
    Value,
    /// Before all other keys.
    Key(&'static str),
    /// The value of a form's field.
    Field,
    /// Before all other parts of a form, with this boundary.
    Part(Vec<u8>),
}

impl Place {
    /// In the body that this search has been through, and been asked for the result.
    pub(crate) fn of(search: &Search) -> Option<Self> {
        let keys = search.keys.model_keys();
        match &search.content {
            Content::Json(scan) => Self::in_json(scan, keys, false),
            Content::Gzip(gzip) => Self::in_json(gzip.scan(), keys, true),
            Content::Form(form) => Self::in_form(form),
            Content::Sealed | Content::File => None,
        }
    }

    fn in_json(scan: &Scan, keys: &[&'static str], packed: bool) -> Option<Self> {
        let found = scan.found();
        let named = (0..keys.len()).find(|key| found[*key] != Found::Nothing);
        let spot = scan.spots()[named.unwrap_or(0)].clone();
        let (range, form) = match (spot, named) {
            (Some(spot), _) if spot.bare => (spot.range, Form::Value),
            (Some(spot), _) => (spot.range, Form::String),
            // It can't be read.
            (None, Some(_)) => return None,
            (None, None) => {
                let at = scan.first_key()?;
                (at..at, Form::Key(keys.first()?))
            }
        };
        Some(Self {
            range,
            form,
            packed,
        })
    }

    fn in_form(multipart: &Multipart) -> Option<Self> {
        let (range, form) = match multipart.spot() {
            Some(range) => (range, Form::Field),
            None => {
                let (at, boundary) = multipart.first()?;
                (at..at, Form::Part(boundary.to_vec()))
            }
        };
        Some(Self {
            range,
            form,
            packed: false,
        })
    }

    /// The body with this name there.
    pub(crate) fn put(&self, body: &[u8], model: &str) -> Option<Bytes> {
        let before = body.get(..self.range.start)?;
        let behind = body.get(self.range.end..)?;
        let name = self.written(model, behind);
        Some(Bytes::from([before, &name, behind].concat()))
    }

    /// The same for one that is ours.
    pub(crate) fn put_into(&self, mut body: Vec<u8>, model: &str) -> Option<Bytes> {
        let name = self.written(model, body.get(self.range.end..)?);
        body.splice(self.range.clone(), name);
        Some(Bytes::from(body))
    }

    fn written(&self, model: &str, behind: &[u8]) -> Vec<u8> {
        let quoted = serde_json::Value::from(model).to_string();
        match &self.form {
            Form::String => quoted.as_bytes()[1..quoted.len() - 1].to_vec(),
            Form::Value => quoted.into_bytes(),
            Form::Key(key) => {
                let is_only = behind.trim_ascii_start().starts_with(b"}");
                let comma = if is_only { "" } else { "," };
                format!("\"{key}\":{quoted}{comma}").into_bytes()
            }
            Form::Field => model.as_bytes().to_vec(),
            Form::Part(boundary) => {
                let head = b"\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n";
                [boundary.as_slice(), head, model.as_bytes(), b"\r\n"].concat()
            }
        }
    }
}

/// What a body unpacks to that is all here, if that is not too much, and there is room to `keep` it.
pub(crate) async fn unpacked<E>(
    body: &[u8],
    mut keep: impl FnMut(usize) -> Result<(), E>,
) -> Result<Option<Vec<u8>>, E> {
    let mut decoder = MultiGzDecoder::new(body);
    let mut all = Vec::new();
    loop {
        let mut piece = decoder.by_ref().take(gzip::PIECE as u64);
        match piece.read_to_end(&mut all) {
            Ok(0) => return Ok(Some(all)),
            Ok(_) => {}
            // What follows the last member is none of its business.
            Err(e) if e.kind() == ErrorKind::InvalidInput && !all.is_empty() => {
                return Ok(Some(all));
            }
            Err(_) => return Ok(None),
        }
        if all.len() > gzip::MOST {
            return Ok(None);
        }
        keep(all.capacity())?;
        yield_now().await;
    }
}

/// The path with another model in it, where it names this one.
pub(crate) fn put_in_path(path: &PathAndQuery, asked: &str, model: &str) -> Option<PathAndQuery> {
    let encoded = utf8_percent_encode(model, ENCODED).to_string();
    let named = model_in_path(path.path()).is_some_and(|name| name == asked);
    let before = if named { "/v1/models/" } else { path.path() };
    let name = if named { encoded.as_str() } else { "" };
    let query = path
        .query()
        .map(|query| put_in_query(query, asked, &encoded));
    let text = match query {
        Some(query) => format!("{before}{name}?{query}"),
        None => format!("{before}{name}"),
    };
    text.parse().ok()
}

/// The path with this model in its query.
pub(crate) fn add_to_query(path: &PathAndQuery, model: &str) -> Option<PathAndQuery> {
    let encoded = utf8_percent_encode(model, ENCODED);
    let sign = if path.query().is_some() { '&' } else { '?' };
    format!("{path}{sign}model={encoded}").parse().ok()
}

fn put_in_query(query: &str, asked: &str, encoded: &str) -> String {
    let mut pairs: Vec<String> = Vec::new();
    for pair in query.split('&') {
        let parsed = form_urlencoded::parse(pair.as_bytes()).next();
        let names = parsed.is_some_and(|(key, value)| key == "model" && value == asked);
        pairs.push(if names {
            let (key, _) = pair.split_once('=').unwrap_or((pair, ""));
            format!("{key}={encoded}")
        } else {
            pair.to_owned()
        });
    }
    pairs.join("&")
}

/// Whether what is asked on this path names its model in the query alone.
pub(crate) fn takes_query(path: &str) -> bool {
    path == "/v1/realtime"
}

#[cfg(test)]
mod tests {
    use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    async fn put(kind: &'static str, body: &[u8], model: &str) -> Option<String> {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let mut search = Search::new("/v1/x", &headers);
        for end in 1..=body.len() {
            search.read(&body[end - 1..end], &body[..end]).await;
        }
        let put = Place::of(&search)?.put(body, model)?;
        let text = String::from_utf8(put.to_vec()).unwrap();
        Some(text)
    }

    #[tokio::test]
    async fn a_name_takes_the_place_of_another_and_all_else_stays() {
        for (body, expected) in [
            (r#"{"model":"a"}"#, r#"{"model":"x\"y"}"#),
            (
                "\u{feff} { \"n\":[1,{\"model\":\"a\"}], \"model\" : \"a\\u0062\" , \"z\": NaN}\n",
                "\u{feff} { \"n\":[1,{\"model\":\"a\"}], \"model\" : \"x\\\"y\" , \"z\": NaN}\n",
            ),
            (
                r#"{"model":"a","model":"b"}"#,
                r#"{"model":"a","model":"x\"y"}"#,
            ),
            (r#"{"model":""}"#, r#"{"model":"x\"y"}"#),
            (r#"{"model": null ,"n":1}"#, r#"{"model": "x\"y" ,"n":1}"#),
            (r#"{ "n":1}"#, r#"{"model":"x\"y", "n":1}"#),
            ("{ }", r#"{"model":"x\"y" }"#),
        ] {
            let put = put("application/json", body.as_bytes(), "x\"y").await;
            assert_eq!(put.as_deref(), Some(expected), "{body}");
        }
        for body in ["", "[]", "text", r#"{"model":7}"#, r#"{"model":["a"]}"#] {
            let put = put("application/json", body.as_bytes(), "x").await;
            assert_eq!(put, None, "{body}");
        }
    }

    #[tokio::test]
    async fn a_forms_field_is_replaced_or_put_first() {
        let kind = "multipart/form-data; boundary=b";
        let part = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let file = part("file", "a");
        let whole = |model: &str| format!("{file}{}--b--\r\n", part("model", model));
        let replaced = put(kind, whole("a").as_bytes(), "long-name").await;
        assert_eq!(replaced, Some(whole("long-name")));
        let replaced = put(kind, whole("").as_bytes(), "n").await;
        assert_eq!(replaced, Some(whole("n")));
        let without = format!("{file}--b--\r\n");
        let added = format!("{}{without}", part("model", "n"));
        assert_eq!(
            put(kind, without.as_bytes(), "n").await,
            Some(added.clone())
        );
        let preamble = format!("of no concern\r\n{without}");
        let with_preamble = format!("of no concern\r\n{added}");
        assert_eq!(
            put(kind, preamble.as_bytes(), "n").await,
            Some(with_preamble)
        );
    }

    #[tokio::test]
    async fn what_is_packed_is_unpacked() {
        use std::io::Write as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let text = format!(
            "{{\"p\":\"{}\",\"model\":\"a\"}}",
            "x".repeat(gzip::PIECE * 2)
        );
        encoder.write_all(text.as_bytes()).unwrap();
        let packed = encoder.finish().unwrap();
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        let mut search = Search::new("/v1/x", &headers);
        search.read(&packed, &packed).await;
        assert_eq!(search.asked(true).model, Found::Text("a".to_owned()));
        let place = Place::of(&search).unwrap();
        assert!(place.packed);
        let room = |_| Ok::<_, ()>(());
        let plain = unpacked(&packed, room).await.unwrap().unwrap();
        let put = place.put_into(plain, "bc").unwrap();
        assert_eq!(put, text.replace("\"a\"", "\"bc\""));
        let behind = [&packed[..], b"of no concern"].concat();
        let plain = unpacked(&behind, room).await.unwrap().unwrap();
        assert_eq!(plain, text.as_bytes());
        for broken in [b"no gzip", &packed[..packed.len() / 2]] {
            assert_eq!(unpacked(broken, room).await, Ok(None));
        }
        // It is given up where the room ends, not when all is there.
        let little = |len| if len > gzip::PIECE { Err(len) } else { Ok(()) };
        let refused = unpacked(&packed, little).await.unwrap_err();
        assert!(refused <= gzip::PIECE * 2, "{refused}");
    }

    #[test]
    fn paths_and_queries_keep_all_else() {
        let put = |path: &'static str| {
            let path = PathAndQuery::from_static(path);
            put_in_path(&path, "a b", "x/y&z").unwrap().to_string()
        };
        assert_eq!(put("/v1/models/a%20b"), "/v1/models/x%2Fy%26z");
        assert_eq!(put("/v1/models/other?m"), "/v1/models/other?m");
        assert_eq!(
            put("/v1/realtime?x=%41&mod%65l=a+b&model=c&"),
            "/v1/realtime?x=%41&mod%65l=x%2Fy%26z&model=c&"
        );
        let path = PathAndQuery::from_static("/v1/realtime");
        assert_eq!(
            add_to_query(&path, "a b").unwrap(),
            "/v1/realtime?model=a%20b"
        );
    }
}
