//! `llmlb serve` in a cluster: the program itself, against real etcd.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use std::time::{Duration, Instant};

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{eventually, guinea, is_running, within};
use llmlb_lock_cluster::{Cluster, Interrupt, Record};
use llmlb_tests::front::Front;
use llmlb_tests::model_server::{Backend, Next};
use llmlb_tests::wire::answer;
use llmlb_tests::{Running, Sandbox, free_port, is_alive, signal_pid};
use nix::sys::signal::Signal;

/// `llmlb serve` of a guinea pig on this port, with these options.
fn serve(sandbox: &Sandbox, etcd: &Etcd, prefix: &str, port: u16, options: &[&str]) -> Running {
    let text = port.to_string();
    let url = etcd.url(prefix).to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--cluster", &url]);
    command.args(["--service", "chat"]).args(options);
    command.arg("--").arg(guinea()).args(["listen", &text]);
    Running::start(&mut command)
}

/// Those that are to be found.
fn servers(cluster: &Cluster) -> Vec<Record> {
    let listing = cluster.servers(Some("chat"), &Interrupt::new()).unwrap();
    let servers = listing.servers.into_iter();
    let servers = servers.filter(|server| server.registered);
    servers.map(|server| server.record).collect()
}

fn found(cluster: &Cluster) -> Record {
    let mut all = Vec::new();
    eventually("the server is found", || {
        all = servers(cluster);
        !all.is_empty()
    });
    all.remove(0)
}

#[test]
fn a_server_is_found_while_it_is_ready_through_an_outage_of_etcd_and_stopped_from_elsewhere() {
    let mut etcd = Etcd::start(1);
    let cluster = etcd.cluster("found");
    let (sandbox, port) = (Sandbox::new(), free_port());
    let options = [
        "--advertise",
        "http://gpu1:8000",
        "--slots",
        "4",
        "--ttl",
        "2",
    ];
    let mut server = serve(&sandbox, &etcd, "found", port, &options);
    let words = server.expect_output("serving ");
    let pid: u32 = words.split(' ').nth(1).unwrap().parse().unwrap();
    let record = found(&cluster);
    assert_eq!(
        (&*record.host, record.port, record.pid),
        ("gpu1", port, pid)
    );
    assert_eq!((&*record.url, record.slots), ("http://gpu1:8000", Some(4)));
    assert_eq!((record.exclusive, record.token), (false, None));

    etcd.nodes[0].kill();
    server.expect_log("Cannot reach etcd");
    etcd.nodes[0].start();
    eventually("etcd is back", || {
        cluster.servers(None, &Interrupt::new()).is_ok()
    });
    let record = found(&cluster);
    assert_eq!(record.pid, pid, "it has served on");

    let ticket = cluster.request_stop(&record, "gpu2", &Interrupt::new());
    server.expect_log("Stop asked for by gpu2");
    server.expect_log("Withdrawing service chat");
    let ended = server.finish();
    assert!(!ended.stderr.contains("Second signal"), "{ended:?}");
    assert_eq!(servers(&cluster), []);
    drop(ticket);
}

#[test]
fn a_balancer_is_found_and_withdrawn_before_it_ends() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("balancer");
    let (sandbox, port) = (Sandbox::new(), free_port());
    let text = port.to_string();
    let url = etcd.url("balancer").to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--service", "chat"]);
    let balancer = Running::start(command.env("LLMLB_CLUSTER", &url));
    let record = found(&cluster);
    assert_eq!((record.port, record.pid), (port, balancer.pid()));
    assert_eq!(record.url, format!("http://{}:{port}", record.host));
    balancer.ask_to_end();
    balancer.finish().expect(0);
    assert_eq!(servers(&cluster), []);
}

