//! What tests share: the program under test, run in a lock directory of its own; and, for those of
//! the load balancer, model servers and clients that do and see exactly what is needed.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[cfg(unix)]
pub mod certificates;
#[cfg(unix)]
pub mod front;
#[cfg(unix)]
pub mod model_server;
#[cfg(unix)]
pub mod wire;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long anything may take on a loaded machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The `llmlb` binary: `LLMLB_BIN`, or built on first use beside this test.
pub fn llmlb_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("LLMLB_BIN") {
        Some(path) => path.into(),
        None => built("llmlb", "llmlb"),
    })
}

/// The server with a family (`guinea-family`), for tests of other packages.
pub fn family_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| built("llmlb-tests", "guinea-family"))
}

/// A program of the workspace, beside this test.
fn built(package: &str, name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile_dir = test.ancestors().nth(2).unwrap().to_path_buf();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", package, "--bin", name]);
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    build.arg("--target-dir").arg(profile_dir.parent().unwrap());
    if profile_dir.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "{name} does not build");
    profile_dir.join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

/// A lock directory of its own, removed at the end.
pub struct Sandbox {
    directory: TempDir,
}

impl Sandbox {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// Where the locks are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn lock_file(&self, port: u16) -> PathBuf {
        self.path().join(format!("serve_{port}.lock"))
    }

    /// `llmlb` with these arguments, untouched by the environment of the test run.
    pub fn llmlb<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(llmlb_binary());
        for name in ["LLMLB_PORT", "LLMLB_HOST", "LLMLB_LOG", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command.env("LLMLB_LOCK_DIR", self.path()).args(args);
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        let mut command = self.llmlb(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = spawn(command.stdin(Stdio::null()));
        Finished::of(child.wait_with_output().unwrap())
    }

    /// The built-in server, listening.
    pub fn serve(&self, port: u16) -> Running {
        self.serve_with(port, &[])
    }

    pub fn serve_with(&self, port: u16, args: &[&str]) -> Running {
        let port = port.to_string();
        let mut running = Running::start(self.llmlb(["serve", "--port", &port]).args(args));
        running.expect_log("listening on");
        running
    }

    /// `llmlb serve -- COMMAND`, once the command has printed `ready`.
    pub fn supervise(&self, port: u16, args: &[&str], command: &[&str]) -> Running {
        let port = port.to_string();
        let mut llmlb = self.llmlb(["serve", "--port", &port]);
        let mut running = Running::start(llmlb.args(args).arg("--").args(command));
        running.expect_output("ready");
        running
    }

    /// The process that the lock file names. Its writer may be in the act, and it is blank then.
    pub fn named_pid(&self, port: u16) -> u32 {
        wait_until("the lock file to name a process", || {
            parse_pid(&std::fs::read(self.lock_file(port)).unwrap())
        })
    }
}

/// A server outlives a launcher that is killed: none is left running behind a test.
#[cfg(unix)]
impl Drop for Sandbox {
    fn drop(&mut self) {
        let own = format!("\"pid\":{},", std::process::id());
        for entry in std::fs::read_dir(self.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let port = name
                .strip_prefix("serve_")
                .and_then(|rest| rest.strip_suffix(".lock"));
            // Reading a FIFO would wait for ever, and a lock of this very process is no server's.
            if let Some(port) = port
                && entry.file_type().is_ok_and(|kind| kind.is_file())
                && std::fs::read(entry.path())
                    .is_ok_and(|text| !String::from_utf8_lossy(&text).contains(&own))
            {
                let stop = ["stop", "--port", port, "--force", "--timeout", "0"];
                let _ = self.llmlb(stop).output();
            }
        }
    }
}

