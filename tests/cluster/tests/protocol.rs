//! Registration, discovery and exclusion against real etcd.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use llmlb_cluster_tests::etcd::{Etcd, base64};
use llmlb_cluster_tests::proxy::Proxy;
use llmlb_cluster_tests::{PATIENCE, eventually, within};
use llmlb_lock_cluster::{
    Change, Cluster, ClusterError, ClusterUrl, Interrupt, Options, Record, StopAnswer, Timing,
    Watch,
};

/// For what needs no time, on a machine under load.
const SOON: Duration = Duration::from_secs(2);

fn timing(ttl: f64) -> Timing {
    Timing::new(
        Duration::from_secs_f64(ttl),
        Duration::from_secs_f64(ttl / 10.0),
    )
    .unwrap()
}

/// Long enough for a machine under load.
fn options(name: &str) -> Options {
    Options::new(Record::new("chat", name, 8000), timing(20.0))
}

/// For what is to be over soon.
fn brief(name: &str) -> Options {
    Options::new(Record::new("chat", name, 8000), timing(2.0))
}

fn next(watch: &Watch) -> Change {
    watch
        .next(Some(PATIENCE), &Interrupt::new())
        .unwrap()
        .expect("a change")
}

/// The next change that is not about etcd itself.
fn next_server(watch: &Watch) -> Change {
    loop {
        match next(watch) {
            Change::Outage(_) | Change::Back => {}
            other => return other,
        }
    }
}

fn through(proxies: &[&Proxy]) -> Cluster {
    let hosts: Vec<_> = proxies
        .iter()
        .map(|proxy| format!("127.0.0.1:{}", proxy.port))
        .collect();
    let url = ClusterUrl::parse(&format!("etcd://{}/t", hosts.join(","))).unwrap();
    Cluster::connect(&url).unwrap()
}

/// What no llmlb would write.
fn put(etcd: &Etcd, key: &str, value: &str) {
    let (key, value) = (base64(key), base64(value));
    etcd.call("kv/put", &format!(r#"{{"key":"{key}","value":"{value}"}}"#));
}

#[test]
fn a_registered_server_is_found_until_it_is_withdrawn() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let interrupt = Interrupt::new();
    let record = Record::new("chat", "gpu1", 8000)
        .with_models(["qwen3"])
        .with_slots(4);
    let watch = cluster.watch(Some("chat")).unwrap();
    assert_eq!(next(&watch), Change::Snapshot(vec![]));

    let registration = cluster.register(record.clone()).unwrap();
    assert!(registration.wait_registered(PATIENCE, &interrupt).unwrap());
    assert_eq!(next(&watch), Change::Up(record.clone()));
    let listing = cluster.servers(None, &interrupt).unwrap();
    assert_eq!(listing.servers[0].record, record);
    assert!(listing.servers[0].registered);
    assert!(
        cluster
            .servers(Some("chat-2"), &interrupt)
            .unwrap()
            .servers
            .is_empty()
    );
    assert!(
        etcd.cluster("other")
            .servers(None, &interrupt)
            .unwrap()
            .servers
            .is_empty()
    );

    let more = record.clone().with_slots(8);
    registration.update(more.clone()).unwrap();
    assert_eq!(next(&watch), Change::Up(more));
    assert!(
        registration
            .update(Record::new("embed", "gpu1", 8000))
            .is_err()
    );

    registration.withdraw();
    let gone = Change::Down {
        service: "chat".into(),
        instance: "gpu1:8000".into(),
    };
    assert_eq!(next(&watch), gone);
}

#[test]
fn a_killed_servers_record_goes_with_its_lease() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let interrupt = Interrupt::new();
    let cut_off = through(&[&proxy]);
    let record = Record::new("chat", "gpu1", 8000);
    let registration = cut_off
        .register_with_ttl(record, Duration::from_secs(1))
        .unwrap();
    assert!(registration.wait_registered(PATIENCE, &interrupt).unwrap());
    let watch = etcd.cluster("t").watch(None).unwrap();
    assert!(matches!(next(&watch), Change::Snapshot(all) if all.len() == 1));
    proxy.faults.cut(true);
    assert!(matches!(next(&watch), Change::Down { .. }));
    eventually("noticed", || !registration.is_registered());
    // And it comes back by itself.
    proxy.faults.heal();
    assert!(matches!(next(&watch), Change::Up(_)));
}

