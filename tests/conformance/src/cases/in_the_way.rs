//! What is in the lock's place and is no lock file of ours is refused and left alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, chown, mkfifo};

use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::{DEAD, LONG_AGO, PORT, content, now};

fn is_refused(stage: &Stage<'_>) -> Result<(), String> {
    let path = stage.place.file();
    let look = || {
        let metadata = path
            .symlink_metadata()
            .map_err(|e| format!("it is gone: {e}"))?;
        Ok::<_, String>((metadata.ino(), metadata.mode(), metadata.mtime_nsec()))
    };
    let before = look()?;
    let answer = stage.start()?.ask("acquire 8000")?;
    ensure!(answer.starts_with("error "), "it says {answer:?}");
    let after = look()?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

fn io<T>(result: std::io::Result<T>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

pub(super) fn a_symbolic_link(stage: &Stage<'_>) -> Outcome {
    let precious = stage.place.path().join("precious");
    io(fs::write(&precious, "precious"))?;
    io(symlink(&precious, stage.place.file()))?;
    is_refused(stage)?;
    ensure!(
        io(fs::read(&precious))? == b"precious",
        "it wrote through the link"
    );
    io(fs::remove_file(&precious))?;
    is_refused(stage)?;
    ensure!(!precious.exists(), "it created through the link");
    Ok(Verdict::Passed)
}

pub(super) fn a_hard_link(stage: &Stage<'_>) -> Outcome {
    let precious = stage.place.path().join("precious");
    io(fs::write(&precious, "precious"))?;
    io(fs::hard_link(&precious, stage.place.file()))?;
    is_refused(stage)?;
    ensure!(
        io(fs::read(&precious))? == b"precious",
        "it wrote through the link"
    );
    Ok(Verdict::Passed)
}

pub(super) fn a_directory(stage: &Stage<'_>) -> Outcome {
    io(fs::create_dir(stage.place.file()))?;
    is_refused(stage)?;
    Ok(Verdict::Passed)
}

/// Opening it must not wait for somebody at the other end.
pub(super) fn a_fifo(stage: &Stage<'_>) -> Outcome {
    mkfifo(&stage.place.file(), Mode::from_bits_truncate(0o600)).map_err(|e| e.to_string())?;
    is_refused(stage)?;
    Ok(Verdict::Passed)
}

fn give_away(stage: &Stage<'_>) -> Result<(), String> {
    let nobody = (Some(Uid::from_raw(65534)), Some(Gid::from_raw(65534)));
    chown(&stage.place.file(), nobody.0, nobody.1).map_err(|e| e.to_string())
}

fn needs_root() -> Outcome {
    Ok(Verdict::Skipped(
        "it takes root to give a file away".to_owned(),
    ))
}

/// Whoever owns the file could name anybody in it.
pub(super) fn a_strangers_lock(stage: &Stage<'_>) -> Outcome {
    if !Uid::effective().is_root() {
        return needs_root();
    }
    let _holder = stage
        .place
        .hold(content(std::process::id(), &now(), PORT))?;
    give_away(stage)?;
    let answer = stage.start()?.ask("acquire 8000")?;
    let unnamed = answer == "held" || answer.starts_with("error ");
    let pid = std::process::id().to_string();
    ensure!(unnamed && !answer.contains(&pid), "it says {answer:?}");
    Ok(Verdict::Passed)
}

pub(super) fn a_strangers_left_over(stage: &Stage<'_>) -> Outcome {
    if !Uid::effective().is_root() {
        return needs_root();
    }
    stage.place.plant(content(DEAD, LONG_AGO, PORT))?;
    give_away(stage)?;
    is_refused(stage)?;
    Ok(Verdict::Passed)
}
