//! Which model a request asks for, and what it follows up on: read from its path, its query and as
//! much of its body as is kept.
//!
//! Apart from passing requests on, as none of it needs a backend or a connection.

mod answer;
mod called;
#[cfg(any(test, fuzzing))]
#[cfg_attr(
    test,
    expect(unreachable_pub, reason = "only a fuzzer reaches it from outside")
)]
pub mod fuzzing;
mod gzip;
mod multipart;
pub(crate) mod place;
mod scan;

use std::borrow::Cow;

use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;
use tokio::task::yield_now;

pub(crate) use answer::Answer;
pub(crate) use called::Called;
use gzip::Gzip;
use multipart::Multipart;
pub(crate) use scan::Found;
use scan::{KEYS, Kind, Scan};

/// What a request is about.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) model: Found,
    /// The ID of something that a backend has made.
    pub(crate) follows: Option<String>,
}

impl Asked {
    /// By a path and a query alone.
    pub(crate) fn by_uri(uri: &Uri) -> Self {
        let model = match model_in_path(uri.path()) {
            Some(model) => Found::Text(model.into_owned()),
            None => model_in_query(uri.query().unwrap_or_default()),
        };
        let follows = made_in_path(uri.path()).map(|id| decoded(id).into_owned());
        Self { model, follows }
    }

    /// What the body asks for, where it says so: servers read it there.
    pub(crate) fn unless(self, body: Self) -> Self {
        Self {
            model: match (self.model, body.model) {
                (model, Found::Nothing) => model,
                (Found::Text(model), Found::Unreadable) => Found::Text(model),
                (_, model) => model,
            },
            follows: body.follows.or(self.follows),
        }
    }
}

/// The keys that are looked for in a body, by the interface that its path belongs to.
struct Keys {
    /// Those that name the model, the first that is there counts, then those that are followed.
    all: &'static [&'static str],
    models: usize,
}

impl Keys {
    fn of(path: &str) -> Self {
        let (all, models): (&'static [&'static str], usize) = match path {
            "/v1/responses" => (&["model", "previous_response_id", "conversation"], 1),
            "/v1/batches" => (&["model", "input_file_id"], 1),
            "/v1/fine_tuning/jobs" => (&["model", "training_file"], 1),
            // Ollama's, which knows a model by its older name too.
            "/api/copy" => (&["source"], 1),
            "/api/create" => (&["from", "model", "name"], 3),
            path if path.starts_with("/api/") => (&["model", "name"], 2),
            _ => (&["model"], 1),
        };
        Self { all, models }
    }

    /// Those that name the model.
    fn model_keys(&self) -> &'static [&'static str] {
        &self.all[..self.models]
    }
}

/// The search in a body.
pub(crate) struct Search {
    keys: Keys,
    content: Content,
}

#[expect(clippy::large_enum_variant, reason = "most are the largest one")]
enum Content {
    Json(Scan),
    Gzip(Box<Gzip>),
    Form(Box<Multipart>),
    /// It may name a model, in a coding that is not known.
    Sealed,
    /// It is a file, and names none.
    File,
}

impl Search {
    /// Of a body that is sent to this path with these headers.
    pub(crate) fn new(path: &str, headers: &HeaderMap) -> Self {
        let keys = Keys::of(path);
        let content = match headers.get(CONTENT_ENCODING) {
            _ if takes_files(path) => Content::File,
            None => plain(&keys, headers),
            Some(coding) => {
                let several = headers.get_all(CONTENT_ENCODING).iter().nth(1).is_some();
                let coding = coding.as_bytes().trim_ascii();
                let is = |name: &str| !several && coding.eq_ignore_ascii_case(name.as_bytes());
                if is("identity") || is("") {
                    plain(&keys, headers)
                } else if form(headers).is_none() && (is("gzip") || is("x-gzip")) {
                    Content::Gzip(Box::new(Gzip::new(Scan::new(keys.all))))
                } else if form(headers).is_some() || is_json(headers) {
                    Content::Sealed
                } else {
                    // For instance a file that is uploaded as it is.
                    plain(&keys, headers)
                }
            }
        };
        Self { keys, content }
    }

    /// Reads the next piece, which is the last of what is kept.
    pub(crate) async fn read(&mut self, piece: &[u8], kept: &[u8]) {
        match &mut self.content {
            Content::Json(scan) => scan.push(piece),
            Content::Form(form) => form.scan(kept),
            Content::Gzip(gzip) => {
                let mut rest = piece;
                while !rest.is_empty() {
                    rest = rest.get(gzip.push(rest)..).unwrap_or_default();
                    if !rest.is_empty() {
                        yield_now().await;
                    }
                }
            }
            Content::Sealed | Content::File => {}
        }
    }

