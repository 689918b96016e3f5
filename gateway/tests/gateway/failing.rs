//! Backends that fail, at every stage of a request.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::{
    Backend, Gate, Gateway, Next, PATIENCE, Port, STREAM, answer, chat, chunk, once, plain,
    request, wait_until,
};

#[test]
fn a_refused_request_goes_to_the_next_with_its_body() {
    let mut gone = Backend::named("gone", &[]);
    let backend = Backend::named("here", &[]);
    // Only requests find out that it has gone.
    let gateway = Gateway::with(&[gone.url(), backend.url()], once());
    gone.stop();
    let small = chat("m");
    // More than is kept of a body: the rest is streamed, and none of it is lost.
    let mut big = vec![b' '; 9 << 20];
    big[0] = b'{';
    big[(9 << 20) - 1] = b'}';
    for (count, body) in [(4, &small), (2, &big)] {
        for _ in 0..count {
            let answer = gateway.connect().ask("POST", "/v1/x", "", body);
            assert_eq!((answer.status(), &*answer.body), (200, &b"here"[..]));
        }
    }
    let requests = backend.requests();
    assert_eq!(requests.len(), 6);
    assert!(requests[..4].iter().all(|r| r.body == small));
    assert!(requests[4..].iter().all(|r| r.body == big));
    // Three failures were enough.
    gateway.wait_for_states(&["down", "up"]);
}

#[test]
fn a_request_that_a_backend_has_taken_is_never_given_to_another() {
    let other = Backend::named("other", &[]);
    for partial in ["", "HTTP/1.1 200 OK\r\nContent-", "nonsense\r\n\r\n"] {
        let failing = Backend::start(&["fails"], move |_, wire| {
            wire.send(partial);
            Next::Close
        });
        let gateway = Gateway::before(&[failing.url(), other.url()]);
        let answer = gateway.chat("fails");
        assert_eq!(answer.status(), 502, "{partial}");
        assert_eq!(answer.error_code(), "backend_failed");
        // OpenAI's clients would send it again by themselves.
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        assert_eq!(failing.requests().len(), 1);
        assert_eq!(other.requests().len(), 0);
    }
}

#[test]
fn a_pooled_connection_that_died_is_replaced_and_the_request_sent_again() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let answered = Mutex::new(std::collections::HashSet::new());
    // Takes a second request on a connection, and dies with it unanswered.
    let backend = Backend::start(&[], move |_, wire| {
        counted.fetch_add(1, Ordering::SeqCst);
        if !answered.lock().unwrap().insert(thread::current().id()) {
            return Next::Close;
        }
        wire.send(answer("200 OK", "", "fresh"));
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut retried = 0;
    for number in 0..5 {
        let body = format!("{{\"n\":{number}}}");
        let before = reads.load(Ordering::SeqCst);
        let answer = gateway
            .connect()
            .ask("POST", "/v1/completions", "", body.as_bytes());
        assert_eq!((answer.status(), &*answer.body), (200, &b"fresh"[..]));
        let times = reads.load(Ordering::SeqCst) - before;
        assert!((1..=2).contains(&times), "read {times} times");
        retried += times - 1;
        let last = backend.requests().pop().unwrap();
        assert_eq!(last.body, body.as_bytes());
    }
    assert!(retried > 0);
}

#[test]
fn a_request_that_a_backend_may_have_died_of_is_not_given_to_the_next() {
    let deaths = Arc::new(AtomicUsize::new(0));
    let mortal = || {
        let itself = Arc::new(Mutex::new(None::<Backend>));
        let (dying, deaths) = (Arc::clone(&itself), Arc::clone(&deaths));
        let backend = Backend::start(&[], move |request, wire| {
            if request.first_line.contains("/poison") {
                deaths.fetch_add(1, Ordering::SeqCst);
                dying.lock().unwrap().as_mut().unwrap().stop();
                return Next::Close;
            }
            wire.send(answer("200 OK", "", "fine"));
            Next::Read
        });
        let url = backend.url();
        *itself.lock().unwrap() = Some(backend);
        url
    };
    let gateway = Gateway::with(&[mortal(), mortal()], once());
    // Leaves a connection to each.
    assert_eq!(
        [gateway.chat("m").status(), gateway.chat("m").status()],
        [200; 2]
    );
    let answer = gateway
        .connect()
        .ask("POST", "/v1/poison/completions", "", b"{}");
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.error_code(), "backend_failed");
    assert_eq!(deaths.load(Ordering::SeqCst), 1);
    assert_eq!(gateway.chat("m").status(), 200);
}

