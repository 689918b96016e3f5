//! What a table of servers shows, and how it fits a terminal.

use chrono::SecondsFormat;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use console::Term;

use super::row::Row;
use crate::args::Format;

/// What a table shows, and where. Programs read the first four columns from a pipe.
#[derive(Clone, Copy)]
pub(super) struct Look {
    wide: bool,
    /// Of the terminal, which shows what each server is as well.
    width: Option<u16>,
}

impl Look {
    pub(super) fn of(format: Format) -> Self {
        let terminal = Term::stdout();
        let size = terminal.is_term().then(|| terminal.size());
        Self {
            wide: format == Format::Wide,
            width: size.map(|(_, columns)| columns),
        }
    }

    pub(super) fn tells_all(self) -> bool {
        self.wide || self.width.is_some()
    }

    fn header(self) -> Vec<&'static str> {
        let mut header = vec!["PORT", "PID", "STARTED", "STATUS"];
        if self.wide {
            header.extend(["UPTIME", "USER", "ADDRESS", "RESTARTS", "LOG"]);
        }
        if self.tells_all() {
            header.push("COMMAND");
        }
        header
    }

    fn cells(self, row: &Row) -> Vec<String> {
        let started = row
            .started_at
            .map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true));
        let status = match &row.owner {
            Some(owner) => format!("{:?} (owner: {owner})", row.status),
            None => format!("{:?}", row.status),
        };
        let mut cells = vec![row.port.to_string(), cell(row.pid), cell(started), status];
        let details = &row.details;
        if self.wide {
            cells.extend([
                cell(details.uptime()),
                cell(details.user.as_ref()),
                cell(details.address),
                cell(details.restarts()),
                cell(details.log_file.as_ref()),
            ]);
        }
        if self.tells_all() {
            cells.push(cell(details.what()));
        }
        cells
    }
}

pub(super) fn table(rows: &[Row], port: Option<u16>, look: Look) -> String {
    if rows.is_empty() {
        return match port {
            Some(port) => format!("No server running on port {port}\n"),
            None => "No servers running\n".to_owned(),
        };
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(look.header());
    for row in rows {
        let mut cells = comfy_table::Row::from(look.cells(row));
        cells.max_height(1);
        table.add_row(cells);
    }
    // Only what is as wide as it takes is shown in full.
    if let (false, Some(width)) = (look.wide, look.width) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(width).set_truncation_indicator("…");
        for column in table.column_iter_mut().take(4) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}

fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
