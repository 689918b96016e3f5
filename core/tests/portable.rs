//! What every platform promises, with processes that are started, raced and killed. The same
//! tests run on Linux and, by `make test-windows`, under wine.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use llmlb_lock_core::{
    LockDir, LockError, LockInfo, ServerLock, ServerState, StopOptions, StopOutcome,
    is_process_running, stop_process,
};
use tempfile::TempDir;

/// Nothing binds it: each test has a lock directory of its own.
const PORT: u16 = 8000;
/// How long a machine under load may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Above what any system gives out in a test run, and a multiple of four as on Windows.
const DEAD: u32 = 0x3fff_fff0;

const ROLE: &str = "LLMLB_TEST_ROLE";
const DIR: &str = "LLMLB_TEST_DIR";

fn sandbox() -> (TempDir, LockDir) {
    let dir = tempfile::tempdir().unwrap();
    let locks = LockDir::new(dir.path());
    (dir, locks)
}

/// This test binary, run again to play a role. It is killed when dropped, and ends by itself when
/// its standard input is closed.
struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Actor {
    fn new(role: &str, dir: &Path) -> Self {
        let mut child = command(role, dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some(line) = line.strip_prefix('@')
                    && sender.send(line.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self {
            child,
            input,
            lines,
        }
    }

    /// One that has acquired the lock.
    fn holding(dir: &Path) -> Self {
        let mut actor = Self::new("hold", dir);
        assert_eq!(actor.ask("acquire"), "won");
        actor
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn hear(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("an answer")
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["actor", "--exact", "--nocapture", "-q"])
        .env(ROLE, role)
        .env(DIR, dir);
    command
}

/// In an actor, plays its role. In the test run, checks that actors answer and leave.
#[test]
fn actor() {
    let Ok(role) = std::env::var(ROLE) else {
        let (dir, _) = sandbox();
        let mut actor = Actor::new("hold", dir.path());
        assert_eq!(actor.ask("echo"), "echo");
        actor.input = None;
        assert!(actor.child.wait().unwrap().success());
        return;
    };
    let locks = LockDir::new(std::env::var_os(DIR).unwrap());
    match role.as_str() {
        "hold" => obey(&locks),
        "launch" => launch(&locks),
        #[cfg(windows)]
        "listen" => windows::listen(&locks),
        #[cfg(windows)]
        "shy" => windows::shy(&locks),
        _ => panic!("no role {role}"),
    }
    // As a crash does it: nothing is cleaned up.
    process::exit(0);
}

/// Does as it is told, until its standard input ends.
fn obey(locks: &LockDir) {
    let mut lock = None;
    for order in io::stdin().lines() {
        match order.unwrap().trim_end() {
            "acquire" => {
                let result = locks.acquire(PORT);
                say(outcome(&result));
                lock = result.ok();
            }
            "wait" => {
                let result = locks.acquire_timeout(PORT, PATIENCE);
                say(outcome(&result));
                lock = result.ok();
            }
            "release" => {
                lock.take().map(ServerLock::release).unwrap().unwrap();
                say("released");
            }
            other => say(other),
        }
    }
}

/// Takes the lock, hands it over to a server of its own, and waits to be killed.
fn launch(locks: &LockDir) {
    let mut lock = locks.acquire(PORT).unwrap();
    lock.set_inheritable(true).unwrap();
    // It shares this process's standard input, and ends with it when the test does.
    let mut server = command("hold", locks.path()).spawn().unwrap();
    lock.set_inheritable(false).unwrap();
    lock.hand_over(server.id()).unwrap();
    say(server.id());
    server.wait().unwrap();
}

fn say(line: impl Display) {
    // The test runner leaves its own words on the same line.
    let mut stdout = io::stdout().lock();
    write!(stdout, "\n@{line}\n").unwrap();
    stdout.flush().unwrap();
}

/// `won`, `lost to PID`, or the error.
fn outcome(result: &Result<ServerLock, LockError>) -> String {
    match result {
        Ok(_) => "won".to_owned(),
        Err(LockError::AlreadyRunning { pid, .. }) => format!("lost to {pid}"),
        Err(e) => format!("error {e}"),
    }
}

fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn named(locks: &LockDir) -> u32 {
    locks.read_lock_info(PORT).unwrap().unwrap().pid
}

fn leave_behind(locks: &LockDir, pid: u32, started_at: DateTime<Utc>) {
    let info = LockInfo {
        pid,
        started_at,
        port: PORT,
    };
    fs::write(locks.lock_path(PORT), serde_json::to_vec(&info).unwrap()).unwrap();
}

#[test]
fn a_duplicate_start_is_refused_naming_the_holder() {
    let (dir, locks) = sandbox();
    let holder = Actor::holding(dir.path());
    let content = fs::read(locks.lock_path(PORT)).unwrap();
    let error = locks.acquire(PORT).unwrap_err();
    let pid = holder.pid();
    assert!(
        matches!(&error, LockError::AlreadyRunning { port: PORT, pid: named, .. } if *named == pid),
        "{error:?}"
    );
    let message = error.to_string();
    let start = format!("Server already running on port 8000 (PID: {pid}, started: ");
    let end = format!("Z)\n\nTo stop: llmlb stop --port 8000\nOr:      kill -TERM {pid}");
    assert!(message.starts_with(&start), "{message}");
    assert!(message.ends_with(&end), "{message}");
    assert_eq!(fs::read(locks.lock_path(PORT)).unwrap(), content);
}

#[test]
fn a_released_port_is_free_and_its_file_gone() {
    let (dir, locks) = sandbox();
    let mut holder = Actor::holding(dir.path());
    assert_eq!(holder.ask("release"), "released");
    assert!(!locks.lock_path(PORT).exists());
    drop(locks.acquire(PORT).unwrap());
    // Dropping it has done the same.
    assert!(!locks.lock_path(PORT).exists());
}

#[test]
fn within_one_process_a_port_is_guarded_as_well() {
    let (_dir, locks) = sandbox();
    let lock = locks.acquire(PORT).unwrap();
    let own = format!("lost to {}", process::id());
    assert_eq!(outcome(&locks.acquire(PORT)), own);
    let other = locks.acquire(PORT + 1).unwrap();
    let listed = locks.list_all_locks();
    assert_eq!(listed, [lock.info().clone(), other.info().clone()]);
    other.release().unwrap();
    lock.release().unwrap();
    assert_eq!(locks.list_all_locks(), []);
}

#[test]
fn after_a_kill_the_next_start_recovers_by_itself() {
    let (dir, locks) = sandbox();
    let mut holder = Actor::holding(dir.path());
    holder.kill();
    let state = locks.server(PORT).unwrap().map(|server| server.state);
    assert_eq!(state, Some(ServerState::Stale));
    let lock = locks.acquire(PORT).unwrap();
    assert_eq!(named(&locks), process::id());
    lock.verify().unwrap();
}

#[test]
fn a_waiter_follows_a_holder_that_is_killed() {
    let (dir, locks) = sandbox();
    let mut holder = Actor::holding(dir.path());
    let mut waiter = Actor::new("hold", dir.path());
    waiter.tell("wait");
    assert_eq!(named(&locks), holder.pid());
    holder.kill();
    assert_eq!(waiter.hear(), "won");
    assert_eq!(named(&locks), waiter.pid());
}

#[test]
fn a_held_file_can_be_read() {
    let (dir, locks) = sandbox();
    let holder = Actor::holding(dir.path());
    let text = fs::read_to_string(locks.lock_path(PORT)).unwrap();
    let info: LockInfo = serde_json::from_str(&text).unwrap();
    assert_eq!(info.pid, holder.pid());
    let servers = locks.servers().unwrap();
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0].state, ServerState::Running);
    assert_eq!(servers[0].info, Some(info));
}

#[test]
fn of_8_processes_one_wins_and_all_others_name_it() {
    let (dir, locks) = sandbox();
    let mut actors: Vec<_> = (0..8).map(|_| Actor::new("hold", dir.path())).collect();
    for round in 0..25 {
        // Over nothing, over a file that a crash left behind, and over nonsense.
        match round % 3 {
            0 => {}
            1 => leave_behind(&locks, DEAD, Utc::now()),
            _ => fs::write(locks.lock_path(PORT), "{").unwrap(),
        }
        for actor in &mut actors {
            actor.tell("acquire");
        }
        let results: Vec<_> = actors.iter_mut().map(Actor::hear).collect();
        let winner = named(&locks);
        let lost = format!("lost to {winner}");
        for (actor, result) in actors.iter().zip(&results) {
            let expected = if actor.pid() == winner { "won" } else { &lost };
            assert_eq!(result, expected, "round {round}: {results:?}");
        }
        let won = actors.iter_mut().find(|actor| actor.pid() == winner);
        assert_eq!(won.unwrap().ask("release"), "released");
    }
}

#[test]
fn a_port_passes_through_8_waiting_processes_one_at_a_time() {
    let (dir, locks) = sandbox();
    let mut actors: Vec<_> = (0..8).map(|_| Actor::new("hold", dir.path())).collect();
    for actor in &mut actors {
        actor.tell("wait");
    }
    for _ in 0..8 {
        let mut place = 0;
        wait_until("the next holder", || {
            // A holder that the machine keeps from writing for long leaves the file empty so long.
            let info = match locks.read_lock_info(PORT) {
                Err(LockError::Corrupted(_)) => None,
                read => read.unwrap(),
            };
            let holds = |actor: &Actor| info.as_ref().is_some_and(|info| info.pid == actor.pid());
            let found = actors.iter().position(holds);
            place = found.unwrap_or_default();
            found.is_some()
        });
        let mut holder = actors.remove(place);
        assert_eq!(holder.hear(), "won");
        for waiter in &actors {
            assert!(waiter.lines.try_recv().is_err(), "two holders");
        }
        assert_eq!(holder.ask("release"), "released");
    }
}

#[test]
fn who_reads_a_file_does_not_keep_its_port() {
    let (dir, locks) = sandbox();
    let mut holder = Actor::holding(dir.path());
    let _reader = fs::File::open(locks.lock_path(PORT)).unwrap();
    assert_eq!(holder.ask("release"), "released");
    let lock = locks.acquire(PORT).unwrap();
    assert_eq!(named(&locks), process::id());
    lock.verify().unwrap();
}

#[test]
fn a_recycled_pid_guards_nothing() {
    let (dir, locks) = sandbox();
    let stranger = Actor::new("hold", dir.path());
    // It has started after the lock was taken, so it is not the one that took it.
    let long_ago = "2020-01-01T00:00:00Z".parse().unwrap();
    leave_behind(&locks, stranger.pid(), long_ago);
    let lock = locks.acquire(PORT).unwrap();
    lock.verify().unwrap();
}

#[test]
fn a_live_process_that_is_named_without_holding_is_recovered_from_and_spared() {
    let (dir, locks) = sandbox();
    let mut bystander = Actor::new("hold", dir.path());
    leave_behind(&locks, bystander.pid(), Utc::now());
    let state = locks.server(PORT).unwrap().unwrap().state;
    assert_eq!(state, ServerState::Stale);
    locks.acquire(PORT).unwrap().release().unwrap();
    leave_behind(&locks, bystander.pid(), Utc::now());
    let stopped = locks.stop_server(PORT, &StopOptions::default());
    assert!(
        matches!(stopped, Ok(StopOutcome::StaleCleaned { .. })),
        "{stopped:?}"
    );
    assert_eq!(bystander.ask("still there"), "still there");
}

#[test]
fn content_that_names_nobody_is_recovered() {
    let (_dir, locks) = sandbox();
    let path = locks.lock_path(PORT);
    for content in [
        Vec::new(),
        b"{".to_vec(),
        b"12345\n".to_vec(),
        vec![0xff; 300],
        vec![b' '; 1 << 20],
    ] {
        fs::write(&path, &content).unwrap();
        let lock = locks.acquire(PORT).unwrap();
        // The whole file is ours, whatever there was.
        let text = fs::read_to_string(&path).unwrap();
        let info: LockInfo = serde_json::from_str(&text).unwrap();
        assert_eq!(&info, lock.info());
        lock.release().unwrap();

        fs::write(&path, &content).unwrap();
        let stopped = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        assert_eq!(stopped, StopOutcome::StaleCleaned { info: None });
        assert!(!path.exists());
    }
}

#[test]
fn what_is_no_lock_file_is_refused_by_name_and_left_alone() {
    let (dir, locks) = sandbox();
    let path = locks.lock_path(PORT);
    let expect_refusals = |why: &str| {
        for error in [
            locks.acquire(PORT).unwrap_err(),
            locks.read_lock_info(PORT).unwrap_err(),
            locks
                .stop_server(PORT, &StopOptions::default())
                .unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(message.contains(&path.display().to_string()), "{message}");
            assert!(message.contains(why), "{message}");
        }
        let state = locks.server(PORT).unwrap().unwrap().state;
        assert!(
            matches!(state, ServerState::Unreadable { .. }),
            "{why}: {state:?}"
        );
    };

    fs::create_dir(&path).unwrap();
    expect_refusals("directory");
    fs::remove_dir(&path).unwrap();

    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    fs::hard_link(&precious, &path).unwrap();
    expect_refusals("hard link");
    fs::remove_file(&path).unwrap();
    assert_eq!(fs::read(&precious).unwrap(), b"precious");

    drop(locks.acquire(PORT).unwrap());
}

#[test]
fn a_lock_directory_that_cannot_be_one_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = LockDir::new(&path).acquire(PORT).unwrap_err();
        assert!(
            matches!(error, LockError::DirectoryCreationFailed(_)),
            "{error:?}"
        );
        let message = error.to_string();
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
    let nowhere = LockDir::new(dir.path().join("a").join("b"));
    assert_eq!(nowhere.servers().unwrap(), []);
    drop(nowhere.acquire(PORT).unwrap());
}

