//! On a terminal: keys reach the server once, and `stop` shows that it waits.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use llmlb_tests::{Sandbox, free_port, is_alive, llmlb_binary, wait_until};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    child: Child,
}

/// Runs it as the foreground job of a new terminal.
fn on_a_terminal(mut command: Command) -> (File, Child) {
    let pty = openpty(None, None).unwrap();
    // Else the terminal's end would wait for that of all programs on it.
    for end in [&pty.master, &pty.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    }
    let side = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    command
        .stdin(side(&pty.slave))
        .stdout(side(&pty.slave))
        .stderr(side(&pty.slave));
    let terminal = pty.slave.as_raw_fd();
    // SAFETY: only system calls that are safe after a fork.
    unsafe {
        command.pre_exec(move || {
            nix::unistd::setsid()?;
            if nix::libc::ioctl(terminal, nix::libc::TIOCSCTTY as _, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    drop((command, pty.slave));
    (File::from(pty.master), child)
}

impl Terminal {
    fn run(command: Command) -> Self {
        let (keyboard, child) = on_a_terminal(command);
        let mut output = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                *shown.lock().unwrap() += &String::from_utf8_lossy(&buffer[..len]);
            }
        });
        Self {
            keyboard,
            screen,
            child,
        }
    }

    #[track_caller]
    fn expect(&self, text: &str) {
        wait_until(text, || {
            self.screen.lock().unwrap().contains(text).then_some(())
        });
    }

    fn shows(&self, text: &str) -> bool {
        self.screen.lock().unwrap().contains(text)
    }

    fn type_in(&mut self, keys: impl AsRef<[u8]>) {
        self.keyboard.write_all(keys.as_ref()).unwrap();
    }

    fn wait(&mut self) -> Option<i32> {
        wait_until("the program to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ctrl_c_reaches_the_server_once() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let log = sandbox.path().join("signals");
    let count = format!("count={}", log.display());
    let command = [
        "serve",
        "-p",
        &port.to_string(),
        "--",
        GUINEA,
        "{port}",
        &count,
    ];
    let mut terminal = Terminal::run(sandbox.llmlb(command));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.keyboard.write_all(&[3]).unwrap();
    wait_until("the signal to arrive", || {
        (fs::read_to_string(&log).is_ok_and(|log| log.contains("SIGINT"))).then_some(())
    });
    let stopped = sandbox.run(["stop", "-p", &port.to_string()]);
    stopped.expect(0);
    assert_eq!(terminal.wait(), Some(0));
    assert_eq!(fs::read_to_string(&log).unwrap(), "SIGINT\nSIGTERM\n");
}

#[test]
fn the_server_can_read_from_the_terminal() {
    let sandbox = Sandbox::new();
    let script = "read -r line; echo \"got $line\"";
    let command = ["serve", "-p", "0", "--", "sh", "-c", script];
    let mut terminal = Terminal::run(sandbox.llmlb(command));
    terminal.expect("Guarding port");
    terminal.keyboard.write_all(b"hello\n").unwrap();
    terminal.expect("got hello");
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn something_moves_while_stop_waits() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "stubborn"]);
    let server = sandbox.named_pid(port);
    let stop = ["stop", "-p", &port.to_string(), "-t", "0.5"];
    let mut terminal = Terminal::run(sandbox.llmlb(stop));
    terminal.expect(&format!("waiting for port {port}"));
    assert_eq!(terminal.wait(), Some(1));
    terminal.expect("still runs");
    assert!(is_alive(server));
}

#[test]
fn no_line_is_left_of_what_moved() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let _llmlb = sandbox.supervise(port, &[], &[GUINEA, "{port}", "stubborn"]);
    let stop = ["stop", &port.to_string(), "-t", "0.5", "--force"];
    let mut terminal = Terminal::run(sandbox.llmlb(stop));
    assert_eq!(terminal.wait(), Some(0));
    terminal.expect("Server killed: it did not stop within 500ms");
    terminal.expect("did not stop in time, killing it");
    assert!(terminal.shows(&format!("waiting for port {port}")));
    let screen = terminal.screen.lock().unwrap().clone();
    for line in screen.lines() {
        // What was there before was wiped away.
        let left = line.rsplit("\r\x1b[2K").next().unwrap();
        assert!(!left.contains("waiting for port"), "{screen}");
    }
}

const CTRL_Z: &[u8] = &[26];

