//! `llmlb serve --detach`: a server in the background, and what its caller is told.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use llmlb_tests::{Running, Sandbox, free_port, http_get, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

/// Runs it as one does at a prompt: what it leaves in the background must not keep its output open.
fn detach(
    sandbox: &Sandbox,
    port: u16,
    options: &[&str],
    command: &[&str],
) -> llmlb_tests::Finished {
    let port = port.to_string();
    let mut args = vec!["serve", "--detach", "--port", &port];
    args.extend(options);
    if !command.is_empty() {
        args.push("--");
        args.extend(command);
    }
    sandbox.run(args)
}

fn default_log(sandbox: &Sandbox, port: u16) -> PathBuf {
    sandbox.lock_file(port).with_extension("log")
}

/// The guarding llmlb, as the message names it.
fn launcher(message: &str) -> u32 {
    let after = message.split("(PID: ").nth(1).unwrap();
    after.split(')').next().unwrap().parse().unwrap()
}

fn logged(log: &std::path::Path, text: &str) {
    wait_until(text, || {
        fs::read_to_string(log).ok()?.contains(text).then_some(())
    });
}

#[test]
fn it_returns_when_the_server_is_ready_and_stop_ends_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let log = default_log(&sandbox, port);
    let text = port.to_string();
    let server = [GUINEA, &text, "graceful=0"];
    let started = detach(&sandbox, port, &[], &server).expect(0);
    let pid = launcher(&started.stdout);
    let message = format!(
        "Serving on port {port} in the background (PID: {pid}), its log is {}\n",
        log.display()
    );
    assert_eq!((started.stdout, started.stderr), (message, String::new()));
    // It is ready, for all who ask.
    sandbox.run(["status", &text]).expect(0);
    let session = getsid(Some(Pid::from_raw(pid.cast_signed()))).unwrap();
    assert_eq!(session.as_raw(), pid.cast_signed(), "a session of its own");
    let stdin = fs::read_link(format!("/proc/{}/fd/0", sandbox.named_pid(port)));
    assert_eq!(stdin.unwrap(), PathBuf::from("/dev/null"));
    // Both have spoken.
    logged(&log, "ready ");
    logged(&log, "accepting connections after");
    let again = detach(&sandbox, port, &[], &server).expect(1);
    assert!(
        again.stderr.contains("Error: Server already running"),
        "{again:?}"
    );
    let own = fs::read_to_string(&log).unwrap();
    assert!(!own.contains("already running"), "the holder's log: {own}");
    sandbox.run(["stop", &text]).expect(0);
    wait_until("llmlb to end", || (!is_alive(pid)).then_some(()));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn the_built_in_server_can_be_in_the_background_too() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let started = detach(&sandbox, port, &[], &[]).expect(0);
    assert!(started.stdout.contains("in the background"), "{started:?}");
    assert!(http_get(port, "/health").contains(&format!("\"port\":{port}")));
    sandbox.run(["stop", &port.to_string()]).expect(0);
}

#[test]
fn one_that_fails_is_told_with_the_end_of_its_log() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let script = "seq 100; echo out of memory >&2; exit 3";
    let failed = detach(&sandbox, port, &[], &["sh", "-c", script]).expect(3);
    let log = default_log(&sandbox, port);
    let message = format!(
        "Error: the server ended before it was ready; the end of its log {}:\n",
        log.display()
    );
    assert!(failed.stderr.starts_with(&message), "{failed:?}");
    assert!(failed.stderr.contains("\n100\n"), "{failed:?}");
    assert!(failed.stderr.contains("\nout of memory\n"), "{failed:?}");
    assert!(!failed.stderr.contains("\n50\n"), "all of it: {failed:?}");
    // What went well is no server either.
    let none = detach(&sandbox, port, &[], &["true"]).expect(1);
    assert!(
        !none.stderr.contains("out of memory"),
        "of an earlier start: {none:?}"
    );
    detach(&sandbox, port, &[], &["/no/such"]).expect(127);
    let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = stranger.local_addr().unwrap().port();
    let failed = detach(&sandbox, taken, &[], &[]).expect(1);
    assert!(failed.stderr.contains("cannot listen on"), "{failed:?}");
    let too_late = ["--ready-timeout", "100ms"];
    let failed = detach(&sandbox, port, &too_late, &["sleep", "600"]).expect(1);
    let said = failed.stderr.matches("was not ready within 100ms").count();
    assert_eq!(said, 1, "{failed:?}");
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_log_that_cannot_be_written_is_said_to_the_caller() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let nowhere = sandbox.path().join("no/such/log");
    let option = ["--log-file", nowhere.to_str().unwrap()];
    let failed = detach(&sandbox, port, &option, &["sleep", "600"]).expect(1);
    let message = format!("Error: cannot write to the log {}", nowhere.display());
    assert!(failed.stderr.contains(&message), "{failed:?}");
    // What is planted in the place of the default one is left alone.
    let planted = sandbox.path().join("planted");
    std::os::unix::fs::symlink(&planted, default_log(&sandbox, port)).unwrap();
    let failed = detach(&sandbox, port, &[], &["sleep", "600"]).expect(1);
    assert!(
        failed.stderr.contains("cannot write to the log"),
        "{failed:?}"
    );
    assert!(!planted.exists());
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_full_disk_holds_nobody_up() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let server = ["sh", "-c", "seq 100000; exec \"$0\" \"$@\"", GUINEA, &text];
    detach(&sandbox, port, &["--log-file", "/dev/full"], &server).expect(0);
    sandbox.run(["stop", &text]).expect(0);
}

