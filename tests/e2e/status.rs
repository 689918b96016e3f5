//! `llmlb status`: what is listed, how, and the exit codes that scripts ask for.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::process::Stdio;

use llmlb_lock_core::LockDir;
use llmlb_tests::{Running, Sandbox, free_port};
use serde_json::{Value, json};

fn status_json(sandbox: &Sandbox, args: &[&str], code: i32) -> Value {
    let listed = sandbox
        .run([&["status", "--format", "json"], args].concat())
        .expect(code);
    assert_eq!(listed.stderr, "");
    serde_json::from_str(&listed.stdout).unwrap()
}

#[test]
fn nothing_runs() {
    let sandbox = Sandbox::new();
    let none = sandbox.run(["status"]).expect(0);
    assert_eq!(none.stdout, "No servers running\n");
    assert_eq!(status_json(&sandbox, &[], 0), json!([]));
    let port = free_port().to_string();
    let none = sandbox.run(["status", "--port", &port]).expect(3);
    assert_eq!(none.stdout, format!("No server running on port {port}\n"));
    assert_eq!(status_json(&sandbox, &["--port", &port], 3), json!([]));
}

#[test]
fn json_says_what_the_table_says() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = sandbox.serve(port);
    let file: Value = serde_json::from_slice(&fs::read(sandbox.lock_file(port)).unwrap()).unwrap();
    let frozen = [
        ("port", json!(port)),
        ("pid", json!(server.pid())),
        ("started_at", file["started_at"].clone()),
        ("status", json!("Running")),
    ];
    for args in [&[][..], &["-p", &port.to_string()]] {
        let listed = status_json(&sandbox, args, 0);
        assert_eq!(listed.as_array().unwrap().len(), 1);
        for (name, value) in &frozen {
            assert_eq!(listed[0][name], *value, "{name}");
        }
    }
}

#[cfg(target_os = "linux")] // what is seen of other processes
#[test]
fn what_runs_is_told() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let guinea = env!("CARGO_BIN_EXE_guinea-server");
    let log = sandbox.path().join("it's.log");
    let mut detached = vec!["serve", "--detach", "--log-file", log.to_str().unwrap()];
    let escape = "note=\x1b[31m red";
    detached.extend(["--port", &text, "--", guinea, &text, escape]);
    let started = sandbox.run(detached).expect(0);
    let listed = status_json(&sandbox, &["-p", &text], 0);
    let row = &listed[0];
    let command = format!("{guinea} {port} 'note=\u{fffd}[31m red'");
    assert_eq!(row["command"], *command);
    assert_eq!(row["address"], format!("127.0.0.1:{port}"));
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    assert_eq!(row["user"], *user.unwrap().unwrap().name);
    assert!(row["uptime_seconds"].as_u64().is_some_and(|up| up < 60));
    assert_eq!(row["log_file"], *log.to_str().unwrap());
    let launcher = row["launcher_pid"].as_u64().unwrap();
    assert!(
        started.stdout.contains(&format!("(PID: {launcher})")),
        "{started:?}"
    );
    let wide = sandbox.run(["status", "--format", "wide"]).expect(0).stdout;
    let header = wide.lines().next().unwrap();
    let header: Vec<_> = header.split_ascii_whitespace().collect();
    let details = ["UPTIME", "USER", "ADDRESS", "RESTARTS", "LOG", "COMMAND"];
    assert_eq!(header[4..], details);
    let footer = format!("Locks are in {}", sandbox.path().display());
    assert_eq!(wide.lines().last(), Some(&*footer));
    assert!(wide.contains(&command), "{wide}");
    assert!(!wide.contains('\x1b'));
    sandbox.run(["stop", &text]).expect(0);
    // A process without a launcher guards by itself, and a free lock has neither.
    let mut server = sandbox.serve(port);
    let listed = status_json(&sandbox, &[], 0);
    assert_eq!(listed[0]["launcher_pid"], server.pid());
    assert_eq!(listed[0]["log_file"], Value::Null);
    server.kill();
    let listed = status_json(&sandbox, &["--all"], 0);
    assert_eq!(listed[0]["command"], Value::Null);
    assert_eq!(listed[0]["launcher_pid"], Value::Null);
}

