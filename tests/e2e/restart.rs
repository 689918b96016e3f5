//! `serve --restart on-failure`: a COMMAND that fails is started again, under the same guard.

use std::fs;
use std::time::Instant;

use llmlb_tests::{Running, Sandbox, free_port, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

fn start(sandbox: &Sandbox, port: u16, options: &[&str], command: &[&str]) -> Running {
    let port = port.to_string();
    let mut llmlb = sandbox.llmlb(["serve", "--port", &port, "--restart", "on-failure"]);
    Running::start(llmlb.args(options).arg("--").args(command))
}

#[test]
fn a_server_that_is_killed_comes_back_and_the_port_is_guarded_in_between() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut server = start(&sandbox, port, &[], &[GUINEA, &text]);
    server.expect_log("accepting connections");
    let first = sandbox.named_pid(port);
    let killed = Instant::now();
    signal_pid(first, Signal::SIGKILL);
    let line = server.expect_log("it is started again in 1s (restart 1 of 5 within 10 minutes)");
    assert!(line.contains("Server was ended by SIGKILL"), "{line}");
    // llmlb itself guards it, and is named.
    assert_eq!(sandbox.named_pid(port), server.pid());
    let refused = sandbox.run(["serve", "--port", &text]).expect(1);
    assert!(refused.stderr.contains("already running"), "{refused:?}");
    sandbox.run(["status", &text]).expect(5);
    server.expect_log("accepting connections");
    assert!(killed.elapsed().as_millis() >= 1000);
    let second = sandbox.named_pid(port);
    assert_ne!(first, second);
    sandbox.run(["stop", &text]).expect(0);
    wait_until("llmlb to end", || (!is_alive(server.pid())).then_some(()));
    assert!(!sandbox.lock_file(port).exists());
    assert!(!is_alive(second));
}

#[test]
fn stop_ends_it_for_good_also_before_it_is_started_again() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let starts = sandbox.path().join("starts");
    let script = format!("echo >> {}; exit 3", starts.display());
    let mut server = start(&sandbox, port, &[], &["sh", "-c", &script]);
    server.expect_log("Server ended with exit code 3; it is started again in 2s");
    let stopped = sandbox.run(["stop", &text]).expect(0);
    assert!(stopped.stdout.contains("stopped"), "{stopped:?}");
    let ended = server.finish();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(!sandbox.lock_file(port).exists());
    // On a slow machine the third start comes before the stop, but none that was not announced.
    let announced = ended.stderr.matches("it is started again in").count();
    let starts = fs::read_to_string(&starts).unwrap().len();
    assert!(
        announced >= 2 && starts <= announced + 1,
        "{starts} {ended:?}"
    );
}

#[test]
fn one_that_fails_too_often_is_given_up_with_its_exit_code() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = start(
        &sandbox,
        port,
        &["--restart-max", "1"],
        &["sh", "-c", "exit 3"],
    );
    let ended = server.finish();
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let why = "Server ended with exit code 3; it has failed too often to be started again";
    assert!(ended.stderr.contains(why), "{ended:?}");
    assert_eq!(ended.stderr.matches("it is started again in").count(), 1);
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn what_was_asked_to_end_or_is_done_is_not_started_again() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let done = start(&sandbox, port, &[], &["true"]).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    // As the refusal advises, with an exit code that would be a failure.
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut server = start(&sandbox, port, &[], &[GUINEA, &text]);
        server.expect_log("accepting connections");
        signal_pid(sandbox.named_pid(port), signal);
        assert!(!server.finish().stderr.contains("started again"));
    }
    let mut server = start(&sandbox, port, &[], &[GUINEA, &text, "graceful=9"]);
    server.expect_log("accepting connections");
    sandbox.run(["stop", &text]).expect(0);
    let ended = server.finish();
    assert_eq!(ended.code, Some(9), "{ended:?}");
    assert!(!ended.stderr.contains("started again"), "{ended:?}");
    let mut server = start(&sandbox, port, &[], &[GUINEA, &text, "stubborn"]);
    server.expect_log("accepting connections");
    let stop = ["stop", &text, "--force", "--timeout", "0.1"];
    sandbox.run(stop).expect(0);
    assert!(!server.finish().stderr.contains("started again"));
}

#[test]
fn the_built_in_server_is_not_restarted() {
    let sandbox = Sandbox::new();
    let refused = sandbox.run(["serve", "--port", "1", "--restart", "on-failure"]);
    assert!(
        refused
            .expect(2)
            .stderr
            .contains("--restart is for a COMMAND")
    );
}
