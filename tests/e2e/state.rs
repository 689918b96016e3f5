//! What the llmlb that guards a port tells `status` through a file beside the lock, and that nobody
//! has to believe it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::thread;

use llmlb_tests::{Running, Sandbox, free_port, signal_pid, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

fn state_file(sandbox: &Sandbox, port: u16) -> PathBuf {
    sandbox.lock_file(port).with_extension("state")
}

fn row(sandbox: &Sandbox, port: u16) -> Value {
    let port = port.to_string();
    let listed = sandbox.run(["status", "--format", "json", &port]);
    let rows: Value = serde_json::from_str(&listed.stdout).unwrap();
    rows.get(0).cloned().unwrap_or_default()
}

/// Until what is told fits the holder: in between nothing is.
fn wait_for(sandbox: &Sandbox, port: u16, field: &str, value: Value) -> Value {
    wait_until(field, || {
        let row = row(sandbox, port);
        (row[field] == value).then_some(row)
    })
}

#[test]
fn restarts_and_why_the_last_server_ended_are_told() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut llmlb = sandbox.llmlb(["serve", "--port", &text, "--restart", "on-failure"]);
    let mut server = Running::start(llmlb.args(["--", GUINEA, &text]));
    server.expect_log("accepting connections");
    let row = wait_for(&sandbox, port, "restarts", json!(0));
    assert_eq!(row["last_end"], Value::Null);
    assert_eq!(row["backends"], Value::Null);
    let metadata = fs::metadata(state_file(&sandbox, port)).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    signal_pid(sandbox.named_pid(port), Signal::SIGKILL);
    server.expect_log("it is started again in 1s");
    server.expect_log("accepting connections");
    let row = wait_for(&sandbox, port, "restarts", json!(1));
    assert_eq!(row["last_end"]["signal"], "SIGKILL");
    assert_eq!(row["last_end"]["exit_code"], Value::Null);
    let at = row["last_end"]["at"].as_str().unwrap();
    assert!(at.ends_with('Z'), "{at}");
    let wide = sandbox.run(["status", "--format", "wide"]).expect(0);
    assert!(wide.stdout.contains(" 1 (SIGKILL, "), "{wide:?}");
    sandbox.run(["stop", &text]).expect(0);
    server.finish();
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn a_balancer_tells_how_many_backends_are_up() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let (down, up) = (free_port(), free_port());
    let backends = format!("http://127.0.0.1:{down},http://127.0.0.1:{up}");
    let options = ["--backend", &backends, "--health-interval", "50ms"];
    let _balancer = sandbox.serve_with(port, &options);
    wait_for(&sandbox, port, "backends_up", json!(0));
    let _backend = sandbox.serve(up);
    let row = wait_for(&sandbox, port, "backends_up", json!(1));
    assert_eq!(row["backends"], 2);
    let wide = sandbox.run(["status", "--format", "wide"]).expect(0);
    let told = "balancer, 1 of 2 backends up";
    assert!(wide.stdout.contains(told), "{wide:?}");
    // What somebody removes is there again.
    fs::remove_file(state_file(&sandbox, port)).unwrap();
    wait_for(&sandbox, port, "backends", json!(2));
}

#[test]
fn a_successor_tells_from_the_first_and_its_predecessor_takes_nothing_away() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let first = sandbox.serve(port);
    let successor = sandbox.serve_with(port, &["--replace"]);
    first.finish().expect(0);
    let row = wait_for(&sandbox, port, "restarts", json!(0));
    assert_eq!(row["pid"], successor.pid());
    sandbox.run(["stop", &port.to_string()]).expect(0);
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

/// What a container's runtime does: the port is opened by a process that is not the COMMAND's.
#[test]
fn a_server_whose_sockets_are_not_its_own_runs_when_its_url_answers() {
    let sandbox = Sandbox::new();
    let elsewhere = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/health", elsewhere.local_addr().unwrap());
    let port = free_port();
    let text = port.to_string();
    let mut llmlb = sandbox.llmlb(["serve", "--port", &text, "--ready-url", &url, "--"]);
    let mut server = Running::start(llmlb.args(["sleep", "600"]));
    wait_for(&sandbox, port, "restarts", json!(0));
    sandbox.run(["status", &text]).expect(5);
    let answering = thread::spawn(move || {
        for client in elsewhere.incoming().map_while(Result::ok) {
            let mut client = client;
            let _ = client.read(&mut [0; 1024]);
            let _ = client.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
    });
    server.expect_log("accepting connections after ");
    // What `--detach` waits for is told before.
    sandbox.run(["status", &text]).expect(0);
    // Nobody vouches for it any more, also where the number of its guard is another's by now.
    server.kill();
    sandbox.run(["status", &text]).expect(5);
    let file = state_file(&sandbox, port);
    let mut told: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    told["llmlb"] = json!(std::process::id());
    fs::write(&file, told.to_string()).unwrap();
    sandbox.run(["status", &text]).expect(5);
    drop(answering);
}

/// A path is asked at the port, so that what has answered once does not speak for a port that is
/// closed by now.
#[cfg(target_os = "linux")] // whose a port is
#[test]
fn a_server_whose_port_is_closed_again_does_not_run() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let script = r#""$0" "$1" healthy-when=/dev/null & exec sleep 600"#;
    let command = ["--ready-url", "/health", "--", "sh", "-c", script, GUINEA];
    let mut llmlb = sandbox.llmlb(["serve", "--port", &text]);
    let mut server = Running::start(llmlb.args(command).arg(&text));
    server.expect_log("accepting connections after ");
    sandbox.run(["status", &text]).expect(0);
    let listener = server.expect_output("ready ");
    let listener = listener.split(' ').nth(1).unwrap().parse().unwrap();
    signal_pid(listener, Signal::SIGKILL);
    wait_until("it to close its port", || {
        let status = sandbox.run(["status", &text]);
        (status.code == Some(5)).then_some(())
    });
}

