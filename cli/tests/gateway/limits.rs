//! What would take a careless server down.

use std::fs;
use std::net::TcpStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{
    Backend, Gate, Gateway, Next, STREAM, Wire, answer, chat, chunk, request, wait_until,
};

#[test]
fn requests_beyond_the_limit_are_turned_away() {
    let (reached, gate) = (Gate::default(), Gate::default());
    let (arrived, opened) = (reached.clone(), gate.clone());
    let backend = Backend::start(&[], move |_, wire| {
        arrived.open();
        opened.pass();
        wire.send(answer("200 OK", "", "done"));
        Next::Read
    });
    let gateway = Gateway::with(&[backend.url()], &["--max-requests", "2"]);
    let mut clients = [gateway.connect(), gateway.connect()];
    for client in &mut clients {
        client.send(request("POST", "/v1/x", "", &chat("m")));
        reached.pass();
    }
    let refused = gateway.chat("m");
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.error_code(), "overloaded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(gateway.get("/health").status(), 200);
    assert_eq!(gateway.get("/metrics").status(), 200);
    gate.open();
    gate.open();
    for client in &mut clients {
        assert_eq!(client.message().unwrap().body, b"done");
    }
    gateway.wait_for_in_flight(0, 0);
    gate.open();
    assert_eq!(gateway.chat("m").status(), 200);
}

#[test]
fn ten_thousand_idle_connections_are_no_burden() {
    const WANTED: u64 = 10_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    // Where not so many are allowed, as many as are.
    let count = WANTED.min(hard.saturating_sub(2_000));
    assert!(count > 500, "too few descriptors to test anything: {hard}");
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::with(&[backend.url()], &["--max-requests", "100"]);
    let mut first = gateway.connect();
    assert_eq!(first.ask("GET", "/v1/x", "", b"").body, b"fine");
    let idle: Vec<TcpStream> = (0..count)
        .map(|_| TcpStream::connect(("127.0.0.1", gateway.port)).unwrap())
        .collect();
    assert_eq!(gateway.get("/v1/x").body, b"fine");
    assert_eq!(gateway.get("/health").status(), 200);
    assert_eq!(idle.len() as u64, count);
}

#[test]
fn when_descriptors_run_out_idle_clients_make_room() {
    let backend = Backend::named("fine", &[]);
    let gateway = Gateway::limited(
        150,
        &[backend.url()],
        &["--max-requests", "20", "--health-interval", "0.05"],
    );
    // More than there is room for: half of a head on every other one.
    let idle: Vec<Wire> = (0..300)
        .map(|number| {
            let mut client = gateway.connect();
            if number % 2 == 0 {
                let _ = client.try_send("GET /v1/x HTTP/1.1\r\nHo");
            }
            client
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(gateway.get("/v1/x").body, b"fine");
    }
    // Nothing of it was held against the backend.
    assert_eq!(gateway.health()["backends"][0]["state"], "up");
    drop(idle);
}

#[test]
fn more_long_answers_than_descriptors_leave_room_to_say_so() {
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let switched = format!("HTTP/1.1 101 Switching Protocols\r\n{upgrade}\r\n");
    let streaming = STREAM.to_owned() + &chunk("begun");
    // Streams, and tunnels, which outlast the connection's HTTP.
    for (headers, begin) in [("", streaming), (upgrade, switched)] {
        let backend = Backend::start(&[], move |_, wire| {
            wire.send(&begin);
            wire.is_at_end();
            Next::Close
        });
        let gateway = Gateway::limited(256, &[backend.url()], &["--health-interval", "0.05"]);
        gateway.expect_log("requests in flight, not for 1024");
        let mut held = Vec::new();
        let refused = loop {
            assert!(held.len() < 256, "more than it has descriptors for");
            let mut client = gateway.connect();
            client.send(format!("GET /v1/x HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
            let head = client.head().unwrap();
            if head.status() == 503 {
                break head;
            }
            held.push(client);
        };
        assert!(held.len() > 50, "{}", held.len());
        assert_eq!(refused.header("retry-after"), Some("1"));
        // More than room is kept for: those that idle leave.
        let idle: Vec<Wire> = (0..150).map(|_| gateway.connect()).collect();
        for _ in 0..10 {
            assert_eq!(gateway.get("/health").status(), 200);
            assert_eq!(gateway.chat("m").status(), 503);
        }
        assert_eq!(gateway.health()["backends"][0]["state"], "up");
        gateway.wait_for_in_flight(0, held.len() as u64);
        drop((idle, held));
        gateway.wait_for_in_flight(0, 0);
    }
}

#[test]
fn a_client_that_still_reads_its_answer_is_not_idle() {
    const SIZE: usize = 12 << 20;
    let backend = Backend::start(&[], |_, wire| {
        wire.send(answer("200 OK", "", &"x".repeat(SIZE)));
        Next::Read
    });
    let gateway = Gateway::limited(
        150,
        &[backend.url()],
        &["--max-requests", "20", "--health-interval", "3600"],
    );
    let mut client = gateway.connect();
    client.send(request("POST", "/v1/x", "", &chat("m")));
    assert_eq!(client.head().unwrap().status(), 200);
    // Until the backend is done with it, and the rest waits in the gateway.
    let mut read = 0;
    while read < SIZE && gateway.health()["backends"][0]["in_flight"] != 0 {
        let len = (64 << 10).min(SIZE - read);
        read += client.read_exact(len).len();
    }
    let idle: Vec<Wire> = (0..150).map(|_| gateway.connect()).collect();
    assert_eq!(gateway.get("/health").status(), 200);
    client.read_exact(SIZE - read);
    drop(idle);
}

#[test]
fn a_slow_reader_holds_up_itself_alone() {
    const CHUNK: usize = 1 << 20;
    let backend = Backend::start(&[], |request, wire| {
        if request.first_line.contains("/endless") {
            wire.send(STREAM);
            let data = format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK));
            for _ in 0..512 {
                if wire.try_send(&data).is_err() {
                    break;
                }
            }
            return Next::Close;
        }
        wire.send(answer("200 OK", "", "fine"));
        Next::Read
    });
    let gateway = Gateway::before(&[backend.url()]);
    let mut readers: Vec<Wire> = (0..4).map(|_| gateway.connect()).collect();
    for reader in &mut readers {
        reader.send("GET /v1/endless HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(reader.head().unwrap().status(), 200);
    }
    for _ in 0..50 {
        assert_eq!(gateway.get("/v1/x").body, b"fine");
    }
    if cfg!(target_os = "linux") {
        let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kib < 64 << 10, "{kib} KiB for streams that nobody reads");
    }
    drop(readers);
    wait_until("the streams to be cut", || {
        (gateway.health()["backends"][0]["in_flight"] == 0).then_some(())
    });
}