#[test]
fn a_lost_file_is_noticed() {
    let (_dir, locks) = sandbox();
    let lock = locks.acquire(PORT).unwrap();
    lock.verify().unwrap();
    // Renamed, not removed: wine keeps the name of a removed file while it is open.
    fs::rename(lock.path(), locks.path().join("aside")).unwrap();
    assert!(matches!(lock.verify(), Err(LockError::Lost { .. })));
    let next = locks.acquire(PORT).unwrap();
    assert!(matches!(lock.verify(), Err(LockError::Lost { .. })));
    drop(lock);
    // The loser has not removed the winner's.
    next.verify().unwrap();
}

#[test]
fn stop_ends_the_holder_and_its_file() {
    let (dir, locks) = sandbox();
    let stop = || locks.stop_server(PORT, &StopOptions::default()).unwrap();
    assert_eq!(stop(), StopOutcome::NotRunning);

    let mut holder = Actor::holding(dir.path());
    let expected = locks.read_lock_info(PORT).unwrap().unwrap();
    match stop() {
        StopOutcome::Stopped { info, .. } => assert_eq!(info, expected),
        other => panic!("{other:?}"),
    }
    assert!(!locks.lock_path(PORT).exists());
    assert!(!is_process_running(holder.pid()));
    holder.child.wait().unwrap();
    assert_eq!(stop(), StopOutcome::NotRunning);
}

