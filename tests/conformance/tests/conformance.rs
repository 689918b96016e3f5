//! Our own library and a program from the specification alone keep every rule; a program that
//! breaks one is found out; and there is no case that nothing can fail.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::thread;

use llmlb_conformance::cases::CASES;
use llmlb_conformance::probe::Place;
use llmlb_conformance::speaker::Program;
use llmlb_conformance::{Summary, judge};
use nix::unistd::Uid;

const CORE: [&str; 2] = [env!("CARGO_BIN_EXE_llmlb-conformance"), "--speak"];
const PLAIN: &str = env!("CARGO_BIN_EXE_plain-speaker");

/// How each rule is broken, and one case that must notice.
const FAULTS: &[(&str, &str)] = &[
    ("makes_no_directory", "makes_the_directory"),
    ("names_nobody", "names_itself"),
    ("names_its_parent", "names_itself"),
    ("names_its_parent", "sigterm_frees_the_port"),
    ("says_no_zone", "says_when_in_utc"),
    ("says_local_time", "says_when_in_utc"),
    ("forgets_the_mode", "mode_is_0600_whatever_the_umask"),
    ("forgets_the_mode", "a_left_over_gets_mode_0600"),
    ("leaves_the_old_text", "the_old_text_is_gone"),
    ("lies_about_its_start", "its_identity_is_true"),
    ("takes_no_lock", "locks_with_flock"),
    ("locks_with_fcntl", "locks_with_flock"),
    ("lets_all_inherit", "the_descriptor_is_close_on_exec"),
    ("truncates_first", "a_refused_start_changes_nothing"),
    ("truncates_first", "locks_before_it_writes"),
    ("touches_what_is_held", "a_refused_start_changes_nothing"),
    ("names_nobody_when_refused", "the_holder_is_named"),
    (
        "recovers_held_locks",
        "a_holder_without_a_name_is_respected",
    ),
    ("shows_dead_names", "a_holder_with_a_dead_name_is_respected"),
    ("trusts_all_pids", "a_dead_pid_is_recovered"),
    ("trusts_all_pids", "kill_9_frees_the_port"),
    ("trusts_pids", "a_free_lock_counts_more_than_a_live_pid"),
    ("trusts_pids", "a_recycled_pid_is_recovered"),
    ("keeps_out_of_empty_files", "an_empty_file_is_recovered"),
    ("keeps_out_of_corrupt_files", "a_corrupt_file_is_recovered"),
    ("ignores_identities", "an_exact_identity_is_honoured"),
    ("trusts_half_an_identity", "another_identity_is_a_left_over"),
    ("one_file_for_all_ports", "ports_are_apart"),
    ("pads_the_port", "ports_are_apart"),
    ("takes_port_0", "port_0_is_refused"),
    ("follows_links", "a_symbolic_link_is_left_alone"),
    ("takes_hard_links", "a_hard_link_is_left_alone"),
    ("removes_what_is_in_the_way", "a_directory_is_left_alone"),
    ("removes_what_is_in_the_way", "a_fifo_is_left_alone"),
    ("trusts_strangers", "a_strangers_lock_is_not_named"),
    ("trusts_strangers", "a_strangers_left_over_is_left_alone"),
    ("compares_no_inodes", "compares_inodes_when_it_was_replaced"),
    ("compares_no_inodes", "starts_over_when_it_was_removed"),
    ("removes_after_closing", "removes_under_the_lock"),
    ("unlocks", "never_unlocks"),
    ("unlocks", "release_leaves_the_servers_lock"),
    ("leaves_the_file", "release_removes_the_file"),
    ("keeps_the_lock", "release_frees_the_lock"),
    ("removes_anothers_file", "release_leaves_anothers_file"),
    (
        "removes_the_servers_file",
        "release_leaves_the_servers_lock",
    ),
    ("notices_no_loss", "a_lost_lock_is_noticed"),
    ("does_not_name_the_server", "the_server_is_named"),
    (
        "does_not_name_the_server",
        "the_other_sees_who_was_handed_the_lock",
    ),
    (
        "keeps_the_lock_from_the_server",
        "the_server_holds_the_lock",
    ),
    ("names_its_parent", "the_port_is_free_after_the_server"),
    ("reads_and_removes", "reads_what_is_there"),
    (
        "refuses_unknown_fields",
        "reads_unknown_fields_and_other_offsets",
    ),
    ("reads_corrupt_as_none", "tells_corrupt_from_none"),
    ("lists_left_overs", "lists_live_servers_alone"),
    ("lists_odd_names", "lists_live_servers_alone"),
    ("cleans_up_while_listing", "listing_disturbs_nobody"),
    ("takes_no_lock", "each_refuses_the_other"),
    ("trusts_all_pids", "each_recovers_the_others_crash"),
    ("takes_no_lock", "one_of_many_wins"),
    ("leaves_the_file", "each_sees_the_other"),
    ("leaves_the_file", "each_recovers_the_others_crash"),
    ("takes_no_lock", "who_comes_on_the_heels_keeps_the_lock"),
];

