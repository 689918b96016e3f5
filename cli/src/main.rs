//! `llmlb`: guard a port and serve on it, see what runs, stop it.

mod args;
mod backends;
mod built_in;
mod certificates;
mod check;
mod cluster;
mod completion;
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
mod log;
mod manual;
mod output;
mod own_address;
mod owner;
mod pool;
mod ready;
mod said;
mod serve;
mod signals;
mod state;
mod status;
mod stop;
mod succession;
mod supervise;
mod unrepeated;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use llmlb_lock_core::LOCK_DIR_ENV;
use tracing::level_filters::LevelFilter;

use args::{Cli, ClusterCommand, Command};
use config::Told;
use exit::Failure;

fn main() -> ExitCode {
    let code = run();
    log::flush();
    code
}

fn run() -> ExitCode {
    completion::answer();
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
            log::start(LevelFilter::INFO, !args.detach);
            #[cfg(target_os = "linux")]
            let result = match cluster::guarded::port() {
                Some(port) => cluster::guarded::run(*args, port),
                None => serve::run(*args),
            };
            #[cfg(not(target_os = "linux"))]
            let result = serve::run(*args);
            result
        }
        Command::Stop(args) => {
            log::start(LevelFilter::WARN, true);
            match &args.cluster {
                Some(url) => cluster::stop(url.as_deref(), &args),
                None => stop::run(&args.named()),
            }
        }
        Command::Status(args) => {
            log::start(LevelFilter::WARN, true);
            match &args.cluster {
                Some(url) => cluster::status(url.as_deref(), &args),
                None => status::run(&args.named()),
            }
        }
        Command::Cluster {
            command: ClusterCommand::Check { cluster },
        } => {
            log::start(LevelFilter::ERROR, true);
            cluster::check(cluster.as_deref())
        }
        Command::Completions { shell } => {
            let script = completion::script(shell);
            script.and_then(|script| output::write(&script).map(|()| exit::OK))
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