#[test]
fn what_others_have_put_there_is_neither_believed_nor_followed_nor_waited_for() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut server = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    wait_for(&sandbox, port, "restarts", json!(0));
    let file = state_file(&sandbox, port);
    let told = fs::read_to_string(&file).unwrap();
    let mut value: Value = serde_json::from_str(&told).unwrap();
    let unbelieved = |what: &str| {
        let row = row(&sandbox, port);
        assert_eq!(row["status"], "Running", "{what}");
        assert_eq!(row["restarts"], Value::Null, "{what}");
    };
    // The same text in a file of its own is believed; all that follows differs in one thing.
    fs::remove_file(&file).unwrap();
    fs::write(&file, &told).unwrap();
    assert_eq!(row(&sandbox, port)["restarts"], 0);
    fs::write(&file, format!("{told}{}", " ".repeat(4096))).unwrap();
    unbelieved("too long");
    fs::write(&file, &told[1..]).unwrap();
    unbelieved("no JSON");
    value["pid"] = json!(1);
    fs::write(&file, value.to_string()).unwrap();
    unbelieved("of another holder");
    let elsewhere = sandbox.path().join("elsewhere");
    fs::write(&elsewhere, &told).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(&elsewhere, &file).unwrap();
    unbelieved("a link");
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRUSR).unwrap();
    unbelieved("a FIFO");
    if nix::unistd::geteuid().is_root() {
        fs::remove_file(&file).unwrap();
        fs::write(&file, &told).unwrap();
        std::os::unix::fs::chown(&file, Some(65534), None).unwrap();
        unbelieved("a stranger's");
    }
    sandbox.run(["stop", &text]).expect(0);
    server.wait();
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), told);
}

#[test]
fn where_it_cannot_be_written_servers_run_all_the_same() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let new = state_file(&sandbox, port).with_extension("state.new");
    fs::create_dir(&new).unwrap();
    fs::write(new.join("in the way"), "").unwrap();
    let _balancer = sandbox.serve(port);
    let listed = row(&sandbox, port);
    assert_eq!(listed["status"], "Running");
    assert_eq!(listed["restarts"], Value::Null);
    sandbox.run(["stop", &text]).expect(0);
    let server = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    sandbox.run(["status", &text]).expect(0);
    sandbox.run(["stop", &text]).expect(0);
    let ended = server.finish();
    assert!(!ended.stderr.contains("ERROR"), "{ended:?}");
}

#[cfg(target_os = "linux")] // sockets can be held on to
#[test]
fn what_a_killed_server_leaves_beside_its_lock_is_cleared_by_stop() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let mut balancer = sandbox.serve_with(port, &["--drain-delay", "60"]);
    let stop = ["stop", &text, "--force", "--timeout", "0.1"];
    let stopped = sandbox.run(stop).expect(0);
    assert!(stopped.stdout.contains("killed"), "{stopped:?}");
    balancer.wait();
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
    for all in [false, true] {
        let ports = [free_port(), free_port()];
        for port in ports {
            sandbox.serve(port).kill();
        }
        assert!(state_file(&sandbox, ports[0]).exists());
        match all {
            true => drop(sandbox.run(["stop", "--all"]).expect(0)),
            false => ports.map(|port| drop(sandbox.run(["stop", &port.to_string()]).expect(0)))[0],
        }
        assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
    }
    // Its server has outlived the guard, and ends as it is asked to.
    let mut llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "graceful=0"]);
    llmlb.kill();
    let stopped = sandbox.run(["stop", &text]).expect(0);
    assert!(stopped.stdout.contains("successfully"), "{stopped:?}");
    assert_eq!(fs::read_dir(sandbox.path()).unwrap().count(), 0);
    // The next start has no need of that.
    sandbox.serve(port).kill();
    let _server = sandbox.supervise(port, &[], &[GUINEA, "{port}"]);
    let row = wait_for(&sandbox, port, "restarts", json!(0));
    assert_eq!(row["backends"], Value::Null);
}
