//! Manual pages, in the sections that manual pages have. What is typed comes from the commands'
//! definitions; what they end with, read and write stands here, as no definition knows it.

use clap::builder::StyledStr;
use clap::{Arg, Command};
use roff::{Inline, Roff, bold, italic, roman};

/// When these pages were last changed in earnest.
const DATE: &str = "2026-11-25";
const OTHER_PAGES: &str = "kill(1), flock(2), systemd.service(5)";

/// The commands that have to do with locks and servers.
const GUARDS: &[&str] = &["llmlb", "serve", "stop", "status"];
const ALL: &[&str] = &[
    "llmlb",
    "serve",
    "stop",
    "status",
    "cluster",
    "completions",
    "man",
];

/// What is told about some commands alone: of which, what it is about, and the text.
type Told = (&'static [&'static str], &'static str, &'static str);

const EXIT_STATUS: &[Told] = &[
    (
        &["llmlb", "serve", "cluster", "completions", "man"],
        "0",
        "Done.",
    ),
    (
        &["stop"],
        "0",
        "Done, also where there was nothing to stop.",
    ),
    (&["status"], "0", "Done; with a port: its server runs."),
    (
        ALL,
        "1",
        "Refused or failed; the reason is on standard error.",
    ),
    (ALL, "2", "Wrong arguments."),
    (
        &["llmlb", "status"],
        "3",
        "Of status with a port: no server runs there.",
    ),
    (
        &["llmlb", "status"],
        "4",
        "Of status with a port: it cannot be told.",
    ),
    (
        &["llmlb", "status"],
        "5",
        "Of status with a port: it is guarded, and its server does not accept connections yet.",
    ),
    (
        &["llmlb", "serve"],
        "6",
        "Of serve with --exclusive: the lease was lost, and the server was ended in time.",
    ),
    (
        &["llmlb", "serve"],
        "126",
        "Of serve: the COMMAND cannot be executed.",
    ),
    (
        &["llmlb", "serve"],
        "127",
        "Of serve: there is no such COMMAND.",
    ),
    (
        &["llmlb", "serve"],
        "128 + N",
        "Of serve: signal N ended the server, or serve itself. Of HUP, INT, QUIT and TERM it dies \
         itself, which a shell shows as this.",
    ),
    (
        &["llmlb", "serve"],
        "other",
        "Of serve: what the COMMAND ended with.",
    ),
];

const ENVIRONMENT: &[Told] = &[
    (
        GUARDS,
        "LLMLB_LOCK_DIR",
        "Where the lock files are, as an absolute path; by default llmlb in the temporary \
         directory.",
    ),
    (
        &["completions"],
        "LLMLB_LOCK_DIR",
        "Where the ports that are completed are looked for, as the shell has it when it completes.",
    ),
    (
        &["completions"],
        "LLMLB_COMPLETE",
        "Set by the scripts: the program answers what may stand next, and does nothing else.",
    ),
    (
        GUARDS,
        "LLMLB_LOG",
        "What is logged to standard error: off, error, warn, info (the default of serve), debug or \
         trace.",
    ),
    (
        GUARDS,
        "NO_COLOR",
        "If it is not empty, nothing is coloured.",
    ),
    (
        GUARDS,
        "TMPDIR",
        "The temporary directory, instead of /tmp.",
    ),
    (
        &["stop", "status", "cluster"],
        "LLMLB_CLUSTER",
        "The URL of etcd, where --cluster is given without one.",
    ),
    (
        &["stop", "status", "cluster"],
        "LLMLB_CLUSTER_USER, LLMLB_CLUSTER_PASSWORD, LLMLB_CLUSTER_PASSWORD_FILE",
        "The user of etcd, and the password, or a file with it.",
    ),
    (
        &["serve"],
        "LLMLB_CLUSTER_USER, LLMLB_CLUSTER_PASSWORD",
        "Who logs in to etcd. The server does not get the password.",
    ),
    (
        &["serve"],
        "LLMLB_CLUSTER_PASSWORD_FILE",
        "A file that has the password.",
    ),
    (
        &["serve"],
        "NOTIFY_SOCKET",
        "Where systemd is told that the server is ready; systemd sets it.",
    ),
    (
        &["serve"],
        "WATCHDOG_USEC",
        "How often systemd wants to be told that the server is healthy; systemd sets it. Healthy is \
         one whose --ready-url answers below 400; without that, one whose processes are not stopped \
         and whose port takes a connection.",
    ),
];

