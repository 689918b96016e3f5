//! Several workers are one gateway: each serves its share, and limits and the end are for all.

use std::num::NonZeroUsize;

use llmlb_gateway::Options;

use crate::support::{
    Backend, Gate, Gateway, Next, STREAM, Wire, answer, chat, chunk, once, request,
};

const WORKERS: usize = 4;

fn several() -> Options {
    once().workers(NonZeroUsize::new(WORKERS).unwrap())
}

/// Answers when the gate is opened, once for each request.
fn gated() -> (Backend, Gate) {
    let gate = Gate::default();
    let opened = gate.clone();
    let backend = Backend::start(&["m"], move |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("begun"));
        opened.pass();
        wire.send(chunk("done"));
        wire.send("0\r\n\r\n");
        Next::Read
    });
    (backend, gate)
}

fn begin(gateway: &Gateway) -> Wire {
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), b"begun");
    client
}

#[test]
fn each_serves_its_share_of_the_clients() {
    let backend = Backend::start(&["m"], |_, wire| {
        wire.send(answer("200 OK", "", "{}"));
        Next::Read
    });
    let gateway = Gateway::with(&[backend.url()], several());
    let before = backend.connections();
    // In turns, so that one worker would use one connection to the backend for all of them.
    let mut clients: Vec<Wire> = (0..2 * WORKERS).map(|_| gateway.connect()).collect();
    for _ in 0..3 {
        for client in &mut clients {
            let answer = client.ask("POST", "/v1/chat/completions", "", &chat("m"));
            assert_eq!(answer.status(), 200);
            // Until its connection to the backend can be used again.
            gateway.wait_for_in_flight(0, 0);
        }
    }
    assert_eq!(backend.connections() - before, WORKERS);
    let served = format!(
        "llmlb_requests_total{{backend=\"{}\",code=\"200\"}}",
        backend.url()
    );
    assert_eq!(gateway.metrics()[&served], (6 * WORKERS) as f64);
}

#[test]
fn so_many_requests_and_no_more_for_all_of_them() {
    let (backend, gate) = gated();
    let gateway = Gateway::with(&[backend.url()], several().max_requests(5));
    for _ in 0..2 {
        let mut served: Vec<Wire> = (0..5).map(|_| begin(&gateway)).collect();
        // Whichever worker has the client.
        for _ in 0..WORKERS {
            let refused = gateway.chat("m");
            assert_eq!(refused.status(), 503);
            assert_eq!(refused.error_code(), "overloaded");
        }
        for _ in &served {
            gate.open();
        }
        for client in &mut served {
            assert_eq!(client.chunk().unwrap(), b"done");
            assert_eq!(client.chunk().unwrap(), b"");
        }
        gateway.wait_for_in_flight(0, 0);
    }
}

#[test]
fn a_drain_waits_for_all_of_them_and_ends_all() {
    let (backend, gate) = gated();
    let mut gateway = Gateway::with(&[backend.url()], several());
    let mut idle: Vec<Wire> = (0..WORKERS).map(|_| gateway.connect()).collect();
    for client in &mut idle {
        assert_eq!(client.ask("GET", "/ready", "", b"").status(), 200);
    }
    let mut streams: Vec<Wire> = (0..2 * WORKERS).map(|_| begin(&gateway)).collect();
    gateway.drain();
    gateway.wait_until_port_refuses();
    for _ in &streams {
        gate.open();
    }
    for client in &mut streams {
        assert_eq!(client.chunk().unwrap(), b"done");
        assert_eq!(client.chunk().unwrap(), b"", "a clean end");
    }
    gateway.wait();
    for mut client in idle {
        assert!(client.is_at_end());
    }
}

#[test]
fn a_cut_ends_what_all_of_them_do() {
    let (backend, gate) = gated();
    let mut gateway = Gateway::with(&[backend.url()], several());
    let streams: Vec<Wire> = (0..WORKERS).map(|_| begin(&gateway)).collect();
    gateway.cut();
    gateway.wait();
    for mut client in streams {
        assert_eq!(client.chunk(), None, "it never looks like a clean end");
    }
    for _ in 0..WORKERS {
        gate.open();
    }
}