#[test]
fn stop_removes_what_a_killed_holder_left() {
    let (dir, locks) = sandbox();
    let mut holder = Actor::holding(dir.path());
    holder.kill();
    let stopped = locks.stop_server(PORT, &StopOptions::default()).unwrap();
    match stopped {
        StopOutcome::StaleCleaned { info: Some(info) } => assert_eq!(info.pid, holder.pid()),
        other => panic!("{other:?}"),
    }
    assert!(!locks.lock_path(PORT).exists());
}

#[test]
fn a_process_does_not_stop_itself() {
    let (_dir, locks) = sandbox();
    let lock = locks.acquire(PORT).unwrap();
    let refused = locks.stop_server(PORT, &StopOptions::default());
    assert!(
        matches!(refused, Err(LockError::StopFailed(_))),
        "{refused:?}"
    );
    lock.verify().unwrap();
}

#[test]
fn stop_process_ends_one_process_and_refuses_what_means_many() {
    for pid in [0, 1 << 31, u32::MAX] {
        let refused = stop_process(pid).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{pid}");
        assert!(!is_process_running(pid));
    }
    assert!(!is_process_running(DEAD));
    let missing = stop_process(DEAD).unwrap_err();
    assert_ne!(missing.kind(), io::ErrorKind::InvalidInput);

    let (dir, _) = sandbox();
    let mut actor = Actor::new("hold", dir.path());
    assert_eq!(actor.ask("there"), "there");
    assert!(is_process_running(actor.pid()));
    stop_process(actor.pid()).unwrap();
    assert!(!actor.child.wait().unwrap().success());
    assert!(!is_process_running(actor.pid()));
}

