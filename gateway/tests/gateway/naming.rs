//! Models by other names, and others in their place.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use llmlb_gateway::Naming;

use crate::support::{
    Backend, Gateway, Next, Port, STREAM, answer, chunk, often, once, wait_until,
};

const PATH: &str = "/v1/chat/completions";

/// Answers in its own name, once or as a stream.
fn model(name: &'static str) -> Backend {
    model_at(Port::reserve(), name)
}

fn model_at(port: Port, name: &'static str) -> Backend {
    Backend::start_at(port, &[name], move |request, wire| {
        let text = format!(r#"{{"id":"1","model":"{name}","content":"says \"model\":\"x\""}}"#);
        if String::from_utf8_lossy(&request.body).contains("stream") {
            wire.send(STREAM);
            wire.send(chunk(&format!("data: {}", &text[..14])));
            wire.send(chunk(&format!("{}\n\n", &text[14..])));
            wire.send(chunk(&format!("data: {text}\n\ndata: [DONE]\n\n")));
            wire.send("0\r\n\r\n");
        } else {
            wire.send(answer(
                "200 OK",
                "Content-Type: application/json\r\nConnection: close\r\n",
                &text,
            ));
        }
        // Whoever has been stopped answers nobody any more.
        Next::Close
    })
}

fn alias() -> Naming {
    Naming::new().alias("gpt-4o", "llama-3-70b").unwrap()
}

fn before(backends: &[&Backend], naming: Naming) -> Gateway {
    let urls: Vec<String> = backends.iter().map(|backend| backend.url()).collect();
    Gateway::with(&urls, once().naming(naming))
}

fn asked(backend: &Backend) -> Vec<String> {
    let asked = backend.requests().into_iter();
    asked
        .map(|message| String::from_utf8_lossy(&message.body).into_owned())
        .collect()
}

#[test]
fn an_alias_is_asked_for_by_its_models_name_and_answered_by_its_own() {
    let (small, large) = (model("small"), model("llama-3-70b"));
    let gateway = before(&[&small, &large], alias());
    let mut wire = gateway.connect();
    let body = br#"{ "temperature":NaN, "model" : "gpt-4o","n":1 }"#;
    let told = wire.ask("POST", PATH, "Accept-Encoding: gzip\r\n", body);
    assert_eq!(told.status(), 200);
    let text = String::from_utf8(told.body).unwrap();
    assert_eq!(
        text,
        r#"{"id":"1","model":"gpt-4o","content":"says \"model\":\"x\""}"#
    );
    let sent = large.requests().pop().unwrap();
    let expected = br#"{ "temperature":NaN, "model" : "llama-3-70b","n":1 }"#;
    assert_eq!(sent.body, expected);
    assert_eq!(
        sent.header("content-length"),
        Some(&*expected.len().to_string())
    );
    assert_eq!(sent.header("accept-encoding"), None);

    // A stream comes piece by piece; and the connection goes on.
    let told = wire.ask("POST", PATH, "", br#"{"model":"gpt-4o","stream":true}"#);
    let text = String::from_utf8(told.body).unwrap();
    assert_eq!(
        text.matches(r#"{"id":"1","model":"gpt-4o","#).count(),
        2,
        "{text}"
    );
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");

    // By its own name it is passed on as it came.
    let told = wire.ask("POST", PATH, "", br#"{"model":"llama-3-70b"}"#);
    assert_eq!(told.json()["model"], "llama-3-70b");
    assert!(told.header("content-length").is_some());
    assert!(asked(&small).is_empty());
}

#[test]
fn an_alias_is_found_in_forms_queries_and_what_is_packed() {
    let (small, large) = (model("small"), model("llama-3-70b"));
    let gateway = before(&[&small, &large], alias());
    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\ngpt-4o\r\n\
             --b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n"
        )
    };
    let head = "Content-Type: multipart/form-data; boundary=b\r\n";
    let path = "/v1/audio/transcriptions";
    let told = gateway
        .connect()
        .ask("POST", path, head, form("gpt-4o").as_bytes());
    assert_eq!(told.status(), 200);
    let told = gateway
        .connect()
        .ask("POST", "/v1/x?model=gpt-4o&y=%41", "", b"");
    assert_eq!(told.status(), 200);
    let json = br#"{"model":"gpt-4o"}"#;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(json).unwrap();
    let packed = encoder.finish().unwrap();
    let told = gateway
        .connect()
        .ask("POST", PATH, "Content-Encoding: gzip\r\n", &packed);
    assert_eq!(told.json()["model"], "gpt-4o");
    assert_eq!(
        asked(&large),
        [
            form("llama-3-70b"),
            String::new(),
            r#"{"model":"llama-3-70b"}"#.to_owned()
        ]
    );
    let sent = large.requests();
    assert_eq!(
        sent[1].first_line,
        "POST /v1/x?model=llama-3-70b&y=%41 HTTP/1.1"
    );
    assert_eq!(sent[2].header("content-encoding"), None);
    assert!(asked(&small).is_empty());
}

#[test]
fn a_body_that_streams_on_has_its_beginning_changed_alone() {
    let (small, large) = (model("small"), model("llama-3-70b"));
    let gateway = before(&[&small, &large], alias());
    let rest = "x".repeat(6 << 20);
    let body = |model: &str| format!(r#"{{"model":"{model}","input":"{rest}"}}"#);
    let told = gateway
        .connect()
        .ask("POST", PATH, "", body("gpt-4o").as_bytes());
    assert_eq!(told.json()["model"], "gpt-4o");
    assert!(asked(&large)[0] == body("llama-3-70b"), "another body");
    // Without a length too.
    let mut wire = gateway.connect();
    wire.send(format!(
        "POST {PATH} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    ));
    wire.send(chunk(r#"{"model":"gp"#));
    wire.send(chunk(r#"t-4o"}"#));
    wire.send("0\r\n\r\n");
    assert_eq!(wire.message().unwrap().json()["model"], "gpt-4o");
    assert_eq!(asked(&large)[1], r#"{"model":"llama-3-70b"}"#);
}

#[test]
fn aliases_are_listed_beside_their_models() {
    let (small, large) = (model("small"), model("llama-3-70b"));
    let naming = alias().alias("gone", "nobody-has-it").unwrap();
    let gateway = before(&[&small, &large], naming);
    let list = gateway.get("/v1/models").json();
    let ids = list["data"].as_array().unwrap().iter();
    let ids: Vec<_> = ids.map(|entry| entry["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["small", "llama-3-70b", "gpt-4o"]);
    let entry = gateway.get("/v1/models/gpt-4o").json();
    assert_eq!(
        (&entry["id"], &entry["object"]),
        (&"gpt-4o".into(), &"model".into())
    );
    assert_eq!(gateway.get("/v1/models/gone").status(), 404);
}

#[test]
fn a_model_that_nobody_serves_now_has_another_in_its_place() {
    let (mut a, mut c) = (model("a"), model("c"));
    let port = Port::reserve();
    let refused = port.url();
    let naming = Naming::new()
        .alias("alias", "a")
        .and_then(|naming| naming.fallback("a", ["b", "c"]))
        .unwrap();
    let urls = [a.url(), refused, c.url()];
    let gateway = Gateway::with(&urls, often().health_fall(1).naming(naming));
    let ask = |name: &str| {
        let body = format!(r#"{{"model":"{name}"}}"#);
        gateway.connect().ask("POST", PATH, "", body.as_bytes())
    };
    assert_eq!(ask("a").json()["model"], "a");
    a.stop();
    // From the first one on: the connection is refused, and nothing was sent.
    for name in ["a", "alias", "a"] {
        assert_eq!(ask(name).json()["model"], "c", "it says whose answer it is");
    }
    assert_eq!(asked(&c), [r#"{"model":"c"}"#; 3]);
    let mut b = model_at(port, "b");
    wait_until("b to be up", || {
        (ask("a").json()["model"] == "b").then_some(())
    });
    assert_eq!(asked(&b).pop().unwrap(), r#"{"model":"b"}"#);
    // Without a fallback it is as it was.
    assert_eq!(ask("unknown").error_code(), "model_not_found");
    b.stop();
    c.stop();
    wait_until("all to be down", || {
        (ask("a").status() == 503).then_some(())
    });
}

/// Only who has something computed gets another model: nobody deletes or trains one by that.
#[test]
fn nothing_but_computing_is_done_by_another() {
    let b = model("b");
    let naming = Naming::new().fallback("a", ["b"]).unwrap();
    let gateway = before(&[&b], naming);
    for (method, path) in [
        ("DELETE", "/api/delete"),
        ("POST", "/api/pull"),
        ("POST", "/api/show"),
    ] {
        let body = r#"{"model":"a"}"#;
        let told = gateway.connect().ask(method, path, "", body.as_bytes());
        assert_eq!(told.status(), 200, "{path}");
        assert_eq!(asked(&b).pop().unwrap(), body, "{path}");
    }
    for (method, path) in [
        ("DELETE", "/v1/models/a"),
        ("GET", "/v1/models/a"),
        ("POST", "/v1/fine_tuning/jobs"),
    ] {
        let body: &[u8] = if method == "POST" {
            br#"{"model":"a"}"#
        } else {
            b""
        };
        let told = gateway.connect().ask(method, path, "", body);
        assert_eq!(told.error_code(), "model_not_found", "{path}");
    }
    assert_eq!(gateway.chat("a").json()["model"], "b");
}

#[test]
fn what_does_not_name_the_model_stays_and_what_cannot_be_read_is_refused() {
    let llama = model("llama-3-70b");
    let gateway = before(&[&llama], alias());
    let told = gateway
        .connect()
        .ask("POST", "/v1/x?model=gpt-4o", "", br#"{"a":1}"#);
    assert_eq!(told.status(), 200);
    assert_eq!(asked(&llama).pop().unwrap(), r#"{"a":1}"#);
    for (headers, body) in [
        (
            "Content-Type: application/json\r\nContent-Encoding: deflate\r\n",
            "packed",
        ),
        ("", r#"{"model":"gpt-4o","model":7}"#),
    ] {
        let told = gateway
            .connect()
            .ask("POST", PATH, headers, body.as_bytes());
        assert_eq!(
            (told.status(), &*told.error_code()),
            (400, "unreadable_model")
        );
    }
}

#[test]
fn who_names_no_model_gets_the_default() {
    let (small, large) = (model("small"), model("large"));
    let naming = Naming::new().default_model("large").unwrap();
    let gateway = before(&[&small, &large], naming);
    for (path, headers, body, sent) in [
        (PATH, "", r#"{"n":1}"#, r#"{"model":"large","n":1}"#),
        (PATH, "", "{ }", r#"{"model":"large" }"#),
        (PATH, "", r#"{"model":null}"#, r#"{"model":"large"}"#),
        (PATH, "", "no json", "no json"),
        (PATH, "", r#"{"model":"large"}"#, r#"{"model":"large"}"#),
        (
            "/v1/audio/transcriptions",
            "Content-Type: multipart/form-data; boundary=b\r\n",
            "--b--\r\n",
            "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nlarge\r\n--b--\r\n",
        ),
    ] {
        let told = gateway
            .connect()
            .ask("POST", path, headers, body.as_bytes());
        assert_eq!(told.status(), 200, "{body}");
        assert_eq!(asked(&large).pop().unwrap(), sent);
    }
    assert!(asked(&small).is_empty());
    let told = gateway
        .connect()
        .ask("POST", PATH, "", br#"{"model":"small"}"#);
    assert_eq!(told.json()["model"], "small");
    // What has no model needs none.
    let count = || asked(&large).len() + asked(&small).len();
    let before = count();
    gateway.connect().ask("POST", "/v1/files", "", b"{}");
    gateway.connect().ask("GET", "/version", "", b"");
    assert_eq!(count(), before + 2);
    let last = asked(&large).into_iter().chain(asked(&small));
    assert!(last.filter(|body| body == "{}").count() == 1);
}

#[test]
fn a_model_that_cannot_be_read_is_refused_for_what_is_so() {
    let only = model("llama-3-70b");
    let gateway = before(&[&only], alias());
    let told = gateway.connect().ask("POST", PATH, "", br#"{"model":5}"#);
    assert_eq!(told.status(), 400);
    let said = told.json()["error"]["message"].to_string();
    assert!(
        said.contains("an alias, a fallback or a default") && !said.contains("different"),
        "{said}"
    );
    let other = model("small");
    let gateway = before(&[&only, &other], Naming::new());
    let told = gateway.connect().ask("POST", PATH, "", br#"{"model":5}"#);
    let said = told.json()["error"]["message"].to_string();
    assert!(said.contains("the backends serve different ones"), "{said}");
}
