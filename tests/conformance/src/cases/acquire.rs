//! Taking the lock: whom it keeps out, and what it recovers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::content::identity_of;
use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::{Bystander, DEAD, LONG_AGO, PORT, content, eventually, now};
use crate::speaker::Speaker;

pub(super) fn locks_with_flock(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    ensure!(stage.place.is_locked()?, "the file is not locked");
    Ok(Verdict::Passed)
}

pub(super) fn the_descriptor_is_close_on_exec(stage: &Stage<'_>) -> Outcome {
    if !cfg!(target_os = "linux") {
        return Ok(Verdict::Skipped("only Linux shows descriptors".to_owned()));
    }
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let inode = stage.place.look()?.inode;
    let mut found = false;
    let all = fs::read_dir(format!("/proc/{}/fd", speaker.pid())).map_err(|e| e.to_string())?;
    for entry in all.flatten() {
        let open = fs::metadata(entry.path());
        if open.is_ok_and(|open| open.is_file() && open.ino() == inode) {
            found = true;
            let number = entry.file_name();
            let number = number.to_string_lossy();
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", speaker.pid()));
            let info = info.map_err(|e| e.to_string())?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
            let closes = flags.is_some_and(|flags| flags & 0o2_000_000 != 0);
            ensure!(
                closes,
                "descriptor {number} is inherited by whatever it starts"
            );
            let above = number.parse().is_ok_and(|number: u32| number > 2);
            ensure!(above, "descriptor {number} is a standard one");
        }
    }
    ensure!(found, "none of its descriptors is the lock file");
    Ok(Verdict::Passed)
}

pub(super) fn a_refused_start_changes_nothing(stage: &Stage<'_>) -> Outcome {
    let bystander = Bystander::new()?;
    let _holder = stage.place.hold(content(bystander.pid(), &now(), PORT))?;
    let before = stage.place.look()?;
    let mut speaker = stage.start()?;
    let answer = speaker.ask("acquire 8000")?;
    ensure!(answer != "acquired", "it acquired a held lock");
    let after = stage.place.look()?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(Verdict::Passed)
}

pub(super) fn the_holder_is_named(stage: &Stage<'_>) -> Outcome {
    let bystander = Bystander::new()?;
    let pid = bystander.pid();
    let _holder = stage.place.hold(content(pid, &now(), PORT))?;
    stage
        .start()?
        .must("acquire 8000", &format!("refused {pid}"))?;
    Ok(Verdict::Passed)
}

pub(super) fn a_holder_without_a_name(stage: &Stage<'_>) -> Outcome {
    for nameless in ["", "{", "null"] {
        let holder = stage.place.hold(nameless)?;
        let mut speaker = stage.start()?;
        speaker.must("acquire 8000", "held")?;
        ensure!(
            stage.place.look()?.bytes == nameless.as_bytes(),
            "it was changed"
        );
        drop(holder);
        fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
    }
    Ok(Verdict::Passed)
}

/// Who is shown could be another process by now.
pub(super) fn a_holder_with_a_dead_name(stage: &Stage<'_>) -> Outcome {
    let _holder = stage.place.hold(content(DEAD, &now(), PORT))?;
    stage.start()?.must("acquire 8000", "held")?;
    Ok(Verdict::Passed)
}

fn is_recovered(stage: &Stage<'_>, left_over: impl AsRef<[u8]>) -> Result<(), String> {
    stage.place.plant(&left_over)?;
    let recovered = |speaker: &mut Speaker| -> Result<(), String> {
        speaker.must("acquire 8000", "acquired")?;
        let named = stage.place.named()?;
        ensure!(named == u64::from(speaker.pid()), "the file names {named}");
        ensure!(
            stage.place.is_locked()?,
            "the file at the path is not locked"
        );
        speaker.must("release 8000", "released")
    };
    let text = String::from_utf8_lossy(left_over.as_ref()).into_owned();
    recovered(&mut stage.start()?).map_err(|why| format!("{text:.120}: {why}"))
}

pub(super) fn a_dead_pid_is_recovered(stage: &Stage<'_>) -> Outcome {
    is_recovered(stage, content(DEAD, LONG_AGO, PORT))?;
    is_recovered(stage, content(DEAD, &now(), PORT))?;
    Ok(Verdict::Passed)
}

pub(super) fn a_recycled_pid_is_recovered(stage: &Stage<'_>) -> Outcome {
    let bystander = Bystander::new()?;
    is_recovered(stage, content(bystander.pid(), LONG_AGO, PORT))?;
    Ok(Verdict::Passed)
}

pub(super) fn a_free_lock_counts_more(stage: &Stage<'_>) -> Outcome {
    let bystander = Bystander::new()?;
    is_recovered(stage, content(bystander.pid(), &now(), PORT))?;
    // A killed container's, found from outside.
    is_recovered(stage, content(1, &now(), PORT))?;
    Ok(Verdict::Passed)
}

