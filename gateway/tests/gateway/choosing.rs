//! Which backend a request goes to.

use crate::support::{Backend, Gate, Gateway, Next, STREAM, answer, chat, chunk};

fn who(answer: &crate::support::Message) -> String {
    assert_eq!(answer.status(), 200, "{answer:?}");
    String::from_utf8(answer.body.clone()).unwrap()
}

#[test]
fn equals_take_turns() {
    let backends = [
        Backend::named("a", &[]),
        Backend::named("b", &[]),
        Backend::named("c", &[]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    let order: String = (0..6).map(|_| who(&gateway.get("/v1/x"))).collect();
    assert!("abcabcabc".contains(&order), "{order}");
}

#[test]
fn who_has_just_come_starts_slowly() {
    let first = Backend::named("first", &[]);
    let second = Backend::named("second", &[]);
    let gateway = Gateway::before(&[first.url()]);
    gateway.now_before(&[first.url(), second.url()]);
    gateway.wait_for_states(&["up", "up"]);
    let answers: Vec<_> = (0..40).map(|_| who(&gateway.get("/v1/x"))).collect();
    let news = answers.iter().filter(|who| *who == "second").count();
    assert!(news > 0 && news < 15, "{news} of 40, which would be 20");
}

#[test]
fn a_stream_counts_until_its_last_byte() {
    let gate = Gate::default();
    let opened = gate.clone();
    let streaming = Backend::start(&[], move |request, wire| {
        if request.first_line.contains("/stream") {
            wire.send(STREAM);
            wire.send(chunk("begun"));
            opened.pass();
            wire.send("0\r\n\r\n");
        } else {
            wire.send(answer("200 OK", "", "streaming"));
        }
        Next::Read
    });
    let other = Backend::named("other", &[]);
    let gateway = Gateway::before(&[streaming.url(), other.url()]);
    let mut client = gateway.connect();
    client.send("GET /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n");
    if client.head().unwrap().header("content-type").is_none() {
        // It was the other's turn; that moves it on.
        client = gateway.connect();
        client.send("GET /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n");
        client.head().unwrap();
    }
    assert_eq!(client.chunk().unwrap(), b"begun");
    assert_eq!(gateway.health()["backends"][0]["in_flight"], 1);
    for _ in 0..4 {
        assert_eq!(who(&gateway.get("/v1/x")), "other");
    }
    gate.open();
    assert_eq!(client.chunk().unwrap(), b"");
    gateway.wait_for_in_flight(0, 0);
    let both: Vec<_> = (0..2).map(|_| who(&gateway.get("/v1/x"))).collect();
    assert!(both.contains(&"streaming".to_owned()), "{both:?}");
}

#[test]
fn a_model_goes_to_who_serves_it() {
    let backends = [
        Backend::named("a", &["small", "shared"]),
        Backend::named("b", &["meta/large", "shared", "tagged:latest"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for _ in 0..3 {
        assert_eq!(who(&gateway.chat("small")), "a");
        assert_eq!(who(&gateway.chat("meta/large")), "b");
        assert_eq!(who(&gateway.chat("tagged")), "b");
        // Of a model, the gateway knows all that is listed; of an alias, its backend does.
        for path in ["/v1/models/meta/large", "/v1/models/meta%2Flarge"] {
            assert_eq!(gateway.get(path).json()["id"], "meta/large");
        }
        assert_eq!(who(&gateway.get("/v1/models/tagged")), "b");
    }
    let mut shared: Vec<_> = (0..4).map(|_| who(&gateway.chat("shared"))).collect();
    shared.sort();
    assert_eq!(shared, ["a", "a", "b", "b"]);
    // Split over many packets, it is the same.
    let mut client = gateway.connect();
    let body = chat("meta/large");
    client.send(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    for byte in body {
        client.send([byte]);
    }
    assert_eq!(who(&client.message().unwrap()), "b");
}

#[test]
fn what_is_no_json_goes_anywhere() {
    let backends = [
        Backend::named("a", &["small"]),
        Backend::named("b", &["large"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    for body in ["", "model", "[1]", "{\"mod", "{model:1}", "--x\r\nmodel"] {
        let mut both: Vec<_> = (0..2)
            .map(|_| who(&gateway.connect().ask("POST", "/v1/x", "", body.as_bytes())))
            .collect();
        both.sort();
        assert_eq!(both, ["a", "b"], "{body}");
    }
}

#[test]
fn the_models_are_those_of_all_backends_each_once() {
    let backends = [
        Backend::named("a", &["small", "shared"]),
        Backend::named("b", &["shared", "large"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    let answer = gateway.get("/v1/models").json();
    assert_eq!(answer["object"], "list");
    let entries = answer["data"].as_array().unwrap();
    let names: Vec<_> = entries.iter().map(|e| e["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["small", "shared", "large"]);
    assert!(entries.iter().all(|entry| entry["object"] == "model"));
    assert!(backends.iter().all(|b| b.requests().is_empty()));
}

#[test]
fn a_model_nobody_serves_is_named_beside_those_there_are() {
    let backends = [
        Backend::named("a", &["small"]),
        Backend::named("b", &["large"]),
    ];
    let gateway = Gateway::before(&backends.each_ref().map(Backend::url));
    assert_eq!(gateway.get("/v1/models/huge").status(), 404);
    let answer = gateway.chat("huge");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.error_code(), "model_not_found");
    let error = &answer.json()["error"];
    assert_eq!(error["param"], "model");
    let message = error["message"].as_str().unwrap();
    for name in ["huge", "small", "large"] {
        assert!(message.contains(name), "{message}");
    }
    // Other interfaces have their own notion of models, and of errors.
    let pull = gateway
        .connect()
        .ask("POST", "/api/pull", "", b"{\"model\":\"huge\"}");
    assert_eq!(pull.status(), 200);
}

#[test]
fn a_backend_that_keeps_its_models_to_itself_may_serve_any() {
    let open = Backend::named("open", &["small"]);
    let closed = Backend::bare(crate::support::Port::reserve(), |request, wire| {
        let status = match request.first_line.split(' ').nth(1).unwrap() {
            "/health" => "200 OK",
            "/v1/models" => "401 Unauthorized",
            _ => {
                wire.send(answer("200 OK", "", "closed"));
                return Next::Read;
            }
        };
        wire.send(answer(status, "", ""));
        Next::Read
    });
    let gateway = Gateway::before(&[open.url(), closed.url()]);
    for _ in 0..3 {
        assert_eq!(who(&gateway.chat("small")), "open");
        assert_eq!(who(&gateway.chat("secret")), "closed");
    }
}

#[test]
fn a_backend_that_answers_nothing_but_401_is_asked_last_and_one_that_knows_no_path_is_down() {
    let all = |status: &'static str| {
        Backend::bare(crate::support::Port::reserve(), move |_, wire| {
            wire.send(answer(status, "", status));
            Next::Read
        })
    };
    let (locked, lost) = (all("401 Unauthorized"), all("404 Not Found"));
    let open = Backend::named("open", &["small"]);
    let gateway = Gateway::before(&[locked.url(), lost.url(), open.url()]);
    gateway.wait_for_states(&["up", "down", "up"]);
    for _ in 0..4 {
        assert_eq!(who(&gateway.chat("small")), "open");
        // It may serve what nobody lists, and its answer is the client's affair.
        assert_eq!(gateway.chat("secret").status(), 401);
    }
    gateway.wait_for_states(&["up", "down", "up"]);
}

#[test]
fn a_model_whose_only_backend_is_down_exists_all_the_same() {
    let mut a = Backend::named("a", &["small"]);
    let b = Backend::named("b", &["large"]);
    let gateway = Gateway::before(&[a.url(), b.url()]);
    assert_eq!(who(&gateway.chat("small")), "a");
    a.stop();
    gateway.wait_for_states(&["down", "up"]);
    let answer = gateway.chat("small");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.error_code(), "backends_down");
    assert!(answer.header("retry-after").is_some());
    let models = gateway.get("/v1/models").json();
    assert_eq!(models["data"].as_array().unwrap().len(), 1);
}

#[test]
fn no_path_is_too_odd_for_an_error_in_the_usual_form() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::before(&[backend.url()]);
    let answer = gateway.get("/v1/models/%ff");
    assert_eq!(answer.status(), 404);
    assert_eq!(answer.error_code(), "model_not_found");
}
