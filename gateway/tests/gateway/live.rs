//! Backends that come, go and change while requests are in flight.

use std::num::{NonZeroU32, NonZeroUsize};

use llmlb_gateway::{ApiKey, BackendSpec};

use crate::support::{
    Backend, Gate, Gateway, Next, Port, STREAM, answer, chat, chunk, often, once, request,
    wait_until,
};

/// Streams one chunk, then another when it is let, and ends; answers all else with its name.
fn streaming(name: &'static str, gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(&[name], move |request, wire| {
        if !request.first_line.contains("/stream") {
            wire.send(answer("200 OK", "", name));
            return Next::Read;
        }
        wire.send(STREAM);
        wire.send(chunk("begun"));
        gate.pass();
        wire.send(chunk("done"));
        wire.send("0\r\n\r\n");
        Next::Read
    })
}

fn states(gateway: &Gateway) -> Vec<(String, String)> {
    let health = gateway.health();
    let backends = health["backends"].as_array().unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    backends
        .iter()
        .map(|b| (text(&b["url"]), text(&b["state"])))
        .collect()
}

fn wait_for_backends(gateway: &Gateway, expected: &[(&Backend, &str)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(backend, state)| (backend.url(), (*state).to_owned()))
        .collect();
    wait_until(&format!("{expected:?}"), || {
        (states(gateway) == expected).then_some(())
    });
}

#[test]
fn a_backend_that_is_added_comes_in_after_its_first_good_look() {
    let first = Backend::named("first", &["a"]);
    let gateway = Gateway::before(&[first.url()]);
    assert_eq!(gateway.chat("b").status(), 404);
    let port = Port::reserve();
    gateway.now_before(&[first.url(), port.url()]);
    gateway.wait_for_states(&["up", "down"]);
    assert_eq!(gateway.chat("a").body, b"first");
    let second = Backend::start_at(port, &["b"], |_, wire| {
        wire.send(answer("200 OK", "", "second"));
        Next::Read
    });
    wait_for_backends(&gateway, &[(&first, "up"), (&second, "up")]);
    assert_eq!(gateway.chat("b").body, b"second");
    assert_eq!(gateway.chat("a").body, b"first");
}

#[test]
fn a_backend_that_is_removed_ends_its_streams_whole_and_gets_no_more() {
    let gate = Gate::default();
    let leaving = streaming("leaving", &gate);
    let staying = Backend::named("staying", &["leaving", "staying"]);
    let gateway = Gateway::before(&[leaving.url()]);
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/stream", "", &chat("leaving")));
    client.head().unwrap();
    assert_eq!(client.chunk().unwrap(), b"begun");

    gateway.now_before(&[staying.url()]);
    wait_for_backends(&gateway, &[(&staying, "up"), (&leaving, "draining")]);
    for _ in 0..4 {
        assert_eq!(gateway.chat("leaving").body, b"staying");
    }
    let gone = format!("llmlb_requests_in_flight{{backend=\"{}\"}}", leaving.url());
    assert_eq!(gateway.metrics()[&gone], 1.0);

    gate.open();
    assert_eq!(client.chunk().unwrap(), b"done");
    assert_eq!(client.chunk().unwrap(), b"", "a clean end");
    wait_for_backends(&gateway, &[(&staying, "up")]);
    assert!(!gateway.metrics().contains_key(&gone));
    assert_eq!(leaving.requests().len(), 1);
}

#[test]
fn all_backends_are_replaced_and_none_of_the_requests_is_lost() {
    let gates = [Gate::default(), Gate::default()];
    let before = [streaming("b", &gates[0]), streaming("b", &gates[1])];
    let after = Backend::named("after", &["b"]);
    let gateway = Gateway::before(&before.each_ref().map(Backend::url));
    let mut clients: Vec<_> = (0..2).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send(request("POST", "/v1/stream", "", &chat("b")));
        client.head().unwrap();
        assert_eq!(client.chunk().unwrap(), b"begun");
    }
    // First the new one beside the old ones, as whoever replaces without an outage does.
    let mut urls = before.each_ref().map(Backend::url).to_vec();
    urls.push(after.url());
    gateway.now_before(&urls);
    gateway.wait_for_states(&["up", "up", "up"]);
    gateway.now_before(&[after.url()]);
    for _ in 0..20 {
        let answer = gateway.chat("b");
        assert_eq!(answer.status(), 200);
    }
    gateway.wait_for_states(&["up", "draining", "draining"]);
    for gate in &gates {
        gate.open();
    }
    for client in &mut clients {
        assert_eq!(client.chunk().unwrap(), b"done");
        assert_eq!(client.chunk().unwrap(), b"", "a clean end");
    }
    wait_for_backends(&gateway, &[(&after, "up")]);
}

