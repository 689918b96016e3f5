//! Files in the lock's place that no server wrote: recovered or refused, and nobody is signalled.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{
    Actor, DEAD, PATIENCE, PORT, Stage, content, fork, fresh, holder, lock_file, logged, outcome,
    plant, temp_dir,
};
use llmlb_lock_core::{LockDir, LockError, LockInfo, ServerState, StopOptions, StopOutcome};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

common::roles!(container, holder);

const LONG_AGO: &str = "2001-02-03T04:05:06Z";

/// Whatever the file says, nobody holds it: the next server starts with a warning, status shows a
/// left-over, and stop removes it.
fn is_recovered(bytes: &[u8], names: Option<u32>) {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);

    plant(dir.path(), bytes);
    match locks.read_lock_info(PORT) {
        Ok(info) => assert_eq!(info.map(|info| info.pid), names, "{shown}"),
        Err(LockError::Corrupted(why)) => {
            let path = lock_file(dir.path()).display().to_string();
            assert!(why.starts_with(&path), "{shown}: {why}");
            assert_eq!(names, None, "{shown}: {why}");
        }
        Err(e) => panic!("{shown}: {e}"),
    }
    let servers = locks.servers().unwrap();
    assert_eq!(servers.len(), 1, "{shown}");
    assert_eq!(servers[0].state, ServerState::Stale, "{shown}");
    assert_eq!(
        servers[0].info.as_ref().map(|info| info.pid),
        names,
        "{shown}"
    );
    assert_eq!(locks.list_all_locks(), [], "{shown}");
    assert_eq!(fs::read(lock_file(dir.path())).unwrap(), bytes, "{shown}");

    let (lock, log) = logged(|| locks.acquire(PORT));
    let lock = lock.unwrap_or_else(|e| panic!("{shown}: {e}"));
    if let Some(pid) = names {
        let warning = format!("Stale lock file detected (PID {pid} not running), cleaning up");
        assert!(log.contains(&warning), "{shown}: {log}");
    } else {
        let warned = log.contains("WARN") && log.contains("Stale lock file detected (");
        assert!(warned, "{shown}: {log}");
    }
    let info = locks.read_lock_info(PORT).unwrap().unwrap();
    assert_eq!(&info, lock.info(), "{shown}");
    // The whole file is ours, whatever there was.
    let text = fs::read_to_string(lock.path()).unwrap();
    let read: LockInfo = serde_json::from_str(&text).unwrap();
    assert_eq!(read, info, "{shown}");
    assert!(text.ends_with('}'), "{shown}");
    lock.release().unwrap();
    // One that this start creates is new, and no reason to warn.
    let (lock, log) = logged(|| locks.acquire(PORT));
    drop(lock.unwrap());
    assert!(!log.contains("WARN"), "{log}");

    plant(dir.path(), bytes);
    match locks.stop_server(PORT, &StopOptions::default()).unwrap() {
        StopOutcome::StaleCleaned { info } => {
            assert_eq!(info.map(|info| info.pid), names, "{shown}");
        }
        outcome => panic!("{shown}: {outcome:?}"),
    }
    assert!(!lock_file(dir.path()).exists(), "{shown}");
}

#[test]
fn content_that_names_nobody() {
    let whole = content(DEAD, LONG_AGO);
    for text in [
        "",
        "\n",
        "\0",
        "hello",
        "null",
        "{}",
        "[1,2,3]",
        "12345\n",
        "\u{feff}{}",
        r#"{"pid":"1","started_at":"2001-02-03T04:05:06Z","port":8000}"#,
        r#"{"pid":-1,"started_at":"2001-02-03T04:05:06Z","port":8000}"#,
        r#"{"pid":1.5,"started_at":"2001-02-03T04:05:06Z","port":8000}"#,
        r#"{"pid":4294967296,"started_at":"2001-02-03T04:05:06Z","port":8000}"#,
        r#"{"pid":1,"started_at":1,"port":8000}"#,
        r#"{"pid":1,"started_at":"2001-02-30T04:05:06Z","port":8000}"#,
        r#"{"pid":1,"started_at":"2001-02-03T04:05:06Z","port":65536}"#,
        r#"{"pid":1,"started_at":"2001-02-03T04:05:06Z","port":8001}"#,
        &format!("{whole}{whole}"),
        &format!("{whole} and more"),
        &format!("{whole}{}", "\n".repeat(5000)),
        &"[".repeat(4000),
        &"{\"a\":".repeat(800),
    ] {
        is_recovered(text.as_bytes(), None);
    }
    // Cut off at every length.
    for len in 1..whole.len() {
        is_recovered(&whole.as_bytes()[..len], None);
    }
}

