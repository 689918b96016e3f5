//! Helper processes for the tests.
//!
//! An [`Actor`] is this test binary, run again to play one role. It is told what to do and answers
//! over pipes, so that nothing is synchronised by sleeping; nothing but
//! its role runs in it, so that it may fork; and it ends when its test does, as its standard input
//! closes.

// Each test file uses its part.
#![allow(dead_code)]

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use llmlb_lock_core::{LockDir, LockError, ServerLock};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid};
use tempfile::TempDir;
use tracing_subscriber::filter::LevelFilter;

/// Nothing binds it: each test has a lock directory of its own.
pub(crate) const PORT: u16 = 8000;
/// How long a machine under load may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Above what any kernel gives out.
pub(crate) const DEAD: u32 = 0x0040_0001;

const ROLE: &str = "LLMLB_TEST_ROLE";
const DIR: &str = "LLMLB_TEST_DIR";

/// What an actor does; it ends when this returns.
pub(crate) type Role = fn(&Stage);

/// Declares the roles that this file's actors play.
macro_rules! roles {
    ($($role:ident),* $(,)?) => {
        #[test]
        fn actor() {
            crate::common::play(&[$((stringify!($role), $role as crate::common::Role)),*]);
        }
    };
}
pub(crate) use roles;

/// In an actor, plays its role. In the test run, checks that actors answer.
pub(crate) fn play(roles: &[(&str, Role)]) {
    let Ok(name) = std::env::var(ROLE) else {
        let dir = temp_dir();
        let mut actor = Actor::new("echo", dir.path());
        actor.tell("are you there?");
        assert_eq!(actor.hear(), "are you there?");
        return;
    };
    let stage = Stage {
        locks: LockDir::new(std::env::var_os(DIR).expect("set by Actor")),
    };
    match roles.iter().find(|(role, _)| *role == name) {
        Some((_, role)) => role(&stage),
        None if name == "echo" => loop {
            stage.say(stage.hear());
        },
        None => panic!("no role {name}"),
    }
    process::exit(0);
}

/// The actor's side.
pub(crate) struct Stage {
    pub(crate) locks: LockDir,
}

impl Stage {
    /// Answers the test, in one write, so that several processes may answer for one actor.
    pub(crate) fn say(&self, line: impl Display) {
        // The test runner leaves its own words on the same line.
        let text = format!("\n@{line}\n");
        nix::unistd::write(io::stdout(), text.as_bytes()).expect("the test listens");
    }

    /// What the test says. Ends the process when the test has ended.
    pub(crate) fn hear(&self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte: a forked process must find what follows in the pipe.
        while nix::unistd::read(io::stdin(), &mut byte).expect("the test speaks") == 1 {
            if byte == *b"\n" {
                return String::from_utf8(line).unwrap();
            }
            line.push(byte[0]);
        }
        process::exit(0);
    }

    /// Waits for the test's end and reads nothing: what it says is for the process beside this one.
    pub(crate) fn stay(&self) {
        let stdin = io::stdin();
        let mut end = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
        while poll(&mut end, PollTimeout::NONE).is_err() {}
    }

    /// Acquires and tells how it went, see [`outcome`].
    pub(crate) fn acquire(&self, timeout: Duration) -> Option<ServerLock> {
        let result = self.locks.acquire_timeout(PORT, timeout);
        self.say(outcome(&result));
        result.ok()
    }
}

/// `won`, `lost to PID`, or the error.
pub(crate) fn outcome(result: &Result<ServerLock, LockError>) -> String {
    match result {
        Ok(_) => "won".to_owned(),
        Err(LockError::AlreadyRunning { pid, .. }) => format!("lost to {pid}"),
        Err(e) => format!("error {e}"),
    }
}

/// Holds the lock, does as it is told, and answers `ok` or with the error.
pub(crate) fn holder(stage: &Stage) {
    let mut lock = stage.acquire(Duration::ZERO).expect("nobody else here");
    loop {
        let order = stage.hear();
        let (order, argument) = order.split_once(' ').unwrap_or((&order, ""));
        let result = match order {
            "verify" => lock.verify(),
            "adopt" => lock.adopt(),
            "hand_over" => lock.hand_over(argument.parse().unwrap()),
            "leave" => process::exit(0),
            "release" => {
                let result = lock.release();
                stage.say(done(&result));
                stage.hear();
                return;
            }
            _ => panic!("no order {order}"),
        };
        stage.say(done(&result));
    }
}

pub(crate) fn done(result: &Result<(), LockError>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(e) => format!("{e:?}"),
    }
}

