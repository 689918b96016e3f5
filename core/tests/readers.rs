//! Readers and what they read: they ask with a shared lock, disturb nobody, and see whole texts.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[cfg(all(target_pointer_width = "64", target_endian = "little"))]
#[path = "common/seccomp.rs"]
mod seccomp;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use common::{
    Actor, DEAD, PATIENCE, PORT, Stage, content, fresh, holder, lock_file, plant, temp_dir,
};
use llmlb_lock_core::{LockDir, LockError, LockInfo, ServerState};
use tracing_subscriber::filter::LevelFilter;

common::roles!(holder, reader);

/// From now on this process gets no exclusive lock, as on NFS through a descriptor that it may only
/// read from.
#[cfg(all(target_pointer_width = "64", target_endian = "little"))]
fn refuse_exclusive_locks() {
    use seccomp::{EQUAL, LOAD, step};
    const HAS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    let number = step(LOAD, 0, 0);
    let call = step(EQUAL, libc::SYS_flock as u32, 3);
    let low_half_of_its_second_argument = step(LOAD, 24, 0);
    let exclusive = step(HAS, libc::LOCK_EX as u32, 1);
    seccomp::refuse(
        &[number, call, low_half_of_its_second_argument, exclusive],
        libc::EBADF,
    );
    let file = tempfile::tempfile().unwrap();
    let refused = fs2::FileExt::try_lock_exclusive(&file).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
}

fn reader(stage: &Stage) {
    refuse_exclusive_locks();
    loop {
        stage.hear();
        let server = stage.locks.server(PORT).unwrap().unwrap();
        let read = stage.locks.read_lock_info(PORT).is_ok();
        stage.say(format!("{:?} {read}", server.state));
    }
}

#[cfg(all(target_pointer_width = "64", target_endian = "little"))]
#[test]
fn who_only_reads_never_asks_for_an_exclusive_lock() {
    let dir = temp_dir();
    let mut reader = Actor::new("reader", dir.path());
    plant(dir.path(), content(DEAD, "2026-01-30T12:00:00Z"));
    assert_eq!(reader.ask("look"), "Stale true");
    plant(dir.path(), "");
    assert_eq!(reader.ask("look"), "Stale false");
    let _holder = Actor::holding(dir.path());
    assert_eq!(reader.ask("look"), "Running true");
    plant(dir.path(), content(DEAD, "2026-01-30T12:00:00Z"));
    assert_eq!(reader.ask("look"), "Held true");
}

#[test]
fn readers_do_not_take_each_other_for_holders() {
    let dir = temp_dir();
    let path = plant(dir.path(), fresh(1));
    let other = File::open(path).unwrap();
    fs2::FileExt::try_lock_shared(&other).unwrap();
    let server = LockDir::new(dir.path()).server(PORT).unwrap().unwrap();
    assert_eq!(server.state, ServerState::Stale);
}

#[test]
fn a_reader_who_looks_is_not_taken_for_a_holder() {
    let dir = temp_dir();
    // A left-over that names a live process, and can't tell that it is not meant.
    let mut bystander = Actor::new("echo", dir.path());
    assert_eq!(bystander.ask("here"), "here");
    let path = plant(dir.path(), fresh(bystander.pid()));
    let reader = File::open(path).unwrap();
    fs2::FileExt::try_lock_shared(&reader).unwrap();
    let mut reader = Some(reader);
    let lock = LockDir::new(dir.path()).acquire_interruptible(PORT, PATIENCE, || {
        reader = None;
        false
    });
    let lock = lock.unwrap();
    assert!(reader.is_none());
    lock.verify().unwrap();
}

