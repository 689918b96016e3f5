//! The five user stories, word for word.

use std::fs;

use llmlb_tests::{Running, Sandbox, free_port, http_get, wait_until};

#[test]
fn a_duplicate_start_is_refused_naming_the_holder_and_how_to_stop_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = sandbox.serve(port);
    let content = fs::read(sandbox.lock_file(port)).unwrap();

    let refused = sandbox
        .run(["serve", "--port", &port.to_string()])
        .expect(1);

    let json: serde_json::Value = serde_json::from_slice(&content).unwrap();
    let started = json["started_at"].as_str().unwrap();
    let seconds = started.split('.').next().unwrap();
    let pid = server.pid();
    assert_eq!(json["pid"], pid);
    assert_eq!(
        refused.stderr,
        format!(
            "Error: Server already running on port {port} (PID: {pid}, started: {seconds}Z)\n\n\
             To stop: llmlb stop --port {port}\n\
             Or:      kill -TERM {pid}\n"
        )
    );
    assert_eq!(refused.stdout, "");
    assert_eq!(fs::read(sandbox.lock_file(port)).unwrap(), content);
    assert!(http_get(port, "/health").starts_with("HTTP/1.1 200"));
}

#[test]
fn stop_stops_it_gracefully() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve(port);
    let stopped = sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    assert_eq!(
        stopped.stdout,
        format!(
            "Stopping server on port {port} (PID: {})...\nServer stopped successfully\n",
            server.pid()
        )
    );
    assert_eq!(stopped.stderr, "");
    assert!(!sandbox.lock_file(port).exists());
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn status_lists_what_runs() {
    let sandbox = Sandbox::new();
    let (one, two) = (free_port(), free_port());
    let (first, second) = (sandbox.serve(one), sandbox.serve(two));
    let listed = sandbox.run(["status"]).expect(0);
    let lines: Vec<Vec<&str>> = listed
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(lines[0], ["PORT", "PID", "STARTED", "STATUS"]);
    let mut expected = [(one, first.pid()), (two, second.pid())];
    expected.sort_unstable();
    for (line, (port, pid)) in lines[1..].iter().zip(expected) {
        assert_eq!((line[0], line[1]), (&*port.to_string(), &*pid.to_string()));
        assert_eq!(line[3], "Running");
    }
    assert_eq!(lines.len(), 3);
}

#[test]
fn after_kill_9_the_next_start_recovers_by_itself() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut killed = sandbox.serve(port);
    killed.kill();
    assert!(sandbox.lock_file(port).exists(), "nobody could clean up");

    let mut next = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    let mut next = Running::start(&mut next);
    next.expect_log(&format!(
        "Stale lock file detected (PID {} not running), cleaning up",
        killed.pid()
    ));
    next.expect_log("listening on");
    assert_eq!(sandbox.named_pid(port), next.pid());
}

#[test]
fn asked_to_end_it_shuts_down_cleanly_and_gives_the_lock_back() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve(port);
    server.ask_to_end();
    server.expect_log("Received shutdown signal, cleaning up...");
    assert_eq!(server.wait().code(), Some(0));
    assert!(!sandbox.lock_file(port).exists());
}

#[cfg(unix)] // signals
#[test]
fn sigterm_and_sigint_shut_down_cleanly_and_give_the_lock_back() {
    use nix::sys::signal::Signal;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let sandbox = Sandbox::new();
        let port = free_port();
        let mut server = sandbox.serve(port);
        server.signal(signal);
        server.expect_log("Received shutdown signal, cleaning up...");
        assert_eq!(server.wait().code(), Some(0));
        assert!(!sandbox.lock_file(port).exists());
        // At once, by the same port and lock.
        sandbox.serve(port);
    }
}

#[cfg(unix)] // modes
#[test]
fn the_lock_file_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let port = free_port();
    let _server = sandbox.serve(port);
    let mode = fs::metadata(sandbox.lock_file(port)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o7777, 0o600);
}

#[test]
fn of_16_starts_at_once_one_serves_and_all_others_name_it() {
    let sandbox = Sandbox::new();
    for _ in 0..5 {
        let port = free_port();
        let mut starts: Vec<_> = (0..16)
            .map(|_| Running::start(&mut sandbox.llmlb(["serve", "--port", &port.to_string()])))
            .collect();
        wait_until("15 refusals", || {
            let ended = starts
                .iter_mut()
                .filter_map(|start| start.child.try_wait().unwrap());
            (ended.count() == 15).then_some(())
        });
        let winner = sandbox.named_pid(port);
        let mut winners = 0;
        for server in starts {
            if server.pid() == winner {
                winners += 1;
                continue;
            }
            let refused = server.finish().expect(1);
            let named = format!("already running on port {port} (PID: {winner},");
            assert!(refused.stderr.contains(&named), "{refused:?}");
        }
        assert_eq!(winners, 1);
    }
}
