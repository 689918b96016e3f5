//! When a server is ready: told to systemd, waited for, and given up on.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;

use llmlb_tests::{PATIENCE, Running, Sandbox, free_port, signal_pid};
use nix::sys::signal::Signal;

const GUINEA: &str = env!("CARGO_BIN_EXE_guinea-server");

/// Where systemd listens.
pub(crate) struct Systemd(UnixDatagram);

impl Systemd {
    pub(crate) fn new(sandbox: &Sandbox) -> Self {
        let socket = UnixDatagram::bind(sandbox.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(crate) fn receive(&self) -> String {
        let mut buffer = [0; 1024];
        let len = self.0.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    }
}

pub(crate) fn start(sandbox: &Sandbox, port: u16, options: &[&str], server: &[&str]) -> Running {
    let port = port.to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &port]);
    command
        .args(options)
        .args(["--", GUINEA, &port])
        .args(server);
    Running::start(command.env("NOTIFY_SOCKET", sandbox.path().join("notify")))
}

#[test]
fn a_server_that_loads_is_ready_when_it_accepts_connections() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let port = free_port();
    let file = sandbox.path().join("loaded");
    let when = format!("listen-when={}", file.display());
    let mut server = start(&sandbox, port, &[], &[&when, "below"]);
    server.expect_output("loading");
    let told = systemd.receive();
    let status = format!("STATUS=waiting for connections to be accepted on port {port}");
    assert!(told.contains(&status), "{told}");
    assert!(told.contains("EXTEND_TIMEOUT_USEC="), "{told}");
    assert!(!told.contains("READY"), "{told}");
    // The next word is the one that it is ready, as it listens.
    let early = systemd
        .0
        .set_nonblocking(true)
        .and_then(|()| systemd.0.recv(&mut [0]));
    assert!(early.is_err(), "told too early");
    systemd.0.set_nonblocking(false).unwrap();
    fs::write(&file, "").unwrap();
    server.expect_log("accepting connections after ");
    let told = systemd.receive();
    assert!(told.contains("READY=1"), "{told}");
    assert!(
        told.contains("STATUS=accepting connections after "),
        "{told}"
    );
}

#[test]
fn a_stranger_on_the_port_is_not_the_server() {
    let sandbox = Sandbox::new();
    let stranger = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = stranger.local_addr().unwrap().port();
    let file = sandbox.path().join("loaded");
    let when = format!("listen-when={}", file.display());
    // Another address of the same port, so that both can listen.
    let server = [&*when, "address=127.0.0.2"];
    let mut server = start(&sandbox, port, &["--ready-timeout", "60"], &server);
    server.expect_output("loading");
    let port = port.to_string();
    let listed = sandbox.run(["status", "--format", "json", &port]).expect(5);
    assert!(listed.stdout.contains("\"Starting\""), "{listed:?}");
    // Nobody has connected to whom it is none of llmlb's business.
    stranger.set_nonblocking(true).unwrap();
    assert!(stranger.accept().is_err());
    fs::write(&file, "").unwrap();
    server.expect_log("accepting connections after ");
    let listed = sandbox.run(["status", "--format", "json", &port]).expect(0);
    assert!(listed.stdout.contains("\"Running\""), "{listed:?}");
}

#[test]
fn with_a_url_it_is_ready_when_that_answers() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    for url in ["/health", "http://127.0.0.1:PORT/health"] {
        let port = free_port();
        let url = url.replace("PORT", &port.to_string());
        let file = sandbox.path().join(port.to_string());
        let when = format!("healthy-when={}", file.display());
        let mut server = start(&sandbox, port, &["--ready-url", &url], &[&when]);
        server.expect_output("ready");
        let told = systemd.receive();
        let status = format!("STATUS=waiting for an answer below 400 from {url}");
        assert!(told.contains(&status), "{told}");
        // It has been asked, and has said no or is about to.
        server.expect_output("asked");
        fs::write(&file, "").unwrap();
        let line = server.expect_log("accepting connections after ");
        assert!(line.contains(&format!("({url} answers)")), "{line}");
        let told = systemd.receive();
        assert!(told.contains("READY=1"), "{told}");
        server.ask_to_end();
        assert!(systemd.receive().contains("STOPPING=1"));
        server.wait();
    }
}

#[test]
fn one_that_is_not_ready_in_time_is_ended_with_an_error() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let server = start(
        &sandbox,
        port,
        &["--ready-timeout", "200ms"],
        &["listen-when=/nowhere", "graceful=0"],
    );
    let ended = server.finish();
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let message = format!("Error: the server on port {port} was not ready within 200ms");
    assert!(ended.stderr.contains(&message), "{ended:?}");
    assert_eq!(ended.stderr.matches("was not ready").count(), 1);
    assert!(!sandbox.lock_file(port).exists());
}