const FILES: &[Told] = &[
    (
        GUARDS,
        "/tmp/llmlb/serve_PORT.lock",
        "Guards PORT with a kernel lock, and names the holder in JSON: pid, started_at, port. It has \
         mode 0600, and is removed when the server has ended; one that a crash has left behind blocks \
         nobody.",
    ),
    (
        GUARDS,
        "/tmp/llmlb/serve_PORT.state",
        "What llmlb status tells of a server beside that: restarts, backends that are up. It may be \
         missing, and decides nothing.",
    ),
    (
        &["serve"],
        "/tmp/llmlb/serve_PORT.log",
        "The output of a server in the background, where --log-file names no other.",
    ),
    (
        &["serve"],
        "/tmp/llmlb/serve_PORT.sock",
        "Where a load balancer is asked to hand its port over, by --replace.",
    ),
    (
        &["completions"],
        "share/bash-completion/completions/llmlb, share/zsh/site-functions/_llmlb, \
         share/fish/vendor_completions.d/llmlb.fish",
        "Where packages have put the scripts, below /usr or /usr/local.",
    ),
    (
        &["completions"],
        "/tmp/llmlb/serve_PORT.lock",
        "Read when a port is completed, for those that are guarded now.",
    ),
    (
        &["man"],
        "share/man/man1/llmlb.1, share/man/man1/llmlb-COMMAND.1",
        "Where packages have put the same pages, below /usr or /usr/local.",
    ),
];

/// Of a section that a page would lack: nothing is a word, too.
const NOTHING: &[Told] = &[
    (
        &["cluster"],
        "FILES",
        "None of its own. The certificates that an etcds:// URL names are read, and the file that \
         LLMLB_CLUSTER_PASSWORD_FILE does.",
    ),
    (
        &["man"],
        "ENVIRONMENT",
        "None: a page is the same everywhere.",
    ),
];

/// Beside those that the help shows.
const EXAMPLES: &[Told] = &[
    (&["llmlb", "status"], "What runs:", "llmlb status"),
    (
        &["status"],
        "For programs, what has been left behind too:",
        "llmlb status --all --format json",
    ),
    (
        &["llmlb", "stop"],
        "Stop the server of a port; kill it if it takes longer than 30 seconds:",
        "llmlb stop 8000 --timeout 30 --force",
    ),
    (
        &["cluster"],
        "Whether all is well:",
        "llmlb cluster check --cluster etcd://h1:2379,h2:2379,h3:2379",
    ),
    (&["stop"], "Stop all servers:", "llmlb stop --all"),
    (
        &["stop"],
        "Stop a server of another host:",
        "llmlb stop --cluster etcd://h1:2379 --service chat --host gpu1",
    ),
    (
        &["status"],
        "What runs on all hosts:",
        "llmlb status --cluster etcd://h1:2379",
    ),
    (
        &["completions"],
        "Complete in bash, for this user:",
        "llmlb completions bash > ~/.local/share/bash-completion/completions/llmlb",
    ),
    (
        &["man"],
        "Read the page of a command:",
        "llmlb man serve | man -l -",
    ),
];

