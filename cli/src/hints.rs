//! What to type instead, for what others' tools have taught people to type.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The hint for arguments that clap does not understand, if we know what was meant.
pub(crate) fn hint(args: &[OsString], error: &clap::Error) -> Option<String> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let typed = named(ContextKind::InvalidSubcommand)?;
            if let Some(meant) = command_for(typed) {
                return Some(format!("there is no command '{typed}': type {meant}"));
            }
            // A server, by all appearances.
            which::which(typed).ok()?;
            Some(format!(
                "put serve -- before the command: llmlb serve [OPTIONS] -- {typed} ..."
            ))
        }
        ErrorKind::UnknownArgument => {
            let typed = named(ContextKind::InvalidArg)?;
            let serves = args.get(1).is_some_and(|arg| arg == "serve");
            (serves && !typed.starts_with('-')).then(|| {
                if typed.parse::<u16>().is_ok() {
                    return format!("a port is given as --port: llmlb serve --port {typed}");
                }
                format!(
                    "put -- before the command: llmlb serve [OPTIONS] -- {typed} ...\n\n\
                     A port is given as --port PORT"
                )
            })
        }
        _ => None,
    }
}

fn command_for(typed: &str) -> Option<&'static str> {
    Some(match typed {
        "start" | "up" => "llmlb serve [-- COMMAND]",
        "run" | "exec" => "llmlb serve -- COMMAND",
        "restart" | "reload" => "llmlb serve --replace [-- COMMAND]",
        "list" | "ls" | "ps" => "llmlb status",
        "kill" => "llmlb stop PORT --force",
        "down" => "llmlb stop PORT, or llmlb stop --all",
        "log" | "logs" => "llmlb status --format wide, and tail -f of the LOG it names",
        _ => return None,
    })
}
