//! What a request asks for, wherever it says so.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::{Backend, Gateway, Message, chat};

/// Of a model that one of two backends serves.
fn two() -> ([Backend; 2], Gateway) {
    let backends = [
        Backend::named("a", &["small"]),
        Backend::named("b", &["large"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    (backends, gateway)
}

fn who(answer: &Message) -> String {
    let body = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status(), 200, "{body}");
    body.into_owned()
}

/// Each of several times, as half of those that go astray would not be noticed otherwise.
fn expect(gateway: &Gateway, expected: &str, path: &str, headers: &str, body: &[u8]) {
    for _ in 0..3 {
        let answer = gateway.connect().ask("POST", path, headers, body);
        let beginning = String::from_utf8_lossy(&body[..body.len().min(200)]);
        assert_eq!(who(&answer), expected, "{path} {headers} {beginning}");
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, data) in parts {
        let head = format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n");
        body.extend([head.as_bytes(), data, b"\r\n"].concat());
    }
    body.extend(b"--b--\r\n");
    body
}

const FORM: &str = "Content-Type: multipart/form-data; boundary=b\r\n";

#[test]
fn a_form_names_its_model_before_or_after_the_file() {
    let (_backends, gateway) = two();
    let path = "/v1/audio/transcriptions";
    let sound = vec![b'x'; 1 << 20];
    let file = ("name=\"file\"; filename=\"a.wav\"", sound.as_slice());
    for (name, backend) in [("small", "a"), ("large", "b")] {
        let model = ("name=\"model\"", name.as_bytes());
        expect(&gateway, backend, path, FORM, &form(&[model, file]));
        expect(&gateway, backend, path, FORM, &form(&[file, model]));
        // Bigger than what is usually kept.
        let sound = vec![b'x'; 6 << 20];
        let file = ("name=\"file\"; filename=\"a.wav\"", sound.as_slice());
        expect(&gateway, backend, path, FORM, &form(&[file, model]));
    }
}

#[test]
fn a_big_body_names_its_model_first_or_last() {
    let (_backends, gateway) = two();
    let long = "x".repeat(5 << 20);
    for (model, backend) in [("small", "a"), ("large", "b")] {
        let first = format!(r#"{{"model":"{model}","input":"{long}"}}"#);
        expect(&gateway, backend, "/v1/x", "", first.as_bytes());
        let last = format!(r#"{{"input":"{long}","model":"{model}"}}"#);
        expect(&gateway, backend, "/v1/x", "", last.as_bytes());
    }
}

#[test]
fn a_query_names_the_model_of_a_session() {
    let (_backends, gateway) = two();
    for (model, backend) in [("small", "a"), ("large", "b")] {
        for _ in 0..3 {
            let path = format!("/v1/realtime?x=1&model={model}");
            assert_eq!(who(&gateway.get(&path)), backend);
        }
    }
    // What the body says counts more: servers read it there.
    expect(&gateway, "a", "/v1/x?model=large", "", &chat("small"));
}

#[test]
fn a_packed_body_is_looked_into() {
    let (backends, gateway) = two();
    let packed = "Content-Encoding: gzip\r\nContent-Type: application/json\r\n";
    expect(&gateway, "a", "/v1/x", packed, &gzip(&chat("small")));
    expect(&gateway, "b", "/v1/x", packed, &gzip(&chat("large")));
    let seen = backends[1].requests().pop().unwrap();
    assert_eq!(seen.body, gzip(&chat("large")), "it goes on as it came");
    assert_eq!(seen.header("content-encoding"), Some("gzip"));
}

#[test]
fn what_servers_tolerate_is_read_as_they_read_it() {
    let (_backends, gateway) = two();
    for body in [
        "\u{feff}{\"model\":\"large\"}",
        r#"{"temperature":NaN,"model":"large"}"#,
        r#"{"model":"small","model":"large"}"#,
        r#"{"mod\u0065l":"l\u0061rge"}"#,
    ] {
        expect(&gateway, "b", "/v1/x", "", body.as_bytes());
    }
    let deep = format!(
        r#"{{"x":{}{},"model":"large"}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    expect(&gateway, "b", "/v1/x", "", deep.as_bytes());
}

#[test]
fn ollama_names_models_in_its_own_way() {
    let (_backends, gateway) = two();
    for (path, body) in [
        ("/api/show", r#"{"name":"large"}"#),
        ("/api/chat", r#"{"model":"large"}"#),
        ("/api/copy", r#"{"source":"large","destination":"x"}"#),
        ("/api/create", r#"{"model":"x","from":"large"}"#),
    ] {
        expect(&gateway, "b", path, "", body.as_bytes());
    }
}

#[test]
fn a_model_that_cannot_be_read_is_not_guessed() {
    let (backends, gateway) = two();
    let packed = gzip(&chat("small"));
    let bomb = gzip(&vec![b' '; 20 << 20]);
    let cases: [(&str, &[u8]); 6] = [
        ("", br#"{"model":1}"#),
        ("", br#"{"model":"#),
        ("Content-Encoding: br\r\n", b"whatever"),
        ("Content-Encoding: gzip\r\n", &packed[..packed.len() / 2]),
        ("Content-Encoding: gzip\r\n", &chat("small")),
        ("Content-Encoding: gzip\r\n", &bomb),
    ];
    for (headers, body) in cases {
        let answer = gateway.connect().ask("POST", "/v1/x", headers, body);
        assert_eq!(answer.status(), 400, "{headers}");
        assert_eq!(answer.error_code(), "unreadable_model");
        assert_eq!(answer.json()["error"]["param"], "model");
    }
    assert!(backends.iter().all(|b| b.requests().is_empty()));
}

#[test]
fn a_body_that_is_too_big_to_look_through_is_not_guessed_either() {
    let (backends, gateway) = two();
    let begin = |path: &str, headers: &str| {
        let mut client = gateway.connect();
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: 100000000\r\n\r\n"
        ));
        client
    };
    let mut client = begin("/v1/x", "");
    client.send("{\"input\":\"");
    client.send(vec![b'x'; 64 << 20]);
    let answer = client.message().unwrap();
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.error_code(), "unreadable_model");
    assert!(backends.iter().all(|b| b.requests().is_empty()));
    // A file has no model, and is not looked into.
    let mut client = begin("/v1/files", &format!("{FORM}X-Raw: 1\r\n"));
    // As much as is kept of any body.
    client.send(vec![b'-'; 4 << 20]);
    assert_eq!(client.message().unwrap().status(), 200);
}

#[test]
fn where_all_serve_the_same_there_is_nothing_to_guess() {
    let backends = [
        Backend::named("a", &["one", "two"]),
        Backend::named("b", &["two", "one"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for body in [br#"{"model":1}"#.as_slice(), br#"{"model":"#] {
        assert_eq!(
            gateway.connect().ask("POST", "/v1/x", "", body).status(),
            200
        );
    }
}

#[test]
fn of_many_models_some_are_named() {
    let names: Vec<String> = (0..30).map(|number| format!("model-{number}-x")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let backend = Backend::named("a", &names);
    let gateway = Gateway::before(&[backend.url()]);
    let answer = gateway.chat("none");
    let message = answer.json()["error"]["message"].to_string();
    assert_eq!(message.matches("-x").count(), 20, "{message}");
    assert!(message.contains("10 more"), "{message}");
    let listed = gateway.get("/v1/models").json();
    assert_eq!(listed["data"].as_array().unwrap().len(), 30);
}