#[test]
fn binary_and_huge_content() {
    let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
    is_recovered(&bytes, None);
    is_recovered(&vec![b'{'; 16 << 20], None);
    let mut huge = content(DEAD, LONG_AGO).into_bytes();
    huge.resize(16 << 20, b' ');
    is_recovered(&huge, None);
}

#[test]
fn numbers_that_are_no_process() {
    for pid in [
        0,
        DEAD,
        i32::MAX as u32,
        i32::MAX as u32 + 1,
        u32::MAX - 1,
        u32::MAX,
    ] {
        is_recovered(content(pid, LONG_AGO).as_bytes(), Some(pid));
        is_recovered(fresh(pid).as_bytes(), Some(pid));
    }
}

#[test]
fn our_own_pid_with_the_lock_free() {
    let own = std::process::id();
    is_recovered_by_acquire(&fresh(own));
    is_recovered(content(own, LONG_AGO).as_bytes(), Some(own));
}

/// For status, a file that names a live process is a server's; only the acquirer knows better.
fn is_recovered_by_acquire(text: &str) {
    let dir = temp_dir();
    plant(dir.path(), text);
    let (lock, log) = logged(|| LockDir::new(dir.path()).acquire(PORT));
    assert!(log.contains("Stale lock file detected"), "{log}");
    drop(lock.unwrap());
}

#[test]
fn a_thread_id() {
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).unwrap();
        let _ = ended.recv();
    });
    let tid = u32::try_from(told.recv().unwrap()).unwrap();
    assert_ne!(tid, std::process::id());
    assert!(Path::new(&format!("/proc/{tid}")).exists());
    // A signal to it would be one to this process.
    is_recovered(fresh(tid).as_bytes(), Some(tid));
    drop(end);
    thread.join().unwrap();
}

#[test]
fn a_zombie() {
    let mut child = Command::new("true").spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    common::eventually("it has ended", || {
        fs::read_to_string(&stat).unwrap().contains(") Z ")
    });
    is_recovered(fresh(child.id()).as_bytes(), Some(child.id()));
    child.wait().unwrap();
}

#[test]
fn a_recycled_pid() {
    let dir = temp_dir();
    let mut bystander = Actor::new("echo", dir.path());
    assert_eq!(bystander.ask("here"), "here");
    let pid = bystander.pid();
    is_recovered(content(pid, LONG_AGO).as_bytes(), Some(pid));
    assert_eq!(bystander.ask("unharmed"), "unharmed");
}

#[test]
fn the_init_process() {
    is_recovered(content(1, "1970-01-01T00:00:00Z").as_bytes(), Some(1));
}

/// As a new container over the old one's lock directory: first its PID 1 acquires, then another.
fn container(stage: &Stage) {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let init = fork(|| {
        assert_eq!(std::process::id(), 1);
        mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none).unwrap();
        let acquire = || {
            let (result, log) = logged(|| stage.locks.acquire(PORT));
            let warned = log.contains("Stale lock file detected (PID 1 not running)");
            stage.say(format!("{} {warned}", outcome(&result)));
        };
        plant(stage.locks.path(), content(1, LONG_AGO));
        acquire();
        plant(stage.locks.path(), content(1, LONG_AGO));
        let second = fork(acquire);
        nix::sys::wait::waitpid(second, None).unwrap();
    });
    nix::sys::wait::waitpid(init, None).unwrap();
}

#[test]
fn the_init_process_of_a_new_container() {
    if !common::is_root("the_init_process_of_a_new_container") {
        return;
    }
    let dir = temp_dir();
    let mut container = Actor::new("container", dir.path());
    assert_eq!(container.hear(), "won true");
    assert_eq!(container.hear(), "won true");
    assert!(container.wait().success());
}

/// The error of every call, with no hang, naming the path.
fn is_refused(dir: &Path, what: &str) {
    let locks = LockDir::new(dir);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let errors = [
            locks.acquire(PORT).unwrap_err(),
            locks
                .acquire_timeout(PORT, Duration::from_secs(1))
                .unwrap_err(),
            locks.read_lock_info(PORT).unwrap_err(),
            locks
                .stop_server(PORT, &StopOptions::default())
                .unwrap_err(),
        ];
        assert_eq!(locks.list_all_locks(), []);
        tell.send((errors, locks.servers().unwrap())).unwrap();
    });
    let (errors, servers) = told.recv_timeout(PATIENCE).expect("no hang");
    for error in errors {
        let text = error.to_string();
        let path = lock_file(dir).display().to_string();
        assert!(text.contains(&path) && text.contains(what), "{text}");
    }
    assert!(matches!(servers[0].state, ServerState::Unreadable { .. }));
}

