//! The operations that are traced, and what each of them leaves when it is cut short.

use std::fs;
use std::io::PipeReader;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use llmlb_lock_core::{LockError, ServerLock, ServerState, StopOptions, StopOutcome};
use nix::unistd::{ForkResult, Pid, fork};

use super::tracer::{Call, Trace, Victim};
use super::world::{DEAD, PORT, Subject, World, await_end, end, is_alive, wait_for_end};

/// What is left behind obeys; so much of it is waited before that.
const GRACE: Duration = Duration::from_millis(30);

/// What a subject has before its operation.
#[derive(Default)]
pub(super) struct Held {
    lock: Option<ServerLock>,
    /// For a server that shall end with this test.
    input: Option<PipeReader>,
    pub(super) server: Option<Pid>,
}

#[derive(Clone, Copy)]
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) victim: Victim,
    /// In the worker: what is there before; who guards the port.
    pub(super) plant: fn(&mut World) -> Option<Pid>,
    /// In the subject, before it is traced.
    pub(super) prepare: fn(&World) -> Held,
    /// In the subject, traced.
    pub(super) act: fn(&World, &mut Held, Option<Pid>) -> Result<(), String>,
    pub(super) after: After,
    /// Calls that are not ours to make good if they fail.
    pub(super) exempt: fn(&Call) -> bool,
    /// It looks at all processes, or waits.
    pub(super) is_long: bool,
}

impl Scenario {
    pub(super) fn shares(&self) -> usize {
        if self.is_long { super::SHARES } else { 1 }
    }
}

/// What is expected afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// Success: the subject guards the port. Else nobody does.
    Guards,
    /// Another guards the port, come what may.
    Refused,
    /// Nobody guards it, come what may, as long as the subject came to the end.
    Frees,
    /// Success: the port is guarded by the server. Else by it or by the subject.
    Hands,
    /// Success: the port is guarded by the subject. Else by whoever has its lock.
    Takes,
    /// Success: the server has ended, and nobody guards the port.
    Stops,
}

fn nothing(_: &mut World) -> Option<Pid> {
    None
}

fn empty(_: &World) -> Held {
    Held::default()
}

fn acquire(world: &World, held: &mut Held, _: Option<Pid>) -> Result<(), String> {
    held.lock = Some(world.locks.acquire(PORT).map_err(text)?);
    Ok(())
}

fn holding(world: &World) -> Held {
    Held {
        lock: Some(world.locks.acquire(PORT).unwrap()),
        input: Some(world.alive.try_clone().unwrap()),
        server: None,
    }
}

/// Holds the lock, and so does a server that it has forked.
fn beside_a_server(world: &World) -> Held {
    let mut held = holding(world);
    // SAFETY: this process has a single thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => held.server = Some(child),
        ForkResult::Child => {
            wait_for_end(&world.alive);
            // The lock is not this process's to give back.
            std::process::exit(0);
        }
    }
    held
}

/// Holds the lock of a server that has ended and left another process behind.
fn beside_a_left_over(world: &World) -> Held {
    let mut held = beside_a_server(world);
    let left_over = held.server.take();
    // SAFETY: this process has a single thread.
    let server = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            wait_for_end(&world.alive);
            std::process::exit(0);
        }
    };
    let lock = held.lock.as_mut().unwrap();
    lock.hand_over(server.as_raw().unsigned_abs()).unwrap();
    end(server);
    held.server = left_over;
    held
}

fn handed_over(world: &World) -> Held {
    let mut held = beside_a_server(world);
    let server = held.server.unwrap();
    let lock = held.lock.as_mut().unwrap();
    lock.hand_over(server.as_raw().unsigned_abs()).unwrap();
    held
}

/// Starts a server that takes the lock over between fork and exec, or takes the lock back.
fn spawn(_: &World, held: &mut Held, _: Option<Pid>) -> Result<(), String> {
    let lock = held.lock.as_mut().unwrap();
    let hook = lock.child_hook().map_err(text)?;
    let mut command = Command::new("/bin/cat");
    command.stdin(held.input.take().unwrap());
    // SAFETY: the hook is async-signal-safe.
    unsafe { command.pre_exec(move || hook.run()) };
    match command.spawn() {
        Ok(mut server) => match lock.hand_over(server.id()) {
            Err(LockError::NoSuchProcess { .. }) => {
                let _ = server.wait();
                lock.adopt().map_err(text)
            }
            done => done.map_err(text),
        },
        Err(_) => lock.adopt().map_err(text),
    }
}

fn none(_: &Call) -> bool {
    false
}

