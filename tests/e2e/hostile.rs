//! Files that nobody sane would write, met by the three commands.

use std::fs;
#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

#[cfg(target_os = "linux")]
use llmlb_tests::Finished;
use llmlb_tests::{Running, Sandbox, free_port, is_alive};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

fn lock_json(pid: &str, port: u16) -> String {
    format!(r#"{{"pid":{pid},"started_at":"2026-01-30T12:00:00Z","port":{port}}}"#)
}

#[test]
fn content_that_names_nobody_stops_nothing_and_is_recovered() {
    let sandbox = Sandbox::new();
    for content in [
        Vec::new(),
        b"{".to_vec(),
        b"12345\n".to_vec(),
        vec![0xff; 300],
        vec![b'['; 16 << 20],
        lock_json("0", 1).into_bytes(),
    ] {
        for command in ["status", "stop", "serve"] {
            let port = free_port();
            let file = sandbox.lock_file(port);
            fs::write(&file, &content).unwrap();
            match command {
                "status" => {
                    let args = ["status", "--port", &port.to_string()];
                    assert!(sandbox.run(args).expect(3).stdout.contains("Stale"));
                    assert_eq!(fs::read(&file).unwrap(), content);
                }
                "stop" => {
                    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
                    assert!(!file.exists());
                }
                _ => drop(sandbox.serve(port)),
            }
            let _ = fs::remove_file(&file);
        }
    }
}

#[test]
fn pids_that_kill_takes_for_everybody_are_nobody() {
    let sandbox = Sandbox::new();
    for pid in ["0", "4294967295", "2147483648"] {
        let port = free_port();
        fs::write(sandbox.lock_file(port), lock_json(pid, port)).unwrap();
        // Reaching this line again is the proof: kill(-1) would have ended this test.
        sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
        fs::write(sandbox.lock_file(port), lock_json(pid, port)).unwrap();
        sandbox.serve(port);
    }
}

#[test]
fn a_process_that_is_named_and_does_not_hold_the_lock_is_not_signalled_and_blocks_nobody() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut bystander = Command::new(GUINEA);
    bystander.arg("sleep").stdout(Stdio::null());
    let mut bystander = bystander.spawn().unwrap();
    let now = chrono::Utc::now().to_rfc3339();
    // As a killed container leaves it, or a reboot: the lock is free, the number in use.
    for pid in [bystander.id(), 1] {
        let json = format!(r#"{{"pid":{pid},"started_at":"{now}","port":{port}}}"#);
        fs::write(sandbox.lock_file(port), &json).unwrap();
        sandbox.run(["status", "--port", &text]).expect(3);
        let mut server = Running::start(&mut sandbox.llmlb(["serve", "--port", &text]));
        let warning = server.expect_log("Stale lock file detected (PID");
        assert!(warning.contains(&text), "{warning}");
        server.expect_log("listening on");
        server.ask_to_end();
        server.finish();
        fs::write(sandbox.lock_file(port), &json).unwrap();
        let stopped = sandbox.run(["stop", "--port", &text]).expect(0);
        assert!(!stopped.stdout.contains("Stopping"), "{stopped:?}");
        assert!(!sandbox.lock_file(port).exists());
    }
    assert!(is_alive(bystander.id()));
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[cfg(target_os = "linux")] // users are told apart elsewhere too, but not by every test machine
#[test]
fn a_strangers_file_never_shows_root_a_process_to_kill() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("SKIPPED, needs root: a_strangers_file_never_shows_root_a_process_to_kill");
        return;
    }
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut bystander = Command::new(GUINEA);
    bystander.arg("sleep").stdout(Stdio::null());
    let mut bystander = bystander.spawn().unwrap();
    let now = chrono::Utc::now().to_rfc3339();
    let pid = bystander.id();
    let json = format!(r#"{{"pid":{pid},"started_at":"{now}","port":{port}}}"#);
    let path = sandbox.lock_file(port);
    fs::write(&path, json).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    let file = fs::File::open(&path).unwrap();
    let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let text = port.to_string();
    for args in [
        vec!["serve", "--port", &text],
        vec!["status", "--port", &text],
        vec!["status", "--all", "--port", &text, "--format", "json"],
    ] {
        let shown = sandbox.run(&args);
        for said in [&shown.stdout, &shown.stderr] {
            assert!(!said.contains(&pid.to_string()), "{args:?}: {shown:?}");
        }
        assert!(!shown.stderr.contains("kill -TERM"), "{args:?}: {shown:?}");
    }
    drop(held);
    assert!(is_alive(pid));
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn what_is_no_lock_file_is_refused_by_name_and_left_alone() {
    let sandbox = Sandbox::new();
    let target = sandbox.path().join("target");
    fs::write(&target, "precious").unwrap();
    let kinds: &[&str] = if cfg!(unix) {
        &["symlink", "dangling", "fifo", "directory", "hard link"]
    } else {
        &["directory", "hard link"]
    };
    for &kind in kinds {
        let port = free_port();
        let file = sandbox.lock_file(port);
        match kind {
            #[cfg(unix)]
            "symlink" => symlink(&target, &file).unwrap(),
            #[cfg(unix)]
            "dangling" => symlink(sandbox.path().join("nowhere"), &file).unwrap(),
            #[cfg(unix)]
            "fifo" => nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap(),
            "directory" => fs::create_dir(&file).unwrap(),
            _ => fs::hard_link(&target, &file).unwrap(),
        }
        for command in ["serve", "stop"] {
            let refused = sandbox
                .run([command, "--port", &port.to_string()])
                .expect(1);
            let path = file.to_str().unwrap();
            assert!(refused.stderr.contains(path), "{kind}: {refused:?}");
        }
        sandbox
            .run(["status", "--port", &port.to_string()])
            .expect(4);
        assert!(file.symlink_metadata().is_ok(), "{kind} is still there");
    }
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    assert!(!sandbox.path().join("nowhere").exists());
}

#[test]
fn a_lock_directory_that_cannot_be_used_is_a_clear_error() {
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("file");
    fs::write(&file, "").unwrap();
    for directory in [file.clone(), file.join("below")] {
        let mut command = sandbox.llmlb(["serve", "--port", "0"]);
        let output = command.env("LLMLB_LOCK_DIR", &directory).output().unwrap();
        let failed = llmlb_tests::Finished::of(output).expect(1);
        assert!(
            failed.stderr.contains(directory.to_str().unwrap()),
            "{failed:?}"
        );
    }
}

#[cfg(unix)] // symbolic links
#[test]
fn the_default_directory_is_never_a_symbolic_link() {
    let sandbox = Sandbox::new();
    let elsewhere = sandbox.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let temporary = sandbox.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    symlink(&elsewhere, temporary.join("llmlb")).unwrap();
    let mut command = sandbox.llmlb(["serve", "--port", "0"]);
    command
        .env_remove("LLMLB_LOCK_DIR")
        .env("TMPDIR", &temporary);
    let failed = llmlb_tests::Finished::of(command.output().unwrap()).expect(1);
    assert!(failed.stderr.contains("symbolic link"), "{failed:?}");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
}

#[cfg(unix)] // modes
#[test]
fn an_unset_lock_directory_is_llmlb_in_the_temporary_one_for_all_users() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::new();
    let temporary = sandbox.path().join("tmp");
    fs::create_dir(&temporary).unwrap();
    let port = free_port();
    let mut command = sandbox.llmlb(["serve", "--port", &port.to_string()]);
    command
        .env_remove("LLMLB_LOCK_DIR")
        .env("TMPDIR", &temporary);
    let mut server = llmlb_tests::Running::start(command.stdin(Stdio::null()));
    server.expect_log("listening on");
    let directory = temporary.join("llmlb");
    let mode = fs::metadata(&directory).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1777);
    assert!(directory.join(format!("serve_{port}.lock")).exists());
    server.ask_to_end();
    server.finish().expect(0);
}

