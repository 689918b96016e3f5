//! What a shell completes: its script asks this program each time, which so can offer the ports that
//! are guarded now. Apart from the arguments, which name what they take from here.

use std::ffi::OsString;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use llmlb_lock_core::{LockDir, ServerState};

use crate::args::Cli;
use crate::exit::{self, Failure};

/// How a script tells that it asks.
const ASKED: &str = "LLMLB_COMPLETE";
const PROGRAM: &str = "llmlb";

/// Answers a script that asks, and ends.
pub(crate) fn answer() {
    CompleteEnv::with_factory(Cli::command)
        .var(ASKED)
        .complete();
}

/// What the shell reads once.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<Vec<u8>, Failure> {
    let name = shell.to_string();
    let completer = Shells::builtins();
    let completer = completer
        .completer(&name)
        .ok_or_else(|| Failure::new(exit::FAILURE, format!("no completions for {name}")))?;
    let mut script = Vec::new();
    completer
        .write_registration(ASKED, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(|e| Failure::new(exit::FAILURE, e))?;
    if shell == clap_complete::Shell::Zsh {
        // Loaded by the first completion, it has to answer that too.
        script.extend(
            b"\n[ \"$funcstack[1]\" = \"_llmlb\" ] && _clap_dynamic_completer_llmlb \"$@\"\n",
        );
    }
    Ok(script)
}

/// The ports that are guarded, each with what is known of it.
pub(crate) fn live_ports() -> Vec<CompletionCandidate> {
    let servers = LockDir::default().servers().unwrap_or_default();
    let live = servers.into_iter().filter_map(|server| {
        let help = match (&server.state, &server.info) {
            (ServerState::Running, Some(info)) => format!("PID {}", info.pid),
            (ServerState::Held, _) => "held".to_owned(),
            _ => return None,
        };
        let port = OsString::from(server.port.to_string());
        Some(CompletionCandidate::new(port).help(Some(help.into())))
    });
    live.collect()
}
