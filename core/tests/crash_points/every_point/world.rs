//! Where the traced operations happen: a lock directory with neighbours, the process under trace,
//! and what must be true after it was killed or refused.

use std::fs;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use llmlb_lock_core::{LockDir, LockError, LockInfo, ServerLock, ServerState};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use tempfile::TempDir;

use super::scenario::{Held, Scenario};
use super::tracer;

/// Nothing binds them: each scenario has a lock directory of its own.
pub(super) const PORT: u16 = 8000;
const NEIGHBOUR_PORT: u16 = 8001;
/// Above what any kernel gives out.
pub(super) const DEAD: u32 = 0x0040_0001;
/// Below the second that an unclear holder is given.
const AT_ONCE: Duration = Duration::from_millis(900);
/// How long a machine under load may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct World {
    dir: TempDir,
    pub(super) locks: LockDir,
    life: Option<PipeWriter>,
    pub(super) alive: PipeReader,
    neighbour: Pid,
    neighbours: Vec<(PathBuf, u64, Vec<u8>)>,
}

impl World {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (alive, life) = std::io::pipe().unwrap();
        let mut world = Self {
            locks: LockDir::new(dir.path()),
            dir,
            life: Some(life),
            alive,
            neighbour: Pid::from_raw(0),
            neighbours: Vec::new(),
        };
        world.neighbour = world.holder(NEIGHBOUR_PORT);
        fs::write(world.dir.path().join("notes.txt"), "not a lock file").unwrap();
        fs::write(world.dir.path().join("serve_08000.lock"), "no lock of ours").unwrap();
        for name in ["serve_8001.lock", "notes.txt", "serve_08000.lock"] {
            let path = world.dir.path().join(name);
            let inode = path.metadata().unwrap().ino();
            let bytes = fs::read(&path).unwrap();
            world.neighbours.push((path, inode, bytes));
        }
        world
    }

    /// In a forked process: those who wait for this test to end do not wait for the fork.
    pub(super) fn let_go(&mut self) {
        self.life = None;
    }

    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.locks.lock_path(PORT)
    }

    pub(super) fn plant(&self, content: &str) {
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o644);
        let mut file = file.open(self.file()).unwrap();
        file.write_all(content.as_bytes()).unwrap();
    }

    /// A process that guards the port until it is ended, or this one has.
    pub(super) fn holder(&mut self, port: u16) -> Pid {
        let (mut ready, say) = std::io::pipe().unwrap();
        // SAFETY: this process has a single thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(say);
                assert_eq!(ready.read(&mut [0]).unwrap(), 1, "the holder is ready");
                child
            }
            ForkResult::Child => {
                drop(ready);
                self.life = None;
                let lock = self.locks.acquire(port).unwrap();
                (&say).write_all(b".").unwrap();
                wait_for_end(&self.alive);
                drop(lock);
                std::process::exit(0);
            }
        }
    }

    /// Forks the process under trace; it waits to be traced when this returns.
    pub(super) fn subject(&mut self, scenario: &Scenario, other: Option<Pid>) -> Subject {
        let (mut ready, say) = std::io::pipe().unwrap();
        // SAFETY: this process has a single thread.
        match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => {
                drop(say);
                // Who has been told of a server first, if there is one.
                let mut server = [0; 4];
                ready.read_exact(&mut server).unwrap();
                let server = i32::from_le_bytes(server);
                Subject {
                    pid: child,
                    other: other.or((server != 0).then_some(Pid::from_raw(server))),
                    report: ready,
                }
            }
            ForkResult::Child => {
                drop(ready);
                self.life = None;
                play(self, scenario, other, &say);
                wait_for_end(&self.alive);
                std::process::exit(0);
            }
        }
    }

    /// What the file says, if it says anything.
    pub(super) fn named(&self) -> Option<LockInfo> {
        match self.locks.read_lock_info(PORT) {
            Ok(info) => info,
            // Only an acquire that never came to write its name leaves these.
            Err(LockError::Corrupted(_)) => None,
            Err(e) => panic!("the file can't be read: {e}"),
        }
    }

    /// Whether the lock is held, asked of the kernel.
    pub(super) fn is_guarded(&self) -> bool {
        let Ok(file) = fs::File::open(self.file()) else {
            return false;
        };
        match fs2::FileExt::try_lock_shared(&file) {
            Ok(()) => false,
            Err(e) => {
                assert_eq!(
                    e.raw_os_error(),
                    fs2::lock_contended_error().raw_os_error(),
                    "{e}"
                );
                true
            }
        }
    }

    pub(super) fn state(&self) -> Option<ServerState> {
        self.locks.server(PORT).unwrap().map(|server| server.state)
    }

    /// The next start takes the port at once, whatever lies in its way.
    pub(super) fn next_start(&self) {
        let started = Instant::now();
        let lock = self.locks.acquire(PORT);
        let took = started.elapsed();
        let lock = lock.unwrap_or_else(|e| panic!("the next start is refused: {e}"));
        assert!(took < AT_ONCE, "the next start took {took:?}");
        self.is_held_by(&lock);
        lock.release().unwrap();
        assert!(!self.file().exists(), "a release removes the file");
    }

    fn is_held_by(&self, lock: &ServerLock) {
        let path = self.file();
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o600);
        assert_eq!(self.named().as_ref(), Some(lock.info()));
        assert!(self.is_guarded());
    }

    pub(super) fn nothing_else_is_harmed(&self) {
        for (path, inode, bytes) in &self.neighbours {
            let metadata = path.metadata().unwrap();
            assert_eq!(metadata.ino(), *inode, "{}", path.display());
            assert_eq!(&fs::read(path).unwrap(), bytes, "{}", path.display());
        }
        assert!(is_alive(self.neighbour), "the neighbour was ended");
        let server = self.locks.server(NEIGHBOUR_PORT).unwrap().unwrap();
        assert_eq!(server.state, ServerState::Running);
        let entries = fs::read_dir(self.path()).unwrap().count();
        assert_eq!(entries, self.neighbours.len(), "files left behind");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if self.life.is_some() {
            end(self.neighbour);
        }
    }
}

