//! On a terminal: keys reach the server once, and `stop` shows that it waits.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use llmlb_tests::{Sandbox, free_port, is_alive, wait_until};
use nix::pty::openpty;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

struct Terminal {
    keyboard: File,
    screen: Arc<Mutex<String>>,
    child: Child,
}

impl Terminal {
    /// Runs it as the foreground job of a new terminal.
    fn run(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
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
        let keyboard = File::from(pty.master);
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
