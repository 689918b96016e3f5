//! What operators see: readiness, metrics per model, the access log's ids, the page and its numbers.

use std::collections::HashMap;

use llmlb_tests::model_server::{Backend, Next, Port};
use llmlb_tests::wire::{STREAM, answer, chat, chunk, request};

use crate::support::Gateway;

const USAGE: &str = r#""usage":{"prompt_tokens":5,"completion_tokens":3}"#;

fn streaming() -> Backend {
    Backend::start(&["m"], |request, wire| {
        if String::from_utf8_lossy(&request.body).contains("stream") {
            wire.send(STREAM);
            for piece in ["data: {\"a\":1}\n\n", "data: {\"a\":2}\n\n"] {
                wire.send(chunk(piece));
            }
            wire.send(chunk(&format!("data: {{\"choices\":[],{USAGE}}}\n\n")));
            wire.send(chunk("data: [DONE]\n\n"));
            wire.send("0\r\n\r\n");
        } else {
            let headers = "Content-Type: application/json\r\n";
            wire.send(answer(
                "200 OK",
                headers,
                &format!("{{\"id\":\"x\",{USAGE}}}"),
            ));
        }
        Next::Read
    })
}

#[test]
fn tokens_and_their_times_are_told_by_model_and_backend() {
    let backend = streaming();
    let gateway = Gateway::before(&[backend.url()]);
    assert_eq!(gateway.chat("m").status(), 200);
    let stream = br#"{"model":"m","stream":true}"#;
    let answer = gateway
        .connect()
        .ask("POST", "/v1/chat/completions", "", stream);
    assert!(answer.body.ends_with(b"data: [DONE]\n\n"));
    // Not listed, and so no label: it goes where it may.
    assert_eq!(
        gateway
            .connect()
            .ask("POST", "/api/chat", "", &chat("made-up"))
            .status(),
        200
    );

    let metrics = gateway.metrics();
    let url = backend.url();
    let one = |name: &str, rest: &str| {
        let key = format!("{name}{{backend=\"{url}\",{rest}}}");
        metrics
            .get(&key)
            .copied()
            .unwrap_or_else(|| panic!("no {key} in {metrics:#?}"))
    };
    assert_eq!(
        one("llmlb_model_requests_total", "code=\"200\",model=\"m\""),
        2.0
    );
    assert_eq!(
        one("llmlb_tokens_total", "direction=\"in\",model=\"m\""),
        10.0
    );
    assert_eq!(
        one("llmlb_tokens_total", "direction=\"out\",model=\"m\""),
        6.0
    );
    assert_eq!(
        one("llmlb_time_to_first_token_seconds_count", "model=\"m\""),
        1.0
    );
    assert!(one("llmlb_inter_token_seconds_count", "model=\"m\"") <= 3.0);
    assert!(metrics.keys().all(|key| !key.contains("made-up")));
    let build = format!(
        "llmlb_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(metrics[&build], 1.0);
}

#[test]
fn streams_that_break_or_are_left_are_no_successes() {
    let backend = Backend::start(&["m"], |request, wire| {
        wire.send(STREAM);
        wire.send(chunk("data: begun\n\n"));
        if request.header("x-break").is_some() {
            return Next::Close;
        }
        let _ = wire.is_at_end();
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut broken = gateway.connect();
    broken.send(request(
        "POST",
        "/v1/chat/completions",
        "X-Break: 1\r\n",
        &chat("m"),
    ));
    assert_eq!(broken.head().unwrap().status(), 200);
    assert_eq!(broken.chunk().unwrap(), b"data: begun\n\n");
    assert_eq!(broken.chunk(), None, "it never looks like a clean end");
    let mut left = gateway.connect();
    left.send(request("POST", "/v1/chat/completions", "", &chat("m")));
    assert_eq!(left.head().unwrap().status(), 200);
    drop(left);
    let count = |metrics: &HashMap<String, f64>, code: &str| {
        let key = format!(
            "llmlb_requests_total{{backend=\"{}\",code=\"{code}\"}}",
            backend.url()
        );
        metrics.get(&key).copied().unwrap_or(0.0)
    };
    llmlb_tests::wait_until("both to be counted", || {
        let metrics = gateway.metrics();
        (count(&metrics, "502") == 1.0 && count(&metrics, "499") == 1.0).then_some(())
    });
    assert_eq!(count(&gateway.metrics(), "200"), 0.0);
}

#[test]
fn a_request_id_passes_or_is_made_and_the_backend_is_told_on_request() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    let given = "X-Request-Id: mine-1\r\nX-LLMLB-Backend: ?\r\n";
    let answer = gateway.connect().ask("GET", "/v1/x", given, b"");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert_eq!(
        answer.header("x-llmlb-backend"),
        Some(backend.url().as_str())
    );
    let made = gateway
        .connect()
        .ask("GET", "/v1/x", "X-Request-Id: not one\r\n", b"");
    let made = made.header("x-request-id").unwrap().to_owned();
    assert_eq!(made.len(), 32);
    let again = gateway.connect().ask("GET", "/v1/x", "", b"");
    assert_ne!(again.header("x-request-id"), Some(made.as_str()));
    assert_eq!(again.header("x-llmlb-backend"), None);
    let seen = backend.requests();
    assert_eq!(seen[0].all("x-request-id"), ["mine-1"]);
    assert_eq!(seen[0].header("x-llmlb-backend"), None);
    assert_eq!(seen[1].all("x-request-id"), [made.as_str()]);
}

#[test]
fn no_client_keeps_a_request_id_from_the_backend() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    let headers = "Connection: x-request-id\r\nX-Request-Id: mine-1\r\n";
    let answer = gateway.connect().ask("GET", "/v1/x", headers, b"");
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    let seen = backend.requests();
    assert_eq!(seen[0].all("x-request-id"), ["mine-1"]);
}

#[test]
fn ready_is_whoever_has_a_backend_that_is_up() {
    let port = Port::reserve();
    let gateway = Gateway::before(&[port.url()]);
    let refused = gateway.get("/ready");
    assert_eq!(
        (refused.status(), refused.body.as_slice()),
        (503, &b"no backend is up\n"[..])
    );
    assert_eq!(gateway.get("/health").status(), 200, "alive all the same");
    let _backend = Backend::start_at(port, &[], |_, _| Next::Close);
    llmlb_tests::wait_until("it to be ready", || {
        (gateway.get("/ready").status() == 200).then_some(())
    });
}

#[test]
fn the_page_is_whole_and_its_numbers_are_the_metrics() {
    let backend = streaming();
    let gateway = Gateway::before(&[backend.url()]);
    assert_eq!(gateway.chat("m").status(), 200);
    let page = gateway.get("/llmlb");
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    let text = String::from_utf8(page.body).unwrap();
    // Nothing from elsewhere, with or without a policy that forbids it.
    for elsewhere in [
        "http:",
        "https:",
        "//cdn",
        "@import",
        "<link rel=\"stylesheet\"",
        "src=",
    ] {
        let found = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!found.contains(elsewhere), "{elsewhere}");
    }
    let state = gateway.get("/llmlb/state").json();
    assert_eq!(state["backends"][0]["url"], backend.url());
    assert_eq!(state["backends"][0]["state"], "up");
    assert_eq!(state["backends"][0]["requests"], 1);
    assert_eq!(state["models"][0]["model"], "m");
    assert_eq!(state["models"][0]["tokens_out"], 3);
    assert!(!state["history"].as_array().unwrap().is_empty());
}