pub(super) fn an_empty_file_is_recovered(stage: &Stage<'_>) -> Outcome {
    is_recovered(stage, "")?;
    Ok(Verdict::Passed)
}

pub(super) fn a_corrupt_file_is_recovered(stage: &Stage<'_>) -> Outcome {
    is_recovered(stage, r#"{"pid":12"#)?;
    is_recovered(stage, b"\xff\xfe\0\x01")?;
    is_recovered(stage, content(std::process::id(), &now(), 9000))?;
    is_recovered(stage, " ".repeat(100_000))?;
    is_recovered(stage, "[".repeat(4000))?;
    is_recovered(stage, content(0, &now(), PORT))?;
    is_recovered(stage, content(u32::MAX, &now(), PORT))?;
    Ok(Verdict::Passed)
}

fn with_identity(
    pid: u32,
    change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>),
) -> Result<String, String> {
    let mut fields = identity_of(pid)?;
    fields.insert("pid".to_owned(), pid.into());
    fields.insert("started_at".to_owned(), now().into());
    fields.insert("port".to_owned(), PORT.into());
    change(&mut fields);
    Ok(serde_json::Value::Object(fields).to_string())
}

pub(super) fn an_exact_identity_is_honoured(stage: &Stage<'_>) -> Outcome {
    if !cfg!(target_os = "linux") {
        return Ok(Verdict::Skipped("only Linux has these fields".to_owned()));
    }
    let bystander = Bystander::new()?;
    let pid = bystander.pid();
    stage.place.plant(with_identity(pid, |_| {})?)?;
    stage
        .start()?
        .must("acquire 8000", &format!("refused {pid}"))?;
    Ok(Verdict::Passed)
}

pub(super) fn another_identity_is_a_left_over(stage: &Stage<'_>) -> Outcome {
    if !cfg!(target_os = "linux") {
        return Ok(Verdict::Skipped("only Linux has these fields".to_owned()));
    }
    let bystander = Bystander::new()?;
    let others = [
        (
            "boot_id",
            serde_json::json!("01234567-89ab-cdef-0123-456789abcdef"),
        ),
        ("pid_ns", serde_json::json!(4_026_000_000_u64)),
        ("start_ticks", serde_json::json!(1)),
    ];
    for (field, value) in others {
        let text = with_identity(bystander.pid(), |fields| {
            fields.insert(field.to_owned(), value);
        })?;
        is_recovered(stage, text)?;
        let text = with_identity(bystander.pid(), |fields| drop(fields.remove(field)))?;
        is_recovered(stage, text)?;
    }
    Ok(Verdict::Passed)
}

pub(super) fn kill_9_frees_the_port(stage: &Stage<'_>) -> Outcome {
    for _ in 0..5 {
        let mut first = stage.start()?;
        first.must("acquire 8000", "acquired")?;
        first.kill();
        ensure!(!stage.place.is_locked()?, "the lock outlives its holder");
        stage.start()?.must("acquire 8000", "acquired")?;
    }
    Ok(Verdict::Passed)
}

pub(super) fn sigterm_frees_the_port(stage: &Stage<'_>) -> Outcome {
    let mut first = stage.start()?;
    first.must("acquire 8000", "acquired")?;
    let pid = i32::try_from(stage.place.named()?).map_err(|e| e.to_string())?;
    ensure!(
        pid > 1 && pid.unsigned_abs() == first.pid(),
        "it names {pid}"
    );
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|e| e.to_string())?;
    ensure!(first.ends(), "SIGTERM does not end it");
    eventually("the lock is free", || Ok(!stage.place.is_locked()?))?;
    stage.start()?.must("acquire 8000", "acquired")?;
    Ok(Verdict::Passed)
}

pub(super) fn ports_are_apart(stage: &Stage<'_>) -> Outcome {
    let mut first = stage.start()?;
    first.must("acquire 8000", "acquired")?;
    let mut second = stage.start()?;
    second.must("acquire 8001", "acquired")?;
    second.must("acquire 80", "acquired")?;
    second.must("release 8001", "released")?;
    ensure!(
        stage.place.is_locked()?,
        "another port's release frees this one"
    );
    ensure!(
        stage.place.file_of(80).is_file(),
        "the name has no leading zeros"
    );
    Ok(Verdict::Passed)
}

pub(super) fn port_0_is_refused(stage: &Stage<'_>) -> Outcome {
    let answer = stage.start()?.ask("acquire 0")?;
    ensure!(answer.starts_with("error "), "it says {answer:?}");
    ensure!(!stage.place.file_of(0).exists(), "it made a file");
    Ok(Verdict::Passed)
}