    /// Whether it takes more of the body to know.
    pub(crate) fn goes_on(&self) -> bool {
        match &self.content {
            Content::Json(scan) => scan.kind() != Kind::Other,
            Content::Gzip(_) | Content::Form(_) => true,
            Content::Sealed | Content::File => false,
        }
    }

    /// Whether a model has been found in what has come; a later one would count instead.
    pub(crate) fn has_model(&self) -> bool {
        let found = match &self.content {
            Content::Json(scan) => scan.found(),
            Content::Gzip(gzip) => gzip.found_yet(),
            Content::Form(form) => return matches!(form.found(), Found::Text(_)),
            Content::Sealed | Content::File => return false,
        };
        let models = found.iter().take(self.keys.models);
        models.into_iter().any(|f| matches!(f, Found::Text(_)))
    }

    /// What has been found in all of it, or in what was kept.
    pub(crate) fn asked(&mut self, is_all: bool) -> Asked {
        let mut asked = self.found();
        // It may still come.
        if !is_all && self.goes_on() && asked.model == Found::Nothing {
            asked.model = Found::Unreadable;
        }
        asked
    }

    fn found(&mut self) -> Asked {
        let found = match &mut self.content {
            Content::Json(scan) => scan.found(),
            Content::Gzip(gzip) => gzip.found(),
            Content::Form(form) => [form.found(), Found::Nothing, Found::Nothing, Found::Nothing],
            Content::File => Default::default(),
            Content::Sealed => {
                let mut found: [Found; KEYS] = Default::default();
                found[0] = Found::Unreadable;
                found
            }
        };
        let mut asked = Asked::default();
        for (index, found) in found.into_iter().enumerate() {
            let is_model = index < self.keys.models;
            match found {
                Found::Nothing => {}
                found if is_model && asked.model == Found::Nothing => asked.model = found,
                Found::Text(id) if !is_model && asked.follows.is_none() => {
                    asked.follows = Some(id);
                }
                _ => {}
            }
        }
        asked
    }
}

/// Whether what is sent there is a file, however big, that is of no model.
fn takes_files(path: &str) -> bool {
    ["/v1/files", "/v1/uploads"]
        .iter()
        .any(|files| below(path, files).is_some())
}

fn plain(keys: &Keys, headers: &HeaderMap) -> Content {
    match form(headers) {
        Some(boundary) => Content::Form(Box::new(Multipart::new(&boundary, "model"))),
        None => Content::Json(Scan::new(keys.all)),
    }
}

fn form(headers: &HeaderMap) -> Option<Vec<u8>> {
    Multipart::boundary(headers.get(CONTENT_TYPE)?.as_bytes())
}

fn is_json(headers: &HeaderMap) -> bool {
    // Some servers take it for that when nothing is said.
    headers.get(CONTENT_TYPE).is_none_or(|value| {
        let value = value.to_str().unwrap_or_default().to_ascii_lowercase();
        value.contains("json")
    })
}

/// The ID in `/v1/models/ID`.
pub(crate) fn model_in_path(path: &str) -> Option<Cow<'_, str>> {
    let id = path.strip_prefix("/v1/models/")?;
    (!id.is_empty()).then(|| decoded(id))
}

/// `?model=ID`, as for realtime sessions.
fn model_in_query(query: &str) -> Found {
    if !query.contains("model") {
        return Found::Nothing;
    }
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    let mut found = Found::Nothing;
    for (_, value) in pairs.by_ref().filter(|(key, _)| key == "model") {
        found = match value.as_ref() {
            "" => Found::Nothing,
            value => Found::Text(value.to_owned()),
        };
    }
    found
}

/// What servers keep between requests, each under an ID of its own.
const MADE: [&str; 7] = [
    "/v1/responses",
    "/v1/conversations",
    "/v1/files",
    "/v1/uploads",
    "/v1/batches",
    "/v1/fine_tuning/jobs",
    "/v1/vector_stores",
];

/// Whether answers on this path may tell of something that a backend has made.
pub(crate) fn makes(path: &str) -> bool {
    MADE.iter().any(|made| below(path, made).is_some())
}

/// The ID in `/v1/responses/ID`, `/v1/batches/ID/cancel` and the like.
fn made_in_path(path: &str) -> Option<&str> {
    let rest = MADE.iter().find_map(|made| below(path, made))?;
    let id = rest.strip_prefix('/')?.split('/').next()?;
    (!id.is_empty()).then_some(id)
}