#[test]
fn ctrl_z_without_a_shell_above_hangs_nothing() {
    let sandbox = Sandbox::new();
    let script = "read -r line; echo \"got $line\"";
    let command = ["serve", "-p", "0", "--", "sh", "-c", script];
    let mut terminal = Terminal::run(sandbox.llmlb(command));
    terminal.expect("Guarding port");
    terminal.keyboard.write_all(CTRL_Z).unwrap();
    terminal.expect("^Z");
    // The terminal throws away what is typed at the same instant as the key.
    wait_until("the line to be read", || {
        terminal.keyboard.write_all(b"hello\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        (terminal.screen.lock().unwrap().contains("got hello")).then_some(())
    });
    assert_eq!(terminal.wait(), Some(0));
}

#[test]
fn a_job_in_the_background_leaves_the_terminal_to_the_shell() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-i"])
        .env("LLMLB_LOCK_DIR", sandbox.path())
        .env("PS1", "prompt$((6 * 7)) ");
    let mut terminal = Terminal::run(bash);
    terminal.expect("prompt42");
    let llmlb = llmlb_tests::llmlb_binary().display();
    let command = format!("{llmlb} serve -p {port} -- {GUINEA} {{port}} graceful=0\n");
    terminal.keyboard.write_all(command.as_bytes()).unwrap();
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.keyboard.write_all(CTRL_Z).unwrap();
    terminal.expect("Stopped");
    terminal.keyboard.write_all(b"bg\n").unwrap();
    wait_until("the server to go on", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    sandbox.run(["stop", "-p", &port.to_string()]).expect(0);
    // Were the terminal taken from it, the shell would have ended.
    terminal
        .keyboard
        .write_all(b"echo shell-$((40 + 2))\n")
        .unwrap();
    terminal.expect("shell-42");
    terminal.keyboard.write_all(b"exit\n").unwrap();
    assert_eq!(terminal.wait(), Some(0));
}

/// An interactive bash, at its prompt.
fn bash(sandbox: &Sandbox) -> Terminal {
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-i"])
        .env("LLMLB_LOCK_DIR", sandbox.path())
        .env("LLMLB", llmlb_tests::llmlb_binary())
        .env("GUINEA", GUINEA)
        .env("PS1", "prompt$((6 * 7)) ");
    let terminal = Terminal::run(bash);
    terminal.expect("prompt42");
    terminal
}

const CTRL_C: &[u8] = &[3];

/// What a Python prompt does that starts llmlb: it shares its process group, and reads on.
#[test]
fn whoever_started_llmlb_in_its_own_group_can_go_on_reading() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut terminal = bash(&sandbox);
    let script = format!(
        "$LLMLB serve -p {port} -- $GUINEA {port} graceful=0 </dev/tty & read -r line; \
         echo got-$line; $LLMLB stop -p {port}; wait"
    );
    terminal.type_in(format!("sh -c '{script}'\n"));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.type_in("a$((40+2))\n");
    terminal.expect("got-a$((40+2))");
    terminal.expect("Server stopped successfully");
    terminal.type_in("exit\n");
    terminal.wait();
}