#[test]
fn the_watchdog_is_fed_while_the_server_is_healthy() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let port = free_port();
    let file = sandbox.path().join("healthy");
    fs::write(&file, "").unwrap();
    let when = format!("healthy-when={}", file.display());
    let text = port.to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--ready-url", "/", "--"]);
    command.args([GUINEA, &text, &when]);
    command.env("NOTIFY_SOCKET", sandbox.path().join("notify"));
    command.env("WATCHDOG_USEC", "300000");
    let _server = Running::start(&mut command);
    let mut fed = 0;
    while fed < 3 {
        fed += usize::from(systemd.receive().contains("WATCHDOG=1"));
    }
    fs::remove_file(&file).unwrap();
    // What was under way comes still; then it falls silent.
    let silence = std::time::Duration::from_secs(1);
    systemd.0.set_read_timeout(Some(silence)).unwrap();
    let told = std::iter::from_fn(|| systemd.0.recv(&mut [0; 64]).ok()).take(3);
    assert!(told.count() < 3, "an unhealthy server is vouched for");
}

/// Until nobody vouches for the server any more: what was under way comes still.
#[track_caller]
fn expect_silence(systemd: &Systemd) {
    let silence = std::time::Duration::from_secs(1);
    systemd.0.set_read_timeout(Some(silence)).unwrap();
    let told = std::iter::from_fn(|| systemd.0.recv(&mut [0; 64]).ok()).take(4);
    assert!(told.count() < 4, "one that hangs is vouched for");
    systemd.0.set_read_timeout(Some(PATIENCE)).unwrap();
}

#[cfg(target_os = "linux")] // where systemd is
#[test]
fn the_watchdog_starves_with_a_server_that_hangs_where_nothing_is_asked() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let start = |more: &[&str]| {
        let port = free_port();
        let text = port.to_string();
        let mut command = sandbox.llmlb(["serve", "--port", &text, "--", GUINEA, &text]);
        command.env("NOTIFY_SOCKET", sandbox.path().join("notify"));
        command.env("WATCHDOG_USEC", "300000").args(more);
        (Running::start(&mut command), port)
    };
    let fed = || {
        for _ in 0..2 {
            while !systemd.receive().contains("WATCHDOG=1") {}
        }
    };
    for below in [false, true] {
        let (mut server, port) = start(if below { &["below"] } else { &[] });
        let line = server.expect_output("ready ");
        let listens = line.trim_start_matches("ready ").trim().parse().unwrap();
        assert_eq!(listens != sandbox.named_pid(port), below);
        while !systemd.receive().contains("READY=1") {}
        fed();
        signal_pid(listens, Signal::SIGSTOP);
        expect_silence(&systemd);
        signal_pid(listens, Signal::SIGCONT);
        fed();
        sandbox.run(["stop", &port.to_string()]).expect(0);
        server.wait();
    }
    // What connects to this one waits until there is no room for more.
    let (_server, _) = start(&["hung"]);
    while !systemd.receive().contains("READY=1") {}
    expect_silence(&systemd);
}

#[test]
fn the_watchdog_is_fed_by_a_balancer_that_lives() {
    let sandbox = Sandbox::new();
    let systemd = Systemd::new(&sandbox);
    let port = free_port().to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &port]);
    command.env("NOTIFY_SOCKET", sandbox.path().join("notify"));
    command.env("WATCHDOG_USEC", "300000");
    let balancer = Running::start(&mut command);
    assert!(systemd.receive().contains("READY=1"));
    let fed = || {
        for _ in 0..3 {
            assert_eq!(systemd.receive().trim(), "WATCHDOG=1");
        }
    };
    fed();
    balancer.signal(Signal::SIGSTOP);
    expect_silence(&systemd);
    balancer.signal(Signal::SIGCONT);
    fed();
    balancer.ask_to_end();
    while !systemd.receive().contains("STOPPING=1") {}
}

#[test]
fn options_for_a_command_alone_are_refused_without_one() {
    let sandbox = Sandbox::new();
    for option in [["--ready-url", "/health"], ["--ready-timeout", "5"]] {
        let refused = sandbox
            .run([&["serve", "--port", "1"][..], &option].concat())
            .expect(2);
        let message = format!("{} is for a COMMAND", option[0]);
        assert!(refused.stderr.contains(&message), "{refused:?}");
    }
    let refused = sandbox.run(["serve", "--ready-url", "https://a/", "--", "true"]);
    assert!(refused.expect(2).stderr.contains("only http://"));
}

#[test]
fn a_port_is_waited_for_until_its_server_runs() {
    let sandbox = Sandbox::new();
    let port = free_port();
    let text = port.to_string();
    let in_vain = sandbox.run(["status", &text, "--wait", "0.1"]).expect(3);
    assert_eq!(
        in_vain.stdout,
        format!("No server running on port {port}\n")
    );
    assert!(
        in_vain.stderr.contains("Waited 100ms in vain"),
        "{in_vain:?}"
    );
    let mut waiting = Running::start(&mut sandbox.llmlb(["status", &text, "--wait", "60"]));
    let file = sandbox.path().join("loaded");
    let when = format!("listen-when={}", file.display());
    let mut server = start(&sandbox, port, &[], &[&when]);
    server.expect_output("loading");
    let loading = sandbox.run(["status", &text, "--wait", "0.1"]).expect(5);
    assert!(loading.stdout.contains("Starting"), "{loading:?}");
    assert!(waiting.child.try_wait().unwrap().is_none());
    fs::write(&file, "").unwrap();
    waiting.expect_output("Running");
    assert_eq!(waiting.wait().code(), Some(0));
    sandbox.run(["status", "--wait", "1"]).expect(2);
}
