//! How long a backend may take, where there is a limit.

use std::thread;
use std::time::Duration;

use crate::support::{Backend, Gate, Gateway, Next, STREAM, answer, chat, chunk, often, request};

const SHORT: Option<Duration> = Some(Duration::from_millis(200));

/// Sends this, and then nothing.
fn stops_after(begun: String) -> (Backend, Gate) {
    let left = Gate::default();
    let ended = left.clone();
    let backend = Backend::start(&["m"], move |_, wire| {
        wire.send(&begun);
        if wire.is_at_end() {
            ended.open();
        }
        Next::Close
    });
    (backend, left)
}

#[test]
fn an_answer_that_does_not_begin_is_given_up() {
    let (backend, left) = stops_after(String::new());
    let gateway = Gateway::with(&[backend.url()], often().first_byte_timeout(SHORT));
    let answer = gateway.chat("m");
    assert_eq!(
        (answer.status(), &*answer.error_code()),
        (504, "backend_timeout")
    );
    // The backend's work ends with it.
    left.pass();
    gateway.wait_for_in_flight(0, 0);
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn an_answer_that_pauses_too_long_is_broken_off() {
    let data = STREAM.to_owned() + &chunk("data");
    for (begun, options) in [
        (data, often().stream_idle_timeout(SHORT)),
        (STREAM.to_owned(), often().first_byte_timeout(SHORT)),
        (STREAM.to_owned(), often().stream_idle_timeout(SHORT)),
    ] {
        let (backend, left) = stops_after(begun.clone());
        let gateway = Gateway::with(&[backend.url()], options);
        let mut client = gateway.connect();
        client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
        assert_eq!(client.head().unwrap().status(), 200);
        if begun.contains("data") {
            assert_eq!(client.chunk().unwrap(), b"data");
        }
        assert_eq!(client.chunk(), None, "not a clean end");
        left.pass();
        gateway.wait_for_in_flight(0, 0);
    }
}

#[test]
fn an_upload_takes_its_time_and_a_stream_that_flows_does_not_end() {
    // Each lasts longer than the limit in all, and pauses for much less.
    const LIMIT: Duration = Duration::from_secs(3);
    const PAUSE: Duration = Duration::from_millis(500);
    const PIECES: usize = 7;
    let backend = Backend::start(&[], |request, wire| {
        if request.header("x-raw").is_some() {
            while wire.chunk().is_some_and(|data| !data.is_empty()) {}
            wire.send(answer("200 OK", "", "taken"));
            return Next::Read;
        }
        wire.send(STREAM);
        for _ in 0..PIECES {
            thread::sleep(PAUSE);
            wire.send(chunk("data"));
        }
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let options = often()
        .first_byte_timeout(Some(LIMIT))
        .stream_idle_timeout(Some(LIMIT));
    let gateway = Gateway::with(&[backend.url()], options);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = gateway.connect();
            client.send("POST /v1/files HTTP/1.1\r\nHost: h\r\nX-Raw: 1\r\n");
            client.send("Transfer-Encoding: chunked\r\n\r\n");
            // What comes behind so much is sent on as it comes.
            client.send(chunk(&"x".repeat(4 << 20)));
            for _ in 0..PIECES {
                client.send(chunk("part"));
                thread::sleep(PAUSE);
            }
            client.send("0\r\n\r\n");
            assert_eq!(client.message().unwrap().body, b"taken");
        });
        assert_eq!(gateway.get("/v1/stream").body, b"data".repeat(PIECES));
    });
}
