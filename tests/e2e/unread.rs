//! A log that nobody reads, such as a pipe whose reader has stopped: it holds nobody up.

use std::io::{self, BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Write};
use std::net::TcpStream;
use std::process::Command;

use llmlb_tests::{Running, Sandbox, free_port, http_get, signal_pid, wait_until};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::Signal;

/// A pipe that takes nothing more until it is read.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    loop {
        match writer.write(b"\n") {
            Err(e) if e.kind() == ErrorKind::WouldBlock => break,
            result => assert_eq!(result.unwrap(), 1),
        }
    }
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

fn start(command: &mut Command) -> (Running, PipeReader) {
    let (reader, writer) = full_pipe();
    (Running::start_saying_to(command, writer), reader)
}

fn wait_until_open(port: u16) {
    wait_until("the port to be open", || {
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
}

#[test]
fn requests_go_on_and_what_was_lost_is_counted() {
    const REQUESTS: usize = 250;
    let sandbox = Sandbox::new();
    let port = free_port();
    let serve = ["serve", "--port", &port.to_string(), "--access-log"];
    let (mut balancer, reader) = start(&mut sandbox.llmlb(serve));
    wait_until_open(port);
    let path = format!("/v1/{}", "x".repeat(8 * 1024));
    for _ in 0..REQUESTS {
        // There are no backends.
        assert!(http_get(port, &path).starts_with("HTTP/1.1 503 "));
    }
    assert!(http_get(port, "/health").starts_with("HTTP/1.1 200 "));
    let mut lines = BufReader::new(reader).lines().map(Result::unwrap);
    let mut told = 0;
    let lost = " lines of the log were lost here: nobody has read them in time";
    let lost = lines.find_map(|line| {
        told += usize::from(line.contains(&path));
        let (before, _) = line.split_once(lost)?;
        before.rsplit(' ').next().unwrap().parse::<usize>().ok()
    });
    // The rest is written as ever.
    balancer.signal(Signal::SIGTERM);
    let rest: Vec<_> = lines.collect();
    assert_eq!(balancer.wait().code(), Some(0));
    assert!(
        rest.iter().any(|line| line.contains("shutdown signal")),
        "{rest:?}"
    );
    told += rest.iter().filter(|line| line.contains(&path)).count();
    let lost = lost.unwrap();
    assert!(told > 0 && lost > 0, "{told} {lost}");
    assert_eq!(told + lost, REQUESTS);
}

#[test]
fn a_server_ends_all_the_same_and_whoever_is_refused_too() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let serve = ["serve", "--port", &port.to_string()];
    let (mut balancer, _reader) = start(&mut sandbox.llmlb(serve));
    wait_until_open(port);
    let (mut refused, _unread) = start(&mut sandbox.llmlb(serve));
    assert_eq!(refused.wait().code(), Some(1));
    balancer.signal(Signal::SIGTERM);
    assert_eq!(balancer.wait().code(), Some(0));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_guard_starts_its_server_again_and_stops_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let serve = [
        "serve",
        "--port",
        &port.to_string(),
        "--restart",
        "on-failure",
    ];
    let server = ["--", "sh", "-c", "echo started; exec sleep 1000"];
    let (mut guard, _reader) = start(sandbox.llmlb(serve).args(server));
    guard.expect_output("started");
    let first = sandbox.named_pid(port);
    signal_pid(first, Signal::SIGKILL);
    guard.expect_output("started");
    let second = wait_until("the next server to be named", || {
        let pid = sandbox.named_pid(port);
        (pid != first && pid != guard.pid()).then_some(pid)
    });
    guard.signal(Signal::SIGTERM);
    guard.wait();
    assert!(!llmlb_tests::is_alive(second));
    assert!(!sandbox.lock_file(port).exists());
}
