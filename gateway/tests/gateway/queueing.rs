//! Requests wait for backends that have as many as they may.

use std::num::NonZeroUsize;
use std::time::Duration;

use llmlb_gateway::{BackendSet, BackendSpec};

use crate::support::{
    Backend, Gate, Gateway, Next, Port, Wire, answer, chat, often, once, request, wait_until,
};

/// Answers with what it is asked for, each request when the gate lets it through.
fn gated(gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::start(&["m"], move |request, wire| {
        gate.pass();
        let path = request.first_line.split(' ').nth(1).unwrap();
        wire.send(answer("200 OK", "", path));
        Next::Read
    })
}

fn one_at_a_time(backends: &[&Backend]) -> BackendSet {
    let spec = |backend: &&Backend| {
        BackendSpec::new(backend.url().parse().unwrap())
            .max(NonZeroUsize::new(1))
            .origin("limited")
    };
    backends.iter().map(spec).collect()
}

fn limited(backend: &Backend, options: llmlb_gateway::Options) -> Gateway {
    let gateway = Gateway::with(&[backend.url()], options);
    gateway.send(one_at_a_time(&[backend]));
    wait_until("its limit", || {
        (gateway.health()["backends"][0]["origin"] == "limited").then_some(())
    });
    gateway
}

fn ask(gateway: &Gateway, path: &str) -> Wire {
    let mut client = gateway.connect();
    client.send(request("POST", path, "", &chat("m")));
    client
}

fn wait_for_queue(gateway: &Gateway, count: f64) {
    wait_until(&format!("{count} to wait"), || {
        (gateway.metrics()["llmlb_queue_depth"] == count).then_some(())
    });
}

/// A gateway whose only backend is busy with one request, while others wait, each come after the
/// one before it.
fn busy(
    backend: &Backend,
    options: llmlb_gateway::Options,
    waiting: usize,
) -> (Gateway, Vec<Wire>) {
    let gateway = limited(backend, options);
    let mut clients = vec![ask(&gateway, "/v1/0")];
    gateway.wait_for_in_flight(0, 1);
    for number in 1..=waiting {
        clients.push(ask(&gateway, &format!("/v1/{number}")));
        wait_for_queue(&gateway, number as f64);
    }
    (gateway, clients)
}

#[test]
fn who_comes_first_is_served_first() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, clients) = busy(&backend, once(), 4);
    for (number, mut client) in clients.into_iter().enumerate() {
        // Never more than it may have.
        assert_eq!(gateway.health()["backends"][0]["in_flight"], 1);
        gate.open();
        let answer = client.head().unwrap();
        assert_eq!(answer.status(), 200, "{number}");
    }
    let paths: Vec<_> = backend
        .requests()
        .iter()
        .map(|request| request.first_line.split(' ').nth(1).unwrap().to_owned())
        .collect();
    assert_eq!(paths, ["/v1/0", "/v1/1", "/v1/2", "/v1/3", "/v1/4"]);
    let metrics = gateway.metrics();
    assert_eq!(metrics["llmlb_queue_depth"], 0.0);
    assert_eq!(metrics["llmlb_queue_wait_seconds_count"], 4.0);
}

#[test]
fn who_leaves_leaves_the_queue() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 2);
    drop(clients.remove(1));
    wait_for_queue(&gateway, 1.0);
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
    assert_eq!(backend.requests().len(), 2);
}

#[test]
fn a_queue_that_is_full_is_told_with_when_to_come_again() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once().queue(2), 2);
    let refused = gateway.chat("m");
    assert_eq!(
        (refused.status(), &*refused.error_code()),
        (429, "queue_full")
    );
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!(seconds >= 1, "{refused:?}");
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