#[test]
fn an_outage_ends_neither_registration_nor_watch_and_both_go_on_by_themselves() {
    let mut etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let watch = cluster.watch(None).unwrap();
    assert_eq!(next(&watch), Change::Snapshot(vec![]));
    let first = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    assert!(matches!(next(&watch), Change::Up(_)));
    etcd.nodes[0].kill();
    assert!(matches!(next(&watch), Change::Outage(_)));
    // A server that starts during the outage is registered afterwards.
    let second = cluster.register(Record::new("chat", "gpu2", 8000)).unwrap();
    assert!(!second.is_registered());
    etcd.nodes[0].start();
    assert_eq!(next(&watch), Change::Back);
    loop {
        match next_server(&watch) {
            Change::Up(record) if record.host == "gpu2" => break,
            Change::Snapshot(all) if all.len() == 2 => break,
            Change::Snapshot(_) => {}
            other => panic!("{other:?}"),
        }
    }
    eventually("registered", || {
        first.is_registered() && second.is_registered()
    });
    drop((first, second));
}

#[test]
fn what_was_removed_by_hand_is_registered_anew() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let watch = cluster.watch(None).unwrap();
    assert_eq!(next(&watch), Change::Snapshot(vec![]));
    let record = Record::new("chat", "gpu1", 8000);
    let _registration = cluster
        .register_with_ttl(record, Duration::from_secs(1))
        .unwrap();
    assert!(matches!(next(&watch), Change::Up(_)));
    let key = base64("/t/v1/servers/chat/gpu1:8000");
    etcd.call("kv/deleterange", &format!(r#"{{"key":"{key}"}}"#));
    assert!(matches!(next(&watch), Change::Down { .. }));
    assert!(matches!(next(&watch), Change::Up(_)));
}

#[test]
fn a_watch_goes_on_after_a_compaction_that_it_slept_through() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let watch = through(&[&proxy]).watch(None).unwrap();
    assert_eq!(next(&watch), Change::Snapshot(vec![]));
    proxy.faults.cut(true);
    assert!(matches!(next(&watch), Change::Outage(_)));
    let cluster = etcd.cluster("t");
    let registration = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    assert!(
        registration
            .wait_registered(PATIENCE, &Interrupt::new())
            .unwrap()
    );
    for i in 0..5 {
        put(&etcd, &format!("/elsewhere/{i}"), "x");
    }
    etcd.call("kv/compaction", r#"{"revision":"6","physical":true}"#);
    proxy.faults.heal();
    assert!(matches!(next_server(&watch), Change::Snapshot(all) if all.len() == 1));
}

#[test]
fn foreign_and_corrupt_records_are_skipped_by_name() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let _registration = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    let stranger = Record::new("chat", "gpu9", 9000);
    for (key, value) in [
        ("chat/gpu2:8000", "{"),
        ("chat/gpu3:8000", &"x".repeat(100_000)),
        ("chat/gpu4:8000", r#"{"version":1}"#),
        ("chat/\u{1b}[2J", "null"),
        ("chat", "null"),
        // Somebody else's, under a name that is not its own.
        (
            "chat/gpu5:8000",
            &serde_json::to_string(&serde_json::json!({
                "version": 1, "service": stranger.service, "host": stranger.host, "port": 9000,
                "url": stranger.url, "pid": 1, "started_at": stranger.started_at.to_rfc3339(),
                "nonce": "n",
            }))
            .unwrap(),
        ),
    ] {
        put(&etcd, &format!("/t/v1/servers/{key}"), value);
    }
    let interrupt = Interrupt::new();
    eventually("registered", || {
        let listing = cluster.servers(None, &interrupt).unwrap();
        listing.servers.len() == 1 && listing.skipped.len() == 6
    });
    let listing = cluster.servers(None, &interrupt).unwrap();
    let names: Vec<_> = listing.skipped.iter().map(ToString::to_string).collect();
    assert!(
        names.iter().any(|name| name.contains("chat/gpu2:8000")),
        "{names:?}"
    );
    assert!(
        names.iter().all(|name| !name.contains('\u{1b}')),
        "{names:?}"
    );
    let watch = cluster.watch(Some("chat")).unwrap();
    assert!(matches!(next(&watch), Change::Snapshot(all) if all.len() == 1));
}

#[test]
fn more_servers_than_a_page_are_all_listed() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    for i in 0..600 {
        let record = format!(
            r#"{{"version":1,"service":"chat","host":"h{i}","port":1,"url":"http://h{i}:1","pid":1,"started_at":"2026-01-30T12:00:00Z","nonce":"n"}}"#
        );
        put(&etcd, &format!("/t/v1/servers/chat/h{i}:1"), &record);
    }
    let listing = cluster.servers(Some("chat"), &Interrupt::new()).unwrap();
    assert_eq!((listing.servers.len(), listing.skipped.len()), (600, 0));
    // Five times what a watcher of a thousand takes where nothing is built for debugging.
    within(Duration::from_millis(500), || {
        let begun = Instant::now();
        let watch = cluster.watch(Some("chat")).unwrap();
        assert!(matches!(next(&watch), Change::Snapshot(all) if all.len() == 600));
        let took = begun.elapsed();
        println!("a watcher of 600 servers starts within {took:?}");
        took
    });
}

