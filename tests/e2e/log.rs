//! One style of log: whoever writes it, a line begins with the time in UTC, in milliseconds, and the
//! level, wherever llmlb thinks it is.

use std::process::Command;

use llmlb_tests::{Finished, Running, Sandbox, free_port, http_get};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

/// Such as `2026-01-30T12:00:00.123Z`.
fn is_time(text: &str) -> bool {
    let shape = "0000-00-00T00:00:00.000Z";
    let fits = |(have, want): (char, char)| match want {
        '0' => have.is_ascii_digit(),
        want => have == want,
    };
    text.len() == shape.len()
        && text.chars().zip(shape.chars()).all(fits)
        && text
            .parse::<chrono::DateTime<chrono::Utc>>()
            .is_ok_and(|at| {
                // By no other zone's clock.
                (chrono::Utc::now() - at).num_minutes().abs() < 30
            })
}

#[track_caller]
fn assert_log<'a>(lines: impl IntoIterator<Item = &'a str>) {
    let mut count = 0;
    for line in lines.into_iter().filter(|line| !line.is_empty()) {
        let (time, rest) = line.split_once(' ').unwrap_or_default();
        assert!(is_time(time), "{line}");
        let levels = [" INFO ", " WARN ", "ERROR "];
        assert!(levels.iter().any(|l| rest.starts_with(l)), "{line}");
        count += 1;
    }
    assert!(count > 0, "nothing is logged");
}

fn llmlb(sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut llmlb = sandbox.llmlb(args);
    llmlb.env("TZ", "Asia/Tokyo");
    llmlb
}

#[test]
fn of_a_guard_and_of_those_that_wait_for_it() {
    let sandbox = Sandbox::new();
    let port = free_port().to_string();
    let mut server = Running::start(&mut llmlb(
        &sandbox,
        &["serve", "--port", &port, "--", GUINEA, &port],
    ));
    server.expect_log("accepting connections");
    let wait = ["serve", "--port", &port, "--wait", "10ms"];
    let refused = Finished::of(llmlb(&sandbox, &wait).output().unwrap()).expect(1);
    let (log, error) = refused.stderr.split_once("Error: ").unwrap();
    assert_log(log.lines());
    assert!(error.starts_with("Server already running"));
    let replace = [
        "serve",
        "--port",
        &port,
        "--replace",
        "--",
        GUINEA,
        &port,
        "exit=0",
    ];
    let replaced = Finished::of(llmlb(&sandbox, &replace).output().unwrap()).expect(0);
    assert_log(replaced.stderr.lines());
    assert!(replaced.stderr.contains("to take its place..."));
    assert_log(server.finish().stderr.lines());
}

#[test]
fn of_a_balancer_and_its_requests() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let serve = ["serve", "--port", &text, "--access-log"];
    let mut balancer = Running::start(&mut llmlb(&sandbox, &serve));
    balancer.expect_log("listening on");
    http_get(port, "/v1/models");
    let line = balancer.expect_log("\"path\":\"/v1/models\"");
    let request: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert!(is_time(request["time"].as_str().unwrap()), "{line}");
    sandbox.run(["stop", &text]).expect(0);
    let log = balancer.finish().stderr;
    assert_log(log.lines().filter(|line| !line.starts_with('{')));
}

#[cfg(unix)] // --detach
#[test]
fn of_servers_in_the_background_to_their_end() {
    let sandbox = Sandbox::new();
    let log = sandbox.path().join("log");
    let port = free_port().to_string();
    let start = |more: &[&str]| {
        let detached = ["serve", "--detach", "--port", &port, "--log-file"];
        let mut llmlb = llmlb(&sandbox, &detached);
        llmlb.arg(&log).args(more);
        Finished::of(llmlb.output().unwrap())
    };
    start(&[]).expect(0);
    sandbox.run(["stop", &port]).expect(0);
    let late = ["--ready-timeout", "10ms", "--", "sleep", "60"];
    let failed = start(&late).expect(1);
    assert!(failed.stderr.contains("was not ready within"), "{failed:?}");
    start(&["--", "/no/such/command"]).expect(127);
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("ERROR cannot run /no/such/command"), "{log}");
    assert_log(log.lines());
}
