//! Giving the lock to a server that is started for it.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::eventually;
use crate::speaker::Speaker;

/// A program that runs until somebody ends it, and the speaker that has started it.
pub(super) fn hand_over(stage: &Stage<'_>) -> Result<(Speaker, u32), String> {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let answer = speaker.ask("hand_over 8000 sleep 600")?;
    let pid = answer
        .strip_prefix("handed ")
        .and_then(|pid| pid.parse().ok());
    let pid: u32 = pid.ok_or_else(|| format!("it says {answer:?}"))?;
    ensure!(pid > 1 && pid != speaker.pid(), "it says {answer:?}");
    Ok((speaker, pid))
}

/// Ends a server that a speaker has started.
pub(super) fn end(pid: u32) -> Result<(), String> {
    let pid = i32::try_from(pid).ok().filter(|&pid| pid > 1);
    let pid = pid.ok_or("no server")?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).map_err(|e| e.to_string())
}

pub(super) fn the_server_is_named(stage: &Stage<'_>) -> Outcome {
    let (_speaker, server) = hand_over(stage)?;
    let named = stage.place.named();
    let locked = stage.place.is_locked();
    end(server)?;
    let named = named?;
    ensure!(named == u64::from(server), "it names {named}, not {server}");
    ensure!(locked?, "the lock is free");
    Ok(Verdict::Passed)
}

pub(super) fn the_server_holds_the_lock(stage: &Stage<'_>) -> Outcome {
    let (mut speaker, server) = hand_over(stage)?;
    speaker.kill();
    let locked = stage.place.is_locked();
    let refused = stage.start()?.ask("acquire 8000");
    end(server)?;
    ensure!(locked?, "the lock does not outlive the launcher");
    let refused = refused?;
    ensure!(
        refused == format!("refused {server}"),
        "the next one says {refused:?}"
    );
    Ok(Verdict::Passed)
}

pub(super) fn release_leaves_it(stage: &Stage<'_>) -> Outcome {
    let (mut speaker, server) = hand_over(stage)?;
    let answer = speaker.ask("release 8000");
    let locked = stage.place.is_locked();
    let named = stage.place.named();
    end(server)?;
    let answer = answer?;
    ensure!(answer == "released", "it says {answer:?}");
    ensure!(locked?, "the launcher's release frees the server's lock");
    ensure!(
        named? == u64::from(server),
        "the file no longer names the server"
    );
    Ok(Verdict::Passed)
}

pub(super) fn free_after_the_server(stage: &Stage<'_>) -> Outcome {
    let (mut speaker, server) = hand_over(stage)?;
    speaker.must("release 8000", "released")?;
    end(server)?;
    eventually("the lock is free", || Ok(!stage.place.is_locked()?))?;
    stage.start()?.must("acquire 8000", "acquired")?;
    Ok(Verdict::Passed)
}