#[test]
fn of_many_that_try_at_once_one_is_active_and_the_others_hear_who() {
    let etcd = Etcd::start(3);
    let (won, refused) = mpsc::channel();
    thread::scope(|scope| {
        for i in 0..8 {
            let (cluster, won) = (etcd.cluster("t"), won.clone());
            scope.spawn(move || {
                won.send(cluster.acquire("chat", options(&format!("gpu{i}"))))
                    .unwrap();
            });
        }
    });
    drop(won);
    let (winners, losers): (Vec<_>, Vec<_>) = refused.iter().partition(Result::is_ok);
    assert_eq!(winners.len(), 1, "{losers:?}");
    let winner = winners.into_iter().next().unwrap().unwrap();
    for loser in losers {
        match loser {
            Err(ClusterError::AlreadyActive {
                service,
                host,
                port,
                pid,
                token,
                ..
            }) => {
                assert_eq!(
                    (service.as_str(), port, pid),
                    ("chat", 8000, std::process::id())
                );
                assert_eq!(
                    (host, token),
                    (winner.record().host.clone(), winner.token())
                );
            }
            other => panic!("{other:?}"),
        }
    }
    let listing = etcd
        .cluster("t")
        .servers(Some("chat"), &Interrupt::new())
        .unwrap();
    assert_eq!(listing.servers[0].record.token, Some(winner.token()));
    assert!(!listing.servers[0].registered);
    winner.release().unwrap();
}