#[test]
fn a_symbolic_link() {
    let dir = temp_dir();
    let target = dir.path().join("target");
    for exists in [true, false] {
        let _ = fs::remove_file(&target);
        if exists {
            fs::write(&target, "precious").unwrap();
        }
        let _ = fs::remove_file(lock_file(dir.path()));
        symlink(&target, lock_file(dir.path())).unwrap();
        is_refused(dir.path(), "symbolic link");
        assert!(lock_file(dir.path()).is_symlink());
        assert_eq!(target.exists(), exists);
    }
    fs::write(&target, "precious").unwrap();
    is_refused(dir.path(), "symbolic link");
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
}

#[test]
fn a_hard_link() {
    let dir = temp_dir();
    let target = dir.path().join("target");
    fs::write(&target, "precious").unwrap();
    let mode = fs::metadata(&target).unwrap().mode();
    fs::hard_link(&target, lock_file(dir.path())).unwrap();
    is_refused(dir.path(), "hard link");
    assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
    assert_eq!(fs::metadata(&target).unwrap().mode(), mode);
    assert!(lock_file(dir.path()).exists());
}

#[test]
fn a_fifo() {
    let dir = temp_dir();
    let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
    nix::unistd::mkfifo(&lock_file(dir.path()), mode).unwrap();
    is_refused(dir.path(), "FIFO");
    let kind = fs::symlink_metadata(lock_file(dir.path()))
        .unwrap()
        .file_type();
    assert!(kind.is_fifo());
}

#[test]
fn a_directory() {
    let dir = temp_dir();
    fs::create_dir(lock_file(dir.path())).unwrap();
    is_refused(dir.path(), "directory");
    assert!(lock_file(dir.path()).is_dir());
}

#[test]
fn a_socket() {
    let dir = temp_dir();
    let _listener = UnixListener::bind(lock_file(dir.path())).unwrap();
    is_refused(dir.path(), "socket");
    assert!(lock_file(dir.path()).exists());
}

#[test]
fn a_file_with_another_mode_becomes_private() {
    let dir = temp_dir();
    let path = plant(dir.path(), content(DEAD, LONG_AGO));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    assert_eq!(fs::metadata(lock.path()).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_loser_leaves_the_holders_bytes_as_they_are() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let lock = locks.acquire(PORT).unwrap();
    let before = fs::metadata(lock.path()).unwrap();
    let bytes = fs::read(lock.path()).unwrap();
    for _ in 0..10 {
        assert!(matches!(
            locks.acquire(PORT),
            Err(LockError::AlreadyRunning { .. })
        ));
    }
    let after = fs::metadata(lock.path()).unwrap();
    assert_eq!(fs::read(lock.path()).unwrap(), bytes);
    assert_eq!(
        (before.ino(), before.mtime_nsec()),
        (after.ino(), after.mtime_nsec())
    );
}

#[test]
fn a_held_file_with_scribble_names_nobody() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let lock = locks.acquire(PORT).unwrap();
    for text in ["", "{", "hello", &content(DEAD, LONG_AGO)] {
        fs::write(lock.path(), text).unwrap();
        let error = locks.acquire(PORT).unwrap_err();
        let LockError::HeldByUnknown { port: PORT, path } = error else {
            panic!("{text}: {error}");
        };
        assert_eq!(path, lock.path());
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        assert_eq!(locks.servers().unwrap()[0].state, ServerState::Held);
    }
    lock.verify().unwrap();
}

#[test]
fn a_held_file_that_names_a_bystander() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut bystander = Actor::new("echo", dir.path());
    let mut holder = Actor::holding(dir.path());
    fs::write(lock_file(dir.path()), fresh(bystander.pid())).unwrap();
    // Who really holds the lock is the one to be stopped.
    match locks.stop_server(PORT, &StopOptions::default()).unwrap() {
        StopOutcome::Stopped { info, .. } => assert_eq!(info.pid, holder.pid()),
        outcome => panic!("{outcome:?}"),
    }
    assert!(!holder.wait().success());
    assert_eq!(bystander.ask("unharmed"), "unharmed");
}