/// It reads from its child's exec what went wrong, in eight bytes. Where it can't read, it waits for
/// the server to end, and panics.
fn of_the_standard_library(call: &Call) -> bool {
    let reads = [libc::SYS_read, libc::SYS_recvfrom, libc::SYS_recvmsg].contains(&call.number);
    reads && (call.arguments[2] == 8 || call.number == libc::SYS_recvmsg)
}

fn text(e: LockError) -> String {
    e.to_string()
}

/// All that is looked at.
pub(super) fn all() -> Vec<Scenario> {
    let acquire_from = |name, plant| Scenario {
        name,
        victim: Victim::Subject,
        plant,
        prepare: empty,
        act: acquire,
        after: After::Guards,
        exempt: none,
        is_long: false,
    };
    vec![
        acquire_from("acquire, new", nothing),
        acquire_from("acquire, stale", |world| {
            world.plant(&format!(
                r#"{{"pid":{DEAD},"started_at":"2026-01-30T12:00:00Z","port":{PORT}}}"#
            ));
            None
        }),
        acquire_from("acquire, corrupt", |world| {
            // Longer than what comes over it, and its end alone would name somebody.
            let tail = format!(r#"{{"pid":1,"started_at":"2026-01-30T12:00:00Z","port":{PORT}}}"#);
            world.plant(&format!("{}{tail}", "x".repeat(400)));
            None
        }),
        acquire_from("acquire, empty", |world| {
            world.plant("");
            None
        }),
        Scenario {
            name: "acquire, refused",
            victim: Victim::Subject,
            plant: |world| Some(world.holder(PORT)),
            prepare: empty,
            act: |world, _, other| match world.locks.acquire(PORT) {
                Err(LockError::AlreadyRunning { pid, .. }) if other == pid_of(pid) => Ok(()),
                Err(e) => Err(text(e)),
                Ok(lock) => {
                    std::mem::forget(lock);
                    Err("it got the lock of a live server".to_owned())
                }
            },
            after: After::Refused,
            exempt: none,
            is_long: false,
        },
        Scenario {
            name: "release",
            victim: Victim::Subject,
            plant: nothing,
            prepare: holding,
            act: |_, held, _| held.lock.take().unwrap().release().map_err(text),
            after: After::Frees,
            exempt: none,
            is_long: false,
        },
        Scenario {
            name: "hand-over",
            victim: Victim::Subject,
            plant: nothing,
            prepare: beside_a_server,
            act: |_, held, _| {
                let server = held.server.unwrap().as_raw().unsigned_abs();
                held.lock.as_mut().unwrap().hand_over(server).map_err(text)
            },
            after: After::Hands,
            exempt: none,
            is_long: false,
        },
        Scenario {
            name: "adopt",
            victim: Victim::Subject,
            plant: nothing,
            prepare: handed_over,
            act: |_, held, _| held.lock.as_mut().unwrap().adopt().map_err(text),
            after: After::Takes,
            exempt: none,
            is_long: false,
        },
        Scenario {
            name: "child_hook, its launcher",
            victim: Victim::Subject,
            plant: nothing,
            prepare: holding,
            act: spawn,
            after: After::Hands,
            exempt: of_the_standard_library,
            is_long: false,
        },
        Scenario {
            name: "child_hook, the child",
            victim: Victim::Child,
            plant: nothing,
            prepare: holding,
            act: spawn,
            after: After::Hands,
            exempt: none,
            is_long: false,
        },
        Scenario {
            name: "stop",
            victim: Victim::Subject,
            plant: |world| Some(world.holder(PORT)),
            prepare: empty,
            act: |world, _, _| match world.locks.stop_server(PORT, &StopOptions::default()) {
                Ok(StopOutcome::Stopped { .. }) => Ok(()),
                Ok(outcome) => Err(format!("not stopped: {outcome:?}")),
                Err(e) => Err(text(e)),
            },
            after: After::Stops,
            exempt: none,
            is_long: true,
        },
        Scenario {
            name: "reclaim",
            victim: Victim::Subject,
            plant: nothing,
            prepare: beside_a_left_over,
            act: |_, held, _| {
                let lock = held.lock.as_mut().unwrap();
                lock.reclaim(GRACE).map_err(text)
            },
            after: After::Takes,
            exempt: none,
            is_long: true,
        },
    ]
}

fn pid_of(pid: u32) -> Option<Pid> {
    Some(Pid::from_raw(i32::try_from(pid).ok()?))
}

/// The subject was killed in the act, and is not reaped yet.
pub(super) fn after_a_kill(world: &World, scenario: &Scenario, subject: &Subject, trace: &Trace) {
    let other = subject.other.or(trace.child);
    let names = world.named().and_then(|info| pid_of(info.pid));
    let known = [Some(subject.pid), other];
    let ended = names.is_none_or(|named| !is_alive(named));
    assert!(ended || known.contains(&names), "it names {names:?}");
    match scenario.after {
        After::Guards | After::Frees => {
            assert!(!world.is_guarded());
            assert_ne!(world.state(), Some(ServerState::Running));
        }
        After::Refused => assert!(world.is_guarded() && names == other),
        After::Hands | After::Takes => {
            if let Some(other) = other.filter(|&other| is_alive(other)) {
                // A reclaim may have asked it to end a moment ago, and its descriptors end first.
                if !world.is_guarded() {
                    await_end(other);
                }
                end(other);
            }
        }
        After::Stops => stopped_again(world, other.unwrap(), trace),
    }
    if scenario.after == After::Refused {
        end(other.unwrap());
    }
    world.next_start();
}

/// A stop that was cut short has harmed nothing, and the next one does it all.
fn stopped_again(world: &World, server: Pid, trace: &Trace) {
    let asked = |call: &Call| {
        matches!(
            call.number,
            libc::SYS_pidfd_send_signal | libc::SYS_kill | libc::SYS_tgkill
        )
    };
    if !trace.calls.iter().any(asked) {
        assert!(is_alive(server) && world.is_guarded(), "it was harmed");
        let info = world.named().expect("the server's name");
        assert_eq!(pid_of(info.pid), Some(server));
    }
    let outcome = world.locks.stop_server(PORT, &StopOptions::default());
    outcome.unwrap_or_else(|e| panic!("the next stop fails: {e}"));
    assert!(!is_alive(server), "the next stop leaves it running");
    end(server);
}

/// The subject came to the end, and lives.
pub(super) fn after_success(world: &World, scenario: &Scenario, subject: &Subject, trace: &Trace) {
    let other = subject.other.or(trace.child);
    let names = world.named().and_then(|info| pid_of(info.pid));
    match scenario.after {
        After::Guards => {
            assert_eq!(names, Some(subject.pid));
            assert!(world.is_guarded());
            assert_eq!(world.state(), Some(ServerState::Running));
        }
        After::Refused => {
            assert_eq!(names, other);
            assert!(world.is_guarded());
        }
        After::Frees | After::Stops => {
            assert!(!world.file().exists(), "the file is left behind");
            if scenario.after == After::Stops {
                assert!(other.is_none_or(|other| !is_alive(other)));
            }
            world.next_start();
        }
        After::Hands => {
            let server = other.filter(|&other| is_alive(other));
            // Where there is none, the launcher has taken the lock back, or is about to learn it.
            match server {
                Some(_) => assert_eq!(names, server),
                None => assert!(names == Some(subject.pid) || names == other),
            }
            assert!(world.is_guarded());
        }
        After::Takes => {
            assert_eq!(names, Some(subject.pid));
            assert!(world.is_guarded());
        }
    }
    if scenario.after == After::Hands && names == other && other.is_some_and(is_alive) {
        end(subject.pid);
        assert!(world.is_guarded(), "the server guards the port alone");
    }
    leave(world, subject, other);
}

/// The subject reported an error, and lives.
pub(super) fn after_an_error(world: &World, scenario: &Scenario, subject: &Subject, trace: &Trace) {
    let other = subject.other.or(trace.child);
    let names = world.named().and_then(|info| pid_of(info.pid));
    match scenario.after {
        After::Guards | After::Frees => {
            assert!(!world.is_guarded());
            world.next_start();
        }
        After::Refused => {
            assert_eq!(names, other);
            assert!(world.is_guarded());
        }
        After::Hands | After::Takes => {
            // No name is better than a wrong one: the guard is there, and a stop finds it.
            let known = [Some(subject.pid), other].contains(&names);
            let nobody = !names.is_some_and(is_alive);
            assert!(known || nobody, "it names {names:?}");
            // Whether anybody else has it is only seen by letting it go for an instant: where it
            // can't be taken again then, the file must say so.
            let lost = scenario.after == After::Takes && nobody;
            assert!(world.is_guarded() || lost, "the guard is gone");
        }
        After::Stops => stopped_again(world, other.unwrap(), trace),
    }
    leave(world, subject, other);
}

fn leave(world: &World, subject: &Subject, other: Option<Pid>) {
    end(subject.pid);
    if let Some(other) = other {
        end(other);
    }
    world.next_start();
}

/// Takes away what a failed check may have left.
pub(super) fn clear(world: &World) {
    let _ = fs::remove_file(world.file());
}