#[test]
fn a_standby_is_active_soon_after_a_release_with_a_higher_token() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let first = cluster.acquire("chat", options("gpu1")).unwrap();
    let token = first.token();
    let (waits, waiting) = mpsc::channel();
    let standbys: Vec<_> = (0..3)
        .map(|i| {
            let (cluster, waits) = (cluster.clone(), waits.clone());
            thread::spawn(move || {
                let options = options(&format!("standby{i}"))
                    .on_wait(move |why| drop(waits.send(why.to_string())));
                let exclusive = cluster.acquire_timeout("chat", options, None).unwrap();
                (Instant::now(), exclusive.token(), exclusive.release())
            })
        })
        .collect();
    for _ in &standbys {
        let why = waiting.recv_timeout(PATIENCE).unwrap();
        assert!(why.contains("active on gpu1:8000"), "{why}");
    }
    let released = Instant::now();
    first.release().unwrap();
    let mut won: Vec<_> = standbys.into_iter().map(|t| t.join().unwrap()).collect();
    won.sort_by_key(|(at, ..)| *at);
    assert!(
        won[0].0 - released < Duration::from_secs(2),
        "{:?}",
        won[0].0 - released
    );
    let tokens: Vec<_> = [token]
        .into_iter()
        .chain(won.iter().map(|(_, token, _)| *token))
        .collect();
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
    assert!(won.into_iter().all(|(_, _, released)| released.is_ok()));
}

#[test]
fn a_wait_ends_at_its_time_and_at_an_interrupt() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let first = cluster.acquire("chat", options("gpu1")).unwrap();
    let short = Some(Duration::from_millis(50));
    let begun = Instant::now();
    let refused = cluster.acquire_timeout("chat", options("gpu2"), short);
    let took = begun.elapsed();
    assert!(
        matches!(refused, Err(ClusterError::AlreadyActive { .. })),
        "{refused:?}"
    );
    assert!(took < SOON, "{took:?}");

    let interrupt = Interrupt::new();
    let watch = cluster.watch(None).unwrap();
    next(&watch);
    thread::scope(|scope| {
        let (told, waiting) = mpsc::channel();
        let standby = scope.spawn({
            let (cluster, interrupt) = (&cluster, &interrupt);
            move || {
                let options = options("gpu2").with_interrupt(interrupt).on_wait(move |_| {
                    let _ = told.send(());
                });
                cluster.acquire_timeout("chat", options, None)
            }
        });
        let (ends, first, watch) = (&interrupt, &first, watch);
        let watcher = scope.spawn(move || watch.next(None, ends));
        let keeper = scope.spawn(move || first.wait_lost_or(None, ends));
        waiting.recv_timeout(PATIENCE).unwrap();
        let begun = Instant::now();
        interrupt.interrupt();
        assert!(matches!(
            standby.join().unwrap(),
            Err(ClusterError::Interrupted)
        ));
        assert!(matches!(
            watcher.join().unwrap(),
            Err(ClusterError::Interrupted)
        ));
        assert!(matches!(
            keeper.join().unwrap(),
            Err(ClusterError::Interrupted)
        ));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    });
    first.release().unwrap();
}

#[test]
fn who_is_cut_off_knows_before_its_deadline_and_another_starts_after_it() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let first = through(&[&proxy]).acquire("chat", brief("gpu1")).unwrap();
    assert_eq!(
        first.wait_lost(Some(Duration::from_millis(1500))).unwrap(),
        None,
        "it renews"
    );
    let standby = thread::spawn({
        let cluster = etcd.cluster("t");
        move || {
            let exclusive = cluster
                .acquire_timeout("chat", brief("gpu2"), Some(PATIENCE))
                .unwrap();
            (Instant::now(), exclusive.token(), exclusive.release())
        }
    });
    proxy
        .faults
        .hold
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let lost = first.wait_lost(Some(PATIENCE)).unwrap().expect("lost");
    let left = first.remaining();
    assert!(
        !left.is_zero(),
        "no time was left to end the server: {lost}"
    );
    let deadline = Instant::now() + left;
    let (at, token, released) = standby.join().unwrap();
    assert!(at >= deadline, "{:?} too early", deadline - at);
    // The margin, and the time at random in which standbys wait for each other.
    assert!(at < deadline + SOON, "{:?} too late", at - deadline);
    assert!(token > first.token());
    released.unwrap();
    // What was held back arrives now, late, and changes nothing.
    proxy.faults.heal();
    assert!(matches!(first.release(), Err(ClusterError::Lost { .. })));
    cluster_is_free(&etcd);
}

