//! `llmlb serve -- COMMAND`: any server under the guard.

use std::fs;
#[cfg(unix)]
use std::os::unix::process::ExitStatusExt;

#[cfg(unix)]
use llmlb_tests::{Running, shell_code, signal_pid, wait_until};
use llmlb_tests::{Sandbox, free_port, is_alive};
#[cfg(unix)]
use nix::sys::signal::Signal;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");
/// What a killed server ends with.
const KILLED: i32 = if cfg!(unix) { 128 + 9 } else { 1 };

#[cfg(unix)]
fn pid_in(line: &str) -> u32 {
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn the_command_holds_the_lock_and_stop_stops_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    let server = sandbox.named_pid(port);
    // On Windows llmlb stays the holder, as the server ends with it.
    assert_eq!(server == llmlb.pid(), cfg!(windows));
    let refused = sandbox
        .run(["serve", "--port", &port.to_string()])
        .expect(1);
    assert!(refused.stderr.contains(&format!("(PID: {server},")));

    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    assert!(!is_alive(server));
    assert!(!sandbox.lock_file(port).exists());
    llmlb.finish().expect(0);
}

#[test]
fn it_ends_with_the_code_of_the_command() {
    let sandbox = Sandbox::new();
    for code in [0, 1, 3, 255] {
        let port = free_port().to_string();
        let command = [
            "serve",
            "--port",
            &port,
            "--",
            GUINEA,
            &format!("exit={code}"),
        ];
        sandbox.run(command).expect(code);
    }
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[cfg(unix)] // signals
#[test]
fn a_command_that_a_signal_ended_is_128_and_the_signal() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGABRT] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let mut llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
        signal_pid(sandbox.named_pid(port), signal);
        assert_eq!(shell_code(llmlb.wait()), Some(128 + signal as i32));
        assert!(!sandbox.lock_file(port).exists());
    }
}

#[test]
fn a_missing_command_is_127_and_the_lock_is_given_back() {
    let sandbox = Sandbox::new();
    let port = free_port().to_string();
    let failed = sandbox
        .run(["serve", "--port", &port, "--", "no-such-command-at-all"])
        .expect(127);
    assert!(
        failed
            .stderr
            .contains("Error: cannot run no-such-command-at-all")
    );
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn a_command_that_cannot_be_executed_is_126() {
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("plain-file");
    fs::write(&file, "no program").unwrap();
    let port = free_port();
    let port_arg = port.to_string();
    let failed = sandbox
        .run(["serve", "--port", &port_arg, "--", file.to_str().unwrap()])
        .expect(126);
    assert!(failed.stderr.contains("plain-file"), "{failed:?}");
    assert!(!sandbox.lock_file(port).exists());
}

#[cfg(unix)] // needs a shell; windows.rs has its own
#[test]
fn placeholders_and_environment_tell_the_command_where() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let script = "echo \"args $0 $1\"; echo \"env $PORT $HOST $LLMLB_PORT $LLMLB_HOST\"";
    let printed = sandbox
        .run([
            "serve",
            "--port",
            &port.to_string(),
            "--host",
            "0.0.0.0",
            "--",
            "sh",
            "-c",
            script,
            "--url=http://{host}:{port}/",
            "{port}{port}",
        ])
        .expect(0);
    assert_eq!(
        printed.stdout,
        format!(
            "args --url=http://0.0.0.0:{port}/ {port}{port}\nenv {port} 0.0.0.0 {port} 0.0.0.0\n"
        )
    );
}

#[cfg(unix)] // needs a shell
#[test]
fn stdin_stdout_and_stderr_pass_through() {
    use std::io::Write;
    use std::process::Stdio;
    let sandbox = Sandbox::new();
    let mut command = sandbox.llmlb(["serve", "--port", "0", "--", "sh", "-c", "cat; echo e >&2"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut llmlb = command.stderr(Stdio::piped()).spawn().unwrap();
    llmlb.stdin.take().unwrap().write_all(b"hello").unwrap();
    let printed = llmlb_tests::Finished::of(llmlb.wait_with_output().unwrap()).expect(0);
    assert_eq!(printed.stdout, "hello");
    assert!(
        printed.stderr.lines().any(|line| line == "e"),
        "{printed:?}"
    );
}

#[cfg(unix)] // on Windows the server ends with llmlb: see windows.rs
#[test]
fn kill_9_of_llmlb_leaves_the_port_guarded_as_long_as_the_server_lives() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    let server = sandbox.named_pid(port);
    llmlb.signal(Signal::SIGKILL);
    assert_eq!(llmlb.wait().signal(), Some(9));

    let refused = sandbox
        .run(["serve", "--port", &port.to_string()])
        .expect(1);
    assert!(refused.stderr.contains(&format!("(PID: {server},")));
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    assert!(!is_alive(server));
    assert!(!sandbox.lock_file(port).exists());
    sandbox.serve(port);
}

#[cfg(unix)] // on Windows the server ends with llmlb: see windows.rs
#[test]
fn a_server_that_dies_after_its_launcher_leaves_a_port_that_recovers() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    let server = sandbox.named_pid(port);
    llmlb.signal(Signal::SIGKILL);
    llmlb.wait();
    signal_pid(server, Signal::SIGKILL);
    wait_until("the server to die", || (!is_alive(server)).then_some(()));
    sandbox.serve(port);
}

