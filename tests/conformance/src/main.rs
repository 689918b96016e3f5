//! `llmlb-conformance COMMAND ARGS...`: judges a command that speaks the protocol.

use std::process::ExitCode;

#[cfg(unix)]
mod ours;

#[cfg(unix)]
fn main() -> ExitCode {
    unix::main()
}

#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("llmlb-conformance: the specification is about flock, which takes a Unix system");
    ExitCode::from(2)
}

#[cfg(unix)]
mod unix {
    //! Arguments and the report.

    use std::collections::BTreeSet;
    use std::ffi::OsString;
    use std::process::ExitCode;

    use llmlb_conformance::cases::{CAPABILITIES, CASES};
    use llmlb_conformance::judge;
    use llmlb_conformance::speaker::Program;

    const USAGE: &str = "\
usage: llmlb-conformance [--without WHAT]... [--beside COMMAND] [--only CASE]... -- COMMAND ARGS...

Judges a program that takes part in llmlb's locks, by the specification.

  --without WHAT    what it need not be able to do: read, list, hand_over, identity
  --beside COMMAND  the program it is paired with; by default ours
  --only CASE       only cases whose name contains this
  --list            the names of all cases
  --speak           speaks the protocol itself, for the Rust library
";

    struct Arguments {
        without: BTreeSet<String>,
        beside: Program,
        only: Vec<String>,
        program: Program,
    }

    pub(super) fn main() -> ExitCode {
        if std::env::args_os()
            .nth(1)
            .is_some_and(|word| word == "--speak")
        {
            return match crate::ours::speak() {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => {
                    eprintln!("llmlb-conformance: {e}");
                    ExitCode::FAILURE
                }
            };
        }
        let arguments = match parse(std::env::args_os().skip(1)) {
            Ok(Some(arguments)) => arguments,
            Ok(None) => return ExitCode::SUCCESS,
            Err(why) => {
                eprint!("llmlb-conformance: {why}\n\n{USAGE}");
                return ExitCode::from(2);
            }
        };
        let wanted = |name: &str| {
            arguments.only.is_empty() || arguments.only.iter().any(|part| name.contains(part))
        };
        let summary = judge(
            &arguments.program,
            &arguments.beside,
            &arguments.without,
            |case| wanted(case.name),
        );
        for (name, why) in &summary.skipped {
            println!("skipped  {name}: {why}");
        }
        for (name, why) in &summary.failed {
            println!("FAILED   {name}: {why}");
        }
        println!(
            "{} cases kept, {} broken, {} skipped: {}",
            summary.passed.len(),
            summary.failed.len(),
            summary.skipped.len(),
            arguments.program.command[0].display()
        );
        if !summary.failed.is_empty() || summary.passed.is_empty() {
            return ExitCode::FAILURE;
        }
        ExitCode::SUCCESS
    }

    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Option<Arguments>, String> {
        let mut without = BTreeSet::new();
        let mut only = Vec::new();
        let mut beside = ours()?;
        loop {
            let Some(word) = words.next() else {
                return Err("no command was given".to_owned());
            };
            let mut value = || {
                let value = words.next().and_then(|value| value.into_string().ok());
                value.ok_or_else(|| format!("{} takes a value", word.display()))
            };
            match word.to_str() {
                Some("--without") => {
                    let what = value()?;
                    if !CAPABILITIES.contains(&&*what) {
                        return Err(format!("there is no {what:?} to be without"));
                    }
                    without.insert(what);
                }
                Some("--beside") => {
                    let command = value()?;
                    beside = Program::new(command.split_ascii_whitespace());
                }
                Some("--only") => only.push(value()?),
                Some("--help" | "-h") => {
                    print!("{USAGE}");
                    return Ok(None);
                }
                Some("--list") => {
                    CASES.iter().for_each(|case| println!("{}", case.name));
                    return Ok(None);
                }
                Some("--") => break,
                Some(option) if option.starts_with('-') => {
                    return Err(format!("there is no option {option}"));
                }
                _ => {
                    let program = Program::new(std::iter::once(word).chain(words));
                    return Ok(Some(Arguments {
                        without,
                        beside,
                        only,
                        program,
                    }));
                }
            }
        }
        let program = Program::new(words);
        if program.command.is_empty() {
            return Err("no command was given".to_owned());
        }
        Ok(Some(Arguments {
            without,
            beside,
            only,
            program,
        }))
    }

    /// This very program.
    fn ours() -> Result<Program, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        Ok(Program::new([own.into_os_string(), "--speak".into()]))
    }
}