fn cluster_is_free(etcd: &Etcd) {
    let exclusive = etcd.cluster("t").acquire("chat", brief("last")).unwrap();
    exclusive.release().unwrap();
}

#[test]
fn after_one_that_vanished_the_next_waits_out_its_time_and_no_longer() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let cluster = etcd.cluster("t");
    // As long as the lease lives, a refusal; then the wait; never two.
    within(Duration::from_secs(6), || {
        proxy.faults.heal();
        let vanished = through(&[&proxy]).acquire("chat", brief("gpu1")).unwrap();
        proxy.faults.cut(true);
        let start = Instant::now();
        let next = loop {
            match cluster.acquire("chat", brief("gpu2")) {
                Ok(next) => break next,
                Err(ClusterError::AlreadyActive { .. }) => thread::sleep(Duration::from_millis(20)),
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE);
        };
        let took = start.elapsed();
        assert_eq!(vanished.remaining(), Duration::ZERO);
        next.release().unwrap();
        println!("free after {took:?}");
        took
    });
}

#[test]
fn a_lock_delay_is_kept_after_a_crash_alone() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let cluster = etcd.cluster("t");
    let delay = Duration::from_secs(3);
    let acquire = |name: &str| {
        let options = options(name).with_lock_delay(delay);
        let start = Instant::now();
        let exclusive = cluster
            .acquire_timeout("chat", options, Some(PATIENCE))
            .unwrap();
        (exclusive, start.elapsed())
    };
    acquire("gpu1").0.release().unwrap();
    let (second, took) = acquire("gpu2");
    assert!(took < delay, "{took:?}");
    second.release().unwrap();
    let vanished = through(&[&proxy]).acquire("chat", brief("gpu3")).unwrap();
    proxy.faults.cut(true);
    let (last, took) = acquire("gpu4");
    assert!(took > delay, "{took:?}");
    last.release().unwrap();
    drop(vanished);
}

