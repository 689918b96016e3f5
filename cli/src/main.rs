//! `llmlb`: guard a port and serve on it, see what runs, stop it.

mod args;
mod exit;
mod gateway;
mod output;
mod serve;
mod signals;
mod status;
mod stop;
mod supervise;

use std::env;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use args::{Cli, Command};
use exit::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse_from(args::with_default_command(env::args_os()));
    let result = match cli.command {
        Command::Serve(args) => {
            log(LevelFilter::INFO);
            serve::run(args)
        }
        Command::Stop(args) => {
            log(LevelFilter::WARN);
            stop::run(&args)
        }
        Command::Status(args) => {
            log(LevelFilter::WARN);
            status::run(&args)
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "llmlb", &mut script);
            output::write(&script).map(|()| exit::OK)
        }
        Command::Man => manual().and_then(|page| output::write(&page).map(|()| exit::OK)),
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => failure.report(),
    }
}

fn manual() -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command())
        .render(&mut page)
        .map_err(|e| Failure::new(exit::FAILURE, e))?;
    Ok(page)
}

/// Logs to stderr: what `LLMLB_LOG` asks for, else what the command needs.
fn log(default: LevelFilter) {
    let wanted = env::var("LLMLB_LOG").ok().filter(|text| !text.is_empty());
    let (filter, mistake) = match wanted.as_deref().map(str::parse::<Targets>) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(e)) => (Targets::new().with_default(default), Some(e)),
        None => (Targets::new().with_default(default), None),
    };
    let colour = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false);
    tracing_subscriber::registry()
        .with(layer)
        .with(filter)
        .init();
    if let Some(e) = mistake {
        tracing::warn!("LLMLB_LOG is not understood and has no effect: {e}");
    }
}
