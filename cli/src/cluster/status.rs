//! `llmlb status --cluster`: every server of every host, as a table or JSON.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use comfy_table::{Table, presets};
use llmlb_lock_cluster::{Listing, Server, Skipped};
use serde::Serialize;

use super::connection::Connection;
use super::foreign::printable;
use crate::args::Format;
use crate::exit::{self, Failure};
use crate::output;

const WATCH_STEP: Duration = Duration::from_secs(1);
/// How many keys that are no records are named: a stranger may write any number.
const NAMED: usize = 10;

pub(crate) fn run(etcd: &Connection, format: Format, watch: bool) -> Result<u8, Failure> {
    let list = || etcd.ask(|cluster, interrupt| cluster.servers(None, interrupt));
    let listing = list()?;
    warn(&listing.skipped);
    let mut text = show(&listing, format)?;
    if !watch {
        output::write(text.as_bytes())?;
        return Ok(exit::OK);
    }
    let mut problem = None;
    loop {
        redraw(&text, problem.as_deref())?;
        thread::sleep(WATCH_STEP);
        // What was seen last stays there while etcd is away.
        problem = match list() {
            Ok(listing) => {
                text = show(&listing, format)?;
                None
            }
            Err(error) => Some(printable(&error.message)),
        };
    }
}

/// A terminal is redrawn; a pipe gets one picture after the other, and no old ones.
fn redraw(text: &str, problem: Option<&str>) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        let remark =
            problem.map_or_else(String::new, |problem| format!("\nNot of now: {problem}\n"));
        return output::write_or_exit(format!("\x1b[H\x1b[2J{text}{remark}").as_bytes());
    }
    match problem {
        Some(problem) => output::note(problem),
        None => output::write_or_exit(text.as_bytes())?,
    }
    Ok(())
}

fn show(listing: &Listing, format: Format) -> Result<String, Failure> {
    let rows: Vec<Row<'_>> = listing.servers.iter().map(Row::new).collect();
    match format {
        // The table has all there is.
        Format::Table | Format::Wide => Ok(table(&rows)),
        Format::Json => {
            let text = serde_json::to_string(&rows).map_err(|e| Failure::new(exit::FAILURE, e))?;
            Ok(text + "\n")
        }
    }
}

fn warn(skipped: &[Skipped]) {
    for one in skipped.iter().take(NAMED) {
        output::note(&format!("Warning: {}", printable(&one.to_string())));
    }
    if let Some(more) = skipped.len().checked_sub(NAMED).filter(|&more| more > 0) {
        output::note(&format!(
            "Warning: {more} more keys are not records of llmlb"
        ));
    }
}

#[derive(Serialize)]
struct Row<'a> {
    service: &'a str,
    host: &'a str,
    port: u16,
    address: String,
    pid: u32,
    started_at: DateTime<Utc>,
    token: Option<u64>,
    status: Status,
    models: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Status {
    Running,
    /// Active, and not to be found yet.
    Starting,
    /// Not to be found any more, and not ended.
    Stopping,
}

impl<'a> Row<'a> {
    fn new(server: &'a Server) -> Self {
        let record = &server.record;
        Self {
            service: &record.service,
            host: &record.host,
            port: record.port,
            address: printable(&record.url),
            pid: record.pid,
            started_at: record.started_at,
            token: record.token,
            status: match (server.registered, server.leaving) {
                (true, _) => Status::Running,
                (false, true) => Status::Stopping,
                (false, false) => Status::Starting,
            },
            models: record.models.iter().map(|model| printable(model)).collect(),
        }
    }
}

fn table(rows: &[Row<'_>]) -> String {
    if rows.is_empty() {
        return "No servers running\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "HOST", "SERVICE", "ADDRESS", "PID", "STARTED", "TOKEN", "STATUS", "MODELS",
    ]);
    for row in rows {
        let dash = || "-".to_owned();
        table.add_row([
            row.host.to_owned(),
            row.service.to_owned(),
            row.address.clone(),
            row.pid.to_string(),
            row.started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            row.token.map_or_else(dash, |token| token.to_string()),
            format!("{:?}", row.status),
            match row.models.is_empty() {
                true => dash(),
                false => row.models.join(", "),
            },
        ]);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}