#[test]
fn a_lock_that_was_handed_over_lives_as_long_as_the_server() {
    let (dir, locks) = sandbox();
    let mut launcher = Actor::new("launch", dir.path());
    let server: u32 = launcher.hear().parse().unwrap();
    assert_eq!(named(&locks), server);
    launcher.kill();
    let lost = format!("lost to {server}");
    assert_eq!(outcome(&locks.acquire(PORT)), lost);

    let stopped = locks.stop_server(PORT, &StopOptions::default()).unwrap();
    assert!(
        matches!(stopped, StopOutcome::Stopped { .. }),
        "{stopped:?}"
    );
    assert!(!is_process_running(server));
    drop(locks.acquire(PORT).unwrap());
}

#[test]
fn a_lock_is_not_handed_to_the_dead() {
    let (_dir, locks) = sandbox();
    let mut lock = locks.acquire(PORT).unwrap();
    let refused = lock.hand_over(DEAD);
    assert!(
        matches!(refused, Err(LockError::NoSuchProcess { .. })),
        "{refused:?}"
    );
    assert_eq!(named(&locks), process::id());
}

#[cfg(windows)]
mod windows {
    use std::mem;
    use std::os::windows::fs::OpenOptionsExt;
    use std::ptr;

    use llmlb_lock_core::StopEvent;
    use windows_sys::Win32::Security::Authorization::{SE_KERNEL_OBJECT, SetSecurityInfo};
    use windows_sys::Win32::Security::{
        ACL, ACL_REVISION, DACL_SECURITY_INFORMATION, InitializeAcl,
    };
    use windows_sys::Win32::System::Threading::GetCurrentProcess;

