//! What is seen from the outside: a lock directory, its files, who holds their kernel locks; and a
//! holder that the cases play themselves.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use tempfile::TempDir;

use crate::speaker::PATIENCE;

/// Nothing binds it: each case has a lock directory of its own.
pub const PORT: u16 = 8000;
/// Above what any kernel gives out.
pub const DEAD: u32 = 0x0040_0001;

/// A lock directory of its own, removed at the end.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        Ok(Self { dir })
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self) -> PathBuf {
        self.file_of(PORT)
    }

    pub fn file_of(&self, port: u16) -> PathBuf {
        self.dir.path().join(format!("serve_{port}.lock"))
    }

    /// Puts a file in the lock's place that nobody holds.
    pub fn plant(&self, content: impl AsRef<[u8]>) -> Result<(), String> {
        self.plant_at(PORT, content)
    }

    pub fn plant_at(&self, port: u16, content: impl AsRef<[u8]>) -> Result<(), String> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let file = options.open(self.file_of(port));
        file.and_then(|mut file| file.write_all(content.as_ref()))
            .map_err(|e| e.to_string())
    }

    /// Holds the lock as a stranger to all libraries does.
    pub fn hold(&self, content: impl AsRef<[u8]>) -> Result<Holder, String> {
        self.hold_as(&format!("serve_{PORT}.lock"), content)
    }

    /// The same, of any file.
    pub fn hold_as(&self, name: &str, content: impl AsRef<[u8]>) -> Result<Holder, String> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let path = self.dir.path().join(name);
        let mut file = options.open(path).map_err(|e| e.to_string())?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| e.to_string())?;
        file.write_all(content.as_ref())
            .map_err(|e| e.to_string())?;
        Ok(Holder { _file: file })
    }

    pub fn look(&self) -> Result<Look, String> {
        let path = self.file();
        let read = || {
            let metadata = path.symlink_metadata()?;
            Ok(Look {
                bytes: fs::read(&path)?,
                inode: metadata.ino(),
                modified: (metadata.mtime(), metadata.mtime_nsec()),
                mode: metadata.mode() & 0o7777,
            })
        };
        read().map_err(|e: std::io::Error| format!("{}: {e}", path.display()))
    }

    /// The PID that the file names, if it is what a lock file should be.
    pub fn named(&self) -> Result<u64, String> {
        let json = self.json()?;
        let pid = json["pid"].as_u64();
        pid.ok_or_else(|| format!("no pid in {json}"))
    }

    pub fn json(&self) -> Result<serde_json::Value, String> {
        let bytes = self.look()?.bytes;
        serde_json::from_slice(&bytes)
            .map_err(|e| format!("{:?} is no JSON: {e}", String::from_utf8_lossy(&bytes)))
    }

    /// Whether somebody holds the lock of the file at the path, asked of the kernel.
    pub fn is_locked(&self) -> Result<bool, String> {
        is_locked(&self.file())
    }
}

pub fn is_locked(path: &Path) -> Result<bool, String> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(format!("{}: {e}", path.display())),
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}

/// The kernel lock, until it is dropped. The file stays.
#[derive(Debug)]
pub struct Holder {
    _file: File,
}

/// Everything about a file that a refused start may not change.
#[derive(Debug, PartialEq, Eq)]
pub struct Look {
    pub bytes: Vec<u8>,
    pub inode: u64,
    pub modified: (i64, i64),
    pub mode: u32,
}

/// What a lock file says, with the three fields alone.
pub fn content(pid: u32, started_at: &str, port: u16) -> String {
    format!(r#"{{"pid":{pid},"started_at":"{started_at}","port":{port}}}"#)
}

pub fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

pub const LONG_AGO: &str = "2026-01-30T12:00:00Z";

/// A process that has nothing to do with locks. It ends with the case.
#[derive(Debug)]
pub struct Bystander {
    child: Child,
}

impl Bystander {
    pub fn new() -> Result<Self, String> {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().map_err(|e| format!("cat: {e}"))?;
        Ok(Self { child })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks until it holds, for what has no event to wait on.
pub fn eventually(
    what: &str,
    mut holds: impl FnMut() -> Result<bool, String>,
) -> Result<(), String> {
    let started = Instant::now();
    while !holds()? {
        if started.elapsed() >= PATIENCE {
            return Err(format!("never: {what}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
