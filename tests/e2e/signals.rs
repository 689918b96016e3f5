//! Signals as they really come: blocked or ignored by whoever started llmlb, doubled by `timeout`,
//! and passed on by a death.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;
use std::time::{Duration, Instant};

use llmlb_tests::{Running, Sandbox, free_port, is_alive, llmlb_binary, signal_pid, wait_until};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

fn serve(sandbox: &Sandbox, port: u16, command: &[&str]) -> Command {
    let mut llmlb = sandbox.llmlb(["serve", "-p", &port.to_string(), "--"]);
    llmlb.args(command);
    llmlb
}

/// As a parent would that handles these by sigwait or a signalfd.
fn block(command: &mut Command, signals: &'static [Signal]) {
    // SAFETY: setting the mask is safe after a fork.
    unsafe {
        command.pre_exec(move || {
            let mut set = SigSet::empty();
            signals.iter().for_each(|&signal| set.add(signal));
            Ok(set.thread_block()?)
        });
    }
}

fn mask(pid: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(which));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

fn bit(signal: Signal) -> u64 {
    1 << (signal as i32 - 1)
}

#[test]
fn blocked_signals_do_not_keep_the_guard_from_ending() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = serve(&sandbox, port, &["sh", "-c", "echo ready; exit 7"]);
    block(
        &mut command,
        &[Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT],
    );
    let mut llmlb = Running::start(&mut command);
    assert_eq!(llmlb.wait().code(), Some(7));
}

#[test]
fn blocked_signals_reach_the_guard_and_stay_blocked_for_the_server() {
    let sandbox = Sandbox::new();
    let port = free_port();
    // Sleeps with the mask it was started with.
    let mut command = serve(&sandbox, port, &["sh", "-c", "echo ready; exec sleep 1000"]);
    block(&mut command, &[Signal::SIGCHLD, Signal::SIGTERM]);
    let mut llmlb = Running::start(&mut command);
    llmlb.expect_output("ready");
    let server = sandbox.named_pid(port);
    let expected = bit(Signal::SIGCHLD) | bit(Signal::SIGTERM);
    assert_eq!(mask(server, "SigBlk:"), expected);
    assert_eq!(mask(llmlb.pid(), "SigBlk:") & expected, 0);
    // It cannot be asked, so it is killed in the end: what matters is that llmlb hears.
    llmlb.signal(Signal::SIGTERM);
    llmlb.expect_log("Received shutdown signal");
    llmlb.signal(Signal::SIGINT);
    assert_eq!(llmlb.wait().code(), Some(128 + 9));
    assert!(!is_alive(server));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_built_in_server_ends_although_sigterm_was_blocked() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.llmlb(["serve", "-p", &free_port().to_string()]);
    block(&mut command, &[Signal::SIGTERM]);
    let mut llmlb = Running::start(&mut command);
    llmlb.expect_log("listening on");
    llmlb.signal(Signal::SIGTERM);
    assert_eq!(llmlb.wait().code(), Some(0));
}

#[test]
fn ignored_signals_stay_ignored_for_the_server() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = Command::new("sh");
    command
        .env("LLMLB_LOCK_DIR", sandbox.path())
        .args(["-c", "trap '' HUP CHLD TTOU; exec \"$@\"", "sh"])
        .arg(llmlb_binary())
        .args(["serve", "-p", &port.to_string(), "--"])
        .args(["sh", "-c", "echo ready; exec sleep 1000"]);
    let mut llmlb = Running::start(&mut command);
    llmlb.expect_output("ready");
    let server = sandbox.named_pid(port);
    let expected = bit(Signal::SIGHUP) | bit(Signal::SIGTTOU);
    assert_eq!(mask(server, "SigIgn:") & expected, expected);
    llmlb.signal(Signal::SIGTERM);
    assert_eq!(llmlb.wait().signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn the_guard_dies_of_the_signal_that_ended_the_server() {
    for signal in [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let mut command = serve(
            &sandbox,
            port,
            &["sh", "-c", "ulimit -c 0; echo ready; exec sleep 1000"],
        );
        let mut llmlb = Running::start(command.current_dir(sandbox.path()));
        llmlb.expect_output("ready");
        signal_pid(sandbox.named_pid(port), signal);
        let status = llmlb.wait();
        assert_eq!(status.signal(), Some(signal as i32));
        assert!(!status.core_dumped());
        // Given back before.
        assert!(!sandbox.lock_file(port).exists());
    }
}

#[test]
fn a_guard_that_only_waited_dies_of_the_signal_as_well() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _holder = sandbox.serve(port);
    let mut waiter =
        Running::start(&mut sandbox.llmlb(["serve", "-p", &port.to_string(), "--wait", "60"]));
    waiter.expect_log("Waiting up to");
    waiter.signal(Signal::SIGINT);
    assert_eq!(waiter.wait().signal(), Some(Signal::SIGINT as i32));
    assert!(sandbox.lock_file(port).exists());
}