#[test]
fn an_answer_that_has_begun_on_a_pooled_connection_is_not_asked_for_again() {
    for begun in [
        "HTTP/1.1 200 OK\r\nContent-",
        "HTTP/1.1 103 Early Hints\r\n\r\n",
    ] {
        let backend = Backend::start(&[], move |request, wire| {
            if request.first_line.contains("/break") {
                wire.send(begun);
                return Next::Close;
            }
            wire.send(answer("200 OK", "", "fine"));
            Next::Read
        });
        let gateway = Gateway::before(&[backend.url()]);
        assert_eq!(gateway.chat("m").status(), 200);
        let answer = gateway
            .connect()
            .ask("POST", "/v1/break/completions", "", b"{}");
        assert_eq!(answer.status(), 502, "{begun}");
        assert_eq!(backend.requests().len(), 2, "{begun}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn ends_that_vanish_without_a_word_are_found_out() {
    let reached = Gate::default();
    let arrived = reached.clone();
    let backend = Backend::start(&[], move |_, wire| {
        arrived.open();
        wire.is_at_end();
        Next::Close
    });
    let gateway = Gateway::with(&[backend.url()], once());
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/x", "", &chat("m")));
    reached.pass();
    let backend_port = backend
        .url()
        .rsplit(':')
        .next()
        .unwrap()
        .parse::<u16>()
        .unwrap();
    // Established (01), to or from the port, with a timer for keep-alive (02).
    let guarded = |field: usize, port: u16| {
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        sockets.lines().any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[field].ends_with(&format!(":{port:04X}"))
                && fields[3] == "01"
                && fields[5].starts_with("02:")
        })
    };
    wait_until("probes to the client", || {
        guarded(1, gateway.port).then_some(())
    });
    wait_until("probes to the backend", || {
        guarded(2, backend_port).then_some(())
    });
}

#[test]
fn a_stream_that_breaks_is_passed_on_as_broken() {
    let backend = Backend::start(&[], |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("data: 1\n\n"));
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
    assert_eq!(client.head().unwrap().status(), 200);
    assert_eq!(client.chunk().unwrap(), b"data: 1\n\n");
    assert_eq!(client.chunk(), None, "not a clean end");
    gateway.wait_for_in_flight(0, 0);
}

