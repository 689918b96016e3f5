//! The control socket beside the lock file, where a successor knocks.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use llmlb_lock_core::ServerLock;
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;

/// A socket's address has 108 bytes on Linux and 104 on macOS, its end included.
const LONGEST_ADDRESS: usize = 103;

/// Before trying again what the system refused.
const PAUSE: Duration = Duration::from_millis(100);

/// Open for as long as it lives.
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// What its entry in the directory is: a successor puts its own in its place.
    identity: (u64, u64),
}

impl Door {
    /// Under the lock: whatever is in its place is a left-over, or a predecessor's.
    pub(super) fn open(lock: &ServerLock) -> io::Result<Self> {
        let path = path_of(lock.path());
        let new = path.with_extension("sock.new");
        let _ = fs::remove_file(&new);
        let listener = UnixListener::bind(Address::of(&new)?.path())?;
        // Who knocks is asked for his credentials all the same.
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        let metadata = fs::symlink_metadata(&new)?;
        fs::rename(&new, &path)?;
        Ok(Self {
            listener,
            path,
            identity: (metadata.dev(), metadata.ino()),
        })
    }

    /// Waits for someone of the same user.
    pub(super) async fn knock(&self) -> UnixStream {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if is_same_user(&stream) => return stream,
                Ok(_) => {}
                // Out of descriptors: whoever knocks is patient.
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Knocks where a server of the same user may open.
pub(super) async fn call(lock_path: &Path) -> io::Result<UnixStream> {
    let address = Address::of(&path_of(lock_path))?;
    let stream = UnixStream::connect(address.path()).await?;
    if !is_same_user(&stream) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(stream)
}

/// Whether there is a door to knock at.
pub(crate) fn exists(lock_path: &Path) -> bool {
    path_of(lock_path).exists()
}

/// The path of a socket, or a shorter one that leads there.
struct Address {
    path: PathBuf,
    /// The directory, where the way goes through its descriptor.
    _directory: Option<File>,
}

impl Address {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= LONGEST_ADDRESS {
            return Ok(Self {
                path: path.to_owned(),
                _directory: None,
            });
        }
        let (Some(parent), Some(name), true) =
            (path.parent(), path.file_name(), cfg!(target_os = "linux"))
        else {
            let message = format!("{} is too long for a socket's address", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        let directory = File::open(parent)?;
        let through = format!("/proc/self/fd/{}", directory.as_raw_fd());
        Ok(Self {
            path: Path::new(&through).join(name),
            _directory: Some(directory),
        })
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

fn path_of(lock_path: &Path) -> PathBuf {
    lock_path.with_extension("sock")
}

fn is_same_user(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == Uid::effective().as_raw())
}