/// The dashboard in docs/grafana.json asks for nothing that is not told, by no label that there is
/// not.
#[test]
fn every_query_of_the_dashboard_finds_what_it_asks_for() {
    let backend = streaming();
    // Breaks each request, and is good in all else.
    let breaking = Backend::start(&["m"], |_, _| Next::Close);
    let busy = Backend::start(&["m"], |_, wire| {
        wire.send(answer("429 Too Many Requests", "", ""));
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url(), breaking.url(), busy.url()]);
    for _ in 0..9 {
        gateway.chat("m");
    }
    let stream = br#"{"model":"m","stream":true}"#;
    assert_eq!(
        gateway
            .connect()
            .ask("POST", "/v1/chat/completions", "", stream)
            .status(),
        200
    );
    let text = String::from_utf8(gateway.get("/metrics").body).unwrap();
    let typed = |name: &str| {
        text.contains(&format!("# TYPE {name} ")) && text.contains(&format!("# HELP {name} "))
    };
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../docs/grafana.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut asked = 0;
    for query in targets.map(|target| target["expr"].as_str().unwrap()) {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("llmlb_")) {
            let family = name.strip_suffix("_bucket").unwrap_or(name);
            assert!(typed(family), "{query}: no {family}");
            asked += 1;
            for by in query.split("by (").skip(1) {
                for label in by.split(')').next().unwrap().split(", ") {
                    let labelled = format!("{label}=\"");
                    let mut samples = text.lines().filter(|line| line.starts_with(name));
                    assert!(
                        samples.any(|line| line.contains(&labelled)),
                        "{query}: {label}"
                    );
                }
            }
        }
    }
    assert!(asked >= 12, "{asked}");
}
