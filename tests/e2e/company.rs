//! A machine with company: a network mount that hangs, and many processes that are none of our
//! business.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use llmlb_tests::{Sandbox, free_port, is_alive, signal_pid, wait_until};
use nix::sys::signal::Signal;

use crate::ready::{Systemd, start};

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");
const HUNG: &str = env!("CARGO_BIN_EXE_hung-mount");
const COUNT: &str = env!("CARGO_BIN_EXE_count-syscalls");

/// A mount that hangs, and the process that has a file of it open.
struct Hung {
    server: Child,
    holder: u32,
}

impl Hung {
    fn new(directory: &std::path::Path, mode: &[&str]) -> Self {
        // It hangs for so long only, and that must not be while this is built.
        llmlb_tests::llmlb_binary();
        let mut command = Command::new(HUNG);
        command
            .arg(directory)
            .args(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut line = String::new();
        let output = server.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        let holder = line.trim().strip_prefix("hung ").expect(&line);
        let holder = holder.parse().unwrap();
        Self { server, holder }
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        let _ = self.server.wait();
    }
}

fn can_hang() -> bool {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut version = kernel.split('.').map_while(|part| part.parse::<u32>().ok());
    let is_new = (version.next(), version.next()) >= (Some(5), Some(16));
    let is_root = nix::unistd::geteuid().is_root();
    let can = is_new && is_root && fs::metadata("/dev/fuse").is_ok();
    if !can {
        eprintln!("needs root, /dev/fuse and Linux 5.16");
    }
    can
}

#[test]
fn a_network_mount_that_hangs_hangs_nobody() {
    if !can_hang() {
        return;
    }
    // Nothing is built while the mount hangs, which it does for some minutes at most.
    llmlb_tests::llmlb_binary();
    let directory = tempfile::tempdir().unwrap();
    let hung = Hung::new(directory.path(), &[]);
    // Whoever looks at the file itself waits for ever.
    let file = format!("/proc/{}/fd/0", hung.holder);
    let mut victim = Command::new("stat").arg("-L").arg(file).spawn().unwrap();
    wait_until("it to hang", || {
        let waits = fs::read_to_string(format!("/proc/{}/wchan", victim.id())).unwrap();
        (waits == "request_wait_answer").then_some(())
    });

    let sandbox = Sandbox::new();
    for way in [
        "TERM",
        "death",
        "stop",
        "force",
        "without launcher",
        "left-over",
    ] {
        let port = free_port();
        let port_arg = port.to_string();
        let manners = if way == "force" {
            "stubborn"
        } else {
            "graceful=0"
        };
        let command = [GUINEA, "{port}", manners, "worker", "daemon"];
        let mut llmlb = sandbox.supervise(port, &["--drain-timeout", "0.5"], &command);
        let server = sandbox.named_pid(port);
        let stop = ["stop", "--port", &port_arg];
        match way {
            "TERM" => llmlb.ask_to_end(),
            "death" => signal_pid(server, Signal::SIGKILL),
            "stop" => drop(sandbox.run(stop).expect(0)),
            "force" => {
                let force = ["stop", "--port", &port_arg, "--force", "--timeout", "0.1"];
                sandbox.run(force).expect(0);
            }
            _ => {
                llmlb.kill();
                if way == "left-over" {
                    signal_pid(server, Signal::SIGKILL);
                    wait_until("it to die", || (!is_alive(server)).then_some(()));
                }
                sandbox.run(["status", "--all"]).expect(0);
                sandbox.run(stop).expect(0);
            }
        }
        llmlb.wait();
        assert!(!sandbox.lock_file(port).exists(), "{way}");
        assert!(!is_alive(server), "{way}");
    }
    assert!(victim.try_wait().unwrap().is_none());
    drop(hung);
    victim.wait().unwrap();
}

/// It waits for the mount with its memory locked: whoever reads its environment waits with it.
#[test]
fn a_process_that_cannot_be_read_hangs_nobody_and_costs_one_thread() {
    if !can_hang() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let hung = Hung::new(directory.path(), &["mapped"]);
    let environment = format!("/proc/{}/environ", hung.holder);
    let mut victim = Command::new("cat");
    let mut victim = victim
        .arg(environment)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it to hang", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", victim.id())).unwrap();
        stat.contains("(cat) D ").then_some(())
    });

    let sandbox = Sandbox::new();
    let locks = llmlb_lock_core::LockDir::new(sandbox.path());
    for _ in 0..20 {
        assert_eq!(locks.left_overs().unwrap(), []);
    }
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")));
    let readers = names.filter(|name| matches!(name, Ok(name) if name.trim() == "environments"));
    // Another test may read at this moment.
    let readers = readers.count();
    assert!(readers < 10, "{readers} threads read environments");

    for way in ["TERM", "stop", "left-over"] {
        let port = free_port();
        let port_arg = port.to_string();
        let command = [GUINEA, "{port}", "graceful=0", "worker", "daemon"];
        let mut llmlb = sandbox.supervise(port, &["--drain-timeout", "0.5"], &command);
        let server = sandbox.named_pid(port);
        match way {
            "TERM" => llmlb.ask_to_end(),
            "stop" => drop(sandbox.run(["stop", "--port", &port_arg]).expect(0)),
            _ => {
                llmlb.kill();
                signal_pid(server, Signal::SIGKILL);
                wait_until("it to die", || (!is_alive(server)).then_some(()));
                sandbox.run(["status", "--all"]).expect(0);
                sandbox.run(["stop", "--port", &port_arg]).expect(0);
            }
        }
        llmlb.wait();
        assert!(!sandbox.lock_file(port).exists(), "{way}");
        assert!(!is_alive(server), "{way}");
    }
    assert!(victim.try_wait().unwrap().is_none());
    drop(hung);
    victim.wait().unwrap();
}

#[test]
fn a_supervised_end_costs_a_hundred_system_calls_at_most() {
    let mut company: Vec<Child> = (0..100)
        .map(|_| Command::new("sleep").arg("1000").spawn().unwrap())
        .collect();
    let sandbox = Sandbox::new();
    let port = free_port();
    let systemd = Systemd::new(&sandbox);
    let mut llmlb = start(&sandbox, port, &[], &[]);
    // Until it is ready, llmlb looks again and again whether it is.
    while !systemd.receive().starts_with("READY=1") {}
    let mut count = Command::new(COUNT);
    count.arg(llmlb.pid().to_string()).stdout(Stdio::piped());
    let mut count = count.spawn().unwrap();
    let mut lines = BufReader::new(count.stdout.take().unwrap()).lines();
    let calls = match lines.next() {
        Some(line) => {
            assert_eq!(line.unwrap(), "watching");
            signal_pid(sandbox.named_pid(port), Signal::SIGKILL);
            llmlb.wait();
            lines.next().unwrap().unwrap().parse::<u32>().unwrap()
        }
        None => panic!("may not watch other processes"),
    };
    count.wait().unwrap();
    for process in &mut company {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    println!("{calls} system calls");
    // The standard library asks of each descriptor that it closes whether it is open, in a debug
    // build: a dozen descriptors here. How often its threads wait for each other is up to the machine.
    let bar = if cfg!(debug_assertions) { 120 } else { 100 };
    assert!(calls <= bar, "{calls} system calls");
    assert!(!sandbox.lock_file(port).exists());
}
