//! What goes through, and how.

use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Backend, Gate, Gateway, Next, STREAM, Wire, answer, chunk};

#[test]
fn a_request_and_its_answer_arrive_as_they_were_sent() {
    let backend = Backend::start(&[], |_, wire| {
        wire.send(answer(
            "418 Teapot",
            "X-Answer: 1\r\nX-Answer: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\n",
            "short and stout",
        ));
        Next::Read
    });
    let gateway = Gateway::before(&[format!("{}/base", backend.url())]);
    let headers = "Authorization: Bearer mine\r\nX-Ask: 1\r\nX-Ask: 2\r\nKeep-Alive: 5\r\n\
                   Connection: keep-alive, x-hop\r\nX-Hop: 1\r\n";
    let answer = gateway
        .connect()
        .ask("PATCH", "/api/a%20b?c=d&e", headers, b"\0binary\xff");
    assert_eq!(answer.status(), 418);
    assert_eq!(answer.all("x-answer"), ["1", "2"]);
    assert_eq!(answer.header("x-hop"), None);
    assert_eq!(answer.body, b"short and stout");

    let requests = backend.requests();
    let [request] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(request.first_line, "PATCH /base/api/a%20b?c=d&e HTTP/1.1");
    assert_eq!(request.body, b"\0binary\xff");
    assert_eq!(request.all("x-ask"), ["1", "2"]);
    assert_eq!(request.all("authorization"), ["Bearer mine"]);
    let host = backend.url().replace("http://", "");
    assert_eq!(request.all("host"), [host.as_str()]);
    assert_eq!(request.all("x-forwarded-host"), ["llm.test"]);
    assert_eq!(request.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.all("x-forwarded-proto"), ["http"]);
    for name in ["x-hop", "keep-alive", "connection"] {
        assert_eq!(request.header(name), None, "{name}");
    }
}