/// What follows a path's beginning, if it is that.
fn below<'a>(path: &'a str, beginning: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(beginning)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn decoded(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use axum::http::header::HeaderName;

    use super::*;

    fn text(name: &str) -> Found {
        Found::Text(name.to_owned())
    }

    async fn asked(path: &str, headers: &[(HeaderName, &'static str)], body: &[u8]) -> Asked {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_static(value));
        }
        let mut search = Search::new(path, &map);
        search.read(body, body).await;
        search.asked(true)
    }

    #[tokio::test]
    async fn each_interface_has_its_own_names_for_it() {
        for (path, body, model) in [
            ("/v1/x", r#"{"name":"b","model":"a"}"#, text("a")),
            ("/v1/x", r#"{"name":"b"}"#, Found::Nothing),
            ("/api/chat", r#"{"name":"b","model":"a"}"#, text("a")),
            ("/api/pull", r#"{"name":"b"}"#, text("b")),
            ("/api/show", r#"{"name":"b","model":""}"#, text("b")),
            (
                "/api/copy",
                r#"{"source":"s","destination":"d"}"#,
                text("s"),
            ),
            (
                "/api/create",
                r#"{"model":"new","from":"old"}"#,
                text("old"),
            ),
        ] {
            assert_eq!(
                asked(path, &[], body.as_bytes()).await.model,
                model,
                "{body}"
            );
        }
    }

    #[tokio::test]
    async fn what_a_body_follows_up_on_is_found() {
        for (path, body, id) in [
            (
                "/v1/responses",
                r#"{"model":"a","previous_response_id":"r"}"#,
                "r",
            ),
            ("/v1/responses", r#"{"conversation":"c"}"#, "c"),
            ("/v1/batches", r#"{"input_file_id":"f"}"#, "f"),
        ] {
            let asked = asked(path, &[], body.as_bytes()).await;
            assert_eq!(asked.follows.as_deref(), Some(id), "{body}");
        }
        let body = br#"{"previous_response_id":"r"}"#;
        assert_eq!(asked("/v1/chat/completions", &[], body).await.follows, None);
    }

    #[tokio::test]
    async fn a_coding_that_is_not_known_hides_the_model() {
        let body = br#"{"model":"a"}"#;
        let json = (CONTENT_TYPE, "application/json");
        let form = (CONTENT_TYPE, "multipart/form-data; boundary=b");
        for (headers, model) in [
            (vec![(CONTENT_ENCODING, "br")], Found::Unreadable),
            (
                vec![json.clone(), (CONTENT_ENCODING, "zstd")],
                Found::Unreadable,
            ),
            (
                vec![json.clone(), (CONTENT_ENCODING, "gzip, gzip")],
                Found::Unreadable,
            ),
            (vec![form, (CONTENT_ENCODING, "gzip")], Found::Unreadable),
            (vec![json, (CONTENT_ENCODING, "Identity")], text("a")),
            (
                vec![(CONTENT_TYPE, "audio/wav"), (CONTENT_ENCODING, "br")],
                text("a"),
            ),
        ] {
            assert_eq!(
                asked("/v1/x", &headers, body).await.model,
                model,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn paths_and_queries_are_decoded() {
        let model = |uri: &'static str| Asked::by_uri(&Uri::from_static(uri)).model;
        for (uri, name) in [
            ("/v1/models/meta/llama", "meta/llama"),
            ("/v1/models/meta%2Fllama", "meta/llama"),
            ("/v1/models/a%3Ab%", "a:b%"),
            ("/v1/models/%zz%4", "%zz%4"),
            ("/v1/realtime?model=a%2Fb+c", "a/b c"),
            ("/v1/realtime?x=1&mod%65l=no&model=a&model=b", "b"),
        ] {
            assert_eq!(model(uri), text(name), "{uri}");
        }
        for uri in ["/", "/v1/models/", "/v1/x?models=a", "/v1/x?model="] {
            assert_eq!(model(uri), Found::Nothing, "{uri}");
        }
    }

    #[test]
    fn ids_stand_in_paths() {
        for (path, id) in [
            ("/v1/responses/r%2D1", Some("r-1")),
            ("/v1/batches/b/cancel", Some("b")),
            ("/v1/files/f/content", Some("f")),
            ("/v1/fine_tuning/jobs/j", Some("j")),
            ("/v1/files", None),
            ("/v1/files/", None),
            ("/v1/filesystem/f", None),
            ("/v1/chat/completions", None),
        ] {
            let uri: Uri = path.parse().unwrap();
            assert_eq!(Asked::by_uri(&uri).follows.as_deref(), id, "{path}");
        }
        assert!(makes("/v1/files") && makes("/v1/batches/b") && !makes("/v1/chat/completions"));
    }
}