#[test]
fn a_hangup_does_not_end_a_server_that_starts() {
    let sandbox = Sandbox::new();
    let port = free_port().to_string();
    let mut before: Option<Running> = None;
    for more in [&[][..], &["--replace"]] {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let backend = format!("http://{}", silent.local_addr().unwrap());
        let serve = ["serve", "-p", &port, "--backend", &backend];
        let mut server = Running::start(sandbox.llmlb(serve).args(more));
        let _unanswered = silent.accept().unwrap();
        server.signal(Signal::SIGHUP);
        server.expect_log("listening on");
        server.expect_log("no file to read again");
        if let Some(mut before) = before.replace(server) {
            assert_eq!(before.wait().code(), Some(0));
        }
    }
}

#[test]
fn a_hangup_does_not_end_a_server_that_waits() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut holder = sandbox.serve(port);
    for command in [&[][..], &["--", "sh", "-c", "echo ready; exec sleep 1000"]] {
        let wait = ["serve", "-p", &text, "--wait", "60"];
        let mut waiter = Running::start(sandbox.llmlb(wait).args(command));
        waiter.expect_log("Waiting up to");
        waiter.signal(Signal::SIGHUP);
        holder.signal(Signal::SIGTERM);
        holder.wait();
        match command {
            [] => waiter.expect_log("no file to read again"),
            // Nobody has told it to hang up, which would end it.
            _ => {
                waiter.expect_output("ready");
                waiter.signal(Signal::SIGUSR1);
                waiter.expect_log("Server was ended by SIGUSR1")
            }
        };
        holder = waiter;
    }
}

/// GNU `timeout` signals its child and then its group, which the child is in.
#[test]
fn the_same_signal_twice_at_once_is_one_request() {
    for round in 0..10 {
        let sandbox = Sandbox::new();
        let port = free_port();
        let log = sandbox.path().join("signals");
        let count = format!("count={}", log.display());
        let mut command = Command::new("timeout");
        command
            .env("LLMLB_LOCK_DIR", sandbox.path())
            .arg("1000")
            .arg(llmlb_binary())
            .args(["serve", "-p", &port.to_string(), "--"])
            .args([GUINEA, &port.to_string(), &count, "graceful=5"]);
        let mut timeout = Running::start(&mut command);
        timeout.expect_output("ready");
        timeout.signal(Signal::SIGTERM);
        let ended = timeout.finish();
        assert!(
            ended.code == Some(5) || ended.code == Some(124),
            "{round}: {ended:?}"
        );
        assert!(
            !ended.stderr.contains("Second signal"),
            "{round}: {ended:?}"
        );
        assert_eq!(fs::read_to_string(&log).unwrap(), "SIGTERM\n", "{round}");
    }
}

#[test]
fn and_also_when_llmlb_has_seen_the_first_before_the_second_comes() {
    loop {
        let sandbox = Sandbox::new();
        let port = free_port();
        let log = sandbox.path().join("signals");
        let count = format!("count={}", log.display());
        let command = [GUINEA, &port.to_string(), &count, "graceful=5", "slow=1"];
        let mut llmlb = Running::start(&mut serve(&sandbox, port, &command));
        llmlb.expect_output("ready");
        let first = Instant::now();
        llmlb.signal(Signal::SIGTERM);
        llmlb.expect_log("Received shutdown signal");
        llmlb.signal(Signal::SIGTERM);
        // On a busy machine it may have come too late to be the same.
        if first.elapsed() < Duration::from_millis(400) {
            assert_eq!(llmlb.wait().code(), Some(5));
            assert_eq!(fs::read_to_string(&log).unwrap(), "SIGTERM\ndrained\n");
            return;
        }
    }
}

#[test]
fn the_same_signal_again_after_a_while_is_a_second_one() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut command = serve(&sandbox, port, &[GUINEA, &port.to_string(), "stubborn"]);
    let mut llmlb = Running::start(command.process_group(0));
    llmlb.expect_output("ready");
    let group = Pid::from_raw(llmlb.pid().cast_signed());
    killpg(group, Signal::SIGTERM).unwrap();
    llmlb.expect_log("Received shutdown signal");
    // Again and again, as somebody would who wants it to end.
    let status = wait_until("the second signal to be one", || {
        let _ = killpg(group, Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
        llmlb.child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(128 + 9));
}