/// The page of a command, or of the program itself where it is None.
pub(crate) fn page(program: Command, of: Option<&str>) -> String {
    let mut program = program;
    program.build();
    let command = of.and_then(|of| program.find_subcommand(of));
    let (name, command) = match command {
        Some(command) => (command.get_name(), command),
        None => ("llmlb", &program),
    };
    let title = command.get_display_name().unwrap_or(name);
    let mut roff = Roff::new();
    let release = format!("llmlb {}", env!("CARGO_PKG_VERSION"));
    let heading = title.to_uppercase();
    roff.control(
        "TH",
        [heading.as_str(), "1", DATE, &release, "User Commands"],
    );
    let about = command.get_about().map(StyledStr::to_string);
    let about = about.unwrap_or_default();
    roff.control("SH", ["NAME"]);
    let about_line = about.trim_end_matches('.');
    roff.text([roman(format!("{title} - {about_line}"))]);
    synopsis(&mut roff, command);
    let (examples, paragraphs) = help_paragraphs(command);
    description(&mut roff, &about, &paragraphs);
    if command.get_name() == program.get_name() {
        commands(&mut roff, &program);
    }
    options(&mut roff, command);
    list(&mut roff, "EXIT STATUS", told(EXIT_STATUS, name), name);
    let mut variables = told(ENVIRONMENT, name);
    variables.extend(options_variables(command));
    list(&mut roff, "ENVIRONMENT", variables, name);
    list(&mut roff, "FILES", told(FILES, name), name);
    show_examples(&mut roff, &examples, name);
    see_also(&mut roff, &program, title);
    wrapped(&roff.render())
}

fn synopsis(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["SYNOPSIS"]);
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:");
    let name = command.get_bin_name().unwrap_or("llmlb");
    for (number, form) in usage.lines().map(str::trim).enumerate() {
        if number > 0 {
            roff.control("br", []);
        }
        match form.strip_prefix(name) {
            Some(rest) => roff.text([bold(name), roman(rest)]),
            None => roff.text([roman(form)]),
        };
    }
}

/// The help's examples, and its other paragraphs but those that are sections here.
fn help_paragraphs(command: &Command) -> (Vec<String>, Vec<String>) {
    let help = command.get_after_help().map(StyledStr::to_string);
    let help = help.unwrap_or_default();
    let examples = help
        .split("\n\n")
        .filter_map(|paragraph| paragraph.strip_prefix("Examples:\n"))
        .flat_map(str::lines)
        .map(|line| line.trim().to_owned());
    let sections = ["Examples:", "Environment:", "Exit codes:"];
    let others = help
        .split("\n\n")
        .filter(|text| !text.is_empty() && !sections.iter().any(|start| text.starts_with(start)))
        .map(str::to_owned);
    (examples.collect(), others.collect())
}

fn description(roff: &mut Roff, about: &str, paragraphs: &[String]) {
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(sentence(about))]);
    for paragraph in paragraphs {
        roff.control("PP", []);
        roff.text([roman(paragraph.replace('\n', " "))]);
    }
}

fn commands(roff: &mut Roff, program: &Command) {
    roff.control("SH", ["COMMANDS"]);
    for command in subcommands(program) {
        let about = command.get_about().map(StyledStr::to_string);
        let page = command.get_display_name().unwrap_or_default();
        item(
            roff,
            [bold(page), roman("(1)")],
            &sentence(&about.unwrap_or_default()),
        );
    }
}

/// Those that have a page: help is clap's own.
fn subcommands(program: &Command) -> impl Iterator<Item = &Command> {
    program
        .get_subcommands()
        .filter(|command| command.get_name() != "help")
}

fn options(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["OPTIONS"]);
    let (own, balancing): (Vec<_>, Vec<_>) = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .partition(|arg| arg.is_positional() || arg.get_help_heading().is_none());
    for arg in own {
        item(roff, header(arg), &arg_text(arg));
    }
    let mut heading = None;
    for arg in balancing {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            roff.control("SS", heading);
        }
        item(roff, header(arg), &arg_text(arg));
    }
}