#[test]
fn one_that_is_stopped_on_its_own_machine_is_withdrawn_while_it_drains() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("drains");
    let (sandbox, port) = (Sandbox::new(), free_port());
    let url = etcd.url("drains").to_string();
    let text = port.to_string();
    let args = ["serve", "-p", &text, "--cluster", &url, "--service", "chat"];
    // It takes its time for ever.
    let deaf = "trap '' TERM; exec \"$0\" listen \"$1\"";
    let mut command = sandbox.llmlb(args);
    command
        .args(["--", "sh", "-c", deaf])
        .arg(guinea())
        .arg(&text);
    let _server = Running::start(&mut command);
    let pid = found(&cluster).pid;
    let stop = sandbox.llmlb(["stop", &text, "--timeout", "60"]);
    let _stop = Running::start(&mut { stop });
    eventually("it is withdrawn", || servers(&cluster).is_empty());
    assert!(is_running(pid), "it was withdrawn too late");
    signal_pid(pid, Signal::SIGKILL);
}

#[test]
fn a_stop_from_elsewhere_waits_for_the_end_of_a_server_that_is_withdrawn_before() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("waits");
    let (sandbox, port) = (Sandbox::new(), free_port());
    let url = etcd.url("waits").to_string();
    let text = port.to_string();
    let mut server = sandbox.llmlb(["serve", "-p", &text, "--cluster", &url]);
    server.args(["--service", "chat", "--drain-timeout", "600", "--", "sh"]);
    server.args(["-c", "trap '' TERM; exec \"$0\" listen \"$1\""]);
    let server = Running::start(server.arg(guinea()).arg(&text));
    let pid = found(&cluster).pid;
    let stop = |timeout| {
        let args = ["stop", "--cluster", &url, "--service", "chat", "--timeout"];
        Running::start(sandbox.llmlb(args).arg(timeout))
    };
    let patient = stop("600");
    eventually("it is withdrawn", || {
        let listing = cluster.servers(None, &Interrupt::new()).unwrap();
        listing.servers.iter().all(|server| !server.registered)
    });
    let late = stop("0.5").finish().expect(1);
    assert!(late.stderr.contains("still runs after 500ms"), "{late:?}");
    let shown = sandbox.run(["status", "--cluster", &url]).expect(0).stdout;
    assert!(shown.contains("Stopping"), "{shown}");
    assert!(is_running(pid), "it has time");
    signal_pid(pid, Signal::SIGKILL);
    let stopped = patient.finish().expect(0);
    assert!(!is_running(pid));
    assert!(
        stopped.stdout.contains("Server stopped successfully"),
        "{stopped:?}"
    );
    let told = server.finish();
    assert_eq!(
        told.stderr.matches("Stop asked for by").count(),
        2,
        "{told:?}"
    );
    assert!(!told.stderr.contains("Second signal"), "{told:?}");
    assert_eq!(servers(&cluster), []);
}

#[test]
fn a_server_starts_while_etcd_is_away() {
    let (sandbox, port) = (Sandbox::new(), free_port());
    let text = port.to_string();
    let away = format!("etcd://127.0.0.1:{}", free_port());
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--cluster", &away]);
    let mut server = Running::start(command.args(["--service", "chat"]));
    server.expect_log("listening on");
    let line = server.expect_log("Cannot reach etcd");
    assert!(line.contains(&away["etcd://".len()..]), "{line}");
    server.ask_to_end();
    server.finish().expect(0);
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let sandbox = Sandbox::new();
    for (args, word) in [
        (&["--service", "chat"][..], "LLMLB_CLUSTER"),
        (&["--cluster", "etcd://h"], "--service NAME"),
        (&["--cluster", "http://h", "--service", "chat"], "etcd://"),
        (
            &["--cluster", "etcd://u:p@h", "--service", "chat"],
            "LLMLB_CLUSTER_PASSWORD",
        ),
        (
            &["--cluster", "etcd://h", "--service", "a", "--ttl", "0.5"],
            "1 s",
        ),
        (
            &[
                "--cluster",
                "etcd://h",
                "--service",
                "a",
                "--advertise",
                "gpu1",
            ],
            "http://",
        ),
        (&["--slots", "4"], "--service"),
        (
            &[
                "--cluster",
                "etcd://h",
                "--service",
                "a",
                "--exclusive",
                "--drain-delay=4",
            ],
            "--drain-delay 4s",
        ),
        (
            &[
                "--cluster",
                "etcd://h",
                "--service",
                "a",
                "--exclusive",
                "--ttl=3",
                "--",
                "true",
            ],
            "which is not less than the TTL of 3 s",
        ),
        (
            &["--cluster", "etcd://h", "--service", "a/b"],
            "service name",
        ),
    ] {
        let mut all = vec!["serve", "--port", "0"];
        all.extend(args);
        let ended = sandbox.run(all).expect(2);
        assert!(ended.stderr.contains(word), "{args:?}: {}", ended.stderr);
    }
}

