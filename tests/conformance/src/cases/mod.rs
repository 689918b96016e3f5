//! The cases, by the sections of the specification. Each is a rule that a program keeps or breaks.

mod acquire;
mod between;
mod content;
mod hand_over;
mod in_the_way;
mod release;
mod seen;
mod together;

use crate::probe::Place;
use crate::speaker::{Program, Speaker};

/// What a program may say it does without.
pub const CAPABILITIES: [&str; 4] = ["read", "list", "hand_over", "identity"];

pub enum Verdict {
    Passed,
    Skipped(String),
}

pub type Outcome = Result<Verdict, String>;

/// A rule of the specification.
pub struct Case {
    pub name: &'static str,
    /// What of [`CAPABILITIES`] it takes.
    pub needs: &'static [&'static str],
    run: fn(&Stage<'_>) -> Outcome,
}

/// Where a case plays.
pub struct Stage<'a> {
    pub place: Place,
    program: &'a Program,
    beside: &'a Program,
}

impl Stage<'_> {
    pub fn program(&self) -> &Program {
        self.program
    }

    /// The program under judgement.
    pub fn start(&self) -> Result<Speaker, String> {
        self.program.start(self.place.path())
    }

    /// The other one.
    pub fn start_other(&self) -> Result<Speaker, String> {
        self.beside.start(self.place.path())
    }
}

/// Fails the case with a text, unless something holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

const fn case(name: &'static str, run: fn(&Stage<'_>) -> Outcome) -> Case {
    Case {
        name,
        needs: &[],
        run,
    }
}

const fn needs(
    needs: &'static [&'static str],
    name: &'static str,
    run: fn(&Stage<'_>) -> Outcome,
) -> Case {
    Case { name, needs, run }
}

pub const CASES: &[Case] = &[
    case("makes_the_directory", content::makes_the_directory),
    case("names_itself", content::names_itself),
    case("says_when_in_utc", content::says_when_in_utc),
    case("mode_is_0600_whatever_the_umask", content::mode_is_0600),
    case(
        "a_left_over_gets_mode_0600",
        content::a_left_over_gets_mode_0600,
    ),
    case("the_old_text_is_gone", content::the_old_text_is_gone),
    needs(
        &["identity"],
        "its_identity_is_true",
        content::its_identity_is_true,
    ),
    case("locks_with_flock", acquire::locks_with_flock),
    case(
        "the_descriptor_is_close_on_exec",
        acquire::the_descriptor_is_close_on_exec,
    ),
    case(
        "a_refused_start_changes_nothing",
        acquire::a_refused_start_changes_nothing,
    ),
    case("the_holder_is_named", acquire::the_holder_is_named),
    case(
        "a_holder_without_a_name_is_respected",
        acquire::a_holder_without_a_name,
    ),
    case(
        "a_holder_with_a_dead_name_is_respected",
        acquire::a_holder_with_a_dead_name,
    ),
    case("a_dead_pid_is_recovered", acquire::a_dead_pid_is_recovered),
    case(
        "a_recycled_pid_is_recovered",
        acquire::a_recycled_pid_is_recovered,
    ),
    case(
        "a_free_lock_counts_more_than_a_live_pid",
        acquire::a_free_lock_counts_more,
    ),
    case(
        "an_empty_file_is_recovered",
        acquire::an_empty_file_is_recovered,
    ),
    case(
        "a_corrupt_file_is_recovered",
        acquire::a_corrupt_file_is_recovered,
    ),
    needs(
        &["identity"],
        "an_exact_identity_is_honoured",
        acquire::an_exact_identity_is_honoured,
    ),
    case(
        "another_identity_is_a_left_over",
        acquire::another_identity_is_a_left_over,
    ),
    case("kill_9_frees_the_port", acquire::kill_9_frees_the_port),
    case("sigterm_frees_the_port", acquire::sigterm_frees_the_port),
    case("ports_are_apart", acquire::ports_are_apart),
    case("port_0_is_refused", acquire::port_0_is_refused),
    case("a_symbolic_link_is_left_alone", in_the_way::a_symbolic_link),
    case("a_hard_link_is_left_alone", in_the_way::a_hard_link),
    case("a_directory_is_left_alone", in_the_way::a_directory),
    case("a_fifo_is_left_alone", in_the_way::a_fifo),
    case(
        "a_strangers_lock_is_not_named",
        in_the_way::a_strangers_lock,
    ),
    case(
        "a_strangers_left_over_is_left_alone",
        in_the_way::a_strangers_left_over,
    ),
    case("locks_before_it_writes", between::locks_before_it_writes),
    case(
        "compares_inodes_when_it_was_replaced",
        between::compares_inodes,
    ),
    case("starts_over_when_it_was_removed", between::starts_over),
    case("removes_under_the_lock", between::removes_under_the_lock),
    case("never_unlocks", between::never_unlocks),
    case("release_removes_the_file", release::removes_the_file),
    case("release_frees_the_lock", release::frees_the_lock),
    case(
        "release_leaves_anothers_file",
        release::leaves_anothers_file,
    ),
    case("a_lost_lock_is_noticed", release::a_lost_lock_is_noticed),
    needs(
        &["hand_over"],
        "the_server_is_named",
        hand_over::the_server_is_named,
    ),
    needs(
        &["hand_over"],
        "the_server_holds_the_lock",
        hand_over::the_server_holds_the_lock,
    ),
    needs(
        &["hand_over"],
        "release_leaves_the_servers_lock",
        hand_over::release_leaves_it,
    ),
    needs(
        &["hand_over"],
        "the_port_is_free_after_the_server",
        hand_over::free_after_the_server,
    ),
    needs(&["read"], "reads_what_is_there", seen::reads_what_is_there),
    needs(
        &["read"],
        "reads_unknown_fields_and_other_offsets",
        seen::reads_what_it_does_not_know,
    ),
    needs(
        &["read"],
        "tells_corrupt_from_none",
        seen::tells_corrupt_from_none,
    ),
    needs(
        &["list"],
        "lists_live_servers_alone",
        seen::lists_live_servers_alone,
    ),
    needs(
        &["list"],
        "listing_disturbs_nobody",
        seen::listing_disturbs_nobody,
    ),
    case("each_refuses_the_other", together::each_refuses_the_other),
    case(
        "each_recovers_the_others_crash",
        together::each_recovers_the_others_crash,
    ),
    case("one_of_many_wins", together::one_of_many_wins),
    case(
        "who_comes_on_the_heels_keeps_the_lock",
        together::on_the_heels,
    ),
    needs(
        &["hand_over"],
        "the_other_sees_who_was_handed_the_lock",
        together::sees_a_hand_over,
    ),
    needs(
        &["list", "read"],
        "each_sees_the_other",
        together::each_sees_the_other,
    ),
];

pub(crate) fn run(case: &Case, program: &Program, beside: &Program) -> Outcome {
    let stage = Stage {
        place: Place::new()?,
        program,
        beside,
    };
    (case.run)(&stage)
}
