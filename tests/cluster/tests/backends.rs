//! A load balancer that finds its servers in real etcd, as they come and go, and without it.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use llmlb_cluster_tests::etcd::Etcd;
use llmlb_cluster_tests::{PATIENCE, eventually};
use llmlb_lock_cluster::{Cluster, Interrupt, Record, Registration};
use llmlb_tests::front::Front;
use llmlb_tests::model_server::{Backend, Next};
use llmlb_tests::wire::answer;
use llmlb_tests::{Running, Sandbox, free_port, wait_until};

struct Balancer {
    _sandbox: Sandbox,
    running: Running,
    front: Front,
}

fn balance(url: &str, service: &str, more: &[&str]) -> Balancer {
    let (sandbox, port) = (Sandbox::new(), free_port());
    let mut args = vec!["--cluster", url, "--backends-of", service];
    args.extend(more);
    let running = sandbox.serve_with(port, &args);
    Balancer {
        _sandbox: sandbox,
        running,
        front: Front { port },
    }
}

fn model() -> Backend {
    Backend::start(&["m"], |_, wire| {
        wire.send(answer("200 OK", "", "{}"));
        Next::Read
    })
}

fn register(cluster: &Cluster, host: &str, server: &Backend, token: Option<u64>) -> Registration {
    let record = Record::new("chat", host, 8000).with_url(server.url());
    let record = token.into_iter().fold(record, Record::with_token);
    let registration = cluster.register(record).unwrap();
    let registered = registration.wait_registered(PATIENCE, &Interrupt::new());
    assert!(registered.unwrap());
    registration
}

fn urls(front: Front) -> Vec<String> {
    let health = front.health();
    let backends = health["backends"].as_array().unwrap();
    let up = backends.iter().filter(|b| b["state"] == "up");
    up.map(|b| b["url"].as_str().unwrap().to_owned()).collect()
}

/// Requests without a pause, until it is asked how many failed.
struct Load {
    end: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<u16>>,
}

impl Load {
    fn on(front: Front) -> Self {
        let (end, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (ended, count) = (Arc::clone(&end), Arc::clone(&sent));
        let thread = thread::spawn(move || {
            let mut failed = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                let status = front.chat("m").status();
                if status != 200 {
                    failed.push(status);
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
            failed
        });
        Self { end, sent, thread }
    }

    fn expect_more(&self, count: usize) {
        let from = self.sent.load(Ordering::SeqCst);
        eventually("requests are answered", || {
            self.sent.load(Ordering::SeqCst) >= from + count
        });
    }

    fn finish(self) -> Vec<u16> {
        self.end.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

fn come_and_go(rounds: usize) {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("rounds");
    let servers = [model(), model(), model()];
    let hosts = ["gpu1", "gpu2", "gpu3"];
    let there = |i: usize| register(&cluster, hosts[i], &servers[i], None);
    let mut registered: Vec<_> = (0..3).map(|i| Some(there(i))).collect();
    let balancer = balance(&etcd.url("rounds").to_string(), "chat", &[]);
    wait_until("all to be up", || {
        (urls(balancer.front).len() == 3).then_some(())
    });
    let load = Load::on(balancer.front);
    let mut times = Vec::new();
    for round in 0..rounds {
        let i = round % 3;
        let begun = Instant::now();
        registered[i].take().unwrap().withdraw();
        wait_until("it to be gone", || {
            (!urls(balancer.front).contains(&servers[i].url())).then_some(())
        });
        times.push(begun.elapsed());
        load.expect_more(2);
        registered[i] = Some(there(i));
        wait_until("it to be back", || {
            urls(balancer.front)
                .contains(&servers[i].url())
                .then_some(())
        });
    }
    assert_eq!(load.finish(), [0u16; 0], "no request fails");
    times.sort();
    let median = times[rounds / 2];
    println!(
        "gone after: median {median:?}, longest {:?}",
        times[rounds - 1]
    );
    assert!(median < Duration::from_millis(200), "{times:?}");
}

#[test]
fn servers_come_and_go_under_load() {
    come_and_go(20);
}

#[test]
#[ignore = "the same for longer"]
fn servers_come_and_go_a_hundred_times() {
    come_and_go(100);
}

#[test]
fn an_outage_of_etcd_costs_no_request() {
    outage(Duration::from_secs(4));
}

#[test]
#[ignore = "the same for longer"]
fn an_outage_of_a_minute_costs_no_request() {
    outage(Duration::from_secs(60));
}

fn outage(lasts: Duration) {
    let mut etcd = Etcd::start(1);
    let cluster = etcd.cluster("outage");
    let servers = [model(), model()];
    let _registered = [
        register(&cluster, "gpu1", &servers[0], None),
        register(&cluster, "gpu2", &servers[1], None),
    ];
    let balancer = balance(&etcd.url("outage").to_string(), "chat", &[]);
    wait_until("both to be up", || {
        (urls(balancer.front).len() == 2).then_some(())
    });
    let load = Load::on(balancer.front);
    etcd.nodes[0].kill();
    thread::sleep(lasts);
    etcd.nodes[0].start();
    // Followed again, and nobody was lost.
    let third = model();
    let _third = register(&cluster, "gpu3", &third, None);
    wait_until("all to be up", || {
        (urls(balancer.front).len() == 3).then_some(())
    });
    load.expect_more(10);
    println!("{} requests", load.sent.load(Ordering::SeqCst));
    assert_eq!(load.finish(), [0u16; 0], "no request fails");
    balancer.running.ask_to_end();
    let told = balancer.running.finish();
    let outage = told
        .stderr
        .lines()
        .filter(|line| line.contains("Lost sight of"));
    assert_eq!(outage.count(), 1, "{}", told.stderr);
}

#[test]
fn of_an_exclusive_service_only_the_highest_token_is_used() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("tokens");
    let (old, new, listed) = (model(), model(), model());
    let _old = register(&cluster, "gpu1", &old, Some(7));
    let listed_url = listed.url();
    let balancer = balance(
        &etcd.url("tokens").to_string(),
        "chat",
        &["--backend", &listed_url],
    );
    let expect = |expected: &[String]| {
        wait_until("the set", || {
            let mut now = urls(balancer.front);
            now.sort();
            let mut expected = expected.to_vec();
            expected.sort();
            (now == expected).then_some(())
        });
    };
    expect(&[listed.url(), old.url()]);
    let newest = register(&cluster, "gpu2", &new, Some(9));
    expect(&[listed.url(), new.url()]);
    newest.withdraw();
    expect(&[listed.url()]);
    // Not even when it says so again.
    let again = model();
    let _again = register(&cluster, "gpu3", &again, Some(7));
    let marker = model();
    let _marker = register(&cluster, "gpu4", &marker, Some(10));
    expect(&[listed.url(), marker.url()]);
}

#[test]
fn it_starts_while_etcd_is_away() {
    let away = format!("etcd://127.0.0.1:{}", free_port());
    let alone = balance(&away, "chat", &[]);
    assert_eq!(alone.front.chat("m").status(), 503);
    let server = model();
    let with = balance(&away, "chat", &["--backend", &server.url()]);
    wait_until("it to be up", || {
        (urls(with.front).len() == 1).then_some(())
    });
    assert_eq!(with.front.chat("m").status(), 200);
}
