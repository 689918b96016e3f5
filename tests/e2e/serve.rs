//! `llmlb serve` itself: addresses, health, waiting, replacing, shutting down.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use llmlb_tests::{PATIENCE, Running, Sandbox, free_port, http_get, shell_code, wait_until};

#[test]
fn health_says_who_serves_and_everything_else_is_a_json_404() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = sandbox.serve(port);
    let answer = http_get(port, "/health");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    let health: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(health["status"], "ok");
    assert_eq!(health["pid"], server.pid());
    assert_eq!(health["port"], port);
    let file = fs::read(sandbox.lock_file(port)).unwrap();
    let file: serde_json::Value = serde_json::from_slice(&file).unwrap();
    assert_eq!(health["started_at"], file["started_at"]);
    assert!(health["uptime"].as_f64().unwrap() >= 0.0);

    let answer = http_get(port, "/no/such/path");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(head.contains("application/json"), "{answer}");
    let error: serde_json::Value = serde_json::from_str(body).unwrap();
    assert!(error["error"].is_object(), "{answer}");
}

#[test]
fn no_command_means_serve_and_the_environment_says_where() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = sandbox.llmlb([] as [&str; 0]);
    command.env("LLMLB_PORT", port.to_string());
    command.env("LLMLB_HOST", "localhost");
    let mut server = Running::start(&mut command);
    server.expect_log("listening on");
    assert_eq!(sandbox.named_pid(port), server.pid());
}

#[test]
fn a_port_that_something_else_uses_is_an_error_and_the_lock_is_given_back() {
    let sandbox = Sandbox::new();
    let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = stranger.local_addr().unwrap().port();
    let failed = sandbox
        .run(["serve", "--port", &port.to_string()])
        .expect(1);
    let address = format!("Error: cannot listen on 127.0.0.1:{port}: ");
    assert!(failed.stderr.contains(&address), "{failed:?}");
    assert!(
        failed
            .stderr
            .contains("something that holds no lock here uses it"),
        "{failed:?}"
    );
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn port_0_takes_a_free_port_and_locks_that() {
    let sandbox = Sandbox::new();
    let mut server = sandbox.serve_with(0, &[]);
    let names = fs::read_dir(sandbox.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let ports: Vec<u16> = names
        .filter_map(|name| {
            name.strip_prefix("serve_")?
                .strip_suffix(".lock")?
                .parse()
                .ok()
        })
        .collect();
    let [port] = ports[..] else {
        panic!("not one lock: {ports:?}");
    };
    assert!(http_get(port, "/health").contains(&format!("\"port\":{port}")));
    server.ask_to_end();
    assert_eq!(server.wait().code(), Some(0));
}

/// A request that has begun and not ended: it is in flight.
fn begin_request(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\nHost: local").unwrap();
    // Answered in turn: the server has read the beginning above by then.
    http_get(port, "/health");
    stream
}

#[test]
fn a_request_in_flight_is_finished() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve_with(port, &["--drain-timeout", "60"]);
    let mut stream = begin_request(port);
    server.ask_to_end();
    server.expect_log("Received shutdown signal");
    // New connections are refused by then; this one is answered.
    wait_until("the port to close", || {
        TcpStream::connect(("127.0.0.1", port))
            .is_err()
            .then_some(())
    });
    assert!(sandbox.lock_file(port).exists(), "released last");
    write!(stream, "host\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("shutting down"), "{answer}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_connection_that_never_ends_is_cut_off_after_the_drain_timeout() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve_with(port, &["--drain-timeout", "0.2"]);
    let _stream = begin_request(port);
    server.ask_to_end();
    server.expect_log("Requests still in flight after 200ms were cut off");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_second_signal_ends_it_at_once_and_the_lock_is_given_back() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve_with(port, &["--drain-timeout", "86400"]);
    let _stream = begin_request(port);
    server.ask_to_end();
    server.expect_log("Received shutdown signal");
    server.ask_again_to_end();
    assert_eq!(
        shell_code(server.wait()),
        Some(if cfg!(unix) { 128 + 2 } else { 128 + 15 })
    );
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn wait_waits_for_the_holder_to_leave_and_says_for_whom() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let holder = sandbox.serve(port);
    let mut waiter =
        Running::start(&mut sandbox.llmlb(["serve", "--port", &port.to_string(), "--wait", "60"]));
    let line = waiter.expect_log("Waiting");
    assert!(line.contains(&format!("(PID: {})", holder.pid())), "{line}");
    assert_eq!(sandbox.named_pid(port), holder.pid());
    holder.ask_to_end();
    waiter.expect_log("listening on");
    assert_eq!(sandbox.named_pid(port), waiter.pid());
}

#[test]
fn waiting_ends_with_a_refusal_when_the_time_has_run_out() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _holder = sandbox.serve(port);
    let refused = sandbox
        .run(["serve", "--port", &port.to_string(), "--wait", "0.1"])
        .expect(1);
    assert!(refused.stderr.contains("already running"), "{refused:?}");
}

#[test]
fn a_signal_ends_the_waiting() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let holder = sandbox.serve(port);
    let mut waiter = Running::start(&mut sandbox.llmlb([
        "serve",
        "--port",
        &port.to_string(),
        "--wait",
        "86400",
    ]));
    waiter.expect_log("Waiting");
    waiter.ask_to_end();
    assert_eq!(shell_code(waiter.wait()), Some(128 + 15));
    assert_eq!(sandbox.named_pid(port), holder.pid());
}

