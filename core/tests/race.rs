//! Many processes at once: exactly one gets the lock, and all others name it.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::{Actor, DEAD, PORT, Stage, content, lock_file, plant, temp_dir};
use llmlb_lock_core::{LockDir, LockError};
use nix::time::{ClockId, clock_gettime};

const RACERS: usize = 16;
const ROUNDS: usize = 300;

common::roles!(racer, spinner);

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

/// Acquires or releases at the time it is told, which is the same for all.
fn racer(stage: &Stage) {
    let mut lock = None;
    loop {
        let order = stage.hear();
        let (order, start) = order.split_once(' ').unwrap();
        let start = Duration::from_nanos(start.parse().unwrap());
        while now() < start {
            thread::yield_now();
        }
        match order {
            "acquire" => lock = stage.acquire(Duration::ZERO),
            "release" => stage.say(common::done(&lock.take().unwrap().release())),
            _ => panic!("no order {order}"),
        }
    }
}

fn racers(dir: &Path) -> Vec<Actor> {
    (0..RACERS).map(|_| Actor::new("racer", dir)).collect()
}

fn start_time() -> u128 {
    (now() + Duration::from_millis(2)).as_nanos()
}

/// Lets all acquire at once; who won, and whom the losers name.
fn race(racers: &mut [Actor], releasing: Option<usize>) -> (Vec<usize>, HashSet<String>) {
    let start = start_time();
    for (i, racer) in racers.iter_mut().enumerate() {
        let order = if releasing == Some(i) {
            "release"
        } else {
            "acquire"
        };
        racer.tell(format!("{order} {start}"));
    }
    let mut winners = Vec::new();
    let mut named = HashSet::new();
    for (i, racer) in racers.iter_mut().enumerate() {
        let answer = racer.hear();
        if releasing == Some(i) {
            assert_eq!(answer, "ok");
        } else if answer == "won" {
            winners.push(i);
        } else {
            named.insert(answer);
        }
    }
    (winners, named)
}

fn one_winner_whom_all_name(prepare: impl Fn(&Path)) {
    let dir = temp_dir();
    let mut racers = racers(dir.path());
    for round in 0..ROUNDS {
        prepare(dir.path());
        let (winners, named) = race(&mut racers, None);
        let [winner] = winners[..] else {
            panic!("round {round}: {winners:?} won");
        };
        let expected = format!("lost to {}", racers[winner].pid());
        assert_eq!(named, HashSet::from([expected]), "round {round}");
        assert_eq!(racers[winner].ask("release 0"), "ok");
        assert!(!lock_file(dir.path()).exists(), "round {round}");
    }
}

#[test]
fn over_no_file() {
    one_winner_whom_all_name(|_| {});
}

#[test]
fn over_a_stale_file() {
    one_winner_whom_all_name(|dir| {
        plant(dir, content(DEAD, "2026-01-30T12:00:00Z"));
    });
}

#[test]
fn while_the_holder_releases() {
    let dir = temp_dir();
    let mut racers = racers(dir.path());
    assert_eq!(racers[0].ask("acquire 0"), "won");
    let mut holder = 0;
    let mut taken_over = 0;
    for round in 0..ROUNDS {
        let (winners, mut named) = race(&mut racers, Some(holder));
        assert!(winners.len() <= 1, "round {round}: {winners:?} won");
        named.remove(&format!("lost to {}", racers[holder].pid()));
        if let Some(&winner) = winners.first() {
            named.remove(&format!("lost to {}", racers[winner].pid()));
            holder = winner;
            taken_over += 1;
        } else {
            holder = (holder + 1) % RACERS;
            assert_eq!(racers[holder].ask("acquire 0"), "won", "round {round}");
        }
        assert_eq!(named, HashSet::new(), "round {round}");
    }
    // Otherwise nothing was raced for.
    assert!(taken_over > ROUNDS / 10, "{taken_over}");
}

/// Acquires and releases as fast as it can; whoever wins must hold the file that the path names.
fn spinner(stage: &Stage) {
    stage.say("ready");
    let rounds: usize = stage.hear().parse().unwrap();
    let mut wins = 0;
    for round in 0..rounds {
        match stage.locks.acquire(PORT) {
            Ok(lock) => {
                wins += 1;
                // One that another removes, or whose place another takes, shows within the hold.
                for _ in 0..3 {
                    lock.verify()
                        .unwrap_or_else(|e| panic!("round {round}: {e}"));
                    thread::yield_now();
                }
                // The name of a live process would protect it: here the inode alone has to.
                fs::write(lock.path(), "").unwrap();
                lock.release().unwrap();
            }
            Err(LockError::AlreadyRunning { .. }) => {}
            Err(e) => panic!("round {round}: {e}"),
        }
    }
    stage.say(wins);
}

#[test]
fn whoever_wins_holds_the_file_that_the_path_names() {
    let dir = temp_dir();
    let mut spinners: Vec<_> = (0..8).map(|_| Actor::new("spinner", dir.path())).collect();
    for spinner in &mut spinners {
        assert_eq!(spinner.hear(), "ready");
    }
    for spinner in &mut spinners {
        spinner.tell(4000);
    }
    let wins = spinners.iter_mut().map(|spinner| spinner.hear());
    let wins: usize = wins.map(|wins| wins.parse::<usize>().unwrap()).sum();
    assert!(wins > 100, "{wins}");
}

#[test]
fn eight_threads_of_one_process() {
    let dir = temp_dir();
    let locks = LockDir::new(dir.path());
    for round in 0..ROUNDS {
        let gate = std::sync::Barrier::new(8);
        let results: Vec<_> = thread::scope(|scope| {
            let acquire = || {
                gate.wait();
                locks.acquire(PORT)
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(acquire)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(
            results.iter().filter(|r| r.is_ok()).count(),
            1,
            "round {round}"
        );
        for result in &results {
            if let Err(e) = result {
                let own = std::process::id();
                assert!(
                    matches!(e, LockError::AlreadyRunning { pid, port: PORT, .. } if *pid == own),
                    "round {round}: {e}"
                );
            }
        }
    }
}