#[test]
fn a_backend_that_stays_keeps_its_state_and_its_connections() {
    // By each connection's first request, its address is known.
    let connections = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let opened = std::sync::Arc::clone(&connections);
    let staying = Backend::start(&["m"], move |request, wire| {
        if request.first_line.contains("/first") {
            opened.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
        wire.send(answer("200 OK", "", "staying"));
        Next::Read
    });
    let mut other = Backend::named("other", &["n"]);
    let gateway = Gateway::with(&[staying.url()], once());
    let ask = || {
        gateway
            .connect()
            .ask("POST", "/v1/first/completions", "", &chat("m"))
    };
    assert_eq!(ask().body, b"staying");
    let up = states(&gateway);
    // Looked at only once an hour: had it been forgotten, it would not be up again at once.
    gateway.now_before(&[other.url(), staying.url()]);
    wait_until("two backends", || {
        (states(&gateway).len() == 2).then_some(())
    });
    assert_eq!(states(&gateway)[1], up[0]);
    assert_eq!(ask().body, b"staying");
    other.stop();
    gateway.now_before(&[staying.url()]);
    wait_until("one backend", || (states(&gateway) == up).then_some(()));
    assert_eq!(ask().body, b"staying");
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 3);
    // The gateway's own four looks, and one connection for all three requests.
    assert_eq!(staying.connections(), 5);
}

#[test]
fn weight_limit_key_and_origin_are_a_backends_own() {
    let (reached, gate) = (Gate::default(), Gate::default());
    let (arrived, opened) = (reached.clone(), gate.clone());
    let backend = Backend::start(&["m"], move |request, wire| {
        if request.first_line.contains("/slow") {
            arrived.open();
            opened.pass();
        }
        wire.send(answer("200 OK", "", ""));
        Next::Read
    });
    let options = often().queue(0);
    let options = options.backend_api_key(ApiKey::parse("sk-all").ok());
    let gateway = Gateway::with(&[backend.url()], options);
    assert_eq!(gateway.chat("m").status(), 200);
    let spec = BackendSpec::new(backend.url().parse().unwrap())
        .weight(NonZeroU32::new(2).unwrap())
        .max(NonZeroUsize::new(1))
        .key(ApiKey::parse("sk-own").ok())
        .origin("a test");
    gateway.send([spec].into_iter().collect());
    wait_until("its origin", || {
        (gateway.health()["backends"][0]["origin"] == "a test").then_some(())
    });
    assert_eq!(gateway.chat("m").status(), 200);
    let keys: Vec<_> = backend
        .requests()
        .iter()
        .map(|r| r.header("authorization").unwrap().to_owned())
        .collect();
    assert_eq!(keys, ["Bearer sk-all", "Bearer sk-own"]);

    let mut client = gateway.connect();
    client.send(request("POST", "/v1/slow", "", &chat("m")));
    reached.pass();
    let refused = gateway.chat("m");
    assert_eq!(
        (refused.status(), &*refused.error_code()),
        (503, "overloaded")
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    gate.open();
    assert_eq!(client.message().unwrap().status(), 200);
    gateway.wait_for_in_flight(0, 0);
    assert_eq!(gateway.chat("m").status(), 200);
}

#[test]
fn the_last_backend_may_go_and_come_back() {
    let backend = Backend::named("fine", &["m"]);
    let gateway = Gateway::before(&[backend.url()]);
    assert_eq!(gateway.chat("m").status(), 200);
    gateway.now_before(&[]);
    wait_for_backends(&gateway, &[]);
    assert_eq!(gateway.chat("m").error_code(), "no_backends");
    gateway.now_before(&[backend.url()]);
    wait_for_backends(&gateway, &[(&backend, "up")]);
    assert_eq!(gateway.chat("m").status(), 200);
}

#[test]
fn a_drain_waits_for_streams_of_backends_that_are_gone() {
    let gate = Gate::default();
    let leaving = streaming("leaving", &gate);
    let mut gateway = Gateway::before(&[leaving.url()]);
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/stream", "", &chat("leaving")));
    client.head().unwrap();
    assert_eq!(client.chunk().unwrap(), b"begun");
    gateway.now_before(&[]);
    wait_for_backends(&gateway, &[(&leaving, "draining")]);
    gateway.drain();
    gateway.wait_until_port_refuses();
    gate.open();
    assert_eq!(client.chunk().unwrap(), b"done");
    assert_eq!(client.chunk().unwrap(), b"", "a clean end");
    gateway.wait();
}
