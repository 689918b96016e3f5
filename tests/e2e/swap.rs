//! One built-in server takes the place of another: the port is open and guarded at every instant,
//! whatever dies on the way.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use llmlb_lock_core::{LockDir, LockError, ServerLock};
use llmlb_tests::model_server::{Backend, Gate, Next};
use llmlb_tests::wire::{STREAM, Wire, answer, chat, chunk, request};
use llmlb_tests::{PATIENCE, Running, Sandbox, free_port, http_get, is_alive, wait_until};
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

const SWAPS: usize = 20;

#[test]
fn no_connection_is_refused_and_no_request_lost_in_20_swaps_under_load() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let gate = Gate::default();
    let held = gate.clone();
    let backend = Backend::start(&["m"], move |request, wire| {
        if request.header("x-slow").is_none() {
            wire.send(answer("200 OK", "", "{}"));
            return Next::Read;
        }
        wire.send(STREAM);
        wire.send(chunk("data: begun\n\n"));
        held.pass();
        wire.send(chunk("data: [DONE]\n\n"));
        wire.send("0\r\n\r\n");
        Next::Read
    });
    let url = backend.url();
    let arguments = ["--backend", &url, "--workers", "4"];
    let first = sandbox.serve_with(port, &arguments);
    let mut streams: Vec<_> = (0..2).map(|_| begin_stream(port)).collect();

    let over = Arc::new(AtomicBool::new(false));
    let connects = Arc::new(AtomicUsize::new(0));
    let fresh = (0..2).map(|_| {
        let (over, connects) = (Arc::clone(&over), Arc::clone(&connects));
        thread::spawn(move || {
            while !over.load(Ordering::SeqCst) || connects.load(Ordering::SeqCst) < 1000 {
                assert_eq!(ask(&mut Wire::connect(port)).0, 200);
                connects.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    let kept = (0..2).map(|_| {
        let over = Arc::clone(&over);
        thread::spawn(move || {
            let mut wire = Wire::connect(port);
            while !over.load(Ordering::SeqCst) {
                let (status, last) = ask(&mut wire);
                assert_eq!(status, 200);
                if last {
                    wire = Wire::connect(port);
                }
            }
        })
    });
    let third = {
        let over = Arc::clone(&over);
        let locks = LockDir::new(sandbox.path());
        thread::spawn(move || {
            let mut refused = 0;
            while !over.load(Ordering::SeqCst) {
                match locks.acquire(port) {
                    Err(LockError::AlreadyRunning { .. }) => refused += 1,
                    other => panic!("the port was not guarded: {other:?}"),
                }
            }
            refused
        })
    };
    let clients: Vec<_> = fresh.chain(kept).collect();

    let mut servers = vec![first];
    for _ in 0..SWAPS {
        let next = sandbox.serve_with(port, &["--replace", "--backend", &url]);
        wait_until("the successor to be named", || {
            (sandbox.named_pid(port) == next.pid()).then_some(())
        });
        servers.push(next);
        streams.push(begin_stream(port));
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        client.join().expect("a client that lost nothing");
    }
    assert!(third.join().expect("a guarded port") > 0);

    // All but the last wait for what they have begun.
    streams.iter().for_each(|_| gate.open());
    for stream in &mut streams {
        assert_eq!(stream.chunk().unwrap(), b"data: [DONE]\n\n");
        assert_eq!(stream.chunk().unwrap(), b"", "its proper end");
    }
    let last = servers.pop().unwrap();
    for mut server in servers {
        assert_eq!(server.wait().code(), Some(0));
    }
    assert_eq!(sandbox.named_pid(port), last.pid());
    sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    assert_eq!(std::fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

fn begin_stream(port: u16) -> Wire {
    let mut wire = Wire::connect(port);
    wire.send(request(
        "POST",
        "/v1/chat/completions",
        "X-Slow: 1\r\n",
        &chat("m"),
    ));
    assert_eq!(wire.head().expect("an answer").status(), 200);
    assert_eq!(wire.chunk().unwrap(), b"data: begun\n\n");
    wire
}

/// The status, and whether the connection ends with it.
fn ask(wire: &mut Wire) -> (u16, bool) {
    let answer = wire.ask("POST", "/v1/chat/completions", "", &chat("m"));
    let last = answer.header("connection") == Some("close");
    (answer.status(), last)
}

#[test]
fn a_stop_ends_those_that_finish_their_last_requests_too() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let backend = Backend::start(&["m"], |_, wire| {
        wire.send(STREAM);
        wire.send(chunk("data: begun\n\n"));
        // Nothing more, ever.
        let _ = wire.is_at_end();
        Next::Close
    });
    let arguments = [
        "--replace",
        "--drain-timeout",
        "1",
        "--backend",
        &backend.url(),
    ];
    let mut servers = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..3 {
        servers.push(sandbox.serve_with(port, &arguments));
        streams.push(begin_stream(port));
    }
    let stopped = sandbox.run(["stop", "--port", &port.to_string()]).expect(0);
    assert!(
        stopped.stdout.contains("stopped successfully"),
        "{stopped:?}"
    );
    for server in &mut servers {
        // Not one of them is running when the stop has returned, though one may yet be reaped.
        assert!(server.child.try_wait().unwrap().is_some() || !is_alive(server.pid()));
    }
    assert_eq!(std::fs::read_dir(sandbox.path()).unwrap().count(), 0);
}

#[test]
fn a_holder_that_says_nothing_is_waited_for_within_limits_and_not_in_silence() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut holder = sandbox.serve(port);
    holder.signal(Signal::SIGSTOP);
    let text = port.to_string();
    let replace = ["serve", "--port", &text, "--replace", "--wait", "2"];
    let mut successor = Running::start(&mut sandbox.llmlb(replace));
    let said = successor.expect_log("to hand over");
    assert!(
        said.contains(&format!("Waiting up to 2s for the server on port {port}")),
        "{said}"
    );
    successor.expect_log("Stopping server");
    successor.expect_log("listening on");
    holder.wait();
    assert_eq!(sandbox.named_pid(port), successor.pid());
}

#[test]
fn whoever_is_killed_on_the_way_leaves_the_other_in_charge() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut holder = sandbox.serve(port);
    for round in 0..24_u64 {
        let mut successor = Running::start(
            sandbox
                .llmlb(["serve", "--port", &port.to_string(), "--replace"])
                .stderr(std::process::Stdio::null()),
        );
        // From before it asks until after it serves.
        thread::sleep(Duration::from_millis(round * 2));
        if round % 2 == 0 {
            successor.kill();
        } else {
            holder.kill();
            holder = successor;
        }
        let pid = holder.pid();
        // A successor that found nobody any more takes the port as any start does.
        wait_until("the other to be in charge", || {
            let named = std::fs::read_to_string(sandbox.lock_file(port)).ok()?;
            named.contains(&format!("\"pid\":{pid},")).then_some(())
        });
        wait_until("the port to be served", || {
            let answer = std::panic::catch_unwind(|| http_get(port, "/health")).ok()?;
            answer.contains(&format!("\"pid\":{pid},")).then_some(())
        });
    }
}

/// A successor or holder that does exactly what is wanted.
struct Puppet(UnixStream);

impl Puppet {
    fn call(sandbox: &Sandbox, port: u16) -> Self {
        let stream = UnixStream::connect(socket(sandbox, port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    fn say(&self, text: &str, beside: &[BorrowedFd<'_>]) {
        let raw: Vec<RawFd> = beside.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[] } else { &rights[..] };
        let line = format!("{text}\n");
        let line = [IoSlice::new(line.as_bytes())];
        sendmsg::<()>(self.0.as_raw_fd(), &line, rights, MsgFlags::empty(), None).unwrap();
    }

    /// The next line, with what came beside it.
    fn hear(&self) -> (String, Vec<OwnedFd>) {
        let mut line = [0; 512];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut line)];
        let flags = MsgFlags::empty();
        let received =
            recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        let mut beside = Vec::new();
        for message in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = message {
                // SAFETY: just received, and nobody else's.
                beside.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let len = received.bytes;
        (String::from_utf8(line[..len].to_vec()).unwrap(), beside)
    }
}

fn socket(sandbox: &Sandbox, port: u16) -> PathBuf {
    sandbox.path().join(format!("serve_{port}.sock"))
}

const ASK: &str = r#"{"say":"ask","version":1}"#;
const OFFER: &str = r#"{"say":"offer","version":1}"#;
const SERVING: &str = r#"{"say":"serving"}"#;

#[test]
fn a_successor_that_dies_at_any_word_leaves_the_holder_in_charge() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = sandbox.serve(port);
    let in_charge = || {
        wait_until("the holder to be named", || {
            (sandbox.named_pid(port) == server.pid()).then_some(())
        });
        let pid = format!("\"pid\":{},", server.pid());
        assert!(http_get(port, "/health").contains(&pid));
        sandbox
            .run(["serve", "--port", &port.to_string()])
            .expect(1)
    };
    drop(Puppet::call(&sandbox, port));
    in_charge();
    Puppet::call(&sandbox, port).say("rubbish", &[]);
    in_charge();
    Puppet::call(&sandbox, port).say(r#"{"say":"ask","version":2}"#, &[]);
    in_charge();
    let puppet = Puppet::call(&sandbox, port);
    puppet.say(ASK, &[]);
    drop(puppet);
    in_charge();
    // With lock and listener in hand, and named.
    for serves in [false, true] {
        let puppet = Puppet::call(&sandbox, port);
        puppet.say(ASK, &[]);
        let (offer, mut beside) = puppet.hear();
        assert!(offer.contains("offer"), "{offer}");
        let listener = beside.pop().unwrap();
        let locks = LockDir::new(sandbox.path());
        let lock = locks.take_over(port, beside.pop().unwrap()).unwrap();
        assert_eq!(sandbox.named_pid(port), std::process::id());
        if serves {
            puppet.say(SERVING, &[]);
            assert!(puppet.hear().0.contains("retired"));
        }
        // As a kill does: without a word, and without giving anything back.
        die_with(lock);
        drop((listener, puppet));
        in_charge();
    }
}

/// This very process goes on living.
fn name_the_dead(sandbox: &Sandbox, port: u16) {
    let mut dead = Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let text = std::fs::read_to_string(sandbox.lock_file(port)).unwrap();
    let own = format!("\"pid\":{},", std::process::id());
    let text = text.replace(&own, &format!("\"pid\":{},", dead.id()));
    std::fs::write(sandbox.lock_file(port), text).unwrap();
}

/// Closes the lock's descriptors without any of what a release does.
fn die_with(lock: ServerLock) {
    use std::os::fd::AsFd;
    for descriptor in [lock.as_fd().as_raw_fd(), lock.directory_fd().as_raw_fd()] {
        nix::unistd::close(descriptor).unwrap();
    }
    std::mem::forget(lock);
}

#[test]
fn a_holder_that_dies_at_any_word_leaves_the_successor_in_charge() {
    for offers in [false, true] {
        let sandbox = Sandbox::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let lock = LockDir::new(sandbox.path()).acquire(port).unwrap();
        let door = UnixListener::bind(socket(&sandbox, port)).unwrap();
        let mut successor =
            Running::start(&mut sandbox.llmlb(["serve", "--port", &port.to_string(), "--replace"]));
        let puppet = Puppet(door.accept().unwrap().0);
        assert!(puppet.hear().0.contains("ask"));
        if offers {
            use std::os::fd::AsFd;
            puppet.say(OFFER, &[lock.as_fd(), listener.as_fd()]);
        } else {
            name_the_dead(&sandbox, port);
        }
        die_with(lock);
        drop((listener, door, puppet));
        successor.expect_log("listening on");
        assert_eq!(sandbox.named_pid(port), successor.pid());
        assert!(http_get(port, "/health").contains(&format!("\"pid\":{},", successor.pid())));
    }
}

#[test]
fn another_address_is_taken_by_a_stop_and_a_start() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let mut old = sandbox.serve(port);
    let new = sandbox.serve_with(port, &["--replace", "--host", "127.0.0.2"]);
    assert_eq!(old.wait().code(), Some(0));
    assert_eq!(sandbox.named_pid(port), new.pid());
    assert!(TcpStream::connect(("127.0.0.2", port)).is_ok());
}

#[test]
fn a_directory_with_a_long_name_is_no_obstacle() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let long = sandbox.path().join("x".repeat(150));
    std::fs::create_dir(&long).unwrap();
    let serve = |args: &[&str]| {
        let port = port.to_string();
        let mut command = sandbox.llmlb(["serve", "--port", &port]);
        let mut server = Running::start(command.args(args).env("LLMLB_LOCK_DIR", &long));
        server.expect_log("listening on");
        server
    };
    let mut old = serve(&[]);
    let mut idle = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _new = serve(&["--replace"]);
    old.expect_log("A successor serves");
    // Who is connected is served to the end.
    write!(idle, "GET /health HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains(&format!("\"pid\":{},", old.pid())),
        "{answer}"
    );
    assert_eq!(old.wait().code(), Some(0));
}

#[test]
fn a_server_that_nobody_can_succeed_says_so_at_its_start() {
    let sandbox = Sandbox::new();
    let port = free_port();
    // A socket can't come in the place of that.
    let door = sandbox.lock_file(port).with_extension("sock");
    std::fs::create_dir_all(door.join("taken")).unwrap();
    let port = port.to_string();
    let mut server = Running::start(&mut sandbox.llmlb(["serve", "--port", &port]));
    let said = server.expect_log("No successor can take over");
    assert!(
        said.contains(" WARN ") && said.contains("--replace"),
        "{said}"
    );
    server.expect_log("listening on");
}
