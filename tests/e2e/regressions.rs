//! What went wrong once.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use llmlb_tests::{
    Finished, Running, Sandbox, free_port, is_alive, llmlb_binary, shell_code, signal_pid,
    wait_until,
};
use nix::sys::signal::Signal;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

#[test]
fn a_time_at_the_end_of_the_calendar_overflows_nothing() {
    let sandbox = Sandbox::new();
    for year in ["+262142", "-262143"] {
        let port = free_port();
        let json = format!(r#"{{"pid":1,"started_at":"{year}-12-31T23:59:59Z","port":{port}}}"#);
        let port_arg = port.to_string();
        fs::write(sandbox.lock_file(port), &json).unwrap();
        let mut status = sandbox.llmlb(["status", "--all"]);
        let listed = Finished::of(status.env("TZ", "Asia/Tokyo").output().unwrap());
        assert!(listed.expect(0).stdout.contains("Stale"));
        sandbox.run(["stop", "--port", &port_arg]).expect(0);
        fs::write(sandbox.lock_file(port), &json).unwrap();
        sandbox.serve(port);
    }
}

#[test]
fn nohup_holds_for_the_server_too() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut nohup = Command::new("nohup");
    nohup
        .arg(llmlb_binary())
        .env("LLMLB_LOCK_DIR", sandbox.path());
    nohup.args(["serve", "--port", &port.to_string(), "--", GUINEA, "{port}"]);
    let mut llmlb = Running::start(&mut nohup);
    llmlb.expect_output("ready");
    let server = sandbox.named_pid(port);
    llmlb.signal(Signal::SIGHUP);
    signal_pid(server, Signal::SIGHUP);
    // One that can't be ignored comes after those, and is what ends it.
    llmlb.signal(Signal::SIGTERM);
    assert_eq!(shell_code(llmlb.wait()), Some(128 + 15));
}

#[test]
fn a_wrapper_that_ends_first_does_not_cut_the_drain_short() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let log = sandbox.path().join("signals");
    let script = format!("'{GUINEA}' {port} slow=2 count='{}'; true", log.display());
    for by_stop in [true, false] {
        let _ = fs::remove_file(&log);
        let llmlb = sandbox.supervise(port, &["--drain-timeout", "60"], &["sh", "-c", &script]);
        if by_stop {
            let stop = ["stop", "--port", &port.to_string(), "--timeout", "60"];
            sandbox.run(stop).expect(0);
        } else {
            llmlb.signal(Signal::SIGTERM);
        }
        llmlb.finish();
        // It had the time it takes, and was asked once.
        assert_eq!(fs::read_to_string(&log).unwrap(), "SIGTERM\ndrained\n");
    }
}

#[test]
fn workers_that_closed_the_lock_and_lost_their_environment_are_ended() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let command = [GUINEA, "{port}", "graceful=0", "bare-worker"];
    let mut llmlb = sandbox.llmlb(["serve", "--port", &port.to_string(), "--"]);
    let mut llmlb = Running::start(llmlb.args(command));
    let worker = llmlb.expect_output("worker");
    let worker: u32 = worker.split(' ').nth(1).unwrap().parse().unwrap();
    llmlb.expect_log("Guarding");
    wait_until("the server to listen", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    llmlb.signal(Signal::SIGKILL);
    llmlb.wait();
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    wait_until("the worker to end", || (!is_alive(worker)).then_some(()));
}

#[test]
fn stop_continues_what_was_stopped() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    signal_pid(sandbox.named_pid(port), Signal::SIGSTOP);
    llmlb.signal(Signal::SIGSTOP);
    let stop = ["stop", "--port", &port.to_string(), "--timeout", "60"];
    sandbox.run(stop).expect(0);
    llmlb.finish().expect(0);
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_launcher_that_clears_up_is_named() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let command = [GUINEA, "{port}", "worker"];
    let mut llmlb = sandbox.supervise(port, &["--drain-timeout", "60"], &command);
    let server = sandbox.named_pid(port);
    wait_until("the worker to block SIGTERM", || {
        let children = format!("/proc/{server}/task/{server}/children");
        let worker = fs::read_to_string(children).ok()?;
        let status = fs::read_to_string(format!("/proc/{}/status", worker.trim())).ok()?;
        let mask = status.split("SigBlk:").nth(1)?.split_whitespace().next()?;
        let mask = u64::from_str_radix(mask, 16).ok()?;
        (mask >> (Signal::SIGTERM as u32 - 1) & 1 == 1).then_some(())
    });
    signal_pid(server, Signal::SIGKILL);
    // The worker ignores SIGTERM and has a minute.
    wait_until("the launcher to be named", || {
        (sandbox.named_pid(port) == llmlb.pid()).then_some(())
    });
    let refused = sandbox
        .run(["serve", "--port", &port.to_string()])
        .expect(1);
    let named = format!("(PID: {},", llmlb.pid());
    assert!(refused.stderr.contains(&named), "{refused:?}");
    // It has asked already: one signal is enough to end the patience.
    llmlb.signal(Signal::SIGTERM);
    assert_eq!(shell_code(llmlb.wait()), Some(128 + 9));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_stderr_that_nobody_reads_changes_no_exit_code() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _server = sandbox.serve(port);
    let mut refused = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    refused.stderr(Stdio::from(writer));
    assert_eq!(refused.status().unwrap().code(), Some(1));
}