#[test]
fn half_old_half_new_texts_are_never_read() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    // As every writer does, with blanks between two texts. Far apart, so that a reader meets the writer between them.
    let spread = |text: String| text.replace(',', &format!(",{}", " ".repeat(1500)));
    let texts = [
        content(11111, "2026-01-11T11:11:11.111111Z"),
        content(22222, "2026-02-22T22:22:22.222222Z"),
    ];
    let written = texts.clone().map(spread);
    let path = plant(dir.path(), &written[0]);
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for text in &written {
                    file.write_all_at(&vec![b' '; text.len()], 0).unwrap();
                    file.write_all_at(text.as_bytes(), 0).unwrap();
                }
            }
        });
        for _ in 0..10_000 {
            // Its writer may be stopped for long between the two.
            let Ok(Some(info)) = locks.read_lock_info(PORT) else {
                continue;
            };
            let text = serde_json::to_string(&info).unwrap();
            if !texts.contains(&text) {
                done.store(true, Ordering::Relaxed);
                panic!("{text}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn what_a_hand_over_writes_is_never_half_of_two() {
    let dir = temp_dir();
    let mut lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    let others = [0, 1].map(|_| Actor::new("holder", temp_dir().path()));
    let file = File::open(lock.path()).unwrap();
    let done = AtomicBool::new(false);
    let (written, read) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut read = HashSet::new();
            let mut buffer = [0; 512];
            while !done.load(Ordering::Relaxed) {
                let len = file.read_at(&mut buffer, 0).unwrap();
                if let Ok(info) = serde_json::from_slice::<LockInfo>(&buffer[..len]) {
                    read.insert(info);
                }
            }
            read
        });
        let mut written = HashSet::from([lock.info().clone()]);
        for _ in 0..2000 {
            for other in &others {
                lock.hand_over(other.pid()).unwrap();
                written.insert(lock.info().clone());
            }
        }
        done.store(true, Ordering::Relaxed);
        (written, reader.join().unwrap())
    });
    assert!(!read.is_empty());
    assert_eq!(
        read.difference(&written).collect::<Vec<_>>(),
        Vec::<&LockInfo>::new()
    );
    lock.adopt().unwrap();
}

/// What the lock file says each time something is logged.
#[derive(Clone)]
struct Watcher {
    path: PathBuf,
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Write for Watcher {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8(line.to_vec()).unwrap();
        let text = fs::read_to_string(&self.path).unwrap();
        self.seen.lock().unwrap().push((line.clone(), text));
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_left_over_is_told_of_when_the_lock_has_a_name_again() {
    let dir = temp_dir();
    let path = plant(dir.path(), content(DEAD, "2026-01-30T12:00:00Z"));
    let seen = Arc::default();
    let watcher = Watcher {
        path,
        seen: Arc::clone(&seen),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::WARN)
        .with_writer(move || watcher.clone())
        .finish();
    let lock = tracing::subscriber::with_default(subscriber, || {
        LockDir::new(dir.path()).acquire(PORT).unwrap()
    });
    let seen = seen.lock().unwrap();
    let [(line, text)] = seen.as_slice() else {
        panic!("{seen:?}");
    };
    assert!(line.contains("Stale lock file detected"), "{line}");
    assert!(line.contains("8000"), "{line}");
    assert!(
        text.contains(&format!(r#""pid":{},"#, lock.info().pid)),
        "{text}"
    );
}

#[test]
fn a_file_that_stays_empty_is_corrupt() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    assert_eq!(locks.read_lock_info(PORT).unwrap(), None);
    for nothing in ["", " ", "          "] {
        plant(dir.path(), nothing);
        let error = locks.read_lock_info(PORT).unwrap_err();
        assert!(matches!(error, LockError::Corrupted(_)), "{error:?}");
        let shown = format!("Lock file corrupted: {}: ", lock_file(dir.path()).display());
        assert!(error.to_string().starts_with(&shown), "{error}");
    }
}

#[test]
fn a_lock_shows_its_path_and_holder_to_debuggers() {
    let dir = temp_dir();
    let lock = LockDir::new(dir.path()).acquire(PORT).unwrap();
    let shown = format!("{lock:?}");
    let path = format!("lock_path: {:?}", lock.path());
    assert!(shown.contains(&path), "{shown}");
    assert!(
        shown.contains(&format!("info: {:?}", lock.info())),
        "{shown}"
    );
}
