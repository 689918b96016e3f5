//! The end, in good order.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use nix::sys::signal::Signal;

use crate::support::{Backend, Gate, Gateway, Next, PATIENCE, STREAM, chat, chunk, request};

#[test]
fn a_long_generation_is_finished_before_the_lock_is_released() {
    let gate = Gate::default();
    let opened = gate.clone();
    let backend = Backend::start(&[], move |_, wire| {
        wire.send(STREAM);
        for number in 0..4 {
            opened.pass();
            wire.send(chunk(&format!("data: {number}\n\n")));
        }
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let args = ["--health-interval", "0.05", "--drain-timeout", "55"];
    let mut gateway = Gateway::with(&[backend.url()], &args);
    let mut kept = gateway.connect();
    assert_eq!(kept.ask("GET", "/health", "", b"").status(), 200);
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
    assert_eq!(client.head().unwrap().status(), 200);
    gate.open();
    assert_eq!(client.chunk().unwrap(), b"data: 0\n\n");

    let mut stop = gateway.stop_command(&["--timeout", "60"]).spawn().unwrap();
    gateway.expect_log("Received shutdown signal");
    gateway.wait_until_port_refuses();
    assert_eq!(kept.ask("GET", "/ready", "", b"").status(), 503);
    let health = kept.ask("GET", "/health", "", b"");
    assert_eq!(health.status(), 200, "it lives");
    assert_eq!(health.json()["status"], "shutting down");
    let refused = kept.ask("POST", "/v1/chat/completions", "", &chat("m"));
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.error_code(), "shutting_down");
    assert!(gateway.lock_exists());
    assert_eq!(stop.try_wait().unwrap(), None);

    for number in 1..4 {
        gate.open();
        let data = client.chunk().unwrap();
        assert_eq!(data, format!("data: {number}\n\n").into_bytes());
    }
    assert_eq!(client.chunk().unwrap(), b"", "a clean end");
    assert_eq!(stop.wait().unwrap().code(), Some(0));
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(!gateway.lock_exists());
}

#[test]
fn what_does_not_finish_in_time_is_cut_and_so_is_its_backend() {
    // A stream, and a tunnel.
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let switched = "HTTP/1.1 101 Switching Protocols\r\n".to_owned() + upgrade + "\r\n";
    let streaming = STREAM.to_owned() + &chunk("begun");
    for (headers, begin) in [("", streaming), (upgrade, switched)] {
        let (ended, end) = channel();
        let ended = Mutex::new(ended);
        let backend = Backend::start(&[], move |_, wire| {
            wire.send(&begin);
            ended.lock().unwrap().send(wire.is_at_end()).unwrap();
            Next::Close
        });
        let mut gateway = Gateway::with(&[backend.url()], &["--drain-timeout", "0.3"]);
        let mut client = gateway.connect();
        client.send(format!("GET /v1/x HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
        client.head().unwrap();
        if headers.is_empty() {
            assert_eq!(client.chunk().unwrap(), b"begun");
        }
        gateway.signal(Signal::SIGTERM);
        gateway.expect_log("were cut off");
        assert_eq!(end.recv_timeout(PATIENCE), Ok(true));
        assert!(client.is_at_end());
        assert_eq!(gateway.wait().code(), Some(0));
        assert!(!gateway.lock_exists());
    }
}

#[test]
fn idle_clients_do_not_delay_the_end() {
    let backend = Backend::named("fine", &[]);
    let mut gateway = Gateway::with(&[backend.url()], &["--drain-timeout", "3600"]);
    let mut used = gateway.connect();
    assert_eq!(used.ask("GET", "/v1/x", "", b"").body, b"fine");
    let mut unused = gateway.connect();
    let mut half = gateway.connect();
    half.send("GET /v1/x HTTP/1.1\r\nHo");
    gateway.get("/health");
    gateway.signal(Signal::SIGTERM);
    assert_eq!(gateway.wait().code(), Some(0));
    assert!(used.is_at_end() && unused.is_at_end() && half.is_at_end());
}
