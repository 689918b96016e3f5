//! `llmlb serve` in a cluster: the program itself, against real etcd.
#![cfg(target_os = "linux")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)]

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{eventually, guinea};
use llmlb_lock_cluster::{Cluster, Interrupt, Record};
use llmlb_tests::{Running, Sandbox, free_port};

/// `llmlb serve` of a guinea pig on this port, with these options.
fn serve(sandbox: &Sandbox, etcd: &Etcd, prefix: &str, port: u16, options: &[&str]) -> Running {
    let text = port.to_string();
    let url = etcd.url(prefix).to_string();
    let mut command = sandbox.llmlb(["serve", "--port", &text, "--cluster", &url]);
    command.args(["--service", "chat"]).args(options);
    command.arg("--").arg(guinea()).args(["listen", &text]);
    Running::start(&mut command)
}

fn servers(cluster: &Cluster) -> Vec<Record> {
    let listing = cluster.servers(Some("chat"), &Interrupt::new()).unwrap();
    let servers = listing.servers.into_iter();
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