    use super::*;

    const FILE_SHARE_READ: u32 = 1;
    const FILE_SHARE_WRITE: u32 = 2;

    /// A server: ends as it is asked to, with a code of its own; while it is told to be stubborn,
    /// only says that it was asked, or gives the port back and stays.
    pub(super) fn listen(locks: &LockDir) {
        let stop = StopEvent::listen().unwrap();
        let again = StopEvent::listen().unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert!(!stop.wait(Some(Duration::from_millis(1))).unwrap());
        let lock = locks.acquire(PORT).unwrap();
        say("won");
        let mut orders = io::stdin().lines().map(Result::unwrap);
        let manner = orders.next().unwrap();
        say("ready");
        loop {
            assert!(stop.wait(None).unwrap());
            say("asked");
            match manner.trim_end() {
                "stubborn" => {}
                "obedient" => {
                    lock.release().unwrap();
                    process::exit(7);
                }
                "gives back" => {
                    lock.release().unwrap();
                    say("released");
                    orders.for_each(say);
                    return;
                }
                manner => panic!("{manner}?"),
            }
        }
    }

    /// Holds the lock until it is told to release it, and may be opened by nobody, as services of the
    /// system may not.
    pub(super) fn shy(locks: &LockDir) {
        let lock = locks.acquire(PORT).unwrap();
        let mut nobody = ACL::default();
        // SAFETY: the list is ours, as long as stated, and outlives the calls, which copy it.
        unsafe {
            let len = mem::size_of_val(&nobody) as u32;
            assert_ne!(InitializeAcl(&raw mut nobody, len, ACL_REVISION), 0);
            let result = SetSecurityInfo(
                GetCurrentProcess(),
                SE_KERNEL_OBJECT,
                DACL_SECURITY_INFORMATION,
                ptr::null_mut(),
                ptr::null_mut(),
                &raw const nobody,
                ptr::null(),
            );
            assert_eq!(result, 0);
        }
        say(fs::read_to_string(lock.path()).unwrap());
        let mut orders = io::stdin().lines().map(Result::unwrap);
        assert_eq!(orders.next().unwrap().trim_end(), "release");
        lock.release().unwrap();
        say("released");
        orders.for_each(say);
    }

