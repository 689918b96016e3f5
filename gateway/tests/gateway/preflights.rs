//! Browsers ask without a key whether they may ask, and so may strangers: nobody waits for that.

use std::num::NonZeroUsize;

use llmlb_gateway::{ApiKey, BackendSet, BackendSpec};

use crate::support::{
    Backend, Gate, Gateway, Message, Next, Wire, answer, chat, once, request, wait_until,
};

const KEY: &str = "Authorization: Bearer sk-1\r\n";

/// As many as there may be at a time.
const MOST: usize = 64;

/// This for a preflight, and that all is well for all else.
fn status(request: &Message, preflight: &'static str) -> &'static str {
    if request.first_line.starts_with("OPTIONS") {
        preflight
    } else {
        "200 OK"
    }
}

/// Answers each request, and those for `/v1/slow` when the gate lets them through.
fn slow(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(&["m"], move |request, wire| {
        if request.first_line.contains("/v1/slow") {
            gate.pass();
        }
        wire.send(answer(status(&request, "204 No Content"), "", ""));
        Next::Read
    })
}

/// Before a backend that takes one request at a time, with room for one that waits, and for two in
/// all.
fn gateway(backend: &Backend) -> Gateway {
    let key = ApiKey::parse("sk-1").unwrap();
    let options = once().api_key(Some(key)).queue(1).max_requests(2);
    let gateway = Gateway::with(&[backend.url()], options);
    let spec = BackendSpec::new(backend.url().parse().unwrap());
    gateway.send(BackendSet::from_iter([spec.max(NonZeroUsize::new(1))]));
    wait_until("its limit", || (look(&gateway, "max") == 1).then_some(()));
    gateway
}

/// What `/health` says of the backend.
fn look(gateway: &Gateway, what: &str) -> serde_json::Value {
    let health = gateway.connect().ask("GET", "/health", KEY, b"").json();
    health["backends"][0][what].clone()
}

fn depth(gateway: &Gateway) -> String {
    let metrics = gateway.connect().ask("GET", "/metrics", KEY, b"").body;
    let metrics = String::from_utf8(metrics).unwrap();
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix("llmlb_queue_depth "));
    line.unwrap().to_owned()
}

fn preflight(gateway: &Gateway, path: &str) -> Wire {
    let headers = "Origin: http://page.test\r\nAccess-Control-Request-Method: POST\r\n";
    let mut client = gateway.connect();
    client.send(request("OPTIONS", path, headers, b""));
    client
}

fn ask(gateway: &Gateway, path: &str) -> Wire {
    let mut client = gateway.connect();
    client.send(request("POST", path, KEY, &chat("m")));
    client
}

#[test]
fn a_preflight_is_answered_though_all_places_are_taken_and_waits_for_none() {
    let gate = Gate::default();
    let backend = slow(&gate);
    let gateway = gateway(&backend);
    let mut first = ask(&gateway, "/v1/slow");
    wait_until("it to be there", || {
        (look(&gateway, "in_flight") == 1).then_some(())
    });
    for _ in 0..3 {
        let answer = preflight(&gateway, "/v1/x").message().unwrap();
        assert_eq!(answer.status(), 204);
    }
    // With the key it is a request like any other.
    let headers =
        format!("{KEY}Origin: http://page.test\r\nAccess-Control-Request-Method: POST\r\n");
    let mut waits = gateway.connect();
    waits.send(request("OPTIONS", "/v1/x", &headers, b""));
    wait_until("it to wait", || (depth(&gateway) == "1").then_some(()));
    gate.open();
    assert_eq!(first.message().unwrap().status(), 200);
    assert_eq!(waits.message().unwrap().status(), 204);
}

#[test]
fn strangers_keep_nobody_waiting_and_have_an_end() {
    let gate = Gate::default();
    let backend = slow(&gate);
    let gateway = gateway(&backend);
    let strangers: Vec<_> = (0..MOST).map(|_| preflight(&gateway, "/v1/slow")).collect();
    wait_until("all to be there", || {
        (backend.requests().len() == MOST).then_some(())
    });
    assert_eq!(
        (look(&gateway, "in_flight"), &*depth(&gateway)),
        (0.into(), "0")
    );
    let more = preflight(&gateway, "/v1/slow").message().unwrap();
    assert_eq!((more.status(), &*more.error_code()), (503, "overloaded"));
    assert_eq!(ask(&gateway, "/v1/x").message().unwrap().status(), 200);
    (0..MOST).for_each(|_| gate.open());
    for mut client in strangers {
        assert_eq!(client.message().unwrap().status(), 204);
    }
    // There is room for others again.
    wait_until("room", || {
        let answer = preflight(&gateway, "/v1/x").message().unwrap();
        (answer.status() == 204).then_some(())
    });
}

#[test]
fn what_strangers_are_answered_is_no_evidence() {
    let backend = Backend::start(&["m"], |request, wire| {
        wire.send(answer(
            status(&request, "503 Service Unavailable"),
            "Retry-After: 60\r\n",
            "",
        ));
        Next::Read
    });
    let other = Backend::named("other", &["m"]);
    let options = once().api_key(Some(ApiKey::parse("sk-1").unwrap()));
    let gateway = Gateway::with(&[backend.url(), other.url()], options);
    for _ in 0..9 {
        let answer = preflight(&gateway, "/v1/x").message().unwrap();
        // It goes on to the other one.
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(look(&gateway, "state"), "up");
    for _ in 0..2 {
        assert_eq!(ask(&gateway, "/v1/x").message().unwrap().status(), 200);
    }
    let asked = backend.requests();
    assert!(
        asked.iter().any(|one| one.first_line.starts_with("POST")),
        "it is not spared"
    );
}
