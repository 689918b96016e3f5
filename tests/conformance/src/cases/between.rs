//! What happens between two system calls: the program is stopped there.

#[cfg(target_os = "linux")]
pub(super) use gated::*;
#[cfg(not(target_os = "linux"))]
pub(super) use untold::*;

#[cfg(not(target_os = "linux"))]
mod untold {
    //! Where a program can't be stopped between two calls.
    use crate::cases::{Outcome, Stage, Verdict};

    pub(crate) fn skipped(_: &Stage<'_>) -> Outcome {
        Ok(Verdict::Skipped("only Linux can stop it there".to_owned()))
    }

    pub(crate) use skipped as locks_before_it_writes;
    pub(crate) use skipped as compares_inodes;
    pub(crate) use skipped as starts_over;
    pub(crate) use skipped as removes_under_the_lock;
    pub(crate) use skipped as never_unlocks;
}

#[cfg(target_os = "linux")]
mod gated {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, Instant};

    use crate::cases::{Outcome, Stage, Verdict, ensure};
    use crate::gate::{Arrival, Gate};
    use crate::probe::{Bystander, DEAD, LONG_AGO, PORT, content, is_locked, now};
    use crate::speaker::{PATIENCE, Speaker};

    const STEP: Duration = Duration::from_millis(2);

    /// Asks, and has each call that arrives meanwhile looked at before it is let in.
    fn ask(
        speaker: &mut Speaker,
        gate: &Gate,
        request: &str,
        mut look: impl FnMut(&Arrival) -> Result<(), String>,
    ) -> Result<String, String> {
        speaker.tell(request)?;
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(arrival) = gate.next(STEP).map_err(|e| e.to_string())? {
                let looked = look(&arrival);
                gate.let_in(&arrival);
                looked?;
            } else if let Some(answer) = speaker.hear_within(Duration::ZERO)? {
                return Ok(answer);
            }
        }
        Err(format!("asked to {request:?}: no answer"))
    }

    fn start(stage: &Stage<'_>, calls: &[i64]) -> Result<(Speaker, Gate), String> {
        Gate::start(stage.program(), stage.place.path(), calls)
    }

    /// Whether a call is about the file that was or is at the lock's path.
    fn is_on(arrival: &Arrival, stage: &Stage<'_>) -> bool {
        let file = arrival.file().unwrap_or_default();
        let file = file.to_string_lossy();
        let path = stage.place.file();
        file.trim_end_matches(" (deleted)") == path.to_string_lossy()
    }

    fn takes_exclusively(arrival: &Arrival) -> bool {
        arrival.arguments[1] & libc::LOCK_EX as u64 != 0
    }

    macro_rules! gated {
        ($stage:expr, $calls:expr) => {
            match start($stage, $calls) {
                Ok(started) => started,
                Err(why) => return Ok(Verdict::Skipped(format!("no seccomp filter here: {why}"))),
            }
        };
    }

    pub(crate) fn locks_before_it_writes(stage: &Stage<'_>) -> Outcome {
        stage.place.plant(content(DEAD, LONG_AGO, PORT))?;
        let before = stage.place.look()?;
        let (mut speaker, gate) = gated!(stage, Gate::LOCKS);
        let mut locks = 0;
        let answer = ask(&mut speaker, &gate, "acquire 8000", |arrival| {
            if is_on(arrival, stage) && takes_exclusively(arrival) && !stage.place.is_locked()? {
                locks += 1;
                let now = stage.place.look()?;
                ensure!(
                    (&now.bytes, now.modified) == (&before.bytes, before.modified),
                    "it changed the file before it locked it"
                );
            }
            Ok(())
        })?;
        ensure!(answer == "acquired", "it says {answer:?}");
        ensure!(
            locks > 0,
            "it acquired without an exclusive flock on the file"
        );
        Ok(Verdict::Passed)
    }

    /// Between its open and its lock, the holder has gone and the next one has come.
    pub(crate) fn compares_inodes(stage: &Stage<'_>) -> Outcome {
        stage.place.plant(content(DEAD, LONG_AGO, PORT))?;
        let bystander = Bystander::new()?;
        let text = content(bystander.pid(), &now(), PORT);
        let (mut speaker, gate) = gated!(stage, Gate::LOCKS);
        let mut next = None;
        let answer = ask(&mut speaker, &gate, "acquire 8000", |arrival| {
            if next.is_none() && is_on(arrival, stage) && takes_exclusively(arrival) {
                fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
                next = Some(stage.place.hold(&text)?);
            }
            Ok(())
        })?;
        ensure!(next.is_some(), "it never locked the file");
        ensure!(
            answer == format!("refused {}", bystander.pid()),
            "it says {answer:?} and has locked a file that is no longer at the path"
        );
        ensure!(
            stage.place.look()?.bytes == text.as_bytes(),
            "it wrote over the next one's name"
        );
        Ok(Verdict::Passed)
    }

    pub(crate) fn starts_over(stage: &Stage<'_>) -> Outcome {
        let (mut speaker, gate) = gated!(stage, Gate::LOCKS);
        let mut removed = None;
        let answer = ask(&mut speaker, &gate, "acquire 8000", |arrival| {
            if removed.is_none() && is_on(arrival, stage) && takes_exclusively(arrival) {
                removed = stage.place.file().metadata().ok().map(|file| file.ino());
                fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
            }
            Ok(())
        })?;
        ensure!(removed.is_some(), "it never locked the file");
        ensure!(answer == "acquired", "it says {answer:?}");
        ensure!(
            stage.place.is_locked()?,
            "what is at the path is not locked"
        );
        let named = stage.place.named()?;
        ensure!(named == u64::from(speaker.pid()), "it names {named}");
        Ok(Verdict::Passed)
    }

    pub(crate) fn removes_under_the_lock(stage: &Stage<'_>) -> Outcome {
        let (mut speaker, gate) = gated!(stage, Gate::REMOVALS);
        speaker.must("acquire 8000", "acquired")?;
        let path = stage.place.file();
        let mut removals = 0;
        let answer = ask(&mut speaker, &gate, "release 8000", |_| {
            if path.exists() {
                removals += 1;
                ensure!(is_locked(&path)?, "it removes a file that is free by then");
            }
            Ok(())
        })?;
        ensure!(answer == "released", "it says {answer:?}");
        ensure!(removals > 0, "it removed nothing");
        Ok(Verdict::Passed)
    }

    /// In a forked child that would free the parent's lock.
    pub(crate) fn never_unlocks(stage: &Stage<'_>) -> Outcome {
        let (mut speaker, gate) = gated!(stage, Gate::LOCKS);
        let answer = ask(&mut speaker, &gate, "acquire 8000", |_| Ok(()))?;
        ensure!(answer == "acquired", "it says {answer:?}");
        let answer = ask(&mut speaker, &gate, "release 8000", |arrival| {
            let unlocks = arrival.arguments[1] & libc::LOCK_UN as u64 != 0;
            ensure!(
                !(unlocks && is_on(arrival, stage)),
                "it unlocks instead of closing"
            );
            Ok(())
        })?;
        ensure!(answer == "released", "it says {answer:?}");
        Ok(Verdict::Passed)
    }
}