fn header(arg: &Arg) -> Vec<Inline> {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let mut header = Vec::new();
    for name in [short, long].into_iter().flatten() {
        if !header.is_empty() {
            header.push(roman(", "));
        }
        header.push(bold(name));
    }
    let takes_values = arg.get_num_args().is_some_and(|n| n.takes_values());
    if let Some(names) = arg.get_value_names().filter(|_| takes_values) {
        if !header.is_empty() {
            header.push(roman(" "));
        }
        header.push(italic(names.join(" ")));
    }
    header
}

fn arg_text(arg: &Arg) -> String {
    let help = arg.get_help().map(StyledStr::to_string);
    let mut text = sentence(&help.unwrap_or_default());
    let values = arg.get_possible_values();
    let values: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
    let takes_values = arg.get_num_args().is_some_and(|n| n.takes_values());
    if takes_values && !values.is_empty() {
        text += &format!(" One of {}.", values.join(", "));
    }
    let defaults = arg.get_default_values().iter().filter(|_| takes_values);
    for default in defaults {
        text += &format!(" Default: {}.", default.to_string_lossy());
    }
    if let Some(variable) = arg.get_env() {
        text += &format!(" Environment: {}.", variable.to_string_lossy());
    }
    text
}

/// The variables that stand in for options.
fn options_variables(command: &Command) -> Vec<(String, String)> {
    let of_option = |arg: &Arg| {
        let variable = arg.get_env()?.to_string_lossy().into_owned();
        let text = format!("Used without --{}.", arg.get_long()?);
        Some((variable, text))
    };
    command.get_arguments().filter_map(of_option).collect()
}

fn told(all: &[Told], name: &str) -> Vec<(String, String)> {
    all.iter()
        .filter(|(of, ..)| of.contains(&name))
        .map(|(_, what, text)| {
            // On the page of the command itself that is plain.
            let text = text
                .strip_prefix(&format!("Of {name}: "))
                .map_or_else(|| (*text).to_owned(), capital);
            ((*what).to_owned(), text)
        })
        .collect()
}

/// Without items, what is told of having none.
fn list(roff: &mut Roff, section: &str, items: Vec<(String, String)>, name: &str) {
    roff.control("SH", [section]);
    let none = NOTHING.iter();
    for (.., text) in none.filter(|(of, what, _)| of.contains(&name) && *what == section) {
        roff.text([roman(*text)]);
    }
    for (what, text) in items {
        item(roff, [bold(what)], &text);
    }
}

fn item(roff: &mut Roff, header: impl Into<Vec<Inline>>, text: &str) {
    roff.control("TP", []);
    roff.text(header.into());
    roff.text([roman(text)]);
}

/// As they are laid out.
fn show_examples(roff: &mut Roff, of_help: &[String], name: &str) {
    let own = told(EXAMPLES, name);
    if of_help.is_empty() && own.is_empty() {
        return;
    }
    roff.control("SH", ["EXAMPLES"]);
    if !of_help.is_empty() {
        laid_out(roff, of_help);
    }
    for (number, (what, line)) in own.into_iter().enumerate() {
        if number > 0 || !of_help.is_empty() {
            roff.control("PP", []);
        }
        roff.text([roman(what)]);
        laid_out(roff, &[line]);
    }
}

fn laid_out(roff: &mut Roff, lines: &[String]) {
    roff.control("RS", ["4"]);
    roff.control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("RE", []);
}

fn see_also(roff: &mut Roff, program: &Command, title: &str) {
    let pages = subcommands(program)
        .filter_map(Command::get_display_name)
        .chain(["llmlb"])
        .filter(|page| *page != title);
    let mut pages: Vec<String> = pages.map(|page| format!("{page}(1)")).collect();
    pages.sort();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(format!("{}, {OTHER_PAGES}", pages.join(", ")))]);
}

fn sentence(text: &str) -> String {
    let text = text.replace('\n', " ");
    format!("{}.", text.trim_end_matches('.'))
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_uppercase());
    first.into_iter().flatten().chain(chars).collect()
}

