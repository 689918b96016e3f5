//! Lock directories that can't be used, and full disks: a clear error, and nothing left behind
//! that blocks the next start.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Actor, DEAD, PORT, Stage, content, lock_file, plant, temp_dir};
use llmlb_lock_core::{LOCK_DIR_ENV, LockDir, LockError, lock_dir, lock_path};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};

common::roles!(
    contender,
    default_directory,
    tight_umask,
    where_to,
    without_space
);

/// Acquires once, and tells how it went.
fn contender(stage: &Stage) {
    if stage.acquire(Duration::ZERO).is_some() {
        stage.hear();
    }
}

/// Acquires in the default directory.
fn default_directory(stage: &Stage) {
    stage.say(lock_dir().display());
    stage.say(lock_path(PORT).display());
    let result = LockDir::default().acquire(PORT);
    stage.say(common::outcome(&result));
    stage.hear();
}

/// Acquires in the default directory though the umask forbids everything that it can.
fn tight_umask(stage: &Stage) {
    for mask in [0o077, 0o777] {
        umask(Mode::from_bits_truncate(mask));
        let lock = LockDir::default().acquire(PORT).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        let directory = mode(lock.path().parent().unwrap());
        stage.say(format!("{directory:o} {:o}", mode(lock.path())));
        lock.release().unwrap();
        fs::remove_dir(lock_dir()).unwrap();
    }
}

#[test]
fn a_file() {
    let dir = temp_dir();
    let path = dir.path().join("file");
    fs::write(&path, "precious").unwrap();
    for path in [path.clone(), path.join("below")] {
        let error = LockDir::new(&path).acquire(PORT).unwrap_err();
        assert!(
            matches!(error, LockError::DirectoryCreationFailed(_)),
            "{error}"
        );
        let text = error.to_string();
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(LOCK_DIR_ENV), "{text}");
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_directory_that_does_not_exist_is_made() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path().join("a/b/c"));
    assert_eq!(locks.servers().unwrap(), []);
    assert_eq!(locks.read_lock_info(PORT).unwrap(), None);
    assert!(!dir.path().join("a").exists());
    locks.acquire(PORT).unwrap().verify().unwrap();
}

#[test]
fn a_directory_that_may_not_be_written() {
    if !common::is_root("a_directory_that_may_not_be_written") {
        return;
    }
    let dir = temp_dir();
    for (mode, below) in [(0o755, ""), (0o755, "below"), (0o711, "")] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        let mut contender = Actor::nobody("contender", &dir.path().join(below));
        let text = contender.hear();
        assert!(text.starts_with("error Failed to "), "{text}");
        assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{mode:o}");
    }
}

fn in_default_directory(role: &str, tmp: &Path) -> Actor {
    Actor::start(role, tmp, |command: &mut Command| {
        command.env_remove(LOCK_DIR_ENV).env("TMPDIR", tmp);
    })
}

#[test]
fn the_default_directory_is_for_all_users() {
    let dir = temp_dir();
    let tmp = dir.path().join("tmp");
    let mut actor = in_default_directory("default_directory", &tmp);
    assert_eq!(actor.hear(), tmp.join("llmlb").display().to_string());
    let path = tmp.join(format!("llmlb/serve_{PORT}.lock"));
    assert_eq!(actor.hear(), path.display().to_string());
    assert_eq!(actor.hear(), "won");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&tmp.join("llmlb")), 0o1777);
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn the_umask_does_not_matter() {
    let dir = temp_dir();
    let mut actor = in_default_directory("tight_umask", dir.path());
    assert_eq!(actor.hear(), "1777 600");
    assert_eq!(actor.hear(), "1777 600");
    assert!(actor.wait().success());
}

