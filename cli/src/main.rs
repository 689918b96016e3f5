//! `llmlb`: guard a port and serve on it, see what runs, stop it.

mod args;
mod backends;
mod built_in;
mod cluster;
mod config;
#[cfg(unix)]
mod detach;
mod details;
mod exit;
mod guard;
mod hangup;
mod hints;
mod insight;
mod listening;
mod manual;
mod output;
mod own_address;
mod owner;
mod pool;
mod ready;
mod serve;
mod signals;
mod status;
mod stop;
mod succession;
mod supervise;
mod unrepeated;

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use llmlb_gateway::ACCESS_LOG;
use llmlb_lock_core::LOCK_DIR_ENV;
use tracing::Metadata;
use tracing::level_filters::{LevelFilter, ParseLevelFilterError};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use args::{Cli, ClusterCommand, Command};
use config::Told;
use exit::Failure;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if let Some(result) = cluster::hidden_subcommand() {
        return match result {
            Ok(code) => code.into(),
            Err(failure) => output::report(failure),
        };
    }
    let told = match Told::new() {
        Ok(told) => told,
        Err(failure) => return output::report(failure),
    };
    let matches = match Cli::command().try_get_matches_from(&told.arguments) {
        Ok(matches) => matches,
        Err(e) => match hints::hint(&told.arguments, &e) {
            Some(hint) => return output::report(Failure::new(exit::USAGE, hint)),
            None => e.exit(),
        },
    };
    if let Some(message) = args::without_effect(&matches) {
        let failure = told.locate(&message);
        return output::report(failure.unwrap_or_else(|| Failure::new(exit::USAGE, message)));
    }
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    if let Some(directory) = env::var_os(LOCK_DIR_ENV).map(PathBuf::from)
        && directory.is_relative()
        && !directory.as_os_str().is_empty()
    {
        let directory = directory.display();
        output::note(&format!(
            "Warning: {LOCK_DIR_ENV}={directory} is another directory wherever you are; use an \
             absolute path"
        ));
    }
    let result = match cli.command {
        Command::Serve(args) => {
            log(LevelFilter::INFO, !args.detach);
            #[cfg(target_os = "linux")]
            let result = match cluster::guarded::arguments(env::args_os()).1 {
                Some(port) => cluster::guarded::run(*args, port),
                None => serve::run(*args),
            };
            #[cfg(not(target_os = "linux"))]
            let result = serve::run(*args);
            result
        }
        Command::Stop(args) => {
            log(LevelFilter::WARN, true);
            match &args.cluster {
                Some(url) => cluster::stop(url.as_deref(), &args),
                None => stop::run(&args.named()),
            }
        }
        Command::Status(args) => {
            log(LevelFilter::WARN, true);
            match &args.cluster {
                Some(url) => cluster::status(url.as_deref(), &args),
                None => status::run(&args.named()),
            }
        }
        Command::Cluster {
            command: ClusterCommand::Check { cluster },
        } => {
            log(LevelFilter::ERROR, true);
            cluster::check(cluster.as_deref())
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "llmlb", &mut script);
            output::write(&script).map(|()| exit::OK)
        }
        Command::Man { command } => {
            let page = manual::page(Cli::command(), command.as_deref());
            output::write(page.as_bytes()).map(|()| exit::OK)
        }
    };
    match result {
        Ok(code) => code.into(),
        Err(failure) => output::report(failure),
    }
}

/// Logs to stderr, in colours where that is a terminal and stays one: what `LLMLB_LOG` asks for, else what the command needs.
fn log(default: LevelFilter, may_colour: bool) {
    let wanted = env::var("LLMLB_LOG").ok().filter(|text| !text.is_empty());
    // A bare word is a level; as a target, which it could be too, it would silence all others.
    let level = |text: &str| {
        let level: LevelFilter = text.parse()?;
        Ok::<_, ParseLevelFilterError>(Targets::new().with_default(level))
    };
    let parse = |text: &str| match level(text) {
        Ok(filter) => Ok(filter),
        Err(e) if !text.contains('=') => Err(e.to_string()),
        Err(_) => text.parse::<Targets>().map_err(|e| e.to_string()),
    };
    let (filter, mistake) = match wanted.as_deref().map(parse).transpose() {
        Ok(filter) => (filter, None),
        Err(e) => (None, Some(e)),
    };
    let filter = filter.unwrap_or_else(|| Targets::new().with_default(default));
    let colour = may_colour
        && io::stderr().is_terminal()
        && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let is_access = |metadata: &Metadata<'_>| metadata.target() == ACCESS_LOG;
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .with_filter(filter_fn(move |metadata| !is_access(metadata)));
    // Lines of JSON, for programs: nothing stands before them.
    let access = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_filter(filter_fn(is_access));
    tracing_subscriber::registry()
        .with(layer)
        .with(access)
        .with(filter)
        .init();
    if let Some(e) = mistake {
        tracing::warn!("LLMLB_LOG is not understood and has no effect: {e}");
    }
}