#[test]
fn a_length_that_is_said_more_than_once_is_passed_on_once() {
    let backend = Backend::start(&[], |request, wire| {
        let path = request.first_line.split(' ').nth(1).unwrap();
        let lengths = match path {
            "/list" => "Content-Length: 3, 3\r\n",
            "/lines" => "Content-Length: 3\r\nContent-Length: 3\r\n",
            _ => "Content-Length: 3, 4\r\n",
        };
        let is_head = request.first_line.starts_with("HEAD ");
        let body = if is_head { "" } else { "abc" };
        wire.send(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n{body}"));
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let lengths = |method: &str, path: &str| {
        let mut client = gateway.connect();
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let head = client.head().unwrap();
        let lengths = head.all("content-length");
        (head.status(), lengths.join("|"))
    };
    for path in ["/list", "/lines"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(
                lengths(method, path),
                (200, "3".to_owned()),
                "{method} {path}"
            );
        }
    }
    assert_eq!(lengths("GET", "/differ").0, 502);
}

#[test]
fn who_is_sent_elsewhere_by_a_backend_stays_at_the_gateway() {
    let backend = Backend::start(&[], |request, wire| {
        let path = request.first_line.split(' ').nth(1).unwrap();
        let host = request.header("host").unwrap();
        let location = format!("Location: http://{host}{path}/?a=b\r\n");
        wire.send(answer("307 Temporary Redirect", &location, ""));
        Next::Read
    });
    for base in ["", "/base"] {
        let gateway = Gateway::before(&[format!("{}{base}", backend.url())]);
        let answer = gateway.get("/v1/x");
        assert_eq!(answer.status(), 307);
        assert_eq!(answer.all("location"), ["/v1/x/?a=b"], "{base}");
    }
}

#[test]
fn each_chunk_of_a_stream_arrives_before_the_next_is_sent() {
    let gate = Gate::default();
    let opened = gate.clone();
    let backend = Backend::start(&[], move |_, wire| {
        wire.send(STREAM);
        for number in 0..5 {
            opened.pass();
            wire.send(chunk(&format!("data: {number}\n\n")));
        }
        opened.pass();
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut client = gateway.connect();
    client.send("POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}");
    let head = client.head().unwrap();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    for number in 0..5 {
        gate.open();
        let data = client.chunk().unwrap();
        assert_eq!(data, format!("data: {number}\n\n").into_bytes());
    }
    gate.open();
    assert_eq!(client.chunk().unwrap(), b"");
}

#[test]
fn bodies_of_any_size_are_streamed_both_ways() {
    const SIZE: usize = 24 << 20;
    let halfway = Gate::default();
    let seen = halfway.clone();
    // Answers to the head alone, and sends back what then comes, so that neither end could hold
    // the whole of it.
    let backend = Backend::start(&[], move |_, wire| {
        wire.send(STREAM);
        let mut echoed = 0;
        while let Some(data) = wire.chunk() {
            wire.send(format!("{:x}\r\n", data.len()));
            wire.send(&data);
            wire.send("\r\n");
            if data.is_empty() {
                break;
            }
            let before = echoed;
            echoed += data.len();
            if before < SIZE / 2 && echoed >= SIZE / 2 {
                seen.open();
            }
        }
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let data: Vec<u8> = (0..SIZE).map(|i| (i / 7 % 251) as u8).collect();
    let (mut sender, mut receiver) = gateway.connect().split();
    let echoed = thread::spawn(move || {
        assert_eq!(receiver.head().unwrap().status(), 200);
        let mut echoed = Vec::with_capacity(SIZE);
        loop {
            let data = receiver.chunk().unwrap();
            if data.is_empty() {
                return echoed;
            }
            echoed.extend(data);
        }
    });
    sender.send("POST /v1/files HTTP/1.1\r\nHost: h\r\nX-Raw: 1\r\n");
    sender.send("Transfer-Encoding: chunked\r\n\r\n");
    let send = |sender: &mut Wire, data: &[u8]| {
        for piece in data.chunks(1 << 16) {
            sender.send(format!("{:x}\r\n", piece.len()));
            sender.send(piece);
            sender.send("\r\n");
        }
    };
    send(&mut sender, &data[..SIZE / 2]);
    // The first half has arrived though the second is not sent.
    halfway.pass();
    send(&mut sender, &data[SIZE / 2..]);
    sender.send("0\r\n\r\n");
    assert!(echoed.join().unwrap() == data, "it came back otherwise");
}

#[test]
fn an_upgraded_connection_is_a_tunnel() {
    let backend = Backend::start(&[], |request, wire| {
        assert_eq!(request.header("upgrade"), Some("websocket"));
        assert_eq!(request.header("sec-websocket-key"), Some("abc"));
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: def\r\n\r\nhello",
        );
        while !wire.is_at_end() {
            let byte = wire.read_exact(1);
            wire.send(byte.to_ascii_uppercase());
        }
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut client = gateway.connect();
    client.send(
        "GET /v1/realtime HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: abc\r\n\r\n",
    );
    let head = client.head().unwrap();
    assert_eq!(head.status(), 101);
    assert_eq!(head.header("upgrade"), Some("websocket"));
    assert_eq!(head.header("sec-websocket-accept"), Some("def"));
    assert_eq!(client.read_exact(5), b"hello");
    client.send("ping");
    assert_eq!(client.read_exact(4), b"PING");
    gateway.wait_for_in_flight(0, 1);
    drop(client);
    gateway.wait_for_in_flight(0, 0);
}

#[test]
fn an_upgrade_that_is_refused_is_an_answer_like_any_other() {
    let backend = Backend::named("no", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let mut client = gateway.connect();
    let answer = client.ask("GET", "/v1/realtime", headers, b"");
    assert_eq!((answer.status(), &*answer.body), (200, &b"no"[..]));
    // The connection goes on.
    assert_eq!(client.ask("GET", "/x", "", b"").status(), 200);
}

#[test]
fn after_an_upgrade_that_is_none_heads_are_looked_at_as_before() {
    let backend = Backend::named("no", &[]);
    let gateway = Gateway::before(&[backend.url()]);
    for headers in [
        "Upgrade: foo\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
    ] {
        let mut client = gateway.connect();
        let answer = client.ask("GET", "/v1/realtime", headers, b"");
        assert_eq!(answer.status(), 200, "{headers}");
        client.send("GET /v1/x HTTP/1.1\nHost: h\n\n");
        assert_eq!(client.message().unwrap().status(), 400, "{headers}");
    }
}

#[test]
fn what_belongs_to_the_other_protocol_is_not_changed_whenever_it_is_sent() {
    let backend = Backend::start(&[], |_, wire| {
        wire.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n",
        );
        while !wire.is_at_end() {
            let byte = wire.read_exact(1);
            wire.send(byte);
        }
        Next::Close
    });
    let gateway = Gateway::before(&[backend.url()]);
    let sent = b"GET / HTTP/1.1\nHost: h\n\nPRI * HTTP/2.0\r\n\0\n\n";
    for name in ["websocket", "  WebSocket\t "] {
        for at_once in [true, false] {
            let head = format!(
                "GET /v1/realtime HTTP/1.1\r\nHost: h\r\nUpgrade:{name}\r\n\
                 Connection: Upgrade\r\n\r\n"
            );
            let mut client = gateway.connect();
            if at_once {
                client.send([head.as_bytes(), sent].concat());
            } else {
                client.send(head);
            }
            assert_eq!(client.head().unwrap().status(), 101, "{name}");
            if !at_once {
                client.send(sent);
            }
            assert_eq!(client.read_exact(sent.len()), sent, "{name} {at_once}");
        }
    }
}

#[test]
fn connections_to_a_backend_are_used_again() {
    let connections = Arc::new(Mutex::new(std::collections::HashSet::new()));
    let seen = Arc::clone(&connections);
    let backend = Backend::start(&[], move |_, wire| {
        seen.lock().unwrap().insert(thread::current().id());
        wire.send(answer("200 OK", "", "x"));
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url()]);
    for _ in 0..20 {
        assert_eq!(gateway.chat("m").status(), 200);
    }
    // Under load, one may be returned late now and then.
    let connections = connections.lock().unwrap().len();
    assert!(
        connections < 10,
        "{connections} connections for 20 requests"
    );
}