#[cfg(unix)] // signals
#[test]
fn sigterm_and_sigint_reach_the_command() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let mut llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
        llmlb.signal(signal);
        llmlb.expect_log("Received shutdown signal, cleaning up...");
        assert_eq!(shell_code(llmlb.wait()), Some(128 + signal as i32));
        assert!(!sandbox.lock_file(port).exists());
    }
}

#[test]
fn a_stubborn_command_is_killed_after_the_drain_timeout() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let llmlb = sandbox.supervise(
        port,
        &["--drain-timeout", "0.1"],
        &[GUINEA, "{port}", "stubborn", "worker"],
    );
    llmlb.ask_to_end();
    llmlb.finish().expect(KILLED);
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_second_signal_kills_at_once() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut llmlb = sandbox.supervise(
        port,
        &["--drain-timeout", "86400"],
        &[GUINEA, "{port}", "stubborn"],
    );
    llmlb.ask_to_end();
    llmlb.expect_log("Received shutdown signal");
    llmlb.ask_again_to_end();
    llmlb.finish().expect(KILLED);
    assert!(!sandbox.lock_file(port).exists());
}

/// A server with processes that ignore SIGTERM and SIGINT, in its group and outside of it.
#[cfg(unix)]
fn with_left_behind(sandbox: &Sandbox, port: u16) -> (Running, [u32; 2]) {
    let command = [GUINEA, "{port}", "graceful=0", "worker", "daemon"];
    let port_arg = port.to_string();
    let mut llmlb = sandbox.llmlb(["serve", "--port", &port_arg, "--"]);
    let mut llmlb = Running::start(llmlb.args(command));
    let mut workers = Vec::new();
    let mut ready = false;
    while workers.len() < 2 || !ready {
        let line = llmlb.expect_output("");
        if line.starts_with("worker ") {
            workers.push(pid_in(&line));
        } else if line.starts_with("ready") {
            ready = true;
        }
    }
    assert!(workers.iter().all(|&worker| is_alive(worker)));
    (llmlb, workers.try_into().unwrap())
}

#[cfg(unix)]
fn expect_all_gone(sandbox: &Sandbox, port: u16, workers: [u32; 2]) {
    for worker in workers {
        wait_until("the worker to be gone", || {
            (!is_alive(worker)).then_some(())
        });
    }
    assert!(!sandbox.lock_file(port).exists());
    sandbox.serve(port);
}

#[cfg(target_os = "linux")]
fn expect_all_gone_after_start(sandbox: &Sandbox, port: u16, workers: [u32; 2]) {
    // They hold the lock, and no process is named that lives.
    let mut next = sandbox.serve(port);
    assert!(workers.iter().all(|&worker| !is_alive(worker)));
    next.ask_to_end();
    next.wait();
}

#[cfg(unix)] // process groups; windows.rs has its own
#[test]
fn what_the_server_leaves_behind_is_ended_with_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (llmlb, workers) = with_left_behind(&sandbox, port);
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    llmlb.finish().expect(0);
    expect_all_gone(&sandbox, port, workers);
}

#[cfg(unix)] // process groups; windows.rs has its own
#[test]
fn also_when_the_server_ends_by_itself() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (llmlb, workers) = with_left_behind(&sandbox, port);
    signal_pid(sandbox.named_pid(port), Signal::SIGKILL);
    llmlb.finish().expect(128 + 9);
    expect_all_gone(&sandbox, port, workers);
}

#[cfg(unix)] // on Windows the server ends with llmlb: see windows.rs
#[test]
fn and_by_stop_when_the_launcher_is_long_gone() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (mut llmlb, workers) = with_left_behind(&sandbox, port);
    llmlb.signal(Signal::SIGKILL);
    llmlb.wait();
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    expect_all_gone(&sandbox, port, workers);
}

#[cfg(target_os = "linux")] // they are known by their environment
#[test]
fn and_by_the_next_start_when_launcher_and_server_are_gone() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (mut llmlb, workers) = with_left_behind(&sandbox, port);
    llmlb.signal(Signal::SIGKILL);
    llmlb.wait();
    let server = sandbox.named_pid(port);
    signal_pid(server, Signal::SIGKILL);
    wait_until("the server to die", || (!is_alive(server)).then_some(()));
    expect_all_gone_after_start(&sandbox, port, workers);
}

#[cfg(unix)] // on Windows the server ends with llmlb: see windows.rs
#[test]
fn and_by_stop_when_launcher_and_server_are_gone() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (mut llmlb, workers) = with_left_behind(&sandbox, port);
    llmlb.signal(Signal::SIGKILL);
    llmlb.wait();
    let server = sandbox.named_pid(port);
    signal_pid(server, Signal::SIGKILL);
    wait_until("the server to die", || (!is_alive(server)).then_some(()));

    let listed = sandbox
        .run(["status", "--port", &port.to_string()])
        .expect(4);
    assert!(listed.stdout.contains("Held"), "{listed:?}");
    sandbox
        .run([
            "stop",
            "--port",
            &port.to_string(),
            "--force",
            "--timeout",
            "0.1",
        ])
        .expect(0);
    expect_all_gone(&sandbox, port, workers);
}

#[test]
fn the_same_port_can_be_served_again_and_again() {
    let sandbox = Sandbox::new();
    let port = free_port();
    for _ in 0..10 {
        let llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=7"]);
        sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
        llmlb.finish().expect(7);
    }
}

#[test]
fn replace_replaces_a_supervised_server() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let old = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    let new = sandbox.supervise(port, &["--replace"], &[GUINEA, "{port}", "graceful=0"]);
    old.finish().expect(0);
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    new.finish().expect(0);
}