#[test]
fn an_endless_drain_is_no_overflow() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let command = [GUINEA, "{port}", "graceful=5"];
    let llmlb = sandbox.supervise(port, &["--drain-timeout", "1e19"], &command);
    llmlb.signal(Signal::SIGTERM);
    llmlb.finish().expect(5);
}

#[test]
fn nothing_behind_the_dashes_is_a_usage_error() {
    let sandbox = Sandbox::new();
    let refused = sandbox.run(["serve", "--port", "0", "--"]).expect(2);
    assert!(refused.stderr.contains("no command"), "{refused:?}");
}

#[test]
fn a_script_without_its_interpreter_is_not_a_missing_command() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let script = sandbox.path().join("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let serve = ["serve", "--port", "0", "--", script.to_str().unwrap()];
    let failed = sandbox.run(serve).expect(126);
    assert!(failed.stderr.contains("interpreter"), "{failed:?}");
}

#[test]
fn brackets_around_an_address_are_understood() {
    let sandbox = Sandbox::new();
    if std::net::TcpListener::bind(("::1", 0)).is_ok() {
        let mut server = sandbox.llmlb(["serve", "--port", "0", "--host", "[::1]"]);
        Running::start(&mut server).expect_log("listening on [::1]:");
    }
}

#[test]
fn no_signal_is_lost_between_fork_and_exec() {
    let sandbox = Sandbox::new();
    for _ in 0..30 {
        let port = free_port();
        let mut llmlb = sandbox.llmlb(["serve", "--port", &port.to_string()]);
        llmlb.args(["--", "sh", "-c", "echo $$; exec sleep 600"]);
        let mut llmlb = Running::start(llmlb.args([] as [&str; 0]));
        let own = llmlb.pid();
        // As soon as the file names the child, it can be signalled.
        let server = wait_until("the child to be named", || {
            let text = fs::read_to_string(sandbox.lock_file(port)).ok()?;
            let json: serde_json::Value = serde_json::from_str(&text).ok()?;
            let pid = u32::try_from(json["pid"].as_u64()?).ok()?;
            (pid != own).then_some(pid)
        });
        signal_pid(server, Signal::SIGTERM);
        assert_eq!(shell_code(llmlb.wait()), Some(128 + 15));
    }
}

#[test]
fn as_pid_1_it_takes_orphans_away() {
    let sandbox = Sandbox::new();
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(llmlb_binary());
    unshare.args(["serve", "--port", "0", "--drain-timeout", "60", "--"]);
    unshare.args(["sh", "-c", "sleep 600 & exit 3"]);
    unshare.env("LLMLB_LOCK_DIR", sandbox.path());
    let mut child = match unshare.stderr(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(_) => return, // no such tool here
    };
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let lines: Vec<String> = stderr.lines().map_while(Result::ok).collect();
    if lines.iter().any(|line| line.contains("unshare")) {
        child.wait().unwrap();
        return; // not permitted here
    }
    assert_eq!(child.wait().unwrap().code(), Some(3), "{lines:?}");
}

#[test]
fn balancing_options_beside_a_command_are_refused() {
    let sandbox = Sandbox::new();
    for option in [["--api-key", "k"], ["--max-requests", "3"]] {
        let serve = [&["serve", "-p", "0"][..], &option, &["--", "true"]].concat();
        let refused = sandbox.run(serve).expect(2);
        assert!(refused.stderr.contains(option[0]), "{refused:?}");
    }
    // In the environment they may be meant for other servers.
    let mut serve = sandbox.llmlb(["serve", "-p", "0", "--", "true"]);
    assert_eq!(
        serve.env("LLMLB_API_KEY", "k").status().unwrap().code(),
        Some(0)
    );
}