#[test]
fn replace_stops_the_holder_and_takes_its_place() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut old = sandbox.serve(port);
    let new = sandbox.serve_with(port, &["--replace"]);
    assert_eq!(old.wait().code(), Some(0));
    assert_eq!(sandbox.named_pid(port), new.pid());
    assert!(http_get(port, "/health").contains(&format!("\"pid\":{}", new.pid())));
}

#[test]
fn replace_with_nobody_there_just_serves() {
    let sandbox = Sandbox::new();
    sandbox.serve_with(free_port(), &["--replace"]);
}

#[test]
fn of_8_replacing_at_once_one_stays_and_nobody_serves_beside_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _old = sandbox.serve(port);
    let mut starts: Vec<_> = (0..8)
        .map(|_| {
            Running::start(&mut sandbox.llmlb(["serve", "--port", &port.to_string(), "--replace"]))
        })
        .collect();
    // All but one are refused, or were replaced themselves.
    wait_until("one to be left", || {
        let ended = starts
            .iter_mut()
            .filter_map(|start| start.child.try_wait().unwrap());
        (ended.count() == 7).then_some(())
    });
    starts.retain_mut(|start| start.child.try_wait().unwrap().is_none());
    let winner = starts[0].pid();
    wait_until("the winner to serve", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    assert!(http_get(port, "/health").contains(&format!("\"pid\":{winner}")));
    assert_eq!(sandbox.named_pid(port), winner);
}

#[cfg(unix)] // Unix sockets
#[test]
fn systemd_is_told() {
    use std::os::unix::net::UnixDatagram;
    let sandbox = Sandbox::new();
    let port = free_port();
    let path = sandbox.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    let server = Running::start(command.env("NOTIFY_SOCKET", &path));
    let receive = || {
        let mut buffer = [0; 256];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).trim().to_owned()
    };
    assert_eq!(receive(), "READY=1");
    // It listens by then.
    http_get(port, "/health");
    server.ask_to_end();
    assert_eq!(receive(), "STOPPING=1");
}

#[test]
fn colours_and_logs_do_as_they_are_told() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    let mut server = Running::start(command.env("LLMLB_LOG", "debug"));
    let line = server.expect_log("Lock acquired");
    let message = format!("Lock acquired for port {port} (PID: {})", server.pid());
    assert!(line.contains(&message), "{line}");
    server.expect_log("listening on");
    server.ask_to_end();
    server.expect_log(&format!("Lock released for port {port}"));
    assert!(!server.finish().stderr.contains('\x1b'));
}