#[test]
fn ctrl_c_reaches_all_servers_under_one_script() {
    let sandbox = Sandbox::new();
    let (one, two) = (free_port(), free_port());
    let mut terminal = bash(&sandbox);
    let serve = |port| format!("$LLMLB serve -p {port} -- $GUINEA {port} </dev/tty");
    let script = format!("{} 2>&1 >/dev/tty | {} >/dev/tty", serve(one), serve(two));
    terminal.type_in(format!("sh -c '{script}'; echo script-$((40 + 2))\n"));
    for port in [one, two] {
        wait_until("the server to serve", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
    }
    let servers = [one, two].map(|port| sandbox.named_pid(port));
    terminal.type_in(CTRL_C);
    for server in servers {
        wait_until("the server to end", || (!is_alive(server)).then_some(()));
    }
    for port in [one, two] {
        wait_until("the lock to be given back", || {
            (!sandbox.lock_file(port).exists()).then_some(())
        });
    }
    terminal.type_in("exit\n");
    terminal.wait();
}

#[test]
fn ctrl_c_ends_a_loop_of_the_shell() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut terminal = bash(&sandbox);
    terminal.type_in(format!(
        "while sleep 0.1; do $LLMLB serve -p {port} -- $GUINEA {port}; echo round-$((40 + 2)); done\n"
    ));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.type_in(CTRL_C);
    wait_until("the lock to be given back", || {
        (!sandbox.lock_file(port).exists()).then_some(())
    });
    terminal.type_in("echo code-$?-$((40 + 2))\n");
    terminal.expect("code-130-42");
    assert!(!terminal.shows("round-42"));
    terminal.type_in("exit\n");
    terminal.wait();
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn ctrl_z_stops_the_whole_pipeline() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut terminal = bash(&sandbox);
    terminal.type_in(format!(
        "$LLMLB serve -p {port} -- $GUINEA {port} graceful=0 | cat\n"
    ));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.type_in(CTRL_Z);
    terminal.expect("Stopped");
    terminal.type_in("echo shell-$((40 + 2))\n");
    terminal.expect("shell-42");
    // And it goes on together, the terminal with the server again.
    let server = sandbox.named_pid(port);
    let group = || {
        let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
        let fields: Vec<String> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        (fields[0].clone(), fields[2] == fields[5])
    };
    assert_eq!(group().0, "T");
    terminal.type_in("fg\n");
    wait_until("the server to be in the foreground", || {
        (group() == ("S".to_owned(), true)).then_some(())
    });
    terminal.type_in(CTRL_C);
    wait_until("the server to end", || (!is_alive(server)).then_some(()));
    terminal.type_in("exit\n");
    terminal.wait();
}

#[test]
fn ctrl_z_stops_a_server_under_a_script_with_it() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut terminal = bash(&sandbox);
    terminal.type_in(format!(
        "sh -c '$LLMLB serve -p {port} -- $GUINEA {port} graceful=0; echo done'\n"
    ));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    terminal.type_in(CTRL_Z);
    terminal.expect("Stopped");
    let server = sandbox.named_pid(port);
    let state = || fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
    wait_until("the server to stop", || {
        state().contains(") T ").then_some(())
    });
    terminal.type_in("fg\n");
    wait_until("the server to go on", || {
        state().contains(") S ").then_some(())
    });
    terminal.type_in(CTRL_C);
    wait_until("the server to end", || (!is_alive(server)).then_some(()));
    terminal.type_in("exit\n");
    terminal.wait();
}

#[test]
fn a_terminal_that_stops_writers_does_not_stop_the_guard() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut terminal = bash(&sandbox);
    terminal.type_in("stty tostop\n");
    terminal.type_in(format!(
        "$LLMLB serve -p {port} -- $GUINEA {port} graceful=0; echo code-$?-$((40 + 2))\n"
    ));
    terminal.expect("ready");
    terminal.expect("Guarding port");
    sandbox.run(["stop", "-p", &port.to_string()]).expect(0);
    terminal.expect("code-0-42");
    assert!(!terminal.shows("Stopped"));
    terminal.type_in("exit\n");
    terminal.wait();
}

#[test]
fn nothing_moves_where_nobody_is_waited_for() {
    let sandbox = Sandbox::new();
    let port = free_port();
    sandbox.serve(port).kill();
    let mut terminal = Terminal::run(sandbox.llmlb(["stop", &port.to_string()]));
    terminal.expect("removed the lock file it left behind");
    assert_eq!(terminal.wait(), Some(0));
    terminal.expect(&format!("cleaning up port {port}"));
    assert!(!terminal.shows("waiting for port"));
}

/// `llmlb status` with these arguments, on a terminal that is so wide.
fn status_on_screen(sandbox: &Sandbox, columns: usize, args: &str) -> String {
    let mut status = Command::new("sh");
    let script = format!("stty cols {columns} rows 24; exec \"$0\" status {args}");
    status.args(["-c", &script]);
    status.arg(llmlb_tests::llmlb_binary());
    status.env("LLMLB_LOCK_DIR", sandbox.path());
    let mut terminal = Terminal::run(status);
    terminal.expect("Locks are in ");
    terminal.wait();
    terminal.screen.lock().unwrap().clone()
}

