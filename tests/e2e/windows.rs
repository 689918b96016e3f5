//! What is different on Windows.

use std::os::windows::process::CommandExt;
use std::process::Command;

use llmlb_tests::{Running, Sandbox, free_port, is_alive, wait_until};
use windows::Win32::System::Console::{CTRL_BREAK_EVENT, GenerateConsoleCtrlEvent};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

fn pid_in(line: &str) -> u32 {
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The server and its worker, in whatever order they say that they are there.
fn pids(running: &mut Running) -> [u32; 2] {
    let (mut server, mut worker) = (0, 0);
    while server == 0 || worker == 0 {
        let line = running.expect_output("");
        if line.starts_with("worker") {
            worker = pid_in(&line);
        } else if line.starts_with("ready") {
            server = pid_in(&line);
        }
    }
    [server, worker]
}

/// llmlb, and the server and the worker that it runs.
fn family(sandbox: &Sandbox, port: u16) -> (Running, [u32; 2]) {
    family_of(sandbox, port, "graceful=0")
}

fn family_of(sandbox: &Sandbox, port: u16, manners: &str) -> (Running, [u32; 2]) {
    let port = port.to_string();
    let command = ["serve", "--port", &port, "--", GUINEA, "{port}"];
    let mut llmlb = sandbox.llmlb(command);
    let mut llmlb = Running::start(llmlb.args([manners, "worker"]));
    let [server, worker] = pids(&mut llmlb);
    assert!(is_alive(server) && is_alive(worker));
    (llmlb, [server, worker])
}

#[test]
fn a_killed_llmlb_takes_its_server_with_it_and_the_port_recovers() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (mut llmlb, children) = family(&sandbox, port);
    assert_eq!(sandbox.named_pid(port), llmlb.pid());
    llmlb.kill();
    for child in children {
        wait_until("the child to end", || (!is_alive(child)).then_some(()));
    }
    sandbox.serve(port);
}

#[test]
fn a_server_ends_gracefully_and_what_it_leaves_behind_with_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (llmlb, children) = family(&sandbox, port);
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    // Nothing is waited for: stopped means that all of it has ended.
    assert_eq!(children.map(is_alive), [false; 2]);
    llmlb.finish().expect(0);
    assert!(!sandbox.lock_file(port).exists());
    sandbox.serve(port);
}

#[test]
fn a_forced_stop_says_stopped_when_all_that_the_server_started_has_ended() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (llmlb, children) = family_of(&sandbox, port, "stubborn");
    let stop = ["stop", "-p", &port.to_string(), "-t", "0.1", "--force"];
    let stopped = sandbox.run(stop).expect(0);
    assert_eq!(children.map(is_alive), [false; 2]);
    assert!(stopped.stdout.contains("killed"), "{stopped:?}");
    llmlb.finish().expect(1);
}

#[test]
fn a_forced_stop_of_llmlb_ends_its_server() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "stubborn"]);
    let stop = ["stop", "-p", &port.to_string(), "-t", "0.1", "--force"];
    let stopped = sandbox.run(stop).expect(0);
    assert!(stopped.stdout.contains("killed"), "{stopped:?}");
    llmlb.finish().expect(1);
    sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
}

#[test]
fn a_holder_that_does_not_listen_is_terminated_at_once_and_that_is_said() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut holder = Command::new(GUINEA);
    holder.args([&port.to_string(), "lock"]);
    let mut holder = Running::start(holder.env("LLMLB_LOCK_DIR", sandbox.path()));
    holder.expect_output("ready");
    let stopped = sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    let terminated = format!(
        "Server terminated: it does not listen for stop requests (PID: {})",
        holder.pid()
    );
    assert!(stopped.stdout.contains(&terminated), "{stopped:?}");
    assert!(!sandbox.lock_file(port).exists());
    holder.finish().expect(1);
}

#[test]
fn stopped_means_that_nothing_lives_in_the_job_of_a_server_that_has_ended_itself() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut holder = Command::new(GUINEA);
    holder.args([&port.to_string(), "lock", "graceful=0", "job"]);
    let mut holder = Running::start(holder.env("LLMLB_LOCK_DIR", sandbox.path()));
    let [_, worker] = pids(&mut holder);
    let stop = ["stop", "-p", &port.to_string(), "-t", "0.1", "--force"];
    sandbox.run(stop).expect(0);
    assert!(!is_alive(worker));
    holder.finish().expect(0);
}

#[test]
fn a_command_that_goes_to_the_background_is_ended_and_that_is_a_failure() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let port_ = port.to_string();
    let command = ["serve", "--port", &port_, "--", GUINEA, "{port}", "daemon"];
    let mut llmlb = Running::start(&mut sandbox.llmlb(command));
    let daemon = pid_in(&llmlb.expect_output("worker"));
    llmlb.expect_log("a COMMAND has to stay in the foreground");
    llmlb.finish().expect(1);
    assert!(!is_alive(daemon));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn placeholders_and_environment_tell_the_command_where() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let variables = ["env=PORT", "env=HOST", "env=LLMLB_PORT", "env=LLMLB_HOST"];
    let command = ["serve", "--port", &port.to_string(), "--", GUINEA, "{port}"];
    let mut llmlb = sandbox.llmlb(command);
    let mut llmlb = Running::start(llmlb.args(variables));
    for expected in [
        format!("PORT={port}"),
        "HOST=127.0.0.1".to_owned(),
        format!("LLMLB_PORT={port}"),
        "LLMLB_HOST=127.0.0.1".to_owned(),
    ] {
        assert_eq!(llmlb.expect_output(""), expected);
    }
    // It listens where the placeholder said.
    llmlb.expect_output("ready");
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
}

#[test]
fn ctrl_break_shuts_down_cleanly() {
    if std::env::var_os("LLMLB_TEST_WINE").is_some() {
        eprintln!("not under wine: GenerateConsoleCtrlEvent does not work there");
        return;
    }
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    let mut server = Running::start(command.creation_flags(CREATE_NEW_PROCESS_GROUP));
    server.expect_log("listening on");
    // SAFETY: takes numbers alone, and the group is the one that was just made.
    unsafe { GenerateConsoleCtrlEvent(CTRL_BREAK_EVENT, server.pid()) }.unwrap();
    server.expect_log("Received shutdown signal");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!sandbox.lock_file(port).exists());
}
