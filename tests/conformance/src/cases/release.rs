//! Giving the lock back.

use std::fs;

use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::{Bystander, PORT, content, now};

pub(super) fn removes_the_file(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    for _ in 0..3 {
        speaker.must("acquire 8000", "acquired")?;
        speaker.must("release 8000", "released")?;
        ensure!(!stage.place.file().exists(), "the file is left behind");
    }
    Ok(Verdict::Passed)
}

/// With its name gone, the lock on a file can only be seen through another name.
pub(super) fn frees_the_lock(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let file = fs::File::open(stage.place.file()).map_err(|e| e.to_string())?;
    speaker.must("release 8000", "released")?;
    let free = rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared);
    ensure!(free.is_ok(), "it keeps the lock: {free:?}");
    Ok(Verdict::Passed)
}

pub(super) fn leaves_anothers_file(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
    let bystander = Bystander::new()?;
    let text = content(bystander.pid(), &now(), PORT);
    let _next = stage.place.hold(&text)?;
    let before = stage.place.look()?;
    let _ = speaker.ask("release 8000")?;
    let after = stage.place.look()?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(Verdict::Passed)
}

pub(super) fn a_lost_lock_is_noticed(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    speaker.must("hold 8000", "holding")?;
    fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
    speaker.must("hold 8000", "lost")?;
    let _next = stage.place.hold("")?;
    speaker.must("hold 8000", "lost")?;
    Ok(Verdict::Passed)
}