#[test]
fn to_a_client_of_old_a_broken_answer_is_no_whole_one_either() {
    let backend = Backend::start(&[], |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("data: 1"));
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut client = std::net::TcpStream::connect(("127.0.0.1", gateway.port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET /v1/x HTTP/1.0\r\n\r\n").unwrap();
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn a_client_that_leaves_takes_its_request_with_it() {
    // Silent after: nothing, the head, and a first chunk.
    let data = STREAM.to_owned() + &chunk("data: 1\n\n");
    for (sent, unread) in [
        (String::new(), ""),
        (STREAM.to_owned(), ""),
        (data, ""),
        (String::new(), "\r\n"),
        (String::new(), "GET /v1/y HTTP/1.1\r\nHost: h\r\n\r\n"),
    ] {
        if !unread.is_empty() && !cfg!(target_os = "linux") {
            continue;
        }
        let (ended, end) = channel();
        let ended = Mutex::new(ended);
        let reached = Gate::default();
        let arrived = reached.clone();
        let begins = sent.clone();
        let backend = Backend::start(&[], move |_, wire| {
            wire.send(&begins);
            arrived.open();
            ended.lock().unwrap().send(wire.is_at_end()).unwrap();
            Next::Close
        });
        let gateway = Gateway::before(&[backend.url()]);
        let mut client = gateway.connect();
        client.send(request("POST", "/v1/chat/completions", "", &chat("m")));
        client.send(unread);
        reached.pass();
        if !sent.is_empty() {
            client.head().unwrap();
        }
        if sent.contains("data") {
            client.chunk().unwrap();
        }
        drop(client);
        assert_eq!(end.recv_timeout(PATIENCE), Ok(true), "after {sent:?}");
        gateway.wait_for_in_flight(0, 0);
    }
}

#[test]
fn a_server_that_still_loads_gets_no_requests() {
    let loaded = Arc::new(AtomicUsize::new(0));
    let state = Arc::clone(&loaded);
    let backend = Backend::bare(Port::reserve(), move |_, wire| {
        let status = match state.load(Ordering::SeqCst) {
            0 => "503 Service Unavailable",
            _ => "200 OK",
        };
        wire.send(answer(status, "", "{\"data\":[{\"id\":\"m\"}]}"));
        Next::Read
    });
    let other = Backend::named("other", &["n"]);
    let gateway = Gateway::before(&[backend.url(), other.url()]);
    gateway.wait_for_states(&["down", "up"]);
    // It may be the one that it loads.
    let answer = gateway.chat("m");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(backend.requests().len(), 0);
    loaded.store(1, Ordering::SeqCst);
    gateway.wait_for_states(&["up", "up"]);
    assert_eq!(gateway.chat("m").status(), 200);
    assert_eq!(gateway.chat("x").status(), 404);
}

#[test]
fn a_server_without_health_is_judged_by_its_models() {
    let works = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&works);
    let backend = Backend::bare(Port::reserve(), move |request, wire| {
        let status = match (&*request.first_line, state.load(Ordering::SeqCst)) {
            ("GET /health HTTP/1.1", _) => "404 Not Found",
            (_, 0) => "500 Internal Server Error",
            _ => "200 OK",
        };
        wire.send(answer(status, "", "{\"data\":[{\"id\":\"m\"}]}"));
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url()]);
    gateway.wait_for_states(&["up"]);
    assert_eq!(gateway.health()["backends"][0]["models"][0], "m");
    works.store(0, Ordering::SeqCst);
    gateway.wait_for_states(&["down"]);
}

#[test]
fn when_all_are_down_the_error_says_when_to_come_again() {
    let port = Port::reserve();
    let gateway = Gateway::before(&[port.url()]);
    let answer = gateway.chat("m");
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.error_code(), "backends_down");
    assert_eq!(answer.header("retry-after"), Some("1"));

    let mut backend = Backend::named("gone", &[]);
    let gateway = Gateway::with(
        &[backend.url()],
        plain().health_interval(Duration::from_secs(7)),
    );
    gateway.wait_for_states(&["up"]);
    backend.stop();
    let answer = gateway.chat("m");
    assert_eq!(answer.status(), 502);
    assert_eq!(answer.error_code(), "backend_unreachable");
    assert_eq!(answer.header("retry-after"), Some("7"));
}

#[test]
fn malformed_requests_harm_nobody() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(1000));
    for bad in [
        "\r\n\r\n\0\0\0",
        "nonsense\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost h\r\n\r\n",
        "GET / HTTP/1.1\r\nA b: c\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
        &long,
        &many,
    ] {
        let mut client = gateway.connect();
        // It may be refused before it is all sent.
        let _ = client.try_send(bad);
        client.finish_sending();
        if let Some(answer) = client.head() {
            let shown = &bad[..bad.len().min(60)];
            assert!(
                (400..500).contains(&answer.status()) || answer.status() == 505,
                "{shown:?}: {answer:?}"
            );
        }
    }
    assert_eq!(gateway.get("/v1/x").body, b"fine");
    assert_eq!(backend.requests().len(), 1);
    wait_until("nothing in flight", || {
        (gateway.health()["backends"][0]["in_flight"] == 0).then_some(())
    });
}