#[test]
fn a_holder_whose_key_is_taken_away_by_hand_is_told() {
    let etcd = Etcd::start(1);
    let first = etcd.cluster("t").acquire("chat", brief("gpu1")).unwrap();
    etcd.call(
        "kv/deleterange",
        &format!(r#"{{"key":"{}"}}"#, base64("/t/v1/exclusive/chat/holder")),
    );
    let lost = first.wait_lost(Some(PATIENCE)).unwrap().expect("lost");
    assert!(lost.reason.contains("removed"), "{lost}");
}

#[test]
fn one_of_three_nodes_may_die_or_hang_and_nobody_loses_anything() {
    let mut etcd = Etcd::start(3);
    let cluster = etcd.cluster("t");
    let options = Options::new(Record::new("chat", "gpu1", 8000), timing(6.0));
    let exclusive = cluster.acquire("chat", options).unwrap();
    let registration = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    for i in 0..3 {
        if i == 1 {
            etcd.nodes[i].signal(nix::sys::signal::Signal::SIGSTOP);
        } else {
            etcd.nodes[i].kill();
        }
        let lost = exclusive
            .wait_lost(Some(Duration::from_millis(2500)))
            .unwrap();
        assert_eq!(lost, None, "without node {i}");
        if i == 1 {
            etcd.nodes[i].signal(nix::sys::signal::Signal::SIGCONT);
        } else {
            etcd.nodes[i].start();
        }
        eventually("healed", || {
            let check = cluster.check(&Interrupt::new()).unwrap();
            check.endpoints.iter().all(|(_, result)| result.is_ok())
        });
    }
    assert!(
        registration
            .wait_registered(PATIENCE, &Interrupt::new())
            .unwrap()
    );
    registration.withdraw();
    exclusive.release().unwrap();
}

#[test]
fn doubled_delayed_and_cut_answers_confuse_nobody() {
    use std::sync::atomic::Ordering::SeqCst;
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let direct = etcd.cluster("t");
    let cluster = through(&[&proxy]);
    let mut token = 0;
    for round in 0..6 {
        proxy.faults.heal();
        match round % 3 {
            0 => proxy.faults.double_answers.store(true, SeqCst),
            1 => proxy.faults.delay_answers.store(60, SeqCst),
            _ => {}
        }
        let record = Record::new("chat", format!("gpu{round}"), 8000);
        let options = Options::new(record, timing(4.0));
        let exclusive = cluster
            .acquire_timeout("chat", options, Some(PATIENCE))
            .unwrap();
        assert!(exclusive.token() > token);
        token = exclusive.token();
        let lost = exclusive
            .wait_lost(Some(Duration::from_millis(1800)))
            .unwrap();
        assert_eq!(lost, None, "in round {round}");
        // The release is carried out, and its answer lost.
        proxy.faults.cut_answers.store(round % 3 == 2, SeqCst);
        let released = exclusive.release();
        assert_eq!(released.is_err(), round % 3 == 2, "{released:?}");
        let listing = direct.servers(Some("chat"), &Interrupt::new()).unwrap();
        assert!(listing.servers.is_empty(), "in round {round}");
    }
}

#[test]
fn a_lost_answer_to_the_acquisition_leaves_no_ghost() {
    use std::sync::atomic::Ordering::SeqCst;
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    proxy.faults.cut_answers.store(true, SeqCst);
    let error = through(&[&proxy])
        .acquire("chat", brief("gpu1"))
        .unwrap_err();
    assert!(matches!(error, ClusterError::Unreachable { .. }), "{error}");
    proxy.faults.heal();
    cluster_is_free(&etcd);
}

#[test]
fn a_request_to_stop_is_heard_by_the_one_it_names() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let interrupt = Interrupt::new();
    let record = Record::new("chat", "gpu1", 8000);
    let other = Record::new("chat", "gpu1", 80);
    let registration = cluster.register(record.clone()).unwrap();
    let second = cluster.register(other.clone()).unwrap();
    assert!(registration.wait_registered(PATIENCE, &interrupt).unwrap());
    assert!(second.wait_registered(PATIENCE, &interrupt).unwrap());
    let deaf = cluster.stop_requests(&other).unwrap();
    let requests = cluster.stop_requests(&record).unwrap();

    let guardian = thread::spawn({
        let interrupt = interrupt.clone();
        move || {
            let request = requests
                .next(Some(PATIENCE), &interrupt)
                .unwrap()
                .expect("a request");
            registration.withdraw();
            request
        }
    });
    let ticket = cluster.request_stop(&record, "laptop", &interrupt).unwrap();
    assert_eq!(
        ticket.wait(PATIENCE, &interrupt).unwrap(),
        StopAnswer::Stopped
    );
    assert_eq!(guardian.join().unwrap().from, "laptop");
    let nothing = deaf
        .next(Some(Duration::from_millis(100)), &interrupt)
        .unwrap();
    assert_eq!(nothing, None, "it was for another");

    // One that hears and takes its time; one that was started since; one that does not hear.
    let ticket = cluster.request_stop(&other, "laptop", &interrupt).unwrap();
    assert!(deaf.next(Some(PATIENCE), &interrupt).unwrap().is_some());
    let soon = Duration::from_millis(100);
    assert_eq!(ticket.wait(soon, &interrupt).unwrap(), StopAnswer::Accepted);
    let successor = Record::new("chat", "gpu1", 80);
    second.update(successor.clone()).unwrap();
    assert_eq!(
        ticket.wait(PATIENCE, &interrupt).unwrap(),
        StopAnswer::Stopped
    );
    let ticket = cluster
        .request_stop(&successor, "laptop", &interrupt)
        .unwrap();
    assert_eq!(deaf.next(Some(soon), &interrupt).unwrap(), None);
    assert_eq!(
        ticket.wait(soon, &interrupt).unwrap(),
        StopAnswer::Unanswered
    );
}

