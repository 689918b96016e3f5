//! llmlb as a container runs it: as PID 1 of a PID namespace, started as `examples/container` says.

use std::fs;
use std::net::TcpStream;
use std::process::Command;

use llmlb_tests::{Running, Sandbox, free_port, is_alive, llmlb_binary, signal_pid, wait_until};
use nix::sys::signal::Signal;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");
const DOCKERFILE: &str = include_str!("../../examples/container/Dockerfile");
const COMPOSE: &str = include_str!("../../examples/container/compose.yaml");

/// A namespace whose PID 1 this program becomes; None where that is not permitted.
fn namespace(sandbox: &Sandbox, port: u16) -> Option<Command> {
    let unshare = |program: &std::path::Path| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child", "--"]);
        unshare.arg(program);
        unshare
    };
    let permitted = unshare("true".as_ref()).output();
    if !permitted.is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped, as unshare(1) may not make PID namespaces here");
        return None;
    }
    let mut command = unshare(llmlb_binary());
    command
        .env("LLMLB_LOCK_DIR", sandbox.path())
        .env("LLMLB_HOST", "127.0.0.1")
        .env("LLMLB_PORT", port.to_string());
    Some(command)
}

/// As they are seen from outside.
fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap_or_default();
    let pids = text.split_whitespace();
    pids.map(|pid| pid.parse().unwrap()).collect()
}

/// What `unshare` has started.
fn pid_1(unshare: &Running) -> u32 {
    wait_until("PID 1", || children(unshare.pid()).first().copied())
}

#[test]
fn as_pid_1_it_serves_reaps_and_ends_with_all_its_children() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let Some(mut command) = namespace(&sandbox, port) else {
        return;
    };
    // An orphan that has ended stays in /proc until PID 1 takes it away. That another one lives on
    // is not waited for.
    let script = format!(
        "orphan=$(sh -c 'sh -c \"exit 0\" >&- & echo $!'); \
         while [ -e /proc/$orphan ]; do sleep 0.01; done; echo reaped; \
         (sleep 600 &); exec {GUINEA} {port} graceful=7 worker daemon"
    );
    command.args(["serve", "--", "sh", "-c", &script]);
    let mut llmlb = Running::start(&mut command);
    llmlb.expect_output("reaped");
    llmlb.expect_output("ready");
    TcpStream::connect(("127.0.0.1", port)).unwrap();

    let first = pid_1(&llmlb);
    // The server, and the orphan that sleeps; the server's worker and daemon.
    let all = wait_until("all processes", || {
        let own = children(first);
        let theirs = own.iter().flat_map(|&pid| children(pid));
        let all: Vec<u32> = own.iter().copied().chain(theirs).collect();
        (all.len() == 4).then_some(all)
    });
    // From outside the namespace the port is guarded, by nobody who could be named.
    let port_arg = port.to_string();
    let refused = sandbox.run(["serve", "--port", &port_arg]).expect(1);
    assert!(refused.stderr.contains(&port_arg), "{refused:?}");
    let status = sandbox.run(["status", "--port", &port_arg]);
    assert!(status.stdout.contains("Held"), "{status:?}");

    signal_pid(first, Signal::SIGTERM);
    let status = llmlb.wait();
    assert_eq!(status.code(), Some(7), "{status:?}");
    for pid in all {
        wait_until("it to end", || (!is_alive(pid)).then_some(()));
    }
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn as_pid_1_it_ends_with_the_number_of_the_signal() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let Some(mut command) = namespace(&sandbox, port) else {
        return;
    };
    command.args(["serve", "--", GUINEA, "{port}"]);
    let mut llmlb = Running::start(&mut command);
    llmlb.expect_output("ready");
    signal_pid(pid_1(&llmlb), Signal::SIGTERM);
    assert_eq!(llmlb.wait().code(), Some(128 + 15));
}

/// The list behind a key, which is JSON.
fn lists(text: &str, key: &str) -> Vec<Vec<String>> {
    let lines = text.lines().filter_map(|line| line.split_once(key));
    lines
        .map(|(_, list)| serde_json::from_str(list).unwrap())
        .collect()
}

#[test]
fn the_examples_commands_are_understood() {
    let [entry_point] = &lists(DOCKERFILE, "ENTRYPOINT ")[..] else {
        panic!("no entry point");
    };
    assert_eq!(entry_point[0], "llmlb");
    let [model, front] = &lists(COMPOSE, "command: ")[..] else {
        panic!("not two commands");
    };
    let sandbox = Sandbox::new();
    let port = free_port();
    // All but the server is there.
    let mut command = sandbox.llmlb(entry_point[1..].iter().chain(model));
    command.env("LLMLB_PORT", port.to_string());
    Running::start(&mut command).finish().expect(127);

    let Some(mut command) = namespace(&sandbox, port) else {
        return;
    };
    let mut front = Running::start(command.args(&entry_point[1..]).args(front));
    front.expect_log("listening on");
    // A health check runs inside.
    let [check] = &lists(DOCKERFILE, "HEALTHCHECK --start-period=10m CMD ")[..] else {
        panic!("no health check");
    };
    assert_eq!(check[..2], ["llmlb", "status"]);
    let first = pid_1(&front);
    let mut inside = Command::new("nsenter");
    inside.args(["--pid", "--mount", "--target", &first.to_string(), "--"]);
    inside
        .arg(llmlb_binary())
        .args(["status", &port.to_string()]);
    let output = inside
        .env("LLMLB_LOCK_DIR", sandbox.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    signal_pid(first, Signal::SIGTERM);
    assert_eq!(front.wait().code(), Some(0));
}