#[test]
fn a_wait_in_vain_is_503() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let options = once().queue_timeout(Duration::from_millis(50));
    let gateway = limited(&backend, options);
    let mut first = ask(&gateway, "/v1/0");
    gateway.wait_for_in_flight(0, 1);
    let refused = gateway.chat("m");
    let told = (refused.status(), refused.error_code());
    assert_eq!(told, (503, "queue_timeout".to_owned()));
    assert!(refused.header("retry-after").is_some());
    gate.open();
    assert_eq!(first.head().unwrap().status(), 200);
}

#[test]
fn where_there_is_no_queue_the_answer_is_503_at_once() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once().queue(0), 0);
    let refused = gateway.chat("m");
    assert_eq!(
        (refused.status(), &*refused.error_code()),
        (503, "overloaded")
    );
    gate.open();
    assert_eq!(clients[0].head().unwrap().status(), 200);
}

#[test]
fn a_backend_that_comes_takes_who_waits() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 1);
    let other = Backend::named("other", &["m"]);
    gateway.send(one_at_a_time(&[&backend, &other]));
    assert_eq!(clients[1].head().unwrap().status(), 200);
    assert_eq!(other.requests().len(), 1);
    gate.open();
    assert_eq!(clients[0].head().unwrap().status(), 200);
}

#[test]
fn who_waits_for_another_model_is_not_held_up() {
    let gate = Gate::default();
    let backend = gated(&gate);
    let (gateway, mut clients) = busy(&backend, once(), 2);
    let other = Backend::named("other", &["n"]);
    gateway.send(one_at_a_time(&[&backend, &other]));
    gateway.wait_for_states(&["up", "up"]);
    for _ in 0..3 {
        assert_eq!(gateway.chat("n").body, b"other");
    }
    for client in &mut clients {
        gate.open();
        assert_eq!(client.head().unwrap().status(), 200);
    }
}

/// Tells how many requests it works at, as llama.cpp or SGLang does, and answers when it may.
fn telling(path: &'static str, told: &'static str, gate: &Gate) -> Backend {
    let gate = gate.clone();
    Backend::bare(Port::reserve(), move |request, wire| {
        if request.header("user-agent") == Some("llmlb") {
            let asked = request.first_line.split(' ').nth(1).unwrap();
            wire.send(match asked {
                "/health" => answer("200 OK", "", "{}"),
                _ if asked == path => answer("200 OK", "", told),
                _ => answer("404 Not Found", "", ""),
            });
            return Next::Close;
        }
        gate.pass();
        wire.send(answer("200 OK", "", "done"));
        Next::Read
    })
}

#[test]
fn a_server_that_tells_how_many_it_takes_gets_no_more() {
    for (path, told) in [
        (
            "/props",
            r#"{"total_slots":1,"default_generation_settings":{}}"#,
        ),
        (
            "/server_info",
            r#"{"max_running_requests":1,"version":"x"}"#,
        ),
    ] {
        let gate = Gate::default();
        let backend = telling(path, told, &gate);
        let gateway = Gateway::with(&[backend.url()], often());
        assert_eq!(gateway.health()["backends"][0]["max"], 1);
        let mut clients = [ask(&gateway, "/v1/0"), ask(&gateway, "/v1/1")];
        wait_for_queue(&gateway, 1.0);
        // Of a gateway, no one server's answer is true.
        let headers = "User-Agent: llmlb\r\n";
        assert_eq!(
            gateway.connect().ask("GET", path, headers, b"").status(),
            404
        );
        // Its owner knows better.
        let spec = BackendSpec::new(backend.url().parse().unwrap()).max(NonZeroUsize::new(2));
        gateway.send([spec].into_iter().collect());
        gateway.wait_for_in_flight(0, 2);
        gate.open();
        gate.open();
        for client in &mut clients {
            assert_eq!(client.message().unwrap().status(), 200);
        }
        gateway.now_before(&[backend.url()]);
        wait_until("what it tells to hold again", || {
            (gateway.health()["backends"][0]["max"] == 1).then_some(())
        });
    }
}
