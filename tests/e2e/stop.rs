//! `llmlb stop`: whom it ends, what it says, and what it leaves alone.

use std::fs;

use llmlb_tests::{Running, Sandbox, free_port, is_alive, wait_until};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

#[test]
fn nobody_to_stop_is_no_error() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let stopped = sandbox.run(["stop", "-p", &port.to_string()]).expect(0);
    assert_eq!(
        stopped.stdout,
        format!("No server running on port {port}\n")
    );
    // Nor is a lock directory that does not exist.
    let mut nowhere = sandbox.llmlb(["stop", "-p", &port.to_string()]);
    nowhere.env("LLMLB_LOCK_DIR", sandbox.path().join("none"));
    assert_eq!(nowhere.status().unwrap().code(), Some(0));
    assert!(!sandbox.path().join("none").exists());
}

#[test]
fn a_stale_file_is_removed_with_a_warning() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut killed = sandbox.serve(port);
    killed.kill();
    let stopped = sandbox.run(["stop", "-p", &port.to_string()]).expect(0);
    let none = format!("No server running on port {port}");
    assert!(stopped.stdout.starts_with(&none), "{stopped:?}");
    let warning = format!(
        "Stale lock file detected (PID {} not running)",
        killed.pid()
    );
    assert!(stopped.stderr.contains(&warning), "{stopped:?}");
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn a_server_that_takes_too_long_is_left_running_and_said_so() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "stubborn"]);
    let server = sandbox.named_pid(port);
    let port_arg = port.to_string();
    let failed = sandbox
        .run(["stop", "-p", &port_arg, "-t", "0.1"])
        .expect(1);
    assert!(failed.stderr.contains("still runs"), "{failed:?}");
    assert!(failed.stderr.contains("--force"), "{failed:?}");
    assert!(is_alive(server));
    assert_eq!(sandbox.named_pid(port), server);

    let killed = sandbox
        .run(["stop", "-p", &port_arg, "-t", "0.1", "--force"])
        .expect(0);
    // On Windows llmlb itself is asked, a second time here, and so kills the server by itself.
    assert!(
        killed.stdout.contains("killed") || cfg!(windows),
        "{killed:?}"
    );
    assert!(!is_alive(server));
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn all_stops_all_side_by_side() {
    let sandbox = Sandbox::new();
    let none = sandbox.run(["stop", "--all"]).expect(0);
    assert_eq!(none.stdout, "No servers running\n");
    let servers: Vec<Running> = (0..5).map(|_| sandbox.serve(free_port())).collect();
    let stopped = sandbox.run(["stop", "--all"]).expect(0);
    let count = stopped
        .stdout
        .matches("Server stopped successfully")
        .count();
    assert_eq!(count, 5, "{stopped:?}");
    for server in servers {
        server.finish().expect(0);
    }
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn all_tells_of_each_that_failed() {
    let sandbox = Sandbox::new();
    let (good, bad) = (free_port(), free_port());
    let stopping = sandbox.serve(good);
    let _stubborn = sandbox.supervise(bad, &[], &[GUINEA, "{port}", "stubborn"]);
    let failed = sandbox.run(["stop", "--all", "-t", "0.5"]).expect(1);
    assert!(
        failed.stderr.contains(&format!("port {bad} (PID:")),
        "{failed:?}"
    );
    assert!(!failed.stderr.contains(&good.to_string()), "{failed:?}");
    stopping.finish().expect(0);
}

/// Also one who fills the directory with such files must not keep servers alive.
#[cfg(unix)] // a directory that may not be written to, as anybody but root
#[test]
fn all_stops_what_lives_though_nothing_stale_can_be_removed() {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65534;
    let is_root = nix::unistd::geteuid().is_root();
    let sandbox = Sandbox::new();
    let set_mode = |mode| {
        fs::set_permissions(sandbox.path(), fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o777);
    let llmlb = |args: &[&str]| {
        let mut llmlb = sandbox.llmlb(args);
        if is_root {
            llmlb.uid(NOBODY).gid(NOBODY);
        }
        llmlb
    };
    let mut server = Running::start(&mut llmlb(&["serve", "--port", &free_port().to_string()]));
    server.expect_log("listening on");
    let stale = [free_port(), free_port()].map(|port| sandbox.lock_file(port));
    for file in &stale {
        fs::write(file, "").unwrap();
        chown(file, is_root.then_some(NOBODY), None).unwrap();
    }
    set_mode(0o555);
    let stopped = llmlb_tests::Finished::of(llmlb(&["stop", "--all"]).output().unwrap());
    set_mode(0o755);
    let stopped = stopped.expect(1);
    server.wait();
    for file in &stale {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(stopped.stderr.contains(name), "{stopped:?}");
    }
}

#[cfg(unix)] // needs a shell
#[test]
fn a_reader_that_leaves_does_not_keep_stop_from_stopping() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut server = sandbox.serve(port);
    let stop = format!(
        "'{}' stop -p {port} | true; exit ${{PIPESTATUS[0]}}",
        llmlb_tests::llmlb_binary().display()
    );
    let mut shell = std::process::Command::new("bash");
    shell
        .args(["-c", &stop])
        .env("LLMLB_LOCK_DIR", sandbox.path());
    assert_eq!(shell.status().unwrap().code(), Some(0));
    assert_eq!(server.wait().code(), Some(0));
}

#[cfg(target_os = "linux")] // `/dev/full`
#[test]
fn what_cannot_be_said_keeps_no_server_alive() {
    let sandbox = Sandbox::new();
    let run = |args: &[&str]| {
        let full = fs::OpenOptions::new().write(true).open("/dev/full");
        let mut stop = sandbox.llmlb(args);
        llmlb_tests::Finished::of(stop.stdout(full.unwrap()).output().unwrap())
    };
    let port = free_port();
    let server = sandbox.serve(port);
    let stopped = run(&["stop", &port.to_string()]).expect(1);
    assert_eq!(stopped.stderr.matches("cannot write to stdout").count(), 1);
    server.finish().expect(0);
    let servers = [(); 3].map(|()| sandbox.serve(free_port()));
    let stopped = run(&["stop", "--all"]).expect(1);
    assert_eq!(stopped.stderr.matches("cannot write to stdout").count(), 1);
    for server in servers {
        server.finish().expect(0);
    }
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
    // What has failed is told all the same.
    let port = free_port();
    let _llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "stubborn"]);
    let failed = run(&["stop", &port.to_string(), "-t", "0.1"]).expect(1);
    assert!(failed.stderr.contains("still runs"), "{failed:?}");
}

#[test]
fn a_waiting_start_survives_the_stop_and_follows() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let holder = sandbox.serve(port);
    let port_arg = port.to_string();
    let waiting = ["serve", "-p", &port_arg, "--wait", "60"];
    let mut waiter = Running::start(&mut sandbox.llmlb(waiting));
    waiter.expect_log("Waiting");
    sandbox.run(["stop", "-p", &port_arg]).expect(0);
    holder.finish().expect(0);
    waiter.expect_log("listening on");
    wait_until("the waiter to be named", || {
        (sandbox.named_pid(port) == waiter.pid()).then_some(())
    });
}

/// Killed, or caught on its way out, when it has given the port back and has not ended yet.
#[test]
fn force_at_once_is_a_success_whenever_it_finds_the_server() {
    let sandbox = Sandbox::new();
    for _ in 0..10 {
        let port = free_port();
        let _server = sandbox.serve(port);
        let stop = ["stop", &port.to_string(), "--force", "--timeout", "0"];
        sandbox.run(stop).expect(0);
    }
}
