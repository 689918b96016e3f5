//! What a table of servers shows, and how it fits a terminal.

use chrono::SecondsFormat;
use comfy_table::{Table, presets};
use console::{Term, measure_text_width, truncate_str};

use super::row::Row;
use crate::args::Format;

/// Between two columns.
const GAP: usize = 2;
/// Narrower is no terminal: lines are broken there.
const NARROWEST: usize = 40;
/// So much of a command is shown before another column is, "balancer, 3 of 4 backends up" for one.
const COMMAND: usize = 28;
/// Less of a command tells nothing.
const NAME: usize = 8;
/// Wherever they are cut, an instant has its day and a state its word.
const SHORTEST: usize = 11;

/// What a table shows, and where. Programs read the first four columns from a pipe.
#[derive(Clone, Copy)]
pub(super) struct Look {
    wide: bool,
    /// Of the terminal, which shows what each server is as well.
    width: Option<usize>,
}

/// In the order in which they stand. The first four are always there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Port,
    Pid,
    Started,
    Status,
    Uptime,
    User,
    Address,
    Restarts,
    Log,
    Command,
}

const FROZEN: [Column; 4] = [Column::Port, Column::Pid, Column::Started, Column::Status];
const DETAILS: [Column; 6] = [
    Column::Uptime,
    Column::User,
    Column::Address,
    Column::Restarts,
    Column::Log,
    Column::Command,
];
/// What a terminal shows beside the first four, as far as there is room: the most telling first.
const BY_WEIGHT: [Column; 5] = [
    Column::Command,
    Column::Address,
    Column::Uptime,
    Column::Restarts,
    Column::User,
];

impl Look {
    pub(super) fn of(format: Format) -> Self {
        let terminal = Term::stdout();
        let size = terminal.is_term().then(|| terminal.size());
        Self {
            wide: format == Format::Wide,
            width: size.map(|(_, columns)| usize::from(columns)),
        }
    }

    pub(super) fn tells_all(self) -> bool {
        self.wide || self.width.is_some()
    }
}

impl Column {
    fn name(self) -> &'static str {
        match self {
            Self::Port => "PORT",
            Self::Pid => "PID",
            Self::Started => "STARTED",
            Self::Status => "STATUS",
            Self::Uptime => "UPTIME",
            Self::User => "USER",
            Self::Address => "ADDRESS",
            Self::Restarts => "RESTARTS",
            Self::Log => "LOG",
            Self::Command => "COMMAND",
        }
    }

    fn cell(self, row: &Row, look: Look) -> String {
        let details = &row.details;
        match self {
            Self::Port => row.port.to_string(),
            Self::Pid => cell(row.pid),
            Self::Started => cell(
                row.started_at
                    .map(|at| at.to_rfc3339_opts(SecondsFormat::Secs, true)),
            ),
            Self::Status => match &row.owner {
                Some(owner) => format!("{:?} (owner: {owner})", row.status),
                None => format!("{:?}", row.status),
            },
            Self::Uptime => cell(details.uptime()),
            Self::User => cell(details.user.as_ref()),
            Self::Address => cell(details.address),
            Self::Restarts if look.wide => cell(details.restarts()),
            Self::Restarts => cell(details.restarts_in_short()),
            Self::Log => cell(details.log_file.as_ref()),
            Self::Command => cell(details.what()),
        }
    }
}

/// A column with what stands in it.
struct Filled {
    column: Column,
    cells: Vec<String>,
    width: usize,
}

impl Filled {
    fn new(column: Column, rows: &[Row], look: Look) -> Self {
        let cells: Vec<String> = rows.iter().map(|row| column.cell(row, look)).collect();
        let widths = cells.iter().map(|cell| measure_text_width(cell));
        let width = widths.max().unwrap_or(0).max(column.name().len());
        Self {
            column,
            cells,
            width,
        }
    }

    /// Gives up as much of `excess` as leaves it `shortest`.
    fn spare(&mut self, excess: usize, shortest: usize) {
        let shortest = shortest.min(self.width);
        self.width = self.width.saturating_sub(excess).max(shortest);
    }
}

pub(super) fn table(rows: &[Row], port: Option<u16>, look: Look) -> String {
    if rows.is_empty() {
        return match port {
            Some(port) => format!("No server running on port {port}\n"),
            None => "No servers running\n".to_owned(),
        };
    }
    let filled = |columns: &[Column]| -> Vec<Filled> {
        let columns = columns.iter();
        columns
            .map(|&column| Filled::new(column, rows, look))
            .collect()
    };
    let mut columns = filled(&FROZEN);
    match look.width {
        _ if look.wide => columns.extend(filled(&DETAILS)),
        Some(width) => fit(&mut columns, filled(&BY_WEIGHT), width.max(NARROWEST)),
        None => {}
    }
    drawn(columns)
}

/// Adds as many of `details` as there is room for.
fn fit(columns: &mut Vec<Filled>, details: Vec<Filled>, width: usize) {
    // The first four stay; of two that are too wide the state goes on in other words elsewhere.
    for column in [Column::Status, Column::Started] {
        let excess = taken(columns).saturating_sub(width);
        if let Some(column) = columns.iter_mut().find(|filled| filled.column == column) {
            column.spare(excess, SHORTEST);
        }
    }
    let mut whole = 0;
    for mut detail in details {
        let room = width.saturating_sub(taken(columns) + GAP);
        if detail.column == Column::Command {
            whole = detail.width;
            detail.spare(detail.width.saturating_sub(room.min(COMMAND)), NAME);
        }
        if detail.width <= room {
            columns.push(detail);
        } else if detail.column == Column::Command {
            return;
        }
    }
    let left = width.saturating_sub(taken(columns));
    if let Some(command) = columns
        .iter_mut()
        .find(|filled| filled.column == Column::Command)
    {
        command.width = whole.min(command.width + left);
    }
    columns.sort_by_key(|filled| filled.column);
}

/// How wide they are side by side.
fn taken(columns: &[Filled]) -> usize {
    let widths = columns.iter().map(|filled| filled.width + GAP);
    widths.sum::<usize>().saturating_sub(GAP)
}

fn drawn(columns: Vec<Filled>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|filled| filled.column.name()));
    let rows = columns.first().map_or(0, |filled| filled.cells.len());
    for row in 0..rows {
        let cells = columns
            .iter()
            .map(|Filled { cells, width, .. }| truncate_str(&cells[row], *width, "…").into_owned());
        table.add_row(cells);
    }
    let lines = table.lines().map(|line| format!("{}\n", line.trim()));
    lines.collect()
}

fn cell(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