fn parse_pid(text: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(text);
    let after = text.split("\"pid\":").nth(1)?;
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Starts it. Wine fails to, now and then, with an internal error (1359).
fn spawn(command: &mut Command) -> Child {
    wait_until("the program to start", || match command.spawn() {
        Err(e) if cfg!(windows) && e.raw_os_error() == Some(1359) => None,
        result => Some(result.unwrap()),
    })
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn of(output: Output) -> Self {
        Self {
            code: shell_code(output.status),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }
}

/// A program that runs; killed when dropped.
pub struct Running {
    pub child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(command.stdin(Stdio::null()));
        let stdout = Lines::of(child.stdout.take().unwrap());
        let stderr = Lines::of(child.stderr.take().unwrap());
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// With a stderr that is the caller's to read.
    pub fn start_saying_to(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        command.stdout(Stdio::piped()).stderr(stderr);
        let mut child = spawn(command.stdin(Stdio::null()));
        // Else it is held open on this side.
        command.stderr(Stdio::null());
        let stdout = Lines::of(child.stdout.take().unwrap());
        Self {
            child,
            stdout,
            stderr: Lines::of(std::io::empty()),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on stderr that contains this.
    #[track_caller]
    pub fn expect_log(&mut self, text: &str) -> String {
        self.stderr.wait_for(text)
    }

    /// Waits for a line on stdout that contains this.
    #[track_caller]
    pub fn expect_output(&mut self, text: &str) -> String {
        self.stdout.wait_for(text)
    }

    #[cfg(unix)]
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        signal_pid(self.pid(), signal);
    }

    /// As `stop` does: SIGTERM, on Windows the stop event.
    pub fn ask_to_end(&self) {
        #[cfg(unix)]
        self.signal(nix::sys::signal::Signal::SIGTERM);
        #[cfg(windows)]
        assert!(llmlb_lock_core::StopEvent::request(self.pid()).unwrap());
    }

    /// A second time, and not the same signal: twice the same at once is one request.
    pub fn ask_again_to_end(&self) {
        #[cfg(unix)]
        self.signal(nix::sys::signal::Signal::SIGINT);
        #[cfg(windows)]
        self.ask_to_end();
    }

    /// Kills it, so that it cannot clean up.
    pub fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.wait()
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_until("the program to end", || self.child.try_wait().unwrap())
    }

    /// Waits for the end, and for all it printed.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        let status = self.wait();
        Finished {
            code: shell_code(status),
            stdout: self.stdout.rest(),
            stderr: self.stderr.rest(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a shell says that it ended with: 128 + N when signal N did it.
pub fn shell_code(status: ExitStatus) -> Option<i32> {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return Some(128 + signal);
    }
    status.code()
}

/// Lines as a program prints them.
struct Lines {
    receiver: Receiver<String>,
    seen: String,
}

impl Lines {
    fn of(stream: impl Read + Send + 'static) -> Self {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            receiver,
            seen: String::new(),
        }
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.receiver.recv_timeout(deadline - Instant::now()) {
                Ok(line) => {
                    self.seen += &line;
                    self.seen.push('\n');
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(e) => panic!("no {text:?} ({e}), only:\n{}", self.seen),
            }
        }
    }

    /// All lines to the end; what outlives the program may hold the pipe open for ever.
    fn rest(&mut self) -> String {
        loop {
            match self.receiver.recv_timeout(Duration::from_secs(5)) {
                Ok(line) => {
                    self.seen += &line;
                    self.seen.push('\n');
                }
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                    return std::mem::take(&mut self.seen);
                }
            }
        }
    }
}

/// Looks again and again until there is an answer.
#[track_caller]
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port that was free an instant ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// One HTTP request; the whole answer as text.
pub fn http_get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether a process is there and has not ended.
#[cfg(windows)]
pub fn is_alive(pid: u32) -> bool {
    llmlb_lock_core::is_process_running(pid)
}

/// Whether a process is there and no zombie.
#[cfg(unix)]
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let state = stat.rsplit(')').next().unwrap().trim_start();
    !state.starts_with('Z')
}

#[cfg(unix)]
pub fn signal_pid(pid: u32, signal: nix::sys::signal::Signal) {
    assert!(pid > 1, "not a process of ours");
    let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}
