//! Seeing what runs.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{DEAD, PORT, Stage, temp_dir};
use llmlb_lock_core::{LockDir, LockError, ServerState};

common::roles!(second_port);

/// Holds the port after the usual one.
fn second_port(stage: &Stage) {
    let _lock = stage.locks.acquire(PORT + 1).unwrap();
    stage.say("won");
    stage.hear();
}

#[test]
fn live_servers_by_port() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let mut other = common::Actor::new("second_port", dir.path());
    assert_eq!(other.hear(), "won");
    let held: Vec<_> = [65535, 1, PORT]
        .map(|port| locks.acquire(port).unwrap())
        .into();
    let own = std::process::id();
    let found: Vec<_> = locks
        .list_all_locks()
        .iter()
        .map(|info| (info.port, info.pid))
        .collect();
    assert_eq!(
        found,
        [(1, own), (PORT, own), (PORT + 1, other.pid()), (65535, own)]
    );
    drop(held);
    assert_eq!(locks.list_all_locks().len(), 1);
    other.kill();
    assert_eq!(locks.list_all_locks(), []);
}

#[test]
fn each_file_with_its_state() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let _running = locks.acquire(1).unwrap();
    let held = locks.acquire(2).unwrap();
    fs::write(held.path(), "scribble").unwrap();
    let dead = common::content(DEAD, "2026-01-30T12:00:00Z").replace("8000", "3");
    fs::write(locks.lock_path(3), dead).unwrap();
    fs::create_dir(locks.lock_path(4)).unwrap();
    for other in [
        "serve_0.lock",
        "serve_05.lock",
        "serve_6.lock~",
        "notes",
        "serve_65536.lock",
    ] {
        fs::write(dir.path().join(other), "").unwrap();
    }
    let servers = locks.servers().unwrap();
    let ports: Vec<_> = servers.iter().map(|server| server.port).collect();
    assert_eq!(ports, [1, 2, 3, 4]);
    assert_eq!(servers[0].state, ServerState::Running);
    assert_eq!(servers[0].info.as_ref().unwrap().pid, std::process::id());
    assert_eq!(
        (&servers[1].state, &servers[1].info),
        (&ServerState::Held, &None)
    );
    assert_eq!(servers[2].state, ServerState::Stale);
    assert_eq!(servers[2].info.as_ref().unwrap().pid, DEAD);
    assert!(matches!(
        &servers[3].state,
        ServerState::Unreadable { owner: Some(_) }
    ));
    for server in servers {
        assert_eq!(server.path, locks.lock_path(server.port));
        assert_eq!(locks.server(server.port).unwrap().unwrap(), server);
    }
    assert_eq!(locks.server(5).unwrap(), None);
    // Looking changes nothing.
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 9);
}

#[test]
fn no_directory_has_no_servers() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path().join("none"));
    assert_eq!(locks.servers().unwrap(), []);
    assert_eq!(locks.list_all_locks(), []);
    assert_eq!(locks.read_lock_info(PORT).unwrap(), None);
    assert!(matches!(
        locks.server(0),
        Err(LockError::InvalidPort { .. })
    ));
    assert!(matches!(
        locks.read_lock_info(0),
        Err(LockError::InvalidPort { .. })
    ));
    assert!(matches!(
        locks.acquire(0),
        Err(LockError::InvalidPort { port: 0 })
    ));
}

#[test]
fn readers_never_make_an_acquirer_fail_or_see_half_a_text() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    let done = AtomicBool::new(false);
    let read = || {
        while !done.load(Ordering::Relaxed) {
            match locks.read_lock_info(PORT) {
                Ok(info) => assert!(info.is_none_or(|info| info.pid == std::process::id())),
                // The machine stopped its writer before the lock.
                Err(LockError::Corrupted(why)) => assert!(why.ends_with(": empty"), "{why}"),
                Err(e) => panic!("{e}"),
            }
            for server in locks.servers().unwrap() {
                assert!(!matches!(server.state, ServerState::Unreadable { .. }));
            }
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        for round in 0..500 {
            let mut lock = match locks.acquire(PORT) {
                Ok(lock) => lock,
                Err(e) => {
                    done.store(true, Ordering::Relaxed);
                    panic!("round {round}: {e}");
                }
            };
            lock.adopt().unwrap();
            lock.release().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}