/// A stranger may give his process megabytes of arguments, and it may hold any number of locks.
#[cfg(target_os = "linux")]
#[test]
fn a_long_command_line_is_shown_by_its_beginning() {
    let sandbox = Sandbox::new();
    let mut hoarder = std::process::Command::new(env!("CARGO_BIN_EXE_guinea-hoarder"));
    hoarder.arg(sandbox.path()).args(["20000", "90"]);
    hoarder.args(["one two", "three"]);
    hoarder.args((0..14).map(|_| "\u{1}".repeat(131_000)));
    let mut hoarder = hoarder
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = [0; 8];
    hoarder
        .stdout
        .take()
        .unwrap()
        .read_exact(&mut said)
        .unwrap();
    assert_eq!(said, *b"holds 90");
    for format in ["json", "wide"] {
        let listed = sandbox.run(["status", "--format", format]).expect(0).stdout;
        assert!(listed.matches("'one two' three").count() >= 30);
        assert!(listed.contains("\u{fffd}…'"));
        // Each byte is shown by three at most.
        assert!(listed.len() < 90 * 4 * 4096, "{} bytes", listed.len());
    }
    drop(hoarder.stdin.take());
    hoarder.wait().unwrap();
}

#[test]
fn locked_and_not_listening_is_starting() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _lock = LockDir::new(sandbox.path()).acquire(port).unwrap();
    let listed = status_json(&sandbox, &["--port", &port.to_string()], 5);
    assert_eq!(listed[0]["status"], "Starting");
    let _listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let listed = status_json(&sandbox, &["--port", &port.to_string()], 0);
    assert_eq!(listed[0]["status"], "Running");
}

#[test]
fn a_server_on_another_local_address_is_running_too() {
    let sandbox = Sandbox::new();
    // Any address of 127/8 is local; ::1 may not be there in a container.
    if let Ok(listener) = TcpListener::bind(("::1", 0)) {
        let port = listener.local_addr().unwrap().port();
        let _lock = LockDir::new(sandbox.path()).acquire(port).unwrap();
        let listed = status_json(&sandbox, &["--port", &port.to_string()], 0);
        assert_eq!(listed[0]["status"], "Running");
    }
}

#[test]
fn left_over_files_are_shown_on_request_and_touched_by_nobody() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut killed = sandbox.serve(port);
    killed.kill();
    assert_eq!(status_json(&sandbox, &[], 0), json!([]));
    let listed = status_json(&sandbox, &["--all"], 0);
    assert_eq!(listed[0]["status"], "Stale");
    assert_eq!(listed[0]["pid"], killed.pid());
    let listed = sandbox.run(["status", "-p", &port.to_string()]).expect(3);
    assert!(listed.stdout.contains("Stale"), "{listed:?}");
    assert!(sandbox.lock_file(port).exists());
}

#[cfg(unix)] // symbolic links, which need a privilege on Windows
#[test]
fn what_cannot_be_read_is_shown_with_its_owner() {
    let sandbox = Sandbox::new();
    let port = free_port();
    // Unreadable even to root: it leads elsewhere.
    std::os::unix::fs::symlink("/etc/passwd", sandbox.lock_file(port)).unwrap();
    let owner = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let owner = owner.unwrap().unwrap().name;
    let listed = sandbox.run(["status", "--all"]).expect(0);
    let shown = format!("Unreadable (owner: {owner})");
    assert!(listed.stdout.contains(&shown), "{listed:?}");
    let as_table = sandbox.run(["status"]).expect(0);
    let listed = status_json(&sandbox, &["--all"], 0);
    assert_eq!(listed[0]["status"], "Unreadable");
    assert_eq!(listed[0]["owner"], *owner);
    assert_eq!(listed[0]["pid"], Value::Null);
    status_json(&sandbox, &["-p", &port.to_string()], 4);
    let json = sandbox.run(["status", "--format", "json"]).expect(0);
    assert_eq!(json.stdout, "[]\n");
    let rest =
        format!("1 lock file that can't be read is not shown (owned by {owner}): see --all\n");
    assert_eq!([&json.stderr, &as_table.stderr], [&rest, &rest]);
}

#[test]
fn a_lock_directory_that_is_none_cannot_tell() {
    let sandbox = Sandbox::new();
    let file = sandbox.path().join("file");
    fs::write(&file, "").unwrap();
    let run = |args: &[&str]| {
        let mut command = sandbox.llmlb(args);
        let output = command.env("LLMLB_LOCK_DIR", &file).output().unwrap();
        llmlb_tests::Finished::of(output)
    };
    let failed = run(&["status", "-p", "8000"]).expect(4);
    assert!(failed.stderr.contains(file.to_str().unwrap()), "{failed:?}");
    run(&["status"]).expect(1);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let sandbox = Sandbox::new();
    for args in [&["status"][..], &["status", "--watch"], &["man"]] {
        let mut command = sandbox.llmlb(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let mut complaint = String::new();
        let mut stderr = child.stderr.take().unwrap();
        stderr.read_to_string(&mut complaint).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
        assert_eq!(complaint, "");
    }
}

#[test]
fn watch_shows_what_changes() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut watch = Running::start(&mut sandbox.llmlb(["status", "--watch"]));
    watch.expect_output("No servers running");
    let server = sandbox.serve(port);
    watch.expect_output(&server.pid().to_string());
    drop(server);
    watch.expect_output("No servers running");
    assert!(!watch.kill().success());
}