    fn listening(dir: &Path, manner: &str) -> Actor {
        let mut actor = Actor::new("listen", dir);
        assert_eq!(actor.hear(), "won");
        assert_eq!(actor.ask(manner), "ready");
        actor
    }

    #[test]
    fn a_server_that_listens_is_asked_and_ends_as_it_likes() {
        let (dir, locks) = sandbox();
        let mut server = listening(dir.path(), "obedient");
        let stopped = locks.stop_server(PORT, &StopOptions::default()).unwrap();
        assert!(
            matches!(stopped, StopOutcome::Stopped { forced: false, .. }),
            "{stopped:?}"
        );
        assert_eq!(server.hear(), "asked");
        assert_eq!(server.child.wait().unwrap().code(), Some(7));
        assert!(!locks.lock_path(PORT).exists());
    }

    #[test]
    fn one_that_listens_is_terminated_by_force_alone() {
        let (dir, locks) = sandbox();
        let mut server = listening(dir.path(), "stubborn");
        let mut options = StopOptions::default()
            .timeout(Duration::from_millis(50))
            .force(false);
        let stopped = locks.stop_server(PORT, &options).unwrap();
        assert!(
            matches!(stopped, StopOutcome::TimedOut { .. }),
            "{stopped:?}"
        );
        assert_eq!(server.hear(), "asked");
        assert!(is_process_running(server.pid()));
        options.force = true;
        let stopped = locks.stop_server(PORT, &options).unwrap();
        assert!(
            matches!(stopped, StopOutcome::Stopped { forced: true, .. }),
            "{stopped:?}"
        );
        assert_eq!(server.hear(), "asked");
        assert_eq!(server.child.wait().unwrap().code(), Some(1));
        assert!(!locks.lock_path(PORT).exists());
    }

    #[test]
    fn one_that_has_given_the_port_back_meanwhile_is_not_terminated() {
        for next_holds in [true, false] {
            let (dir, locks) = sandbox();
            let mut server = listening(dir.path(), "gives back");
            let stop = {
                let locks = LockDir::new(dir.path());
                let options = StopOptions::default().force(true);
                let options = options.timeout(Duration::from_secs(2));
                thread::spawn(move || locks.stop_server(PORT, &options))
            };
            assert_eq!(server.hear(), "asked");
            assert_eq!(server.hear(), "released");
            let next = next_holds.then(|| locks.acquire(PORT).unwrap());
            let refused = stop.join().unwrap().unwrap_err();
            assert!(matches!(refused, LockError::StopFailed(_)), "{refused:?}");
            let pid = format!("PID {}: it has given the port back", server.pid());
            assert!(refused.to_string().contains(&pid), "{refused}");
            assert_eq!(server.ask("still there"), "still there");
            next.iter().for_each(|next| next.verify().unwrap());
        }
    }