#[test]
fn a_symbolic_link_for_the_default_directory() {
    let dir = temp_dir();
    let elsewhere = dir.path().join("elsewhere");
    for exists in [true, false] {
        if exists {
            fs::create_dir(&elsewhere).unwrap();
        } else {
            fs::remove_dir(&elsewhere).unwrap();
        }
        let link = dir.path().join("llmlb");
        let _ = fs::remove_file(&link);
        symlink(&elsewhere, &link).unwrap();
        let mut actor = in_default_directory("default_directory", dir.path());
        actor.hear();
        actor.hear();
        let text = actor.hear();
        assert!(text.contains("symbolic link"), "{text}");
        assert!(text.contains(link.to_str().unwrap()), "{text}");
        assert_eq!(elsewhere.exists(), exists);
        if exists {
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_chosen_directory_may_be_a_symbolic_link() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("there")).unwrap();
    symlink("there", dir.path().join("here")).unwrap();
    let lock = LockDir::new(dir.path().join("here")).acquire(PORT).unwrap();
    assert!(lock_file(&dir.path().join("there")).exists());
    lock.verify().unwrap();
}

#[test]
fn a_chosen_directory_keeps_its_mode() {
    let dir = temp_dir();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
    drop(LockDir::new(dir.path()).acquire(PORT).unwrap());
    assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn an_empty_variable_is_none() {
    let dir = temp_dir();
    let mut actor = Actor::start("where_to", dir.path(), |command| {
        command.env(LOCK_DIR_ENV, "").env("TMPDIR", "");
    });
    assert_eq!(actor.hear(), "/tmp/llmlb");
    let mut actor = Actor::start("where_to", dir.path(), |command| {
        command.env(LOCK_DIR_ENV, "/some/where").env("TMPDIR", "");
    });
    assert_eq!(actor.hear(), "/some/where");
}

fn where_to(stage: &Stage) {
    stage.say(lock_dir().display());
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk() {
    if !common::is_root("a_full_disk") {
        return;
    }
    let dir = temp_dir();
    let disk = dir.path();
    let options = Some("size=16k,nr_inodes=20");
    mount(
        Some("tmpfs"),
        disk,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .unwrap();
    let _mounted = Mounted(disk);
    let locks = LockDir::new(disk);
    let filler = disk.join("filler");
    for stale in [None, Some(""), Some("{\"pid\":")] {
        if let Some(stale) = stale {
            plant(disk, stale);
        }
        let fill = vec![0; 1 << 16];
        let filled = fs::write(&filler, &fill).unwrap_err();
        assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
        match locks.acquire(PORT) {
            // What is there already may have room enough for us.
            Ok(lock) => {
                assert_eq!(stale, Some("{\"pid\":"));
                lock.release().unwrap();
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32), "{error}");
                let path = lock_file(disk).display().to_string();
                assert!(error.to_string().contains(&path), "{error}");
                assert!(error.to_string().contains("make room"), "{error}");
                assert!(!lock_file(disk).exists(), "{stale:?}");
            }
        }
        fs::remove_file(&filler).unwrap();
        locks.acquire(PORT).unwrap().release().unwrap();
    }
    // Without room for a name.
    for i in 0.. {
        if fs::write(disk.join(format!("{i}")), "").is_err() {
            break;
        }
    }
    let error = locks.acquire(PORT).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ENOSPC as i32), "{error}");
    fs::remove_file(disk.join("0")).unwrap();
    drop(locks.acquire(PORT).unwrap());
}

/// Acquires with less room for a file than the content takes.
fn without_space(stage: &Stage) {
    // SAFETY: no handler is installed.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    for room in [0, 1, 40] {
        setrlimit(Resource::RLIMIT_FSIZE, room, 1 << 20).unwrap();
        stage.acquire(Duration::ZERO);
        stage.say(lock_file(stage.locks.path()).exists());
    }
}

#[test]
fn a_file_size_limit() {
    for stale in [None, Some(content(DEAD, "2026-01-30T12:00:00Z"))] {
        let dir = temp_dir();
        if let Some(stale) = stale {
            plant(dir.path(), stale);
        }
        let mut actor = Actor::new("without_space", dir.path());
        for _ in 0..3 {
            let text = actor.hear();
            assert!(
                text.starts_with("error Failed to acquire lock: cannot write"),
                "{text}"
            );
            assert!(
                text.contains(lock_file(dir.path()).to_str().unwrap()),
                "{text}"
            );
            assert_eq!(actor.hear(), "false");
        }
        assert!(actor.wait().success());
        drop(LockDir::new(dir.path()).acquire(PORT).unwrap());
    }
}
