//! What is no proper HTTP, and what is and was not passed on.

use llmlb_gateway::ApiKey;

use crate::support::{Backend, Gateway, Message, Next, Port, Wire, answer, chat, often, once};

fn key() -> ApiKey {
    ApiKey::parse("sk-1").unwrap()
}

fn raw(gateway: &Gateway, request: &str) -> Message {
    let mut client = gateway.connect();
    client.send(request);
    client.message().expect("an answer")
}

#[test]
fn what_may_be_read_in_two_ways_is_refused_in_the_usual_form() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], once());
    let long = "x".repeat(70_000);
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    for (request, status) in [
        ("GET /v1/x HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "GET /v1/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned(),
            400,
        ),
        ("GET /health HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            501,
        ),
        (
            "POST /v1/x HTTP/1.1\r\nHost: h\r\ntransfer_encoding: chunked\r\n\r\n".to_owned(),
            400,
        ),
        ("GET /v1/x HTTP/1.1\nHost: h\n\n".to_owned(), 400),
        (
            "GET /v1/x HTTP/1.1\r\nHost: h\r\nX: y\n\r\n".to_owned(),
            400,
        ),
        ("nonsense\r\n\r\n".to_owned(), 400),
        // HTTP/2 by prior knowledge, with its first frame.
        (
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_owned(),
            505,
        ),
        (format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n"), 431),
        (
            "POST /health HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".to_owned(),
            405,
        ),
        (
            "DELETE /metrics HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            405,
        ),
    ] {
        let answer = raw(&gateway, &request);
        let beginning = &request[..request.len().min(100)];
        assert_eq!(answer.status(), status, "{beginning}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        let code = answer.error_code();
        assert!(!code.is_empty(), "{beginning}");
    }
    assert!(backend.requests().is_empty());
}

#[test]
fn a_later_head_on_a_connection_is_checked_as_well_and_data_is_not() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], once());
    let mut client = gateway.connect();
    let body = b"\n\nHost: x\n\n".as_slice();
    assert_eq!(client.ask("POST", "/v1/x", "", body).body, b"fine");
    client.send("POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n\n\n\r\n0\r\n\r\n");
    assert_eq!(client.message().unwrap().body, b"fine");
    assert_eq!(backend.requests()[0].body, body);
    assert_eq!(backend.requests()[1].body, b"\n\n");
    client.send("GET /v1/x HTTP/1.1\nHost: h\n\n");
    let answer = client.message().unwrap();
    assert_eq!(
        (answer.status(), answer.error_code()),
        (400, "malformed_request".to_owned())
    );
    assert!(client.is_at_end());
}

#[test]
fn a_base_is_a_fence() {
    let backend = Backend::named("fine", &[]);
    let bare = Gateway::with(&[backend.url()], once());
    let based = Gateway::with(&[backend.url() + "/base"], once());
    for path in [
        "/../other",
        "/v1/%2e%2e/%2e%2e/other",
        "/v1/..%2f..%2fother",
        "/./x",
    ] {
        let answer = based.get(path);
        assert_eq!(answer.status(), 400, "{path}");
        assert_eq!(answer.error_code(), "malformed_request");
        assert_eq!(bare.get(path).status(), 200, "{path}");
    }
    let long = format!("/{}", "x".repeat(65_530));
    assert_eq!(based.get(&long).status(), 414);
    assert_eq!(based.get("/v1/a..b/.c").status(), 200);
    let paths: Vec<_> = backend
        .requests()
        .into_iter()
        .map(|r| r.first_line)
        .collect();
    let last = paths.last().unwrap();
    assert_eq!(last, "GET /base/v1/a..b/.c HTTP/1.1");
    assert_eq!(paths.len(), 5);
}

#[test]
fn a_get_keeps_its_chunked_body() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], once());
    for body in ["plain", r#"{"model":"m"}"#] {
        let len = body.len();
        let head = "GET /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = raw(&gateway, &format!("{head}{len:x}\r\n{body}\r\n0\r\n\r\n"));
        assert_eq!(answer.status(), 200);
        let seen = backend.requests().pop().unwrap();
        assert_eq!(String::from_utf8(seen.body).unwrap(), body);
    }
}

/// The lines after the last chunk.
fn trailers(wire: &mut Wire) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push(char::from(wire.read_exact(1)[0]));
    }
    text
}