#[test]
fn a_caller_whose_output_is_full_is_told_elsewhere_that_the_server_serves() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let mut command = sandbox.llmlb(["serve", "--detach", "--port", &text]);
    let started = command.stdout(full.unwrap()).output().unwrap();
    let started = llmlb_tests::Finished::of(started).expect(0);
    let message = format!("Serving on port {port} in the background (PID: ");
    assert!(started.stderr.contains(&message), "{started:?}");
    sandbox.run(["status", &text]).expect(0);
    sandbox.run(["stop", &text]).expect(0);
}

/// What `--check` would refuse is no reason to end a server, whatever kind it is of.
#[test]
fn a_successor_whose_log_cannot_be_written_ends_nobody() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let nowhere = sandbox.path().join("no/such/log");
    let nowhere = ["--replace", "--log-file", nowhere.to_str().unwrap()];
    let refused = |options: &[&str], command: &[&str]| {
        let named = sandbox.named_pid(port);
        let refused = detach(&sandbox, port, options, command).expect(1);
        let message = "Error: cannot write to the log ";
        assert!(refused.stderr.starts_with(message), "{refused:?}");
        assert_eq!(sandbox.named_pid(port), named);
        sandbox.run(["status", &text]).expect(0);
        let check = [options, &["--check"]].concat();
        let checked = detach(&sandbox, port, &check, command).expect(1);
        assert_eq!(checked.stderr, refused.stderr);
    };
    let command = [GUINEA, &text];
    for holder in [&command[..], &[]] {
        let log = sandbox.path().join("log");
        let option = ["--log-file", log.to_str().unwrap()];
        detach(&sandbox, port, &option, holder).expect(0);
        refused(&nowhere, &command);
        refused(&nowhere, &[]);
        let planted = default_log(&sandbox, port);
        fs::create_dir(&planted).unwrap();
        refused(&["--replace"], &command);
        refused(&["--replace"], &[]);
        fs::remove_dir(&planted).unwrap();
        sandbox.run(["stop", &text]).expect(0);
    }
}

#[test]
fn a_file_size_limit_holds_nobody_up_and_is_the_servers_to_meet() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let says = "seq 1000; exec \"$0\" \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "ulimit -f 4; exec \"$0\" \"$@\""]);
    command.arg(llmlb_tests::llmlb_binary());
    command.args(["serve", "--detach", "--port", &text, "--"]);
    command.args(["sh", "-c", says, GUINEA, &text]);
    command.env("LLMLB_LOCK_DIR", sandbox.path());
    let started = command.output().unwrap();
    llmlb_tests::Finished::of(started).expect(0);
    let len = fs::metadata(default_log(&sandbox, port)).unwrap().len();
    assert!(len <= 4 * 1024, "{len}");
    let status = format!("/proc/{}/status", sandbox.named_pid(port));
    let status = fs::read_to_string(status).unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = u64::from_str_radix(ignored.unwrap().trim(), 16).unwrap();
    assert_eq!(ignored & (1 << (Signal::SIGXFSZ as i32 - 1)), 0);
    sandbox.run(["stop", &text]).expect(0);
}