    #[test]
    fn one_that_does_not_listen_is_terminated_at_once() {
        let (dir, locks) = sandbox();
        let mut server = Actor::holding(dir.path());
        let options = StopOptions::default().timeout(PATIENCE).force(false);
        let stopped = locks.stop_server(PORT, &options).unwrap();
        assert!(
            matches!(stopped, StopOutcome::Stopped { forced: true, .. }),
            "{stopped:?}"
        );
        assert_eq!(server.child.wait().unwrap().code(), Some(1));
    }

    #[test]
    fn a_launcher_can_ask_as_well() {
        let (dir, _locks) = sandbox();
        let mut server = listening(dir.path(), "obedient");
        assert!(StopEvent::request(server.pid()).unwrap());
        assert_eq!(server.hear(), "asked");
        assert_eq!(server.child.wait().unwrap().code(), Some(7));
        let gone = StopEvent::request(server.pid()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        let mut deaf = Actor::holding(dir.path());
        assert!(!StopEvent::request(deaf.pid()).unwrap());
        assert_eq!(deaf.ask("still there"), "still there");
    }

    #[test]
    fn programs_that_do_not_share_deletion_can_read_a_held_file() {
        let (dir, locks) = sandbox();
        let _holder = Actor::holding(dir.path());
        // As Python, Go and PowerShell open files.
        let reader = fs::OpenOptions::new()
            .read(true)
            .share_mode(FILE_SHARE_READ | FILE_SHARE_WRITE)
            .open(locks.lock_path(PORT))
            .unwrap();
        let info: LockInfo = serde_json::from_reader(reader).unwrap();
        assert_eq!(info.port, PORT);
    }

    #[test]
    fn nobody_can_write_to_a_held_file() {
        let (_dir, locks) = sandbox();
        let lock = locks.acquire(PORT).unwrap();
        let refused = fs::write(lock.path(), "mine").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(32)); // ERROR_SHARING_VIOLATION
        assert_eq!(locks.read_lock_info(PORT).unwrap().unwrap(), *lock.info());
    }

    /// A left-over from before a reboot names whatever has that number now.
    #[test]
    fn what_may_not_be_opened_holds_its_own_lock_and_no_left_over() {
        let (dir, locks) = sandbox();
        let mut shy = Actor::new("shy", dir.path());
        let text = shy.hear();
        let pid = shy.pid();
        let refused = stop_process(pid).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        assert!(is_process_running(pid));
        // Nor can it be told whose it is: while it holds the lock, it is not named.
        let refused = locks.acquire(PORT).unwrap_err();
        assert!(
            matches!(refused, LockError::HeldByUnknown { .. }),
            "{refused:?}"
        );
        assert_eq!(shy.ask("release"), "released");

        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        let created = record["creation_time"].as_u64().unwrap();
        let mut texts = vec![text];
        record["creation_time"] = (created - 10_000_000).into();
        texts.push(record.to_string());
        record.as_object_mut().unwrap().remove("creation_time");
        texts.push(record.to_string());
        for text in texts {
            fs::write(locks.lock_path(PORT), &text).unwrap();
            let state = locks.server(PORT).unwrap().unwrap().state;
            assert_eq!(state, ServerState::Stale, "{text}");
            locks.acquire(PORT).unwrap().release().unwrap();
            fs::write(locks.lock_path(PORT), &text).unwrap();
            let stopped = locks.stop_server(PORT, &StopOptions::default());
            assert!(
                matches!(stopped, Ok(StopOutcome::StaleCleaned { .. })),
                "{text}: {stopped:?}"
            );
        }
        assert_eq!(shy.ask("still there"), "still there");
    }

    #[test]
    fn the_next_numbers_are_other_processes() {
        // Windows opens a process by any of four numbers.
        for pid in process::id() + 1..process::id() + 4 {
            assert!(!is_process_running(pid), "{pid}");
        }
        assert!(is_process_running(process::id()));
    }
}
