//! The program beside real etcd: what runs on other hosts, and how it is stopped from here. The
//! servers are registered by the library.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use llmlb_cluster_tests::PATIENCE;
use llmlb_cluster_tests::etcd::{Etcd, base64};
use llmlb_lock_cluster::{Cluster, Interrupt, Record, Registration};
use llmlb_tests::{Finished, Sandbox, free_port, llmlb_binary};

fn register(cluster: &Cluster, record: &Record) -> Registration {
    let registration = cluster.register(record.clone()).unwrap();
    let registered = registration.wait_registered(PATIENCE, &Interrupt::new());
    assert!(registered.unwrap());
    registration
}

fn run(args: &[&str]) -> Finished {
    Sandbox::new().run(args)
}

#[test]
fn status_shows_every_server_and_names_what_is_none() {
    let etcd = Etcd::start(1);
    let url = etcd.url("status").to_string();
    let cluster = etcd.cluster("status");
    let none = run(&["status", "--cluster", &url]).expect(0);
    assert_eq!(none.stdout, "No servers running\n");

    let record = Record::new("chat", "gpu1", 8000)
        .with_pid(12345)
        .with_token(7)
        .with_models(["qwen3", "spoofed\u{202e}name"]);
    let _chat = register(&cluster, &record);
    let _embed = register(&cluster, &Record::new("embed", "gpu2", 8001));
    let key = base64("/status/v1/servers/chat/evil\u{1b}[2J:1");
    let value = base64("no record");
    etcd.call("kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#));

    let shown = run(&["status", "--cluster", &url]).expect(0);
    let lines: Vec<_> = shown.stdout.lines().collect();
    let words: Vec<Vec<&str>> = lines
        .iter()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        [
            "HOST", "SERVICE", "ADDRESS", "PID", "STARTED", "TOKEN", "STATUS", "MODELS"
        ]
    );
    assert_eq!(words[1][..4], ["gpu1", "chat", "http://gpu1:8000", "12345"]);
    assert_eq!(words[1][5..7], ["7", "Running"]);
    assert_eq!(words[2][..3], ["gpu2", "embed", "http://gpu2:8001"]);
    assert!(shown.stderr.starts_with("Warning: "), "{}", shown.stderr);
    for text in [&shown.stdout, &shown.stderr] {
        assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text:?}");
    }

    let json = run(&["status", "--cluster", &url, "--format", "json"]).expect(0);
    let rows: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let started = serde_json::to_value(&record).unwrap()["started_at"].clone();
    assert_eq!(
        rows[0],
        serde_json::json!({
            "service": "chat", "host": "gpu1", "port": 8000, "address": "http://gpu1:8000",
            "pid": 12345, "started_at": started, "token": 7, "status": "Running",
            "models": ["qwen3", "spoofed\\u{202e}name"],
        })
    );
    assert!(rows[1]["token"].is_null(), "{rows}");
}

#[test]
fn stop_is_carried_out_by_the_guardian_and_told_as_on_one_machine() {
    let etcd = Etcd::start(1);
    let url = etcd.url("stop").to_string();
    let cluster = etcd.cluster("stop");
    let stop = |more: &[&str]| {
        let mut args = vec!["stop", "--cluster", &url, "--service", "chat"];
        args.extend(more);
        run(&args)
    };
    let none = stop(&[]).expect(0);
    assert_eq!(none.stdout, "No server of chat running\n");

    let guard = |host: &str| {
        let record = Record::new("chat", host, 8000).with_pid(4321);
        let requests = cluster.stop_requests(&record).unwrap();
        let registration = register(&cluster, &record);
        thread::spawn(move || {
            let request = requests.next(Some(PATIENCE), &Interrupt::new());
            assert!(request.unwrap().is_some());
            registration.withdraw();
        })
    };
    let guards = [guard("gpu1"), guard("gpu2"), guard("gpu3")];
    let which = stop(&[]).expect(1);
    assert!(
        which.stderr.contains("gpu1:8000, gpu2:8000, gpu3:8000"),
        "{which:?}"
    );
    assert!(which.stderr.contains("--all"), "{which:?}");

    let one = stop(&["--host", "gpu2", "--timeout", "60"]).expect(0);
    assert_eq!(
        one.stdout,
        "Stopping server of chat on gpu2:8000 (PID: 4321)...\nServer stopped successfully\n"
    );
    // What can't be said keeps no server alive.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
    let mut mute = Command::new(llmlb_binary());
    mute.args(["stop", "--cluster", &url, "--service", "chat"]);
    mute.args(["--host", "gpu1", "--timeout", "60"]);
    let mute = Finished::of(mute.stdout(full.unwrap()).output().unwrap()).expect(1);
    assert_eq!(mute.stderr.matches("cannot write to stdout").count(), 1);
    let rest = stop(&["--all", "--timeout", "60"]).expect(0);
    assert_eq!(
        rest.stdout.matches("Server stopped successfully").count(),
        1
    );
    for guard in guards {
        guard.join().unwrap();
    }

    // Registered, and nobody listens.
    let _silent = register(&cluster, &Record::new("chat", "gpu4", 8000));
    let silent = stop(&["--timeout", "0.3"]).expect(1);
    assert!(
        silent.stderr.contains("has not answered within 300ms"),
        "{silent:?}"
    );
    assert!(silent.stderr.contains("may still run"), "{silent:?}");
}

#[test]
fn etcd_that_is_away_is_named_in_time() {
    // Building it is no part of the answer.
    llmlb_binary();
    let away = format!("etcd://127.0.0.1:{}", free_port());
    for args in [
        &["status", "--cluster", &away][..],
        &["stop", "--cluster", &away, "--service", "chat"],
        &["cluster", "check", "--cluster", &away],
        &[
            "serve",
            "-p0",
            "--cluster",
            &away,
            "--service",
            "chat",
            "--exclusive",
            "--",
            "true",
        ],
    ] {
        let begun = Instant::now();
        let refused = run(args).expect(1);
        assert!(begun.elapsed() < Duration::from_secs(10), "{refused:?}");
        let said = refused.stdout.clone() + &refused.stderr;
        assert!(said.contains(&away["etcd://".len()..]), "{refused:?}");
    }
    run(&["status", "--cluster", "http://127.0.0.1"]).expect(2);
    run(&["stop", "--cluster", &away]).expect(2);
    run(&["status", "--cluster", &away, "--port", "8000"]).expect(2);
}

#[test]
fn check_has_a_line_for_everything_and_says_what_to_do() {
    let etcd = Etcd::start(1);
    let url = etcd.url("check").to_string();
    let good = run(&["cluster", "check", "--cluster", &url]).expect(0);
    for what in ["version 3.", "clock", "quorum", "shortest TTL", "rights"] {
        assert!(good.stdout.contains(what), "{what}: {good:?}");
    }
    assert!(good.stdout.lines().all(|l| l.starts_with("ok")), "{good:?}");

    // One of two members is away: the rest works, and it is named.
    let port = free_port();
    let half = url.replace("etcd://", &format!("etcd://127.0.0.1:{port},"));
    let bad = run(&["cluster", "check", "--cluster", &half]).expect(1);
    let wrong: Vec<_> = bad
        .stdout
        .lines()
        .filter(|l| !l.starts_with("ok"))
        .collect();
    assert_eq!(wrong.len(), 1, "{bad:?}");
    assert!(wrong[0].contains(&port.to_string()), "{bad:?}");
}
