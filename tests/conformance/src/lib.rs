//! Judges any program that takes part in llmlb's locks, in whatever language, by black-box cases
//! from the specification (`docs/lock-file.md`). The program speaks a small line protocol on its
//! standard input and output (`README.md` beside this crate); everything else is looked at from the
//! outside: the file, the kernel's lock, the processes.
//!
//! Apart from all other tests, because nothing here may know how ours is built: it asks the kernel
//! itself, and never the library.

#![cfg(unix)]
#![allow(missing_docs)]

pub mod cases;
pub mod gate;
pub mod probe;
pub mod speaker;

use std::collections::BTreeSet;

use cases::{CASES, Case, Verdict};
use speaker::Program;

/// What came of all cases.
#[derive(Debug, Default)]
pub struct Summary {
    pub passed: Vec<&'static str>,
    pub failed: Vec<(&'static str, String)>,
    pub skipped: Vec<(&'static str, String)>,
}

/// Runs every case that `wanted` lets through, the program alone and beside another one.
/// What `without` names the program need not be able to do.
pub fn judge(
    program: &Program,
    beside: &Program,
    without: &BTreeSet<String>,
    wanted: impl Fn(&Case) -> bool,
) -> Summary {
    let mut summary = Summary::default();
    for case in CASES.iter().filter(|case| wanted(case)) {
        if let Some(missing) = case.needs.iter().find(|&&need| without.contains(need)) {
            let why = format!("it does without {missing}");
            summary.skipped.push((case.name, why));
            continue;
        }
        match cases::run(case, program, beside) {
            Ok(Verdict::Passed) => summary.passed.push(case.name),
            Ok(Verdict::Skipped(why)) => summary.skipped.push((case.name, why)),
            Err(why) => summary.failed.push((case.name, why)),
        }
    }
    summary
}