const EXCLUSIVE: [&str; 5] = ["--exclusive", "--ttl", "3", "--drain-timeout", "0.5"];

/// Its PID and its token.
fn serving(server: &mut Running) -> (u32, u64) {
    let words = server.expect_output("serving ");
    let mut words = words.split(' ').skip(1).map(str::parse::<u64>);
    let mut next = || words.next().unwrap().unwrap();
    (u32::try_from(next()).unwrap(), next())
}

/// One that waits until the service is free.
fn standby(sandbox: &Sandbox, etcd: &Etcd, prefix: &str) -> Running {
    let options = [&EXCLUSIVE[..], &["--advertise", "http://gpu2:1", "--wait"]].concat();
    let mut standby = serve(sandbox, etcd, prefix, free_port(), &options);
    standby.expect_log("Waiting: Service chat is active on gpu1:");
    standby
}

fn active(sandbox: &Sandbox, etcd: &Etcd, prefix: &str) -> Running {
    let options = [&EXCLUSIVE[..], &["--advertise", "http://gpu1:1"]].concat();
    serve(sandbox, etcd, prefix, free_port(), &options)
}

#[test]
fn a_second_active_server_is_refused_and_a_standby_takes_over_from_one_that_ends() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("two");
    let sandbox = Sandbox::new();
    let mut first = active(&sandbox, &etcd, "two");
    let (pid, token) = serving(&mut first);
    eventually("it is registered", || {
        servers(&cluster).iter().any(|record| record.pid == pid)
    });
    let named = format!("(PID: {pid}, started: ");
    eventually("the refusal names the server", || {
        let refused = serve(&sandbox, &etcd, "two", free_port(), &EXCLUSIVE).finish();
        refused.expect(1).stderr.contains(&named)
    });
    let options = [&EXCLUSIVE[..], &["--wait", "0.2"]].concat();
    for options in [&EXCLUSIVE[..], &options] {
        let refused = serve(&sandbox, &etcd, "two", free_port(), options).finish();
        let refused = refused.expect(1).stderr;
        let words = "Error: Service chat is active on gpu1:";
        let line = refused.lines().find(|line| line.starts_with(words));
        let line = line.unwrap_or_else(|| panic!("{refused}"));
        assert!(line.contains(&format!("{named}20")), "{line}");
        assert!(line.ends_with(&format!("Z, token {token})")), "{line}");
        let stop = format!(
            "\n\nTo stop: llmlb stop --cluster {} --service chat\n",
            etcd.url("two")
        );
        assert!(refused.ends_with(&stop), "{refused}");
    }
    let mut second = standby(&sandbox, &etcd, "two");
    first.ask_to_end();
    first.wait();
    let (_, later) = serving(&mut second);
    assert!(later > token);
    assert!(!is_alive(pid));
}

#[test]
fn a_killed_llmlb_leaves_no_exclusive_server_and_a_standby_takes_over() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let mut first = active(&sandbox, &etcd, "killed");
    let (pid, token) = serving(&mut first);
    let mut second = standby(&sandbox, &etcd, "killed");
    first.kill();
    eventually("the watchdog kills the server", || !is_alive(pid));
    assert!(serving(&mut second).1 > token);
}

#[test]
fn a_stopped_llmlb_leaves_no_exclusive_server_and_says_so_when_it_goes_on() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let mut first = active(&sandbox, &etcd, "stopped");
    let (pid, token) = serving(&mut first);
    let mut second = standby(&sandbox, &etcd, "stopped");
    first.signal(Signal::SIGSTOP);
    let (other, later) = serving(&mut second);
    assert!(later > token);
    assert!(!is_running(pid), "two are active");
    first.signal(Signal::SIGCONT);
    let ended = first.finish().expect(6);
    assert!(ended.stderr.contains("lease of service chat"), "{ended:?}");
    assert!(is_running(other));
}

