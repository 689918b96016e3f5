//! Reading and listing.

use std::fs;

use chrono::DateTime;

use super::{Outcome, Stage, Verdict, ensure};
use crate::probe::{Bystander, DEAD, LONG_AGO, PORT, content, now};

/// The same instant may be written in several ways.
fn says(answer: &str) -> Result<(), String> {
    let time = answer.strip_prefix("info 4711 ");
    let time = time.and_then(|time| DateTime::parse_from_rfc3339(time).ok());
    let expected = DateTime::parse_from_rfc3339(LONG_AGO).ok();
    ensure!(time.is_some() && time == expected, "it reads {answer:?}");
    Ok(())
}

pub(super) fn reads_what_is_there(stage: &Stage<'_>) -> Outcome {
    let mut speaker = stage.start()?;
    speaker.must("read 8000", "none")?;
    stage.place.plant(content(4711, LONG_AGO, PORT))?;
    let before = stage.place.look()?;
    says(&speaker.ask("read 8000")?)?;
    let after = stage.place.look()?;
    ensure!(before == after, "reading changes the file");
    Ok(Verdict::Passed)
}

pub(super) fn reads_what_it_does_not_know(stage: &Stage<'_>) -> Outcome {
    let text = r#"{"colour":"red","port":8000,"boot_id":7,"started_at":"2026-01-30T14:00:00+02:00","pid":4711}"#;
    stage.place.plant(text)?;
    says(&stage.start()?.ask("read 8000")?)?;
    Ok(Verdict::Passed)
}

pub(super) fn tells_corrupt_from_none(stage: &Stage<'_>) -> Outcome {
    for corrupt in [
        "{".to_owned(),
        "null".to_owned(),
        content(4711, "yesterday", PORT),
        content(4711, LONG_AGO, 8001),
        format!("{} junk", content(4711, LONG_AGO, PORT)),
        " ".repeat(100_000),
    ] {
        stage.place.plant(&corrupt)?;
        let answer = stage.start()?.ask("read 8000")?;
        ensure!(answer == "corrupted", "{corrupt:.60} is read as {answer:?}");
        fs::remove_file(stage.place.file()).map_err(|e| e.to_string())?;
    }
    Ok(Verdict::Passed)
}

pub(super) fn lists_live_servers_alone(stage: &Stage<'_>) -> Outcome {
    let mut lister = stage.start()?;
    lister.must("list", "list")?;
    let mut holder = stage.start()?;
    holder.must("acquire 9000", "acquired")?;
    holder.must("acquire 80", "acquired")?;
    stage.place.plant_at(8000, content(DEAD, LONG_AGO, 8000))?;
    stage.place.plant_at(8001, "{")?;
    let bystander = Bystander::new()?;
    stage
        .place
        .plant_at(8002, content(bystander.pid(), LONG_AGO, 8002))?;
    let mut held = Vec::new();
    for name in ["serve_08003.lock", "serve_8003.lock.bak", "notes"] {
        held.push(
            stage
                .place
                .hold_as(name, content(holder.pid(), &now(), 8003))?,
        );
    }
    let pid = holder.pid();
    lister.must("list", &format!("list 80={pid} 9000={pid}"))?;
    Ok(Verdict::Passed)
}

pub(super) fn listing_disturbs_nobody(stage: &Stage<'_>) -> Outcome {
    let mut holder = stage.start()?;
    holder.must("acquire 8000", "acquired")?;
    stage.place.plant_at(8001, content(DEAD, LONG_AGO, 8001))?;
    let before = stage.place.look()?;
    let left_over = fs::read(stage.place.file_of(8001)).map_err(|e| e.to_string())?;
    let mut lister = stage.start()?;
    for _ in 0..5 {
        lister.must("list", &format!("list 8000={}", holder.pid()))?;
    }
    ensure!(before == stage.place.look()?, "listing changes a lock file");
    let after = fs::read(stage.place.file_of(8001)).map_err(|e| e.to_string())?;
    ensure!(left_over == after, "listing changes a left-over");
    holder.must("hold 8000", "holding")?;
    // Were the list to keep a lock, the next start would wait for it.
    stage.start()?.must("acquire 8001", "acquired")?;
    Ok(Verdict::Passed)
}
