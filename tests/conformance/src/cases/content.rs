//! The file and what it says.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::{DEAD, LONG_AGO, PORT, content};

pub(super) fn makes_the_directory(stage: &Stage<'_>) -> Outcome {
    let directory = stage.place.path().join("not-yet");
    let mut speaker = stage.program().start(&directory)?;
    speaker.must("acquire 8000", "acquired")?;
    let file = directory.join("serve_8000.lock");
    ensure!(file.is_file(), "there is no {}", file.display());
    Ok(Verdict::Passed)
}

pub(super) fn names_itself(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let json = stage.place.json()?;
    ensure!(
        json["pid"] == speaker.pid(),
        "{json} does not name {}",
        speaker.pid()
    );
    ensure!(json["port"] == PORT, "{json} is not for port {PORT}");
    let length = stage.place.look()?.bytes.len();
    ensure!(length <= 4096, "{length} bytes are too many");
    Ok(Verdict::Passed)
}

pub(super) fn says_when_in_utc(stage: &Stage<'_>) -> Outcome {
    let before = Utc::now();
    // Where it is another time: a program that writes the wall's own is found out.
    let mut speaker = stage.program().start_with(stage.place.path(), |command| {
        command.env("TZ", "XXX-9");
    })?;
    speaker.must("acquire 8000", "acquired")?;
    let json = stage.place.json()?;
    let text = json["started_at"].as_str().unwrap_or_default();
    let started = DateTime::parse_from_rfc3339(text)
        .map_err(|e| format!("started_at {text:?} is not RFC 3339: {e}"))?;
    ensure!(
        started.offset().local_minus_utc() == 0,
        "started_at {text:?} is not in UTC"
    );
    // The file's clock may count whole seconds.
    let slack = TimeDelta::seconds(2);
    let in_time = started >= before - slack && started <= Utc::now() + slack;
    ensure!(in_time, "started_at {text:?} is not when it started");
    Ok(Verdict::Passed)
}

pub(super) fn mode_is_0600(stage: &Stage<'_>) -> Outcome {
    for mask in [0o000, 0o022, 0o777] {
        let mut speaker = stage.program().start_with(stage.place.path(), |command| {
            // SAFETY: one system call.
            unsafe {
                command.pre_exec(move || {
                    libc::umask(mask);
                    Ok(())
                })
            };
        })?;
        speaker.must("acquire 8000", "acquired")?;
        let mode = stage.place.look()?.mode;
        ensure!(mode == 0o600, "mode {mode:o}, with umask {mask:o}");
        speaker.must("release 8000", "released")?;
    }
    Ok(Verdict::Passed)
}

pub(super) fn a_left_over_gets_mode_0600(stage: &Stage<'_>) -> Outcome {
    stage.place.plant(content(DEAD, LONG_AGO, PORT))?;
    let open = fs::Permissions::from_mode(0o666);
    fs::set_permissions(stage.place.file(), open).map_err(|e| e.to_string())?;
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let mode = stage.place.look()?.mode;
    ensure!(mode == 0o600, "mode {mode:o}");
    Ok(Verdict::Passed)
}

pub(super) fn the_old_text_is_gone(stage: &Stage<'_>) -> Outcome {
    let long = content(DEAD, LONG_AGO, PORT).replace('}', r#","comment":"xxxxxxxxxxxxxxxxx"}"#);
    stage.place.plant(long.repeat(5))?;
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let named = stage.place.named()?;
    ensure!(named == u64::from(speaker.pid()), "it names {named}");
    Ok(Verdict::Passed)
}

pub(super) fn its_identity_is_true(stage: &Stage<'_>) -> Outcome {
    if !cfg!(target_os = "linux") {
        return Ok(Verdict::Skipped("only Linux has these fields".to_owned()));
    }
    let mut speaker = stage.start()?;
    speaker.must("acquire 8000", "acquired")?;
    let json = stage.place.json()?;
    let identity = identity_of(speaker.pid())?;
    for (field, value) in &identity {
        ensure!(
            json.get(field) == Some(value),
            "{field} should be {value}: {json}"
        );
    }
    Ok(Verdict::Passed)
}

/// The identity fields of a live process, as the specification has them for Linux.
pub(super) fn identity_of(pid: u32) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let boot_id =
        fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|e| e.to_string())?;
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).map_err(|e| e.to_string())?;
    let namespace = namespace.to_string_lossy();
    let inode: u64 = namespace
        .trim_start_matches("pid:[")
        .trim_end_matches(']')
        .parse()
        .map_err(|e| format!("{namespace}: {e}"))?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).map_err(|e| e.to_string())?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    // The 22nd of all, counted from 1, and the name was the second.
    let ticks: u64 = after_name
        .split_ascii_whitespace()
        .nth(19)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| format!("no start in {stat}"))?;
    let mut fields = serde_json::Map::new();
    fields.insert("boot_id".to_owned(), boot_id.trim().into());
    fields.insert("pid_ns".to_owned(), inode.into());
    fields.insert("start_ticks".to_owned(), ticks.into());
    Ok(fields)
}