/// As in a container that is shown the directory of others.
#[cfg(target_os = "linux")] // mount namespaces
#[test]
fn where_nothing_can_be_written_the_holder_is_named_all_the_same() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED, needs root: where_nothing_can_be_written_the_holder_is_named");
        return;
    }
    let sandbox = Sandbox::new();
    let read_only = |args: &[&str]| {
        let mut llmlb = Command::new("unshare");
        let script = r#"mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@""#;
        llmlb.args(["--mount", "sh", "-ec", script]);
        llmlb.arg(sandbox.path()).arg(llmlb_tests::llmlb_binary());
        llmlb.args(args).env("LLMLB_LOCK_DIR", sandbox.path());
        llmlb
    };
    let run = |args: &[&str]| Finished::of(read_only(args).output().unwrap());
    let port = free_port();
    let text = port.to_string();
    let serve = ["serve", "--port", &text];
    let advice = "set LLMLB_LOCK_DIR to a directory you may write to";
    for holder in [&[][..], &["--", GUINEA, "{port}", "graceful=0"]] {
        let mut server = Running::start(&mut sandbox.llmlb([&serve[..], holder].concat()));
        sandbox.run(["status", &text, "--wait", "60"]).expect(0);
        let pid = sandbox.named_pid(port);
        let refused = run(&serve).expect(1);
        let message = format!("Error: Server already running on port {port} (PID: {pid}, ");
        assert!(refused.stderr.starts_with(&message), "{refused:?}");
        let replaced = run(&[&serve[..], &["--replace"], holder].concat()).expect(1);
        assert!(replaced.stderr.contains("Read-only"), "{replaced:?}");
        assert_eq!(sandbox.named_pid(port), pid);
        // Who waits is told when there is something to be told.
        let mut waiter = Running::start(&mut read_only(&["serve", "--port", &text, "--wait"]));
        waiter.expect_log("Waiting");
        if holder.is_empty() {
            server.kill();
        } else {
            sandbox.run(["stop", &text]).expect(0);
            server.wait();
        }
        let waited = waiter.finish().expect(1);
        assert!(waited.stderr.contains(advice), "{waited:?}");
        // Also beside what is left over, and where there is nothing.
        let none = run(&serve).expect(1);
        assert!(none.stderr.contains(advice), "{none:?}");
        assert!(!none.stderr.contains("already running"), "{none:?}");
    }
}
