//! Beside another program, in pairs and in crowds.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::hand_over::{end, hand_over};
use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::eventually;
use crate::speaker::Speaker;

/// Both, in both orders.
fn pairs(stage: &Stage<'_>) -> Result<[(Speaker, Speaker); 2], String> {
    Ok([
        (stage.start()?, stage.start_other()?),
        (stage.start_other()?, stage.start()?),
    ])
}

pub(super) fn each_refuses_the_other(stage: &Stage<'_>) -> Outcome {
    for (mut first, mut second) in pairs(stage)? {
        first.must("acquire 8000", "acquired")?;
        let before = stage.place.look()?;
        second.must("acquire 8000", &format!("refused {}", first.pid()))?;
        ensure!(
            before == stage.place.look()?,
            "the refused one changed the file"
        );
        first.must("hold 8000", "holding")?;
        first.must("release 8000", "released")?;
        second.must("acquire 8000", "acquired")?;
        second.must("release 8000", "released")?;
    }
    Ok(Verdict::Passed)
}

pub(super) fn each_recovers_the_others_crash(stage: &Stage<'_>) -> Outcome {
    for (mut first, mut second) in pairs(stage)? {
        first.must("acquire 8000", "acquired")?;
        first.kill();
        second.must("acquire 8000", "acquired")?;
        let named = stage.place.named()?;
        ensure!(named == u64::from(second.pid()), "the file names {named}");
        second.must("release 8000", "released")?;
        ensure!(!stage.place.file().exists(), "the file is left behind");
    }
    Ok(Verdict::Passed)
}

pub(super) fn one_of_many_wins(stage: &Stage<'_>) -> Outcome {
    let mut crowd = Vec::new();
    for _ in 0..3 {
        crowd.push(stage.start()?);
        crowd.push(stage.start_other()?);
    }
    for round in 0..12 {
        for speaker in &mut crowd {
            speaker.tell("acquire 8000")?;
        }
        let mut winner = None;
        let mut others = Vec::new();
        for (at, speaker) in crowd.iter_mut().enumerate() {
            match speaker.hear()?.as_str() {
                "acquired" if winner.is_none() => winner = Some(at),
                "acquired" => return Err(format!("round {round}: two have acquired it")),
                other => others.push(other.to_owned()),
            }
        }
        let winner = winner.ok_or_else(|| format!("round {round}: nobody wins: {others:?}"))?;
        let refused = format!("refused {}", crowd[winner].pid());
        ensure!(
            others.iter().all(|other| *other == refused),
            "round {round}: not {refused:?}: {others:?}"
        );
        if round % 2 == 0 {
            crowd[winner].must("release 8000", "released")?;
        } else {
            crowd[winner].kill();
            crowd[winner] = if winner % 2 == 0 {
                stage.start()?
            } else {
                stage.start_other()?
            };
        }
    }
    Ok(Verdict::Passed)
}

/// The next one comes while the first gives the lock back.
pub(super) fn on_the_heels(stage: &Stage<'_>) -> Outcome {
    for (mut first, mut second) in pairs(stage)? {
        for round in 0..40 {
            first.must("acquire 8000", "acquired")?;
            first.tell("release 8000")?;
            let mut answer = second.ask("acquire 8000")?;
            while answer != "acquired" {
                ensure!(!answer.starts_with("error"), "round {round}: {answer}");
                answer = second.ask("acquire 8000")?;
            }
            let released = first.hear()?;
            ensure!(released == "released", "round {round}: {released}");
            second.must("hold 8000", "holding")?;
            ensure!(stage.place.is_locked()?, "round {round}: the lock is free");
            second.must("release 8000", "released")?;
        }
    }
    Ok(Verdict::Passed)
}

pub(super) fn sees_a_hand_over(stage: &Stage<'_>) -> Outcome {
    let (mut speaker, server) = hand_over(stage)?;
    let mut other = stage.start_other()?;
    let first = other.ask("acquire 8000");
    speaker.kill();
    let second = other.ask("acquire 8000");
    let pid = i32::try_from(server).map_err(|e| e.to_string())?;
    let lives = kill(Pid::from_raw(pid), None::<Signal>).is_ok();
    end(server)?;
    ensure!(lives, "the server did not outlive its launcher");
    let refused = format!("refused {server}");
    for answer in [first?, second?] {
        ensure!(
            answer == refused,
            "the other one says {answer:?}, not {refused:?}"
        );
    }
    eventually("the lock is free", || Ok(!stage.place.is_locked()?))?;
    other.must("acquire 8000", "acquired")?;
    Ok(Verdict::Passed)
}

pub(super) fn each_sees_the_other(stage: &Stage<'_>) -> Outcome {
    for (mut first, mut second) in pairs(stage)? {
        first.must("acquire 8000", "acquired")?;
        second.must("list", &format!("list 8000={}", first.pid()))?;
        let answer = second.ask("read 8000")?;
        let named = format!("info {} ", first.pid());
        ensure!(answer.starts_with(&named), "it reads {answer:?}");
        first.must("release 8000", "released")?;
        second.must("list", "list")?;
        second.must("read 8000", "none")?;
    }
    Ok(Verdict::Passed)
}