/// Text in lines of an editor's width, outside of what is laid out.
fn wrapped(page: &str) -> String {
    const WIDTH: usize = 80;
    let mut wrapped = String::new();
    let mut laid_out = false;
    // A header of an item is one line.
    let mut header = false;
    for line in page.lines() {
        let control = line.starts_with(['.', '\'']);
        laid_out = (laid_out || line == ".nf") && line != ".fi";
        if control || laid_out || header {
            wrapped += line;
        } else {
            let mut width = 0;
            for (number, word) in line.split(' ').filter(|word| !word.is_empty()).enumerate() {
                // At the start of a line these would be commands.
                let may_break = !word.starts_with(['.', '\'']);
                let breaks = width + 1 + word.len() > WIDTH && may_break;
                if number > 0 {
                    wrapped.push(if breaks { '\n' } else { ' ' });
                }
                width = if breaks { 0 } else { width + 1 } + word.len();
                wrapped += word;
            }
        }
        wrapped.push('\n');
        header = line == ".TP";
    }
    wrapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, with_default_command};
    use clap::CommandFactory;
    use std::ffi::OsString;

    fn pages() -> Vec<String> {
        let program = Cli::command();
        let names = program.get_subcommands().map(|c| Some(c.get_name()));
        let all = names.chain([None]);
        all.map(|name| page(Cli::command(), name)).collect()
    }

    fn section<'a>(page: &'a str, name: &str) -> Option<&'a str> {
        let (_, rest) = page.split_once(&format!(".SH {name}\n"))?;
        rest.split(".SH ").next()
    }

    #[test]
    fn every_page_has_the_usual_sections() {
        for page in pages() {
            for name in ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXAMPLES"] {
                assert!(section(&page, name).is_some(), "{name}: {page}");
            }
            for name in ["\"EXIT STATUS\"", "\"SEE ALSO\"", "ENVIRONMENT", "FILES"] {
                assert!(section(&page, name).is_some(), "{name}: {page}");
            }
        }
        let [serve, stop, status, ..] = &pages()[..] else {
            panic!("no pages");
        };
        for page in [serve, stop, status] {
            assert!(section(page, "FILES").unwrap().contains("serve_PORT.lock"));
            let variables = section(page, "ENVIRONMENT").unwrap();
            assert!(variables.contains("LLMLB_LOCK_DIR"));
            assert_eq!(variables.contains("LLMLB_PORT"), page == serve);
        }
        assert!(
            section(serve, "OPTIONS")
                .unwrap()
                .contains("Environment: LLMLB_PORT.")
        );
        let ends = section(serve, "\"EXIT STATUS\"").unwrap();
        assert!(ends.contains("\nThere is no such COMMAND."));
    }

    #[test]
    fn the_pages_name_each_other() {
        let all = page(Cli::command(), None);
        for command in subcommands(&Cli::command()) {
            let page = format!("llmlb\\-{}", command.get_name());
            assert!(section(&all, "COMMANDS").unwrap().contains(&page), "{page}");
            assert!(
                section(&all, "\"SEE ALSO\"").unwrap().contains(&page),
                "{page}"
            );
        }
    }

    /// One line for each example, with arguments that are understood.
    #[test]
    fn examples_are_laid_out_and_can_be_typed() {
        let mut seen = 0;
        for page in pages() {
            let examples = section(&page, "EXAMPLES").unwrap().replace("\\-", "-");
            for line in examples.lines().filter(|line| line.starts_with("llmlb ")) {
                let typed = line.split(['>', '|']).next().unwrap();
                let words = typed.split_whitespace().map(OsString::from);
                let parsed = Cli::command().try_get_matches_from(with_default_command(words));
                assert!(parsed.is_ok(), "{line}: {parsed:?}");
                seen += 1;
            }
        }
        assert!(seen >= 10, "{seen}");
    }
}