#[test]
fn a_guard_that_is_killed_is_told_apart_from_its_server() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let file = sandbox.path().join("never");
    let when = format!("listen-when={}", file.display());
    let mut command = sandbox.llmlb(["serve", "--detach", "--port", &text, "--"]);
    let caller = Running::start(command.args([GUINEA, &text, &when]));
    logged(&default_log(&sandbox, port), "loading");
    let server = sandbox.named_pid(port);
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    let guard: u32 = parent.unwrap().trim().parse().unwrap();
    signal_pid(guard, Signal::SIGKILL);
    let told = caller.finish().expect(128 + 9);
    let message = format!(
        "Error: llmlb (PID: {guard}) was ended by SIGKILL before its server was ready; that still \
         runs (PID: {server})\n\nTo stop it: llmlb stop --port {port}\n"
    );
    assert_eq!(told.stderr, message);
    sandbox.run(["status", &text]).expect(5);
    sandbox.run(["stop", &text]).expect(0);
    assert!(!is_alive(server));
}

#[test]
fn a_caller_that_is_killed_leaves_a_server_that_can_be_stopped() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let file = sandbox.path().join("loaded");
    let when = format!("listen-when={}", file.display());
    let mut command = sandbox.llmlb(["serve", "--detach", "--port", &text, "--"]);
    let mut caller = Running::start(command.args([GUINEA, &text, &when]));
    logged(&default_log(&sandbox, port), "loading");
    let said = caller.expect_log("Still waiting for ");
    assert!(
        said.contains(&format!("on port {port}; the log is /")),
        "{said}"
    );
    caller.kill();
    fs::write(&file, "").unwrap();
    sandbox.run(["status", &text, "--wait", "60"]).expect(0);
    sandbox.run(["stop", &text]).expect(0);
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_log_that_was_moved_is_opened_anew_at_sighup_which_the_server_does_not_get() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let log = sandbox.path().join("a.log");
    let option = ["--log-file", log.to_str().unwrap()];
    let speaking =
        "exec 3>&1; while :; do echo speaking >&3; sleep 0.01; done & exec \"$0\" \"$@\"";
    let server = ["sh", "-c", speaking, GUINEA, &text];
    let started = detach(&sandbox, port, &option, &server).expect(0);
    logged(&log, "speaking");
    let moved = sandbox.path().join("a.log.1");
    fs::rename(&log, &moved).unwrap();
    signal_pid(launcher(&started.stdout), Signal::SIGHUP);
    logged(&log, "speaking");
    let len = fs::metadata(&moved).unwrap().len();
    let said = fs::metadata(&log).unwrap().len();
    wait_until("more to be said", || {
        (fs::metadata(&log).unwrap().len() > said + 100).then_some(())
    });
    assert_eq!(fs::metadata(&moved).unwrap().len(), len);
    sandbox.run(["status", &text]).expect(0);
    sandbox.run(["stop", &text]).expect(0);
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains("Server"), "the end is in the new one: {log}");
}

/// By logrotate where it is installed, else by what logrotate would do.
#[test]
fn the_logrotate_snippet_rotates() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let snippet = fs::read_to_string(format!("{root}/packaging/llmlb.logrotate")).unwrap();
    let documents = fs::read_to_string(format!("{root}/docs/background.md")).unwrap();
    assert!(documents.contains(&snippet));
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let logs = sandbox.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let log = logs.join("chat.log");
    let option = ["--log-file", log.to_str().unwrap()];
    detach(&sandbox, port, &option, &[GUINEA, &text]).expect(0);
    let snippet = snippet.replace("/var/log/llmlb", logs.to_str().unwrap());
    let configuration = sandbox.path().join("llmlb.logrotate");
    fs::write(&configuration, &snippet).unwrap();
    let directory = llmlb_tests::llmlb_binary().parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let run = |program: &str, args: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(args).env("LLMLB_LOCK_DIR", sandbox.path());
        command.env("PATH", format!("{}:{path}:/usr/sbin", directory.display()));
        command.status()
    };
    let state = sandbox.path().join("state");
    let state = state.to_str().unwrap();
    let arguments = ["-f", "-s", state, configuration.to_str().unwrap()];
    match run("/usr/sbin/logrotate", &arguments) {
        Ok(status) => assert!(status.success()),
        Err(_) => {
            fs::rename(&log, logs.join("chat.log.1")).unwrap();
            let script = snippet.split("postrotate").nth(1).unwrap();
            let script = script.split("endscript").next().unwrap();
            assert!(run("sh", &["-c", script]).unwrap().success());
        }
    }
    wait_until("the log to be opened anew", || log.exists().then_some(()));
    sandbox.run(["stop", &text]).expect(0);
    logged(&log, "Server was ended by SIGTERM");
    let rotated = fs::read_to_string(logs.join("chat.log.1")).unwrap();
    assert!(rotated.contains("Guarding port"), "{rotated}");
}