#[test]
fn a_successor_that_cannot_start_replaces_nobody() {
    let sandbox = Sandbox::new();
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = files.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.into_os_string().into_string().unwrap()
    };
    let own = |port: u16| format!("http://127.0.0.1:{port}");
    let (plain, unreadable) = (file("plain", "", 0o644), file("pem", "", 0o644));
    let bad = file("bad", "#! /no/such/interp -x\n", 0o755);
    let directory = files.path().to_str().unwrap();
    for holder in [&[][..], &["--", GUINEA, "{port}", "graceful=0"]] {
        let port = free_port();
        let port_arg = port.to_string();
        let server =
            Running::start(&mut sandbox.llmlb([&["serve", "-p", &port_arg], holder].concat()));
        sandbox.run(["status", &port_arg, "--wait", "60"]).expect(0);
        let named = sandbox.named_pid(port);
        for (what, code, message) in [
            (
                &["--", "no-such-command-at-all"][..],
                127,
                "no such command",
            ),
            (&["--", &plain], 126, "Permission denied"),
            (&["--", directory], 126, "Permission denied"),
            (&["--", &format!("{plain}/x")], 126, "Not a directory"),
            (
                &["--", &bad],
                126,
                "the interpreter that its first line names",
            ),
            (&["--host", "no-such-host.invalid"], 1, "cannot listen on"),
            (&["--host", "192.0.2.1"], 1, "cannot listen on"),
            (&["--backend", &own(port)], 2, "this very server"),
            (
                &["--tls-cert", &unreadable, "--tls-key", &unreadable],
                2,
                &unreadable,
            ),
        ] {
            let replace = ["serve", "-p", &port_arg, "--replace"];
            let refused = sandbox.run([&replace[..], what].concat()).expect(code);
            assert!(refused.stderr.contains(message), "{refused:?}");
            assert!(!refused.stderr.contains("Stopping"), "{refused:?}");
            assert_eq!(sandbox.named_pid(port), named);
            // In the words of the check, and of a start.
            let check = ["serve", "-p", &port_arg, "--check"];
            let checked = sandbox.run([&check[..], what].concat()).expect(code);
            let start = ["serve", "-p", "0"];
            let last = |text: &str| text.lines().last().unwrap_or_default().to_owned();
            assert_eq!(last(&checked.stderr), last(&refused.stderr));
            if code > 2 {
                let started = sandbox.run([&start[..], what].concat()).expect(code);
                assert_eq!(last(&started.stderr), last(&refused.stderr));
            }
        }
        sandbox.run(["status", &port_arg]).expect(0);
        sandbox.run(["stop", &port_arg]).expect(0);
        server.finish();
    }
}

/// Found as execvp(3) finds it: what can't be run is passed over, and told where there is no other.
#[test]
fn a_check_looks_along_the_path_as_a_start_does() {
    let sandbox = Sandbox::new();
    let files = tempfile::tempdir().unwrap();
    let (one, two) = (files.path().join("1"), files.path().join("2"));
    for (directory, mode) in [(&one, 0o644), (&two, 0o755)] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("server"), "#!/bin/sh\nexit 9\n").unwrap();
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(directory.join("server"), mode).unwrap();
    }
    let (one, two) = (one.to_str().unwrap(), two.to_str().unwrap());
    for (path, code) in [
        (format!("{one}:{two}"), 9),
        (one.to_owned(), 126),
        ("/nowhere".to_owned(), 127),
    ] {
        let run = |options: &[&str]| {
            let mut llmlb = sandbox.llmlb([&["serve", "-p0"], options, &["--", "server"]].concat());
            Finished::of(llmlb.env("PATH", &path).output().unwrap())
        };
        let started = run(&[]).expect(code);
        let checked = run(&["--check"]).expect(if code == 9 { 0 } else { code });
        if code != 9 {
            assert_eq!(checked.stderr, started.stderr);
        }
    }
}

#[test]
fn a_misspelt_log_level_silences_nothing() {
    let sandbox = Sandbox::new();
    let mut serve = sandbox.llmlb(["serve", "-p", "0"]);
    let mut server = Running::start(serve.env("LLMLB_LOG", "debgu"));
    server.expect_log("LLMLB_LOG is not understood");
    server.expect_log("listening on");
}

#[test]
fn a_removed_lock_file_is_noticed() {
    let sandbox = Sandbox::new();
    for command in [&[][..], &["--", GUINEA, "{port}"]] {
        let port = free_port();
        let port_arg = port.to_string();
        let serve = [&["serve", "-p", &port_arg][..], command].concat();
        let mut server = Running::start(&mut sandbox.llmlb(serve));
        server.expect_log(if command.is_empty() {
            "listening on"
        } else {
            "Guarding"
        });
        fs::remove_file(sandbox.lock_file(port)).unwrap();
        server.expect_log(&format!("Lock for port {port} was lost"));
        // Nobody finds a server by a file that is gone: its launcher ends it.
        server.signal(Signal::SIGTERM);
        server.wait();
    }
}

#[test]
fn empty_variables_are_as_good_as_none() {
    let sandbox = Sandbox::new();
    let mut serve = sandbox.llmlb(["serve", "-p", "0"]);
    for name in ["LLMLB_PORT", "LLMLB_HOST", "LLMLB_BACKENDS", "LLMLB_LOG"] {
        serve.env(name, "");
    }
    Running::start(&mut serve).expect_log("listening on 127.0.0.1:");
}

#[test]
fn a_command_that_goes_into_the_background_is_told_why_it_is_ended() {
    let sandbox = Sandbox::new();
    let serve = ["serve", "-p", "0", "--", "sh", "-c", "sleep 600 &"];
    let ended = sandbox.run(serve).expect(1);
    assert!(
        ended.stderr.contains("has to stay in the foreground"),
        "{ended:?}"
    );
}