/// A process that plays a role. It is killed when dropped.
pub(crate) struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Actor {
    pub(crate) fn new(role: &str, dir: &Path) -> Self {
        Self::start(role, dir, |_| {})
    }

    /// As user and group 65534, nobody; for this, the test runs as root.
    pub(crate) fn nobody(role: &str, dir: &Path) -> Self {
        Self::start(role, dir, |command| {
            command.uid(65534).gid(65534);
        })
    }

    pub(crate) fn start(role: &str, dir: &Path, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // The runner's own thread does nothing but wait for the role's.
        command
            .args(["actor", "--exact", "--nocapture", "--test-threads=1", "-q"])
            .env(ROLE, role)
            .env(DIR, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix('@')
                    && sender.send(line.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    /// An actor that holds the lock for [`PORT`].
    pub(crate) fn holding(dir: &Path) -> Self {
        let mut actor = Self::new("holder", dir);
        assert_eq!(actor.hear(), "won");
        actor
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tell(&mut self, line: impl Display) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub(crate) fn hear(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("an answer")
    }

    pub(crate) fn ask(&mut self, line: impl Display) -> String {
        self.tell(line);
        self.hear()
    }

    /// Whether it has nothing to say, now.
    pub(crate) fn is_silent(&self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Kill -9, reaped.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn wait(&mut self) -> process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Ends its standard input, and all it does with that.
    pub(crate) fn leave(&mut self) -> process::ExitStatus {
        self.input = None;
        self.wait()
    }

    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Stops all its threads, until [`resume`](Self::resume).
    #[cfg(target_os = "linux")]
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
        eventually("it has stopped", || {
            let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
            let mut stats = threads
                .flatten()
                .map(|t| fs::read_to_string(t.path().join("stat")));
            stats.all(|stat| stat.is_ok_and(|stat| stat.contains(") T ")))
        });
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        crate::common::signal(self.pid(), signal);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Signals one process that the test has started.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).unwrap();
    assert!(pid > 1);
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Forks, in an actor. The child has a single thread and ends when `child` returns.
pub(crate) fn fork(child: impl FnOnce()) -> Pid {
    #[cfg(target_os = "linux")]
    eventually("the runner waits for its only test", || {
        let main = fs::read_to_string("/proc/thread-self/../../stat").unwrap();
        let threads = fs::read_dir("/proc/self/task").unwrap().count();
        let sleeps = main.rsplit(')').next().unwrap().starts_with(" S");
        threads == 1 || (threads == 2 && sleeps)
    });
    // SAFETY: the only other thread waits for this one, and leaves no lock or allocator behind.
    match unsafe { nix::unistd::fork() }.unwrap() {
        ForkResult::Child => {
            child();
            process::exit(0);
        }
        ForkResult::Parent { child } => child,
    }
}

pub(crate) fn temp_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A directory as the default one is: open to all users.
pub(crate) fn open_dir() -> TempDir {
    let dir = temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    dir
}

/// Where the lock file for [`PORT`] is.
pub(crate) fn lock_file(dir: &Path) -> PathBuf {
    dir.join(format!("serve_{PORT}.lock"))
}

/// Puts a file in the lock's place.
pub(crate) fn plant(dir: &Path, content: impl AsRef<[u8]>) -> PathBuf {
    let path = lock_file(dir);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .unwrap();
    file.write_all(content.as_ref()).unwrap();
    path
}

/// What a lock file says.
pub(crate) fn content(pid: u32, started_at: &str) -> String {
    format!(r#"{{"pid":{pid},"started_at":"{started_at}","port":{PORT}}}"#)
}

/// What a lock file says that was written just now.
pub(crate) fn fresh(pid: u32) -> String {
    let now = std::time::SystemTime::now();
    let now: chrono::DateTime<chrono::Utc> = now.into();
    content(pid, &now.to_rfc3339())
}

/// The same of a live process, with the identity that it would have written itself.
#[cfg(target_os = "linux")]
pub(crate) fn identified(pid: u32) -> String {
    use std::os::unix::fs::MetadataExt;

    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let pid_ns = fs::metadata(format!("/proc/{pid}/ns/pid")).unwrap().ino();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    // The 22nd of all fields, the first of these being the third.
    let start = after_name.split_ascii_whitespace().nth(19).unwrap();
    with_identity(&fresh(pid), boot_id.trim(), pid_ns, start.parse().unwrap())
}

/// A text with an identity behind it.
pub(crate) fn with_identity(text: &str, boot_id: &str, pid_ns: u64, start: u64) -> String {
    let text = text.strip_suffix('}').unwrap();
    format!(r#"{text},"boot_id":"{boot_id}","pid_ns":{pid_ns},"start_ticks":{start}}}"#)
}

/// What `act` logs in this thread.
pub(crate) fn logged<T>(act: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);
    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(LevelFilter::DEBUG)
        .with_ansi(false)
        .without_time()
        .finish();
    let result = tracing::subscriber::with_default(subscriber, act);
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

/// Looks until `holds`, for what has no event to wait on.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether tests may become other users and mount file systems; says so where they may not.
pub(crate) fn is_root(test: &str) -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    if !root {
        // Past the runner's capture: a test that did not run must be seen.
        let _ = writeln!(io::stderr().lock(), "SKIPPED, needs root: {test}");
    }
    root
}

/// Keeps `cat` processes alive that have [`reader`](Self::reader) to read from, as long as this
/// test lives.
pub(crate) struct Leash {
    dir: TempDir,
    _end: File,
}

impl Leash {
    pub(crate) fn new() -> Self {
        let dir = open_dir();
        let path = dir.path().join("leash");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        let end = OpenOptions::new().read(true).write(true).open(&path);
        Self {
            dir,
            _end: end.unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("leash")
    }
}

/// A program that runs until the leash is cut or somebody ends it.
pub(crate) fn leashed(leash: impl AsRef<Path>) -> Command {
    let mut command = Command::new("cat");
    command
        .arg(leash.as_ref())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Whether the process has this open, as its descriptors are shown.
#[cfg(target_os = "linux")]
pub(crate) fn has_open(pid: u32, path: &Path) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    fds.flatten()
        .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path))
}
