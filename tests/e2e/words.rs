//! What people type, and what they are told: ports without an option, times with a unit, other
//! tools' commands, and lines that say no more than there is to say.

use std::fs;

use llmlb_tests::{Sandbox, free_port};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

#[test]
fn ports_need_no_option() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let server = sandbox.serve(port);
    let listed = sandbox.run(["status", &text]).expect(0);
    assert!(
        listed.stdout.contains(&server.pid().to_string()),
        "{listed:?}"
    );
    let stopped = sandbox.run(["stop", &text, "--timeout", "1m"]).expect(0);
    assert!(stopped.stdout.ends_with("Server stopped successfully\n"));
    sandbox.run(["status", &text]).expect(3);
    for twice in [
        &["stop", &text, "--all"][..],
        &["stop", &text, "-p", &text],
        &["status", &text, "-p", &text],
    ] {
        sandbox.run(twice).expect(2);
    }
}

#[test]
fn times_are_utc() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _server = sandbox.serve(port);
    let mut status = sandbox.llmlb(["status"]);
    let listed = llmlb_tests::Finished::of(status.env("TZ", "Asia/Tokyo").output().unwrap());
    let row = listed.stdout.lines().nth(1).unwrap();
    let file = fs::read_to_string(sandbox.lock_file(port)).unwrap();
    let started = row.split_whitespace().nth(2).unwrap();
    assert!(started.ends_with('Z'), "{row}");
    assert!(
        file.contains(started.strip_suffix('Z').unwrap()),
        "{row} {file}"
    );
}

#[test]
fn other_tools_commands_are_answered_with_ours() {
    let sandbox = Sandbox::new();
    for (typed, meant) in [
        ("start", "llmlb serve"),
        ("run", "llmlb serve -- COMMAND"),
        ("list", "llmlb status"),
        ("ps", "llmlb status"),
        ("kill", "llmlb stop PORT --force"),
    ] {
        let told = sandbox.run([typed, "8000"]).expect(2);
        let expected = format!("Error: there is no command '{typed}': type {meant}");
        assert!(told.stderr.starts_with(&expected), "{told:?}");
    }
    let told = sandbox.run(["serve", "vllm", "serve", "model"]).expect(2);
    assert!(
        told.stderr
            .contains("put -- before the command: llmlb serve [OPTIONS] -- vllm"),
        "{told:?}"
    );
    let told = sandbox.run(["serve", "8000"]).expect(2);
    assert!(told.stderr.contains("llmlb serve --port 8000"), "{told:?}");
    let told = sandbox.run([GUINEA, "run"]).expect(2);
    let expected = format!("llmlb serve [OPTIONS] -- {GUINEA}");
    assert!(told.stderr.contains(&expected), "{told:?}");
    // What nobody meant is clap's business.
    sandbox.run(["frobnicate"]).expect(2);
}

#[cfg(unix)] // needs a shell
#[test]
fn doubled_braces_are_literal() {
    let sandbox = Sandbox::new();
    let command = [
        "serve",
        "-p",
        "0",
        "--",
        "sh",
        "-c",
        "echo \"$0 $1\"",
        "{{port}}",
        "{{host}}",
    ];
    let printed = sandbox.run(command).expect(0);
    assert_eq!(printed.stdout, "{port} {host}\n");
}

#[test]
fn a_wait_that_ran_out_says_so() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _holder = sandbox.serve(port);
    let refused = sandbox
        .run(["serve", "-p", &port.to_string(), "--wait", "100ms"])
        .expect(1);
    assert!(
        refused
            .stderr
            .contains("Waited 100ms in vain\nError: Server already running"),
        "{refused:?}"
    );
}

#[test]
fn a_missing_directory_is_named() {
    let sandbox = Sandbox::new();
    let missing = sandbox.path().join("none");
    let mut status = sandbox.llmlb(["status"]);
    let told = llmlb_tests::Finished::of(status.env("LLMLB_LOCK_DIR", &missing).output().unwrap())
        .expect(0);
    assert_eq!(told.stdout, "No servers running\n");
    let expected = format!("There is no directory {}", missing.display());
    assert!(told.stderr.starts_with(&expected), "{told:?}");
}

#[test]
fn many_left_over_files_are_one_line() {
    let sandbox = Sandbox::new();
    let port = free_port();
    for stale in (20_000..).take(60) {
        let text =
            format!("{{\"pid\":4194305,\"started_at\":\"2026-01-01T00:00:00Z\",\"port\":{stale}}}");
        fs::write(sandbox.lock_file(stale), text).unwrap();
    }
    let _llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    let stopped = sandbox.run(["stop", "--all"]).expect(0);
    let lines: Vec<_> = stopped.stdout.lines().collect();
    // Who lives is stopped first.
    assert_eq!(lines[2], "Removed 60 lock files that servers left behind");
    assert_eq!(lines.len(), 3, "{stopped:?}");
    assert_eq!(stopped.stderr, "");
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}
