//! The load balancer as a server of its own under a guard: so the watchdog can kill it like any
//! other, without the guard. Apart from the load balancer, which is the same either way.

use std::ffi::OsString;
use std::time::Duration;

use llmlb_lock_core::LockDir;

use super::active::OWN;
use crate::args::ServeArgs;
use crate::built_in;
use crate::exit::{self, Failure};
use crate::hangup::Hangups;
use crate::serve;
use crate::signals::{Shutdown, survive_file_size_limit};

const BALANCER: &str = "@balancer";

/// Of the time to drain, so much is for what comes after the last request.
const LAST: Duration = Duration::from_millis(100);

/// What the guard was told becomes its server's command.
pub(crate) fn prepare(args: &mut ServeArgs, port: u16) -> Result<(), Failure> {
    if args.drain_timeout <= args.gateway.drain_delay() + LAST {
        let message = format!(
            "--drain-timeout {:?} has to leave time after --drain-delay {:?}: with --exclusive the \
             load balancer has both to end in",
            args.drain_timeout,
            args.gateway.drain_delay()
        );
        return Err(Failure::new(exit::USAGE, message));
    }
    let given = std::env::args_os().skip(1).map(literal);
    let before = [OWN.into(), BALANCER.into(), port.to_string().into()];
    args.command = before.into_iter().chain(given).collect();
    Ok(())
}

/// Whether that is this command.
pub(crate) fn is(command: &[OsString]) -> bool {
    command.get(1).is_some_and(|word| word == BALANCER)
        && command.first().is_some_and(|word| word == OWN)
}

/// Placeholders are for commands that were typed.
fn literal(arg: OsString) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut text = Vec::with_capacity(arg.len());
    let mut rest = arg.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let placeholder = [&b"{port}"[..], b"{host}"]
            .into_iter()
            .find(|placeholder| rest.starts_with(placeholder));
        match placeholder {
            Some(placeholder) => {
                text.push(b'{');
                text.extend_from_slice(placeholder);
                text.push(b'}');
                rest = &rest[placeholder.len()..];
            }
            None => {
                text.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(text)
}

/// The arguments of this process, as the guard was given them where this is such a server.
pub(crate) fn typed() -> Vec<OsString> {
    arguments(std::env::args_os().collect()).0
}

/// The guard's port, if this is such a server.
pub(crate) fn port() -> Option<u16> {
    arguments(std::env::args_os().take(3).collect()).1
}

fn arguments(mut all: Vec<OsString>) -> (Vec<OsString>, Option<u16>) {
    let port = match all.get(1..3) {
        Some([name, port]) if name == BALANCER => port.to_str().and_then(|port| port.parse().ok()),
        _ => None,
    };
    if port.is_some() {
        all.drain(1..3);
    }
    (all, port)
}

/// Serves on the guard's port.
pub(crate) fn run(mut args: ServeArgs, port: u16) -> Result<u8, Failure> {
    args.port = port;
    survive_file_size_limit();
    // The guard kills when it has run out.
    args.drain_timeout = args
        .drain_timeout
        .saturating_sub(args.gateway.drain_delay() + LAST);
    let failed = |e: std::io::Error| Failure::new(exit::FAILURE, format!("cannot start: {e}"));
    serve::run_to_end(async {
        let shutdown = Shutdown::listen().map_err(failed)?;
        let hangups = Hangups::listen().map_err(failed)?;
        let named = LockDir::default().read_lock_info(port)?;
        let Some(info) = named.filter(|info| info.pid == std::process::id()) else {
            let message = format!("port {port} is not guarded for this process");
            return Err(Failure::new(exit::FAILURE, message));
        };
        let listener = serve::bind(&args.host, port)?;
        built_in::run_guarded(&info, listener, &args, shutdown, hangups).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_typed_reaches_the_load_balancer_as_it_was_typed() {
        let literal = |text: &str| literal(text.into()).into_string().unwrap();
        assert_eq!(
            literal("a{port}b{host}{x}{port"),
            "a{{port}}b{{host}}{x}{port"
        );
        let all = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let (rest, port) = arguments(all(&["llmlb", BALANCER, "8000", "serve", "-p0"]));
        assert_eq!((rest, port), (all(&["llmlb", "serve", "-p0"]), Some(8000)));
        let plain = all(&["llmlb", "serve"]);
        assert_eq!(arguments(plain.clone()), (plain, None));
    }
}
