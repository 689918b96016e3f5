//! Which numbers are running processes.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Stdio};
use std::thread;

use llmlb_lock_core::is_process_running;

#[test]
fn this_process_and_init_run() {
    assert!(is_process_running(std::process::id()));
    assert!(is_process_running(1));
}

#[test]
fn numbers_that_are_no_process() {
    for pid in [
        0,
        0x0040_0001,
        i32::MAX as u32,
        i32::MAX as u32 + 1,
        u32::MAX - 1,
        u32::MAX,
    ] {
        assert!(!is_process_running(pid), "{pid}");
    }
}

#[test]
fn a_child_until_it_ends_even_if_unreaped() {
    let mut child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(is_process_running(child.id()));
    drop(child.stdin.take());
    let mut output = child.stdout.take().unwrap();
    std::io::copy(&mut output, &mut std::io::sink()).unwrap();
    let started = std::time::Instant::now();
    // It has closed its output, and ends at once; nobody reaps it.
    while is_process_running(child.id()) {
        assert!(started.elapsed().as_secs() < 60);
        thread::yield_now();
    }
    child.wait().unwrap();
    assert!(!is_process_running(child.id()));
}

#[cfg(target_os = "linux")]
#[test]
fn a_thread_is_no_process() {
    use std::sync::mpsc;

    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).unwrap();
        let _ = ended.recv();
    });
    let tid = u32::try_from(told.recv().unwrap()).unwrap();
    assert_ne!(tid, std::process::id());
    assert!(!is_process_running(tid));
    drop(end);
    thread.join().unwrap();
}