#[test]
fn nothing_is_left_in_etcd() {
    let etcd = Etcd::start(1);
    let cluster = etcd.cluster("t");
    let interrupt = Interrupt::new();
    let registration = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    assert!(registration.wait_registered(PATIENCE, &interrupt).unwrap());
    let exclusive = cluster.acquire("chat", options("gpu1")).unwrap();
    assert!(cluster.acquire("chat", options("gpu2")).is_err());
    let ticket = cluster
        .request_stop(exclusive.record(), "laptop", &interrupt)
        .unwrap();
    drop(cluster.check(&interrupt).unwrap());
    drop((ticket, registration, exclusive));
    let leases = etcd.call("lease/leases", "{}");
    assert!(!leases.contains("ID"), "{leases}");
    let all = etcd.call("kv/range", r#"{"key":"AA==","range_end":"AA=="}"#);
    // The fence stays: it says that the service is free.
    assert!(all.contains(r#""count":"1""#), "{all}");
}

#[test]
fn a_check_says_what_is_wrong_with_each() {
    let mut etcd = Etcd::start(3);
    let cluster = etcd.cluster("t");
    let interrupt = Interrupt::new();
    let check = cluster.check(&interrupt).unwrap();
    assert_eq!(check.endpoints.len(), 3);
    let members: Vec<_> = check
        .endpoints
        .iter()
        .map(|(_, r)| r.as_ref().unwrap())
        .collect();
    assert_eq!(members.iter().filter(|m| m.is_leader).count(), 1);
    assert!(
        members
            .iter()
            .all(|m| m.version.starts_with("3.") && m.db_size > 0)
    );
    assert!(check.quorum.is_ok() && check.rights.is_ok());
    // 1.5 × the election timeout of 500 ms, in whole seconds.
    assert_eq!(check.ttl_floor.unwrap(), Duration::from_secs(1));

    etcd.nodes[0].kill();
    etcd.nodes[1].kill();
    let check = cluster.check(&interrupt).unwrap();
    assert!(check.endpoints[0].1.is_err() && check.endpoints[2].1.is_ok());
    let error = check.quorum.unwrap_err().to_string();
    assert!(
        error.contains("Cannot reach etcd") && error.contains("connection refused"),
        "{error}"
    );
}

#[test]
fn etcd_that_is_away_is_an_error_within_seconds_that_names_the_address() {
    let cluster = Cluster::connect(&ClusterUrl::parse("etcd://127.0.0.1:1").unwrap()).unwrap();
    let start = Instant::now();
    let error = cluster
        .servers(None, &Interrupt::new())
        .unwrap_err()
        .to_string();
    assert_eq!(error, "Cannot reach etcd: 127.0.0.1:1: connection refused");
    assert!(cluster.acquire("chat", options("gpu1")).is_err());
    // One that takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("etcd://{}", silent.local_addr().unwrap());
    let cluster = Cluster::connect(&ClusterUrl::parse(&url).unwrap()).unwrap();
    let error = cluster
        .servers(None, &Interrupt::new())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no answer in time"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn giving_back_while_etcd_hangs_takes_bounded_time() {
    let etcd = Etcd::start(1);
    let proxy = Proxy::start(etcd.nodes[0].port);
    let cluster = through(&[&proxy]);
    let registration = cluster.register(Record::new("chat", "gpu1", 8000)).unwrap();
    assert!(
        registration
            .wait_registered(PATIENCE, &Interrupt::new())
            .unwrap()
    );
    let exclusive = cluster.acquire("chat", brief("gpu1")).unwrap();
    let watch = cluster.watch(None).unwrap();
    next(&watch);
    proxy
        .faults
        .hold
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let start = Instant::now();
    drop((exclusive, registration, watch));
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
}
