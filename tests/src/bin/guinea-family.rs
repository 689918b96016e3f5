//! A server to run under `llmlb serve --` that starts processes of all kinds.
//!
//! `guinea-family serve PORT [daemonize] KIND...`, where KIND is one of
//!
//! - `session`: in a session of its own, without descriptors, as vLLM's EngineCore
//! - `deaf`: the same, and ignores SIGTERM; `stopped`: the same, and is stopped
//! - `renamed`: the same, and has overwritten its environment, as setproctitle does
//! - `let-go`: in a session of its own, and without the variable that says whose it is
//! - `let-go-zombie`: the same, with a child in the server's group that has ended and is not reaped
//! - `twice=N`, `dying-twice=N`: N times forked twice, at the start or at SIGTERM
//! - `holding`: in a session of its own, and keeps its descriptors
//! - `zombie`: as `deaf`, with a child that has ended and that it does not reap
//! - `dropped`: as `session`, and nobody's from then on, if it was root's
//! - `set-uid=PATH`: that program, a set-uid copy of this one, as its owner in all respects; keeps its
//!   descriptors
//! - `chain=N`: forks without end, N times: each one leaves when it has started the next
//!
//! `guinea-family stranger COMMAND...` runs that, becomes the parent of all orphans below it, and reaps
//! nobody.

#![allow(clippy::panic, clippy::unwrap_used, clippy::zombie_processes)]

#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
fn main() {
    unix::main();
}

#[cfg(unix)]
mod unix {
    use std::env;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, exit};

    use nix::sys::signal::{SigSet, Signal, raise};

    pub(super) fn main() {
        let args: Vec<String> = env::args().skip(1).collect();
        let rest: Vec<&str> = args[1..].iter().map(String::as_str).collect();
        match &*args[0] {
            "serve" => serve(&rest),
            "member" => member(rest[0]),
            "stranger" => stranger(&rest),
            "hop" => hop(rest[0].parse().unwrap()),
            other => panic!("{other}"),
        }
    }

    fn serve(args: &[&str]) {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().unwrap();
        let at_end = |kind: &&&str| kind.starts_with("dying-");
        for kind in args[1..].iter().filter(|kind| !at_end(kind)) {
            start(kind);
        }
        println!("ready {}", std::process::id());
        if args.contains(&"daemonize") {
            exit(0);
        }
        signals.wait().unwrap();
        for kind in args[1..].iter().filter(at_end) {
            start(kind.strip_prefix("dying-").unwrap());
        }
        exit(0);
    }

    fn start(kind: &str) {
        match kind.split_once('=') {
            Some(("twice", times)) => {
                for _ in 0..times.parse().unwrap() {
                    itself(&["hop", "0"]).spawn().unwrap();
                }
            }
            Some(("set-uid", path)) => {
                drop(
                    Command::new(path)
                        .args(["member", "set-uid"])
                        .spawn()
                        .unwrap(),
                );
            }
            Some(("chain", times)) => drop(itself(&["hop", times]).spawn().unwrap()),
            _ if kind == "daemonize" => {}
            _ => drop(itself(&["member", kind]).spawn().unwrap()),
        }
    }

    fn itself(args: &[&str]) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(args);
        command
    }

    fn hop(times: u32) {
        nix::unistd::setsid().ok();
        if times == 0 {
            itself(&["member", "session"]).spawn().unwrap();
        } else {
            itself(&["hop", &(times - 1).to_string()]).spawn().unwrap();
        }
    }

    fn member(kind: &str) {
        if env::var_os("LLMLB_SERVER_ID").is_some() && kind.starts_with("let-go") {
            if kind == "let-go-zombie" {
                Command::new("true").spawn().unwrap();
            }
            let mut again = itself(&["member", kind]);
            let e = again.env_remove("LLMLB_SERVER_ID").exec();
            panic!("{e}");
        }
        nix::unistd::setsid().ok();
        let mut signals = SigSet::empty();
        if kind == "deaf" || kind == "zombie" {
            signals.add(Signal::SIGTERM);
        }
        signals.thread_set_mask().unwrap();
        if kind == "renamed" {
            overwrite_environment();
        }
        #[cfg(target_os = "linux")]
        if kind == "set-uid" {
            let owner = nix::unistd::geteuid();
            nix::unistd::setresuid(owner, owner, owner).unwrap();
        }
        #[cfg(target_os = "linux")]
        if kind == "dropped" {
            let nobody = nix::unistd::Uid::from_raw(65534);
            nix::unistd::setresuid(nobody, nobody, nobody).unwrap();
        }
        if kind == "zombie" {
            Command::new("true").spawn().unwrap();
        }
        println!("member {}", std::process::id());
        let last = match kind {
            "set-uid" | "holding" => 3,
            _ => 256,
        };
        for fd in 0..last {
            let _ = nix::unistd::close(fd);
        }
        if kind == "stopped" {
            raise(Signal::SIGSTOP).unwrap();
        }
        loop {
            std::thread::park();
        }
    }

    fn stranger(command: &[&str]) {
        #[cfg(target_os = "linux")]
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        Command::new(command[0])
            .args(&command[1..])
            .spawn()
            .unwrap();
        loop {
            std::thread::park();
        }
    }

    fn overwrite_environment() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_ascii_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let (start, end) = (fields[47], fields[48]);
        let memory = fs::File::options().write(true).open("/proc/self/mem");
        let title = vec![0; (end - start) as usize];
        memory.unwrap().write_all_at(&title, start).unwrap();
    }
}