#[test]
fn trailers_pass_both_ways() {
    let backend = Backend::bare(Port::reserve(), |request, wire| {
        if request.header("x-raw").is_none() {
            wire.send(answer("200 OK", "", "{}"));
            return Next::Read;
        }
        assert_eq!(request.header("te"), Some("trailers"));
        let mut body = Vec::new();
        loop {
            let mut size = String::new();
            while !size.ends_with("\r\n") {
                size.push(char::from(wire.read_exact(1)[0]));
            }
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            if size == 0 {
                break;
            }
            body.extend(wire.read_exact(size));
            wire.read_exact(2);
        }
        let sum = trailers(wire);
        let said = format!("{} {}", String::from_utf8(body).unwrap(), sum.trim());
        let len = said.len();
        wire.send(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Took\r\n\r\n\
             {len:x}\r\n{said}\r\n0\r\nX-Took: 7\r\n\r\n"
        ));
        Next::Close
    });
    let gateway = Gateway::with(&[backend.url()], once());
    // Kept, and streamed.
    for body in [r#"{"model":"m"}"#, "plain"] {
        let mut client = gateway.connect();
        let len = body.len();
        client.send(format!(
            "POST /v1/x HTTP/1.1\r\nHost: h\r\nX-Raw: 1\r\nTE: trailers\r\n\
             Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
             {len:x}\r\n{body}\r\n0\r\nX-Sum: 42\r\n\r\n"
        ));
        let head = client.head().unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.header("trailer"), Some("X-Took"));
        let said = String::from_utf8(client.chunk().unwrap()).unwrap();
        assert!(
            said.eq_ignore_ascii_case(&format!("{body} X-Sum: 42")),
            "{said}"
        );
        let end = trailers(&mut client);
        assert_eq!(end.to_ascii_lowercase(), "0\r\nx-took: 7\r\n\r\n");
    }
}

#[test]
fn browsers_may_ask_whether_they_may_ask() {
    let backend = Backend::start(&["m"], |_, wire| {
        wire.send(answer(
            "204 No Content",
            "Access-Control-Allow-Origin: *\r\n",
            "",
        ));
        Next::Read
    });
    let gateway = Gateway::with(&[backend.url()], often().api_key(Some(key())));
    let preflight = "Origin: http://page.test\r\nAccess-Control-Request-Method: POST\r\n";
    for path in ["/v1/chat/completions", "/v1/models"] {
        let answer = gateway.connect().ask("OPTIONS", path, preflight, b"");
        assert_eq!(answer.status(), 204, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    }
    for (method, headers, body) in [
        ("OPTIONS", "", ""),
        ("OPTIONS", "Origin: http://page.test\r\n", ""),
        ("OPTIONS", preflight, "body"),
        ("POST", preflight, ""),
    ] {
        let answer = gateway
            .connect()
            .ask(method, "/v1/x", headers, body.as_bytes());
        assert_eq!(answer.status(), 401, "{method} {headers} {body}");
    }
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn a_key_may_be_shown_in_two_ways_and_stays_here() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], often().api_key(Some(key())));
    let ask = |headers: &str| {
        let mut client = gateway.connect();
        client
            .ask("POST", "/v1/messages", headers, &chat("m"))
            .status()
    };
    assert_eq!(ask("x-api-key: sk-1\r\n"), 200);
    assert_eq!(ask("Authorization: Bearer sk-1\r\n"), 200);
    assert_eq!(ask("x-api-key: sk-2\r\n"), 401);
    for request in backend.requests() {
        assert!(request.header("x-api-key").is_none());
        assert!(request.header("authorization").is_none());
    }
    // Where none is asked for, it is the backend's.
    let open = Gateway::with(&[backend.url()], often());
    let headers = "x-api-key: sk-mine\r\n";
    open.connect()
        .ask("POST", "/v1/messages", headers, &chat("m"));
    let seen = backend.requests().pop().unwrap();
    assert_eq!(seen.header("x-api-key"), Some("sk-mine"));
    // Where it has one of its own, it is sent that alone.
    let own = often().backend_api_key(Some(key()));
    let own = Gateway::with(&[backend.url()], own);
    own.connect()
        .ask("POST", "/v1/messages", headers, &chat("m"));
    let seen = backend.requests().pop().unwrap();
    assert_eq!(seen.header("x-api-key"), None);
    assert_eq!(seen.header("authorization"), Some("Bearer sk-1"));
}

#[test]
fn health_tells_strangers_only_whether_it_serves() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::with(&[backend.url()], often().api_key(Some(key())));
    let stranger = gateway.get("/health");
    assert_eq!(stranger.status(), 200);
    assert_eq!(stranger.json(), serde_json::json!({ "status": "ok" }));
    let headers = "Authorization: Bearer sk-1\r\n";
    let known = gateway.connect().ask("GET", "/health", headers, b"").json();
    assert_eq!(known["backends"][0]["url"], backend.url());
}