fn everything(program: &[&str]) -> Summary {
    let program = Program::new(program);
    judge(&program, &Program::new(CORE), &BTreeSet::new(), |_| true)
}

fn keeps_every_rule(program: &[&str]) {
    let summary = everything(program);
    assert!(summary.failed.is_empty(), "{:#?}", summary.failed);
    for (case, why) in &summary.skipped {
        println!("SKIPPED {case}: {why}");
    }
    assert!(summary.passed.len() + summary.skipped.len() == CASES.len());
}

#[test]
fn the_library_keeps_every_rule() {
    keeps_every_rule(&CORE);
}

#[test]
fn the_specification_suffices_to_keep_every_rule() {
    keeps_every_rule(&[PLAIN]);
}

#[test]
fn the_specifications_example_is_a_lock_file() {
    let page = include_str!("../../../docs/lock-file.md");
    let example = page.split("```json\n").nth(1).unwrap();
    let example = example.split("```").next().unwrap();
    for program in [&CORE[..], &[PLAIN]] {
        let place = Place::new().unwrap();
        // The port is the only thing that has to fit.
        place.plant(example).unwrap();
        let mut speaker = Program::new(program).start(place.path()).unwrap();
        let answer = speaker.ask("read 8000").unwrap();
        assert!(
            answer.starts_with("info 12345 2026-01-30T12:00:00.123456"),
            "{answer}"
        );
    }
}

#[test]
fn who_breaks_a_rule_is_found_out() {
    let faults = Mutex::new(FAULTS.iter());
    let missed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = faults.lock().unwrap().next();
                    let Some(&(fault, expected)) = next else {
                        break;
                    };
                    let program = Program::new([PLAIN, "--fault", fault]);
                    let beside = Program::new(CORE);
                    let without = BTreeSet::new();
                    let summary = judge(&program, &beside, &without, |case| case.name == expected);
                    if let [(_, why)] = &summary.skipped[..] {
                        println!("SKIPPED {fault}, {expected}: {why}");
                    } else if summary.failed.len() != 1 {
                        missed.lock().unwrap().push(format!("{fault}: {expected}"));
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "not noticed: {missed:#?}");
}

#[test]
fn every_case_can_fail() {
    let can: BTreeSet<_> = FAULTS.iter().map(|(_, case)| *case).collect();
    let all: BTreeSet<_> = CASES.iter().map(|case| case.name).collect();
    let never: Vec<_> = all.difference(&can).collect();
    assert!(never.is_empty(), "no fault breaks {never:?}");
    let unknown: Vec<_> = can.difference(&all).collect();
    assert!(unknown.is_empty(), "there are no cases {unknown:?}");
    if !Uid::effective().is_root() {
        println!("SKIPPED as any other user than root: strangers' files");
    }
}