/// The process under trace, seen by the tracer.
pub(super) struct Subject {
    pub(super) pid: Pid,
    /// Who guards the port beside it.
    pub(super) other: Option<Pid>,
    report: PipeReader,
}

/// What came of an operation that was let come to its end.
pub(super) struct Report {
    pub(super) result: Result<(), String>,
    pub(super) descriptors_before: usize,
    pub(super) descriptors_after: usize,
}

impl Subject {
    pub(super) fn report(&mut self) -> Report {
        let mut text = String::new();
        // It ends with a NUL; the subject lives on.
        let mut byte = [0];
        let mut bytes = Vec::new();
        while self.report.read(&mut byte).unwrap() == 1 && byte[0] != 0 {
            bytes.push(byte[0]);
        }
        text.push_str(&String::from_utf8(bytes).unwrap());
        let mut parts = text.splitn(3, ' ');
        let mut next = || parts.next().unwrap_or_else(|| panic!("cut off: {text:?}"));
        let descriptors_before = next().parse().unwrap();
        let descriptors_after = next().parse().unwrap();
        let result = match next() {
            "ok" => Ok(()),
            error => Err(error.to_owned()),
        };
        Report {
            result,
            descriptors_before,
            descriptors_after,
        }
    }
}

/// The subject's part.
fn play(world: &World, scenario: &Scenario, other: Option<Pid>, say: &PipeWriter) {
    // Of its own, so that the tracer can wait for it and for what it forks.
    nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).unwrap();
    let mut held: Held = (scenario.prepare)(world);
    let server = held.server.map_or(0, Pid::as_raw);
    (&*say).write_all(&server.to_le_bytes()).unwrap();
    let descriptors_before = descriptors();
    let result = tracer::traced(|| {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (scenario.act)(world, &mut held, other)
        }))
    });
    let descriptors_after = descriptors();
    let result = match result {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(e)) => e,
        Err(_) => "it panicked".to_owned(),
    };
    let text = format!("{descriptors_before} {descriptors_after} {result}\0");
    (&*say).write_all(text.as_bytes()).unwrap();
    // Kept: it is the worker that ends it.
    std::mem::forget(held);
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Blocks until whoever holds the other end of the pipe has ended.
pub(super) fn wait_for_end(mut alive: &PipeReader) {
    let _ = alive.read(&mut [0]);
}

/// Whether a process runs; a zombie does not.
pub(super) fn is_alive(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").starts_with(" Z"))
}

/// Ends a process that this test has started, and waits for that.
pub(super) fn end(pid: Pid) {
    assert!(pid.as_raw() > 1);
    match kill(pid, Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(e) => panic!("ending {pid}: {e}"),
    }
    await_end(pid);
    let _ = waitpid(pid, None);
}

/// Waits until it has ended, if not yet reaped.
pub(super) fn await_end(pid: Pid) {
    let started = Instant::now();
    // Some are not children of this process, at least not yet.
    while is_alive(pid) {
        assert!(started.elapsed() < PATIENCE, "{pid} does not end");
        std::thread::sleep(Duration::from_micros(200));
    }
}