#[test]
fn a_balancer_may_be_the_only_one_of_its_service() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let model = Backend::start(&["m"], |_, wire| {
        wire.send(answer("200 OK", "", "{}"));
        Next::Read
    });
    let url = etcd.url("balancers").to_string();
    let balance = |port: u16, more: &[&str]| {
        let port = port.to_string();
        let mut command = sandbox.llmlb(["serve", "--port", &port, "--cluster", &url]);
        command.args(["--service", "front", "--backend", &model.url()]);
        Running::start(command.args(EXCLUSIVE).args(more))
    };
    let (port, other) = (free_port(), free_port());
    let mut first = balance(port, &[]);
    first.expect_log("listening on");
    assert_eq!(Front { port }.chat("m").status(), 200);
    let cluster = etcd.cluster("balancers");
    let pid = sandbox.named_pid(port);
    eventually("it is found", || {
        let listing = cluster.servers(None, &Interrupt::new()).unwrap();
        let mut servers = listing.servers.iter();
        servers.any(|server| {
            server.registered && server.record.pid == pid && server.record.models == ["m"]
        })
    });
    eventually("its guard tells of its backends", || {
        let wide = sandbox.run(["status", "--format", "wide"]).expect(0);
        wide.stdout.contains("  balancer, 1 of 1 backends up\n")
    });
    let refused = balance(other, &[]).finish().expect(1);
    assert!(
        refused.stderr.contains(&format!("PID: {pid}")),
        "{refused:?}"
    );

    let mut standby = balance(other, &["--wait"]);
    standby.expect_log("Waiting: Service front is active");
    first.kill();
    standby.expect_log("listening on");
    assert!(!is_running(pid), "two are active");
    assert_eq!(Front { port: other }.chat("m").status(), 200);
    standby.ask_to_end();
    let ended = standby.finish().expect(0);
    assert!(!ended.stderr.contains("killing it"), "{ended:?}");
}

#[test]
fn etcd_that_stays_away_ends_an_exclusive_server_in_time() {
    let mut etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    // Before its TTL has passed.
    within(Duration::from_secs(3), || {
        let mut server = active(&sandbox, &etcd, "away");
        let (pid, _) = serving(&mut server);
        let begun = Instant::now();
        etcd.nodes[0].kill();
        eventually("it is ended", || !is_alive(pid));
        let took = begun.elapsed();
        let ended = server.finish().expect(6);
        assert!(ended.stderr.contains("was lost"), "{ended:?}");
        let outages = ended.stderr.matches("Cannot reach etcd").count();
        assert!((1..=4).contains(&outages), "{ended:?}");

        let refused = active(&sandbox, &etcd, "away").finish().expect(1);
        let address = format!("127.0.0.1:{}", etcd.nodes[0].port);
        assert!(refused.stderr.contains(&address), "{refused:?}");
        // For another attempt.
        etcd.nodes[0].start();
        eventually("etcd is back", || {
            etcd.cluster("away")
                .servers(None, &Interrupt::new())
                .is_ok()
        });
        took
    });
}

#[test]
fn what_can_not_be_run_is_told_before_and_behind_the_gate() {
    let etcd = Etcd::start(1);
    let sandbox = Sandbox::new();
    let url = etcd.url("run").to_string();
    let text = sandbox.path().join("text");
    std::fs::write(&text, "#!/nowhere/at-all\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&text, mode).unwrap();
    for (program, code) in [("no-such-program", 127), (text.to_str().unwrap(), 126)] {
        let args = [
            "serve",
            "-p0",
            "--cluster",
            &url,
            "--service",
            "chat",
            "--exclusive",
        ];
        let ended = sandbox
            .run(args.iter().chain(&["--", program]))
            .expect(code);
        assert!(ended.stderr.contains("cannot run"), "{ended:?}");
    }
}