#[test]
fn status_fits_the_terminal_and_says_what_runs_and_where_the_locks_are() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let long = "x".repeat(200);
    let _server = sandbox.supervise(port, &[], &[GUINEA, "{port}", &long]);
    let screen = status_on_screen(&sandbox, 72, "");
    let lines: Vec<&str> = screen.lines().collect();
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(header, ["PORT", "PID", "STARTED", "STATUS", "COMMAND"]);
    assert!(lines[1].contains("  Running  "), "{screen}");
    assert!(lines[1].ends_with('…'), "{screen}");
    assert!(lines[1].chars().count() <= 72, "{screen}");
    let footer = format!("Locks are in {}", sandbox.path().display());
    assert_eq!(lines[2], footer);
    // Whoever wants to read all of it asks for that, or for a pipe.
    let wide = sandbox.run(["status", "--format", "wide"]).expect(0);
    assert!(wide.stdout.contains(&long), "{wide:?}");
}

#[test]
fn status_shows_on_a_terminal_as_much_as_fits() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let long = "x".repeat(200);
    let _server = sandbox.supervise(port, &[], &[GUINEA, "{port}", &long]);
    // A row with the longest words that there are.
    std::os::unix::fs::symlink("/etc/passwd", sandbox.lock_file(free_port())).unwrap();
    let piped = sandbox.run(["status"]).expect(0).stdout;
    let piped: Vec<&str> = piped.lines().collect();
    let frozen: Vec<&str> = piped[1].split_whitespace().collect();
    let whole = ["UPTIME", "USER", "ADDRESS", "RESTARTS", "COMMAND"];
    let mut before = 0;
    for columns in [40, 41, 45, 46, 50, 60, 72, 80, 100, 120, 132, 300] {
        for args in ["", "--all"] {
            let screen = status_on_screen(&sandbox, columns, args);
            let table: Vec<&str> = screen
                .lines()
                .take_while(|line| !line.starts_with("Locks are in "))
                .filter(|line| !line.contains(" not shown "))
                .collect();
            for line in &table {
                assert!(line.chars().count() <= columns, "{columns}: {screen}");
            }
            let header: Vec<&str> = table[0].split_whitespace().collect();
            assert_eq!(header[..4], ["PORT", "PID", "STARTED", "STATUS"]);
            let row = table.iter().find(|line| line.starts_with(frozen[0]));
            let row: Vec<&str> = row.expect(&screen).split_whitespace().collect();
            assert_eq!([row[0], row[1], row[3]], [frozen[0], frozen[1], frozen[3]]);
            let started = row[2].trim_end_matches('…');
            assert!(started.len() >= 10, "{screen}");
            assert!(frozen[2].starts_with(started), "{screen}");
            if args.is_empty() {
                let more = header.len() - 4;
                assert!(more >= before, "{columns}: {screen}");
                before = more;
                if columns == 132 {
                    assert_eq!(header[4..], whole, "{screen}");
                    assert!(screen.contains(&format!(" 127.0.0.1:{port} ")), "{screen}");
                }
            }
        }
    }
    // All that fits is shown in full.
    assert!(status_on_screen(&sandbox, 400, "").contains(&long));
}

#[test]
fn the_end_of_the_terminal_is_the_end_of_who_serves_and_of_who_waits() {
    let sandbox = Sandbox::new();
    let port = free_port().to_string();
    let log = sandbox.path().join("log");
    let program = llmlb_binary().display();
    let said_elsewhere = format!("exec {program} \"$@\" 2>{}", log.display());
    let serve = ["serve", "-p", &port];
    let wait = ["serve", "-p", &port, "--wait", "600"];
    let mut started = [0, 1, 2].map(|number| {
        let mut command = match number {
            0 => sandbox.llmlb(serve),
            1 => sandbox.llmlb(wait),
            _ => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &said_elsewhere, "sh"]).args(wait);
                shell.args(["--", "true"]);
                shell
            }
        };
        command.env("LLMLB_LOCK_DIR", sandbox.path());
        let (mut screen, child) = on_a_terminal(command);
        let mut said = String::new();
        wait_until("it to serve or to wait", || {
            if number == 2 {
                said = fs::read_to_string(&log).unwrap_or_default();
            } else {
                let mut buffer = [0; 4096];
                let len = screen.read(&mut buffer).unwrap();
                said += &String::from_utf8_lossy(&buffer[..len]);
            }
            let is_there = said.contains("listening on") || said.contains("Waiting up to");
            is_there.then_some(())
        });
        (Some(screen), child)
    });
    // Those who wait first.
    for (screen, child) in started.iter_mut().rev() {
        drop(screen.take());
        wait_until("the program to end", || child.try_wait().unwrap());
    }
    assert!(!sandbox.lock_file(port.parse().unwrap()).exists());
}