#[cfg(unix)] // on Windows nobody waits for a full queue
#[test]
fn a_hundred_ports_that_do_not_answer_take_no_longer_than_a_few() {
    use std::os::fd::AsFd;
    // Connections to a listener whose queue is full hang until they time out.
    let full = || {
        let socket = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        nix::sys::socket::listen(&socket.as_fd(), nix::sys::socket::Backlog::new(0).unwrap())
            .unwrap();
        let address = socket.local_addr().unwrap();
        let queue: Vec<_> = (0..2)
            .map_while(|_| {
                let timeout = std::time::Duration::from_millis(20);
                std::net::TcpStream::connect_timeout(&address, timeout).ok()
            })
            .collect();
        (socket, queue)
    };
    let measure = |count: usize| {
        let sandbox = Sandbox::new();
        let locks = LockDir::new(sandbox.path());
        let mut held = Vec::new();
        while held.len() < count {
            let (socket, queue) = full();
            let port = socket.local_addr().unwrap().port();
            held.push((socket, queue, locks.acquire(port).unwrap()));
        }
        let started = std::time::Instant::now();
        let listed = status_json(&sandbox, &[], 0);
        assert_eq!(listed.as_array().unwrap().len(), count);
        started.elapsed()
    };
    // One after the other, a hundred would take at least 20 seconds.
    assert!(measure(100) < std::time::Duration::from_secs(10));
}

/// As any user may fill a directory that all may write to.
#[cfg(unix)]
#[test]
fn thousands_of_lock_files_abort_nobody() {
    use nix::fcntl::{Flock, FlockArg};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::os::unix::process::CommandExt;

    const COUNT: usize = 3000;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(
        Resource::RLIMIT_NOFILE,
        soft.max(hard.min(COUNT as u64 + 1000)),
        hard,
    )
    .unwrap();
    let sandbox = Sandbox::new();
    let now = chrono::Utc::now().to_rfc3339();
    let pid = std::process::id();
    let held: Vec<_> = (10_000..)
        .take(COUNT)
        .map(|port: u16| {
            let path = sandbox.lock_file(port);
            let text = format!("{{\"pid\":{pid},\"started_at\":\"{now}\",\"port\":{port}}}");
            fs::write(&path, text).unwrap();
            Flock::lock(
                fs::File::open(path).unwrap(),
                FlockArg::LockExclusiveNonblock,
            )
            .unwrap()
        })
        .collect();
    let own = sandbox.serve(free_port_below(10_000));
    let status = |format: &str| {
        let mut llmlb = sandbox.llmlb(["status", "--format", format]);
        // Enough for dozens of threads, not for thousands.
        let limit = || Ok(setrlimit(Resource::RLIMIT_AS, 1 << 30, 1 << 30)?);
        // SAFETY: setting a limit is safe after a fork.
        unsafe { llmlb.pre_exec(limit) };
        llmlb_tests::Finished::of(llmlb.output().unwrap()).expect(0)
    };
    let table = status("table");
    assert!(table.stdout.contains(&own.pid().to_string()));
    let last = table.stdout.lines().last().unwrap();
    assert_eq!(
        last,
        "1001 more lock files are not shown; see --port for one of them"
    );
    let json = status("json");
    let rows: Vec<Value> = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(rows.len(), 2000);
    assert!(
        json.stderr.contains("1001 more lock files"),
        "{}",
        json.stderr
    );
    drop(held);
}

/// Whoever fills the directory does not hide others from root.
#[cfg(unix)]
#[test]
fn nobody_is_left_out_because_of_somebody_elses_thousands() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED, needs root: nobody_is_left_out_because_of_somebody_elses_thousands");
        return;
    }
    let sandbox = Sandbox::new();
    let hoarders = (10_000..12_100).map(|port| (port, 65534));
    for (port, user) in hoarders.chain([(60_000, 65533)]) {
        let path = sandbox.lock_file(port);
        fs::write(&path, "").unwrap();
        std::os::unix::fs::chown(path, Some(user), None).unwrap();
    }
    let shown = sandbox.run(["status", "--all"]).expect(0).stdout;
    assert!(shown.contains("\n60000  "), "{shown}");
    assert!(
        shown.contains("\n101 more lock files are not shown"),
        "{shown}"
    );
}

#[cfg(unix)]
fn free_port_below(end: u16) -> u16 {
    (2000..end)
        .find(|&port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        .unwrap()
}
