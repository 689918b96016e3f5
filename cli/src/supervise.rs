//! Runs any server command under the guard.

use std::ffi::{OsStr, OsString};
use std::process::Command;

use llmlb_lock_core::{GUARDED_PORT_ENV, ServerLock};

use crate::args::ServeArgs;
use crate::cluster::Active;
use crate::exit::{self, Failure};

#[cfg(unix)]
mod ended;
#[cfg(unix)]
mod ending;
#[cfg(unix)]
mod left_behind;
#[cfg(unix)]
mod passed_through;
mod program;
mod readying;
#[cfg(unix)]
mod restart;
#[cfg(unix)]
mod terminal;
#[cfg(unix)]
mod unix;
pub(crate) use program::{cannot_run, check_command};
#[cfg(unix)]
pub(crate) use unix::run;

#[cfg(windows)]
mod windows;
#[cfg(windows)]
pub(crate) use windows::run;

/// The server's command, told where to serve.
fn command(
    lock: &ServerLock,
    args: &ServeArgs,
    active: Option<&Active>,
) -> Result<Command, Failure> {
    let port = lock.info().port.to_string();
    let (program, arguments) = args
        .command
        .split_first()
        .ok_or_else(|| Failure::new(exit::USAGE, "no command to run"))?;
    let mut command = match active {
        Some(active) => {
            let mut launcher = active.launcher();
            launcher.arg(program);
            launcher
        }
        None => Command::new(program),
    };
    match is_typed(args) {
        // It is llmlb's to log in with, and nobody else's.
        true => command.env_remove("LLMLB_CLUSTER_PASSWORD"),
        // Its guard speaks for it.
        false => command
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC"),
    };
    command
        .args(arguments.iter().map(|arg| fill(arg, &port, &args.host)))
        .env("PORT", &port)
        .env("HOST", &args.host)
        .env("LLMLB_PORT", &port)
        .env("LLMLB_HOST", &args.host)
        .env(GUARDED_PORT_ENV, &port)
        // Python programs that set their process title would overwrite the above.
        .env("SPT_NOENV", "1");
    Ok(command)
}

/// Whether the command, if there is one, was typed; else it is the load balancer.
pub(crate) fn is_typed(
    #[cfg_attr(not(target_os = "linux"), expect(unused))] args: &ServeArgs,
) -> bool {
    #[cfg(target_os = "linux")]
    if crate::cluster::guarded::is(&args.command) {
        return false;
    }
    true
}

/// What the server has to do to be ready.
#[cfg(unix)]
pub(crate) fn awaited(port: u16, args: &ServeArgs) -> String {
    readying::probe(std::process::id(), port, args).awaited()
}

/// What the log calls it.
#[cfg(unix)]
fn name(args: &ServeArgs) -> String {
    match is_typed(args) {
        true => format!("{:?}", args.command[0]),
        false => "the load balancer".to_owned(),
    }
}

/// The argument with `{port}` and `{host}` replaced; `{{port}}` is a literal `{port}`.
#[cfg(unix)]
fn fill(arg: &OsStr, port: &str, host: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let units = |text: &str| text.as_bytes().to_vec();
    OsString::from_vec(replace(
        arg.as_bytes(),
        &replacements(port, host).map(|(from, to)| (units(from), units(to))),
    ))
}

/// The argument with `{port}` and `{host}` replaced; `{{port}}` is a literal `{port}`.
#[cfg(windows)]
fn fill(arg: &OsStr, port: &str, host: &str) -> OsString {
    use std::os::windows::ffi::{OsStrExt, OsStringExt};
    let units = |text: &str| text.encode_utf16().collect::<Vec<_>>();
    let arg: Vec<u16> = arg.encode_wide().collect();
    OsString::from_wide(&replace(
        &arg,
        &replacements(port, host).map(|(from, to)| (units(from), units(to))),
    ))
}

fn replacements<'a>(port: &'a str, host: &'a str) -> [(&'static str, &'a str); 4] {
    [
        ("{{port}}", "{port}"),
        ("{{host}}", "{host}"),
        ("{port}", port),
        ("{host}", host),
    ]
}

/// Once from left to right: what was put in is not looked at again.
fn replace<T: Copy + PartialEq>(text: &[T], replacements: &[(Vec<T>, Vec<T>)]) -> Vec<T> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let found = replacements.iter().find(|(from, _)| rest.starts_with(from));
        if let Some((from, to)) = found {
            result.extend_from_slice(to);
            rest = &rest[from.len()..];
        } else {
            result.push(first);
            rest = tail;
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn placeholders_are_replaced_wherever_they_stand() {
        let fill = |text: &str| fill(text.as_ref(), "8000", "::1");
        assert_eq!(
            fill("--url=http://{host}:{port}/{port}"),
            "--url=http://::1:8000/8000"
        );
        assert_eq!(fill("{port"), "{port");
        assert_eq!(fill("{{port}} {{host}}"), "{port} {host}");
        assert_eq!(fill(r#"{"port":{port}}"#), r#"{"port":8000}"#);
        assert_eq!(fill(""), "");
    }
}
